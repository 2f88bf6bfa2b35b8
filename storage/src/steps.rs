//! The spans of an operation that is sampled: its time in the queue, and each time that the store has it.

use greenroom_telemetry::{Parent, Span, SpanKind};

use crate::backend::{Condition, Operation};
use crate::{Collection, StorageError};

/// How far an operation that is sampled has come.
#[derive(Debug)]
pub(crate) struct Steps {
    parent: Parent,
    /// Ends when the next one begins, or with the operation.
    present: Span,
}

impl Steps {
    /// It is taken, and waits for its turn.
    pub(crate) fn queued(parent: &Parent) -> Box<Self> {
        let present = parent.child("queued", SpanKind::Internal);
        Box::new(Self { parent: parent.clone(), present })
    }

    /// The store has it from here on. Names and attributes are OpenTelemetry's for databases.
    pub(crate) fn begun(&mut self, store: &'static str, operation: &Operation) {
        let what = name(operation);
        let collection = operation.key().map(crate::Key::collection).map(Collection::name);
        let name = match collection {
            Some(collection) => format!("{what} {collection}"),
            None => what.to_owned(),
        };
        let mut span = self.parent.child(name, SpanKind::Client);
        span.set("db.system.name", store);
        span.set("db.operation.name", what);
        if let Some(collection) = collection {
            span.set("db.collection.name", collection);
        }
        self.present = span;
    }

    /// What the store said of it was not its end.
    pub(crate) fn waits_again(&mut self, error: Option<&StorageError>) {
        if let Some(error) = error {
            self.present.fail(error);
        }
        self.present = self.parent.child("queued", SpanKind::Internal);
    }

    /// It did not succeed.
    pub(crate) fn failed(&mut self, error: &StorageError) {
        self.present.fail(error);
    }
}

/// What is done, in a word.
const fn name(operation: &Operation) -> &'static str {
    match operation {
        Operation::Get { .. } => "get",
        Operation::Put(put) if put.body.is_none() => "remove",
        Operation::Put(put) => match put.condition {
            Condition::None => "upsert",
            Condition::Absent => "insert",
            Condition::Version(_) => "replace",
            Condition::Owner => "put",
        },
        Operation::Remove { .. } => "remove",
        Operation::Touch { .. } => "touch",
        Operation::Query(_) | Operation::Raw(_) => "query",
    }
}
