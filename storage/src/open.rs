//! Opens the store that the settings name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ecow::{EcoString, eco_format};

#[cfg(feature = "couchbase")]
use crate::backend::couchbase::Couchbase;
use crate::backend::memory::Memory;
use crate::backend::sqlite::Sqlite;
use crate::backend::{Backend, Boxed, Job};
use crate::handle::scheme;
use crate::{Clock, OpenError, Schema, Storage, StorageConfig, StorageError};

/// A store that a URL names.
enum Place {
    Memory,
    Sqlite(PathBuf),
    #[cfg(feature = "couchbase")]
    Couchbase,
}

impl Place {
    fn of(config: &StorageConfig) -> Result<Self, OpenError> {
        let url = config.store.clone();
        match scheme(&url) {
            "memory" if url == "memory" => Ok(Self::Memory),
            "sqlite" if url.len() > "sqlite:".len() => {
                Ok(Self::Sqlite(PathBuf::from(&url["sqlite:".len()..])))
            }
            #[cfg(feature = "couchbase")]
            "couchbase" | "couchbases" => Ok(Self::Couchbase),
            #[cfg(not(feature = "couchbase"))]
            "couchbase" | "couchbases" => Err(OpenError::NoCouchbase { url }),
            _ => Err(OpenError::BadUrl { url }),
        }
    }
}

/// Starts a storage actor on the store that `config.store` names.
///
/// # Errors
/// When a setting is out of range, or the store can't be opened: it says what is wrong, and what to do.
pub fn open(config: &StorageConfig, schema: Schema) -> Result<Storage, OpenError> {
    match Place::of(config)? {
        Place::Memory => Storage::start(config, schema, async || {
            Ok(Arc::new(Memory::new(Clock::system())) as Arc<dyn Backend>)
        }),
        Place::Sqlite(file) => Storage::start(config, schema, async move || {
            Ok(Arc::new(Sqlite::open(&file, Clock::system())?) as Arc<dyn Backend>)
        }),
        #[cfg(feature = "couchbase")]
        Place::Couchbase => {
            let opened = config.clone();
            Storage::start(config, schema, async move || {
                Ok(Arc::new(Couchbase::open(&opened).await?) as Arc<dyn Backend>)
            })
        }
    }
}

/// The same of a store that is there, as it is: nothing is made that it lacks.
///
/// # Errors
/// As [`open`], and when a file is not there.
pub async fn open_as_it_is(config: &StorageConfig) -> Result<Storage, OpenError> {
    let place = Place::of(config)?;
    if let Place::Sqlite(file) = &place
        && !file.exists()
    {
        return Err(OpenError::File { file: file.clone(), why: "it is not there".into() });
    }
    let config = config.clone();
    let start = move || {
        #[cfg(feature = "couchbase")]
        let opened = config.clone();
        Storage::start(&config, Schema::default(), async move || {
            Ok(Arc::new(AsItIs(match place {
                Place::Memory => Box::new(Memory::new(Clock::system())),
                Place::Sqlite(file) => Box::new(Sqlite::open(&file, Clock::system())?),
                #[cfg(feature = "couchbase")]
                Place::Couchbase => Box::new(Couchbase::open(&opened).await?),
            })) as Arc<dyn Backend>)
        })
    };
    // It waits for the storage's own thread.
    let started = tokio::task::spawn_blocking(start).await;
    started.map_err(|_| OpenError::Panicked)?
}

/// A store in which nothing is made.
#[derive(Debug)]
struct AsItIs(Box<dyn Backend>);

impl Backend for AsItIs {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn begin(&self, jobs: Vec<Job>) {
        self.0.begin(jobs);
    }
    fn prepare<'a>(&'a self, _: &'a Schema) -> Boxed<'a, Result<(), OpenError>> {
        Box::pin(async { Ok(()) })
    }
    fn health(&self) -> Boxed<'_, Result<(), StorageError>> {
        self.0.health()
    }
    fn close(&self) -> Boxed<'_, ()> {
        self.0.close()
    }
}

/// Makes what the store that `config.store` names needs and has not, and names it. It may be done again, and by several
/// at once.
///
/// # Errors
/// When the store can't be opened, or something is missing and can't be made.
pub async fn init(config: &StorageConfig, schema: &Schema) -> Result<Vec<EcoString>, OpenError> {
    config.check()?;
    match Place::of(config)? {
        Place::Memory => Ok(Vec::new()),
        Place::Sqlite(file) => init_file(&file, schema).await,
        #[cfg(feature = "couchbase")]
        Place::Couchbase => {
            // On the heap: the futures of the SDK are large and deep.
            let opened: Boxed<'_, _> = Box::pin(Couchbase::open(config));
            let store = opened.await?;
            let making: Boxed<'_, _> = Box::pin(store.make(schema));
            let made = making.await;
            store.close().await;
            made
        }
    }
}

async fn init_file(file: &Path, schema: &Schema) -> Result<Vec<EcoString>, OpenError> {
    let is_new = !file.exists();
    let missing = Sqlite::findings(file, schema);
    let store = Sqlite::open(file, Clock::system())?;
    let made = store.prepare(schema).await;
    store.close().await;
    made?;
    if is_new {
        return Ok(vec![eco_format!("the file {}, with its tables and indexes", file.display())]);
    }
    let left = Sqlite::findings(file, schema);
    let made = missing.into_iter().filter(|finding| !left.contains(finding));
    Ok(made.filter_map(|finding| Some(finding.split_once(" is missing")?.0.into())).collect())
}

/// What is missing or wrong with the store that `config.store` names, each in a sentence that says what to do. Changes
/// nothing but a few documents of no meaning, which see whether writes are possible and go by themselves.
///
/// # Errors
/// When the store can't be opened.
pub async fn check(config: &StorageConfig, schema: &Schema) -> Result<Vec<EcoString>, OpenError> {
    config.check()?;
    match Place::of(config)? {
        Place::Memory => Ok(vec![
            "the store is this process's memory: nothing stays when it ends; name another with --store".into(),
        ]),
        Place::Sqlite(file) => Ok(Sqlite::findings(&file, schema)),
        #[cfg(feature = "couchbase")]
        Place::Couchbase => {
            let opened: Boxed<'_, _> = Box::pin(Couchbase::open(config));
            let store = opened.await?;
            let looking: Boxed<'_, _> = Box::pin(store.findings(schema));
            let findings = looking.await;
            store.close().await;
            Ok(findings)
        }
    }
}
