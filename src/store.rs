//! The store of a process: opened before its roles, closed after them.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{ArgMatches, Command};
use greenroom_master::StoreWitness;
use greenroom_storage::{OpenError, Schema, Storage, StorageConfig};
use rustix::fs::{FlockOperation, flock};

use crate::{
    operator::{print, wait},
    settings::{self, Settings},
};

/// The store that the settings name; without one, `store.sqlite` in the data folder, made if it is not there.
pub(crate) fn config(settings: &Settings) -> Result<StorageConfig> {
    config_in(settings, Settings::data)
}

fn config_in(
    settings: &Settings,
    data: impl FnOnce(&Settings) -> Result<PathBuf>,
) -> Result<StorageConfig> {
    let mut config: StorageConfig = settings.table("storage")?;
    if config.store.is_empty() {
        config.store = format!("sqlite:{}", data(settings)?.join("store.sqlite").display()).into();
    }
    Ok(config)
}

/// Game servers without names that may have one data folder.
const SPOOLS_MAX: u32 = 64;

/// Opens the store.
pub(crate) fn open(settings: &Settings, schema: Schema) -> Result<Storage> {
    let config = StorageConfig { spool: PathBuf::new(), ..config(settings)? };
    greenroom_storage::open(&config, schema).context("opening the store")
}

/// Opens the store for a game server, whose snapshots wait on this machine's disk while the store is away.
pub(crate) fn open_with_spool(settings: &Settings, schema: &Schema) -> Result<Storage> {
    let mut config = config(settings)?;
    let folder = match config.spool.as_os_str().is_empty() {
        true => settings.data()?.join("spool"),
        false => config.spool.clone(),
    };
    let name = settings.text("game.name").filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| "game".into());
    // A name is any text; a folder's is not.
    let name = name.replace(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-', "_");
    // A server takes up what it left under its name. Where several have one, or none, the next free number.
    let mut number = 1;
    loop {
        config.spool =
            folder.join(if number == 1 { name.clone() } else { format!("{name}.{number}") });
        match greenroom_storage::open(&config, schema.clone()) {
            Err(OpenError::SpoolInUse { .. }) if number < SPOOLS_MAX => number += 1,
            opened => return opened.context("opening the store"),
        }
    }
}

/// How long the witness's store may take to answer: a master waits for it before it decides.
const WITNESS_ANSWER_MAX: Duration = Duration::from_secs(1);

/// The witness of masters that is a document of a store, where `at` names one. It has a connection of its own, since
/// what waits for the store must not keep a master waiting that wants to decide.
pub(crate) fn witness(
    settings: &Settings,
    cluster: &str,
    at: &str,
) -> Result<Option<StoreWitness>> {
    if !at.starts_with("couchbase://") && !at.starts_with("couchbases://") {
        return Ok(None);
    }
    let config = config(settings)?;
    // At least a majority, whatever may be lost of other documents: who wins must stay the winner.
    let level = config.couchbase_durability.split(',').next().unwrap_or_default().trim();
    let level = if matches!(level, "" | "none") { "majority" } else { level };
    let config = StorageConfig {
        store: at.into(),
        couchbase_durability: level.into(),
        spool: PathBuf::new(),
        deadline: WITNESS_ANSWER_MAX,
        couchbase_request_timeout: config.couchbase_request_timeout.min(WITNESS_ANSWER_MAX / 3),
        ..config
    };
    let storage = greenroom_storage::open(&config, Schema::default());
    let storage = storage.context("opening the witness of the masters")?;
    Ok(Some(StoreWitness::new(storage, cluster, at)?))
}

pub(crate) fn command() -> Command {
    let of = |name: &'static str, about: &'static str| {
        settings::flags(Command::new(name).about(about), &["cluster", "storage"])
    };
    Command::new("store")
        .about("The store where documents are: making it, and looking after it")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(of("init", "Makes what the store lacks; what is there stays as it is"))
        .subcommand(of("check", "Says what is missing or wrong, and ends with 1 if something is"))
}

/// `greenroom store`.
pub(crate) fn run(schema: &Schema, matches: &ArgMatches) -> Result<ExitCode> {
    match matches.subcommand() {
        Some(("init", matches)) => {
            let config = config(&Settings::read(matches)?)?;
            let made = wait(greenroom_storage::init(&config, schema))?;
            let made = made.with_context(|| format!("making the store {}", config.store))?;
            let mut text: String = made.iter().map(|what| format!("made {what}\n")).collect();
            if made.is_empty() {
                text.push_str("everything is there\n");
            }
            print(&text)
        }
        Some(("check", matches)) => {
            let config = config_in(&Settings::read(matches)?, Settings::data_if_any)?;
            let found = wait(greenroom_storage::check(&config, schema))?;
            let found = found.unwrap_or_else(|error| vec![format!("{error}").into()]);
            let text: String = found.iter().map(|finding| format!("{finding}\n")).collect();
            if found.is_empty() {
                return print(&format!("{}: nothing is missing\n", config.store));
            }
            print(&text)?;
            Ok(ExitCode::FAILURE)
        }
        _ => bail!("no such command; `greenroom help store` lists them"),
    }
}

/// Waits until everything that was taken is stored, or has its refusal.
pub(crate) fn close(storage: &Storage) -> Result<()> {
    wait(storage.close())
}

/// That this `up` has the data folder, until it is dropped or the process ends, however it does.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Takes the data folder for one `up`: two would write the same logs and keys.
pub(crate) fn lock(data: &Path) -> Result<Lock> {
    let path = data.join("up.lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| {
            format!(
                "opening {}: choose another folder with --data, or mend its rights",
                path.display()
            )
        })?;
    if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(error).with_context(|| format!("locking {}", path.display()));
        }
        let mut process = String::new();
        file.read_to_string(&mut process).with_context(|| format!("reading {}", path.display()))?;
        bail!(
            "another `greenroom up` (process {}) has the data folder {}: stop it, or choose another folder with --data",
            process.trim(),
            data.display()
        );
    }
    let write = || -> std::io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    let mut write = write;
    write().with_context(|| format!("writing {}: is its disk full?", path.display()))?;
    Ok(Lock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_has_one_up_at_a_time_and_the_second_is_told_whose_it_is() {
        let folder = std::env::temp_dir().join(format!("greenroom-lock-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let first = lock(&folder).unwrap();
        let error = lock(&folder).unwrap_err().to_string();
        let process = format!("(process {})", std::process::id());
        assert!(error.contains(&process) && error.contains("--data"), "{error}");
        drop(first);
        lock(&folder).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }
}
