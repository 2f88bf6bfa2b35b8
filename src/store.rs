//! The store of a process: opened before its roles, closed after them.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgMatches, Command};
use ecow::{EcoString, eco_format};
use greenroom_console::client;
use greenroom_master::StoreWitness;
use greenroom_protocol::search::Filter;
use greenroom_protocol::wire::admin_master::{Action, Find, RestoreInstance, Table};
use greenroom_protocol::wire::client_session::MetaValue;
use greenroom_protocol::{Incarnation, InstanceId};
use greenroom_storage::{
    Cause, Collection, Key, OpenError, Owner, Schema, SetAside, Storage, StorageConfig,
    StorageError,
};
use rustix::fs::{FlockOperation, flock};

use crate::{
    keys::{Missing, admin_token},
    operator::{self, print, wait},
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
        .subcommand(operator::with_admin(
            of(
                "restore",
                "Has an instance go on whose snapshot was set aside: by a build that can read it",
            )
            .arg(instance()),
        ))
        .subcommand(
            of("forget", "Removes what was set aside of an instance, for ever").arg(instance()),
        )
}

fn instance() -> Arg {
    Arg::new("instance")
        .value_name("INSTANCE")
        .required(true)
        .help("Its id, as `store check` says it")
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
            let found = wait(async {
                let found = greenroom_storage::check(&config, schema).await;
                let mut found = found.unwrap_or_else(|error| vec![format!("{error}").into()]);
                match set_aside(&config).await {
                    Ok(more) => found.extend(more),
                    // What is missing or wrong has been said.
                    Err(_) if !found.is_empty() => {}
                    Err(error) => found.push(format!("{error:#}").into()),
                }
                found
            })?;
            let text: String = found.iter().map(|finding| format!("{finding}\n")).collect();
            if found.is_empty() {
                return print(&format!("{}: nothing is missing\n", config.store));
            }
            print(&text)?;
            Ok(ExitCode::FAILURE)
        }
        Some(("restore", matches)) => wait(restore(matches))?,
        Some(("forget", matches)) => wait(async {
            let instance = wanted(matches)?;
            let storage = open_as_it_is(matches).await?;
            for note in notes_of(&storage, instance).await? {
                note.forget(&storage)
                    .await
                    .with_context(|| format!("removing {}", note.snapshot()))?;
                print(&format!("removed {}\n", note.snapshot()))?;
            }
            storage.close().await;
            Ok(ExitCode::SUCCESS)
        })?,
        _ => bail!("no such command; `greenroom help store` lists them"),
    }
}

fn wanted(matches: &ArgMatches) -> Result<InstanceId> {
    let text = matches.get_one::<String>("instance").context("clap wants it")?;
    text.parse().with_context(|| format!("{text:?} is no instance"))
}

async fn open_as_it_is(matches: &ArgMatches) -> Result<Storage> {
    let config = config_in(&Settings::read(matches)?, Settings::data_if_any)?;
    greenroom_storage::open_as_it_is(&config).await.context("opening the store")
}

/// What was set aside of an instance, the oldest first; at least one.
async fn notes_of(storage: &Storage, instance: InstanceId) -> Result<Vec<SetAside>> {
    let notes = SetAside::of(storage, instance).await.context("looking for what is set aside")?;
    if notes.is_empty() {
        bail!(
            "nothing of {instance} is set aside: `greenroom store check` says of which instances something is"
        );
    }
    Ok(notes)
}

/// What a store keeps for people, each in a sentence that says what to do.
async fn set_aside(config: &StorageConfig) -> Result<Vec<EcoString>> {
    let storage = greenroom_storage::open_as_it_is(config).await.context("opening the store")?;
    let (notes, is_cut) = SetAside::all(&storage).await.context("looking for what is set aside")?;
    storage.close().await;
    let mut told: Vec<EcoString> = notes
        .iter()
        .map(|note| match note {
            Ok(note) => told(note),
            Err(error) => {
                eco_format!("what was set aside is noted, and the note can't be read: {error}")
            }
        })
        .collect();
    if is_cut {
        told.push("more is set aside than is shown here".into());
    }
    Ok(told)
}

fn told(note: &SetAside) -> EcoString {
    let SetAside { instance, kind, why, .. } = note;
    let version = note.version.map_or_else(
        || "of which no version can be read".into(),
        |version| format!("of version {version}"),
    );
    let since =
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(note.since_ms));
    let what_to_do = match note.cause {
        Cause::Unreadable => "run a build that can read it",
        Cause::Failed => "run a build without the bug",
    };
    eco_format!(
        "the snapshot of {instance}, of kind {kind:?}, {version}, is set aside since {since} as {}: {why}; \
         {what_to_do}, then `greenroom store restore {instance}`; or remove it: `greenroom store forget {instance}`",
        note.snapshot()
    )
}

/// Between two looks at what becomes of an instance that is restored, and how long it may take.
const LOOK: Duration = Duration::from_millis(200);
const RESTORED_MAX: Duration = Duration::from_secs(60);
/// How long the note may take of one that has ended at once.
const NOTED_MAX: Duration = Duration::from_secs(10);

/// Puts the newest snapshot that was set aside of an instance back in its place, and has the cluster go on from it.
async fn restore(matches: &ArgMatches) -> Result<ExitCode> {
    let (instance, admin) = (wanted(matches)?, operator::admin(matches)?);
    let token = admin_token(&Settings::read(matches)?.data()?, Missing::Refuse)?;
    let storage = open_as_it_is(matches).await?;
    let note = notes_of(&storage, instance).await?.pop().expect("there is at least one");
    let kept = note.snapshot();
    let snapshot = storage.get(kept.clone()).await.with_context(|| format!("reading {kept}"))?;
    let snapshot = snapshot.with_context(|| format!("{kept} is noted and is not there"))?;
    // In the name of the life that begins, before all that it writes itself. Done twice, it is a resend.
    let incarnation = Incarnation(note.incarnation.0.wrapping_add(1));
    let owner = Owner::Instance { incarnation: incarnation.0, n: 0 };
    let key = Key::new(Collection::Snapshots, eco_format!("{instance}"))?;
    match storage.put_owned(key, owner, snapshot.body).await {
        Ok(_) => {}
        Err(StorageError::Deposed { .. }) => bail!(
            "{instance} went on in a later life, which has stored more than {kept}: \
             `greenroom store forget {instance}` removes what is set aside"
        ),
        Err(error) => {
            return Err(error).with_context(|| format!("putting {kept} back in its place"));
        }
    }
    let action = Action::Restore(Box::new(RestoreInstance {
        instance,
        incarnation,
        kind: note.kind.clone(),
        owner: note.owner.clone(),
        key: note.key.clone(),
        created_ms: note.created_ms,
        private: note.private,
    }));
    client::act(admin, &token, &action).await?;
    let server = runs(admin, &note, incarnation, &storage).await?;
    note.forget(&storage)
        .await
        .with_context(|| format!("removing {kept}, which is of no use any more"))?;
    storage.close().await;
    print(&format!("{instance} goes on, on {server}\n"))
}

/// Waits until an instance runs that is restored, and gives where.
async fn runs(
    admin: &str,
    note: &SetAside,
    incarnation: Incarnation,
    storage: &Storage,
) -> Result<EcoString> {
    let SetAside { instance, kind, .. } = note;
    let find = Find {
        table: Table::Instances(kind.clone()),
        filter: Filter::Eq("id".into(), MetaValue::Text(eco_format!("{instance}"))),
        order: None,
        limit: 1,
        cursor: None,
    };
    let began = Instant::now();
    let mut gone: Option<Instant> = None;
    loop {
        let found = client::find(admin, &find).await?;
        let Some(row) = found.rows.first() else {
            let notes = SetAside::of(storage, *instance).await;
            let notes = notes.context("looking for what is set aside")?;
            if let Some(again) = notes.iter().find(|again| again.incarnation == incarnation) {
                // There is a newer copy of the same now.
                note.forget(storage).await?;
                bail!("{instance} does not go on, and is set aside again: {}", again.why);
            }
            // The note may come a moment after the end.
            if gone.get_or_insert_with(Instant::now).elapsed() > NOTED_MAX {
                bail!("{instance} has ended: the logs of the game servers say why");
            }
            tokio::time::sleep(LOOK).await;
            continue;
        };
        let text = |name: &str| match row.fields.get(name) {
            Some(MetaValue::Text(text)) => text.clone(),
            Some(MetaValue::Bool(_) | MetaValue::Int(_)) | None => EcoString::new(),
        };
        match text("state") {
            state if state == "running" => return Ok(text("server")),
            state if began.elapsed() > RESTORED_MAX => bail!(
                "{instance} is {state} and does not run yet; it goes on as soon as a game server takes it: \
                 `greenroom placement {kind}` says what is in the way"
            ),
            _ => tokio::time::sleep(LOOK).await,
        }
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
