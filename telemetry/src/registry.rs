//! Who counts in this process.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::instruments::{Description, Source, Value};

/// The sources of one process; clones are the same registry.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Vec<Registered>>>);

struct Registered {
    who: Who,
    source: Arc<dyn Source>,
}

/// Who counts, or has spans.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    /// Its role: `session`, `master`, `game`, `client`; `process` for what is of no server.
    pub role: &'static str,
    /// Its name in the cluster, of a client whatever its application calls it; empty for the process itself.
    pub name: String,
}

impl Who {
    /// A server or a client.
    pub fn new(role: &'static str, name: impl Into<String>) -> Self {
        Self { role, name: name.into() }
    }

    /// The process itself.
    pub const fn process() -> Self {
        Self { role: "process", name: String::new() }
    }
}

/// One instrument with what it held, for each server that has it.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) description: &'static Description,
    /// By who has it.
    pub(crate) values: Vec<(Who, Value)>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Registry({} sources)", self.sources().len())
    }
}

impl Registry {
    fn sources(&self) -> std::sync::MutexGuard<'_, Vec<Registered>> {
        // Only pushed to and read: a panic in between leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what somebody counts.
    pub fn add(&self, who: Who, source: Arc<dyn Source>) {
        self.sources().push(Registered { who, source });
    }

    /// Reads everything, each instrument once, in the order in which they came.
    pub(crate) fn read(&self) -> Vec<Read> {
        let mut all: Vec<Read> = Vec::new();
        for Registered { who, source } in self.sources().iter() {
            source.read(&mut |description, value| {
                let value = (who.clone(), value);
                match all.iter_mut().find(|read| read.description.name == description.name) {
                    Some(read) => read.values.push(value),
                    None => all.push(Read { description, values: vec![value] }),
                }
            });
        }
        all
    }

    /// Everything, as Prometheus reads it (text format 0.0.4).
    pub fn prometheus(&self) -> String {
        crate::prometheus::text(&self.read())
    }
}
