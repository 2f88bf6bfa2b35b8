//! The secrets of a cluster, as files in its data folder that only their owner can read.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail};
use greenroom_console::AdminToken;
use greenroom_link::ClusterKey;

use crate::settings::{ClusterConfig, make_folder};

/// Whether a missing key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// By the first process of a cluster.
    Make,
    /// By nobody else: two made keys are two clusters.
    Refuse,
}

/// The cluster's key.
pub(crate) fn cluster_key(cluster: &ClusterConfig, missing: Missing) -> Result<ClusterKey> {
    let file = cluster.key_file.clone().unwrap_or_else(|| cluster.data.join("cluster.key"));
    let text =
        secret(&file, missing, "the cluster's key", || Ok(ClusterKey::generate()?.expose()))?;
    text.parse().with_context(|| format!("the cluster's key in {}", file.display()))
}

/// Writes a file that may have secrets in it: only its owner can read it, even if it was there before.
pub(crate) fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut out = options.open(file)?;
    #[cfg(unix)]
    out.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    out.write_all(text.as_bytes())
}

/// Where the token of the admin port's actions is.
pub(crate) fn admin_token_file(data: &Path) -> PathBuf {
    data.join("admin.token")
}

/// The token of the admin port's actions.
pub(crate) fn admin_token(data: &Path, missing: Missing) -> Result<AdminToken> {
    let file = admin_token_file(data);
    let text = secret(&file, missing, "the admin token", || {
        Ok(AdminToken::generate()?.expose().to_owned())
    })?;
    text.parse().with_context(|| format!("the admin token in {}", file.display()))
}

/// Reads a secret, or makes it. Two processes that start at once agree: the one that creates the file wins.
fn secret(
    file: &Path,
    missing: Missing,
    what: &str,
    make: impl Fn() -> Result<String>,
) -> Result<String> {
    match std::fs::read_to_string(file) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {
            bail!("{what} in {} is empty: remove the file, or put the key into it", file.display())
        }
        // Where a file is in the folder's place, making the folder says so.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("reading {what} from {}", file.display()));
        }
    }
    if missing == Missing::Refuse {
        bail!(
            "{what} is not in {}: start the master first, which makes it, copy the file from where that runs, or say \
             with --data in which folder it is",
            file.display()
        );
    }
    if let Some(folder) = file.parent() {
        make_folder(folder)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    // Written beside its place and moved there, so that nobody reads a part of it.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let beside = file.with_extension(format!("{}-{count}.new", std::process::id()));
    let made = make()?;
    let write = || -> std::io::Result<()> {
        let mut out = options.open(&beside)?;
        out.write_all(made.as_bytes())?;
        out.sync_all()?;
        // A hard link fails if another process was faster; renaming would replace its key.
        let linked = std::fs::hard_link(&beside, file);
        std::fs::remove_file(&beside)?;
        match linked {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    };
    let written = write();
    if written.is_err() {
        // On a full disk an empty file may be left; nobody needs it.
        let _was_never_made = std::fs::remove_file(&beside);
    }
    written.with_context(|| format!("writing {what} to {}", file.display()))?;
    Ok(std::fs::read_to_string(file)
        .with_context(|| format!("reading {what} from {}", file.display()))?
        .trim()
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_can_read_it() {
        let data = std::env::temp_dir().join(format!("greenroom-keys-{}", std::process::id()));
        let cluster = ClusterConfig { data: data.clone(), ..ClusterConfig::default() };
        let error = format!("{:#}", cluster_key(&cluster, Missing::Refuse).unwrap_err());
        assert!(error.contains("start the master first"), "{error}");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| cluster_key(&cluster, Missing::Make).unwrap()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]), "all processes have one key");
        let mode = std::os::unix::fs::MetadataExt::mode(
            &std::fs::metadata(data.join("cluster.key")).unwrap(),
        );
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(data.join("cluster.key"), "abc").unwrap();
        assert!(
            format!("{:#}", cluster_key(&cluster, Missing::Make).unwrap_err())
                .contains("64 hexadecimal digits")
        );
        std::fs::remove_dir_all(data).unwrap();
    }
}
