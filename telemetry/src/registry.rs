//! Who counts in this process.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::instruments::{Description, Source, Value};

/// The sources of one process; clones are the same registry.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Vec<Registered>>>);

struct Registered {
    /// Name of the server that it belongs to; empty for the process itself.
    server: String,
    source: Arc<dyn Source>,
}

/// One instrument with what it held, for each server that has it.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) description: &'static Description,
    /// By server.
    pub(crate) values: Vec<(String, Value)>,
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

    /// Adds what a server counts; `server` is its name in the cluster, empty for the process itself.
    pub fn add(&self, server: impl Into<String>, source: Arc<dyn Source>) {
        self.sources().push(Registered { server: server.into(), source });
    }

    /// Reads everything, each instrument once, in the order in which they came.
    pub(crate) fn read(&self) -> Vec<Read> {
        let mut all: Vec<Read> = Vec::new();
        for Registered { server, source } in self.sources().iter() {
            source.read(&mut |description, value| {
                let value = (server.clone(), value);
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
