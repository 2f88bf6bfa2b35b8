//! The event log of this process: one for all roles in it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use greenroom_logs::{
    LogWriter, Logs, LogsConfig,
    kinds::{ProcessFailed, ProcessStarted, ProcessStopped},
};
use greenroom_storage::Storage;
use greenroom_telemetry::{Registry, Who};

use crate::{roles::build, settings::Settings, store_watch::StoreWatch};

/// How long a process that a bug ends waits until its last events are written.
const LAST_WORDS_MAX: Duration = Duration::from_millis(500);

/// What a panic is told to: hooks are of the process, and there is one log in it.
static LAST: Mutex<Option<Logs>> = Mutex::new(None);

/// The log, open.
#[derive(Debug)]
pub(crate) struct ProcessLog {
    writer: LogWriter,
    #[cfg(feature = "kinesis")]
    shipper: Option<greenroom_logs::ship::Shipper>,
    started: Instant,
    store: Option<StoreWatch>,
}

/// Where all processes of this machine have their logs, whether or not there are any.
pub(crate) fn folder(settings: &Settings) -> Result<PathBuf> {
    let config: LogsConfig = settings.table("logs")?;
    match config.folder {
        Some(folder) => Ok(folder),
        None => Ok(settings.data_if_any()?.join("logs")),
    }
}

impl ProcessLog {
    /// Opens it. `command` is what this process does; its folder is named by its server, if that has a name.
    pub(crate) fn start(
        settings: &Settings,
        command: &'static str,
        registry: &Registry,
    ) -> Result<Self> {
        let config: LogsConfig = settings.table("logs")?;
        let name = settings.text(&format!("{command}.name")).unwrap_or_else(|| command.into());
        if config.folder.is_none() {
            settings.data()?;
        }
        let writer = LogWriter::start(&config, &folder(settings)?, &name)?;
        #[cfg(feature = "kinesis")]
        let shipper = match writer.process() {
            Some(process) => greenroom_logs::ship::Shipper::start(
                &config.kinesis,
                &folder(settings)?,
                &process,
                writer.logs(),
            )?,
            None => None,
        };
        #[cfg(not(feature = "kinesis"))]
        if let Some(stream) = &config.kinesis.stream {
            anyhow::bail!(
                "logs.kinesis.stream = {stream:?}: this build ships nothing to Kinesis; build with --features kinesis"
            );
        }
        registry.add(Who::process(), Arc::new(writer.logs().clone()));
        #[cfg(feature = "kinesis")]
        if let Some(shipper) = &shipper {
            registry.add(Who::process(), shipper.metrics().clone());
        }
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer.logs().clone());
        let (command, pid) = (command.into(), std::process::id());
        writer.logs().emit(&ProcessStarted { command, pid, build: build() });
        Ok(Self {
            writer,
            #[cfg(feature = "kinesis")]
            shipper,
            started: Instant::now(),
            store: None,
        })
    }

    /// Tells of the store's trouble from here on.
    pub(crate) fn watch(&mut self, storage: &Storage) -> Result<()> {
        self.store = Some(StoreWatch::start(self.logs(), storage)?);
        Ok(())
    }

    /// What roles emit on.
    pub(crate) fn logs(&self) -> &Logs {
        self.writer.logs()
    }

    /// Writes what waits.
    pub(crate) fn stop(mut self) {
        drop(self.store.take());
        self.logs().emit(&ProcessStopped { ran_ms: self.started.elapsed() });
        self.writer.stop();
        // Last, so that it ships what this life had to say.
        #[cfg(feature = "kinesis")]
        if let Some(shipper) = self.shipper {
            shipper.stop();
        }
    }
}

/// Tells the log of a bug that ends this process, and waits until that is written.
pub(crate) fn last_words(panic: &std::panic::PanicHookInfo<'_>) {
    let logs = LAST.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(logs) = logs else { return };
    let what = panic.payload_as_str().unwrap_or("a panic without a text").into();
    let place = panic.location().map(ToString::to_string).unwrap_or_default().into();
    logs.emit(&ProcessFailed { what, place });
    if !logs.flush(LAST_WORDS_MAX) {
        tracing::error!("the last events could not be written");
    }
}
