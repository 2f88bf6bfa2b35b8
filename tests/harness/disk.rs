//! A disk that is soon full, for one process alone: a tmpfs in a mount namespace of its own.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use super::Process;

/// Makes the namespace's disk, and becomes the command.
const MOUNT: &str = "mount -t tmpfs -o size=\"$1\" tmpfs \"$2\" && shift 2 && exec \"$@\"";

/// The same command with a small disk at `folder`, which is made. Only that process and its children have it.
pub fn on_small_disk(command: &Command, folder: &Path, size: &str) -> Command {
    fs::create_dir_all(folder).unwrap();
    // A machine on which the tests are not root may let them have a namespace of users first.
    let ways = [&["--mount"][..], &["--mount", "--user", "--map-root-user"]];
    let works = |way: &&&[&str]| {
        let mut trial = Command::new("unshare");
        trial.args(**way).args(["sh", "-c", MOUNT, "sh", size]).arg(folder).arg("true");
        trial.output().is_ok_and(|tried| tried.status.success())
    };
    let way = ways.iter().find(works).expect(
        "a disk that is full needs `unshare --mount` and `mount -t tmpfs`: run the tests as root, with the right to \
         mount (CAP_SYS_ADMIN)",
    );
    let mut small = Command::new("unshare");
    small.args(*way).args(["sh", "-c", MOUNT, "sh", size]).arg(folder);
    small.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => small.env(name, value),
            None => small.env_remove(name),
        };
    }
    small
}

/// A folder of a process, as others get at it while it lives.
pub fn seen_by(process: &Process, folder: &Path) -> PathBuf {
    let root = format!("/proc/{}/root", process.child.id());
    Path::new(&root).join(folder.strip_prefix("/").unwrap())
}

/// Something that fills a disk to its last byte, until it is dropped.
pub struct Filler(PathBuf);

impl Filler {
    pub fn of(folder: &Path) -> Self {
        let path = folder.join("filler");
        let mut file = File::create(&path).unwrap();
        let filler = Self(path);
        let error = loop {
            if let Err(error) = file.write_all(&[0; 4_096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        filler
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _gone_with_its_disk = fs::remove_file(&self.0);
    }
}
