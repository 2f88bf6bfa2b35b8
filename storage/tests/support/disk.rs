//! A small disk of a test's own, for what happens when it is full: `ENOSPC` itself, and not what resembles it.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a test of this program once more, in a process that alone sees a file system of `kib` KiB at `folder`: a tmpfs
/// in a mount namespace, which is gone with it. It is made by the superuser, or by anybody who may make a user
/// namespace; where neither is possible, the test fails and says so.
pub(crate) fn on_a_disk_of(kib: u32, folder: &Path, test: &str, variable: (&str, &str)) -> Output {
    let mut unshare = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let script = "mount -t tmpfs -o \"size=$1k\" tmpfs \"$2\" || exit 99; shift 2; exec \"$@\"";
    let output = unshare
        .args(["--mount", "sh", "-c", script, "sh", &kib.to_string()])
        .arg(folder)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(variable.0, variable.1)
        .output()
        .unwrap_or_else(|error| panic!("a disk of its own needs `unshare` of util-linux: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() || !(said.contains("unshare:") || output.status.code() == Some(99)),
        "a disk of its own needs the right to mount in a namespace (root, or user namespaces): {said}"
    );
    output
}
