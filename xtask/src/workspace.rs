//! Where things lie, and a `cargo` that answers as it would to somebody who typed the command.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folders that every command needs.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The folder of the root `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Workspace {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().unwrap_or(manifest).to_owned();
        let target = env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root.join("target"), |target| root.join(target));
        Workspace { root, target }
    }

    /// Where tools that are not Debian packages are installed.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// `program`, started at the root.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        command
    }

    /// `cargo` with `words`, split at blanks.
    ///
    /// Our own `cargo run` left the description of this package in the environment. Build scripts that watch those
    /// variables would run again, and compile again, every time somebody changes between `cargo xtask` and `cargo`.
    pub(crate) fn cargo(&self, words: &str) -> Command {
        let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(program);
        command.current_dir(&self.root).args(words.split_whitespace());
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_NAME", "CARGO_CRATE_NAME"]
                .iter()
                .any(|prefix| text.starts_with(prefix))
            {
                command.env_remove(&name);
            }
        }
        // Nobody compiles twice on a CI machine, so what incremental compilation writes is only in the way.
        if env::var_os("CI").is_some_and(|ci| ci == "true") {
            command.env("CARGO_INCREMENTAL", "0");
        }
        command
    }
}
