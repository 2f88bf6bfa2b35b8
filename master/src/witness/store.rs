//! The record as a document of a store, for masters whose third machine is a Couchbase cluster.
//!
//! The document never goes by itself, is replaced by compare-and-set only, and is durable before an attempt counts. An
//! attempt of which nobody knows is answered as unknown; it is decided when it is made again, since the record has the
//! attempt's name in it, and one that comes late meets another version and changes nothing.

use std::fmt;

use ecow::{EcoString, eco_format};
use greenroom_master_core::replica::{ClaimAnswer, Rec};
use greenroom_protocol::{Limits, decode, encode};
use greenroom_storage::{
    Blob, Body, Collection, Get, Key, Request, Storage, StorageError, Version, Write,
};
use serde::{Deserialize, Serialize};

use super::{Witness, WitnessError};

/// Layout of the document.
const FORMAT: u32 = 1;

/// A witness in a store that is on no machine of the two masters.
pub struct StoreWitness {
    storage: Storage,
    key: Key,
    place: EcoString,
}

impl fmt::Debug for StoreWitness {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("StoreWitness").field(&self.place).finish()
    }
}

/// As it stands in the store.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    format: u32,
    version: u64,
    rec: Blob,
}

impl StoreWitness {
    /// The witness of `cluster` in a store, which `place` names for people. The store's deadline is how long an answer
    /// may take: a second, since masters wait for it.
    ///
    /// # Errors
    /// When the name of the cluster is too long to be part of a key.
    pub fn new(storage: Storage, cluster: &str, place: &str) -> Result<Self, WitnessError> {
        let key = Key::new(Collection::Cluster, eco_format!("witness/{cluster}"));
        let key = key.map_err(|error| WitnessError::Store {
            doing: "naming the record",
            place: place.into(),
            source: error.into(),
        })?;
        Ok(Self { storage, place: eco_format!("{place}, {key}"), key })
    }

    fn ask<R: Request>(&self, doing: &'static str, request: R) -> Result<R::Answer, WitnessError> {
        let answer = self.storage.try_submit(request).and_then(greenroom_storage::Ticket::wait);
        answer.map_err(|source| self.failed(doing, source))
    }

    fn failed(&self, doing: &'static str, source: StorageError) -> WitnessError {
        WitnessError::Store { doing, place: self.place.clone(), source }
    }

    /// The record, and the version of its document.
    fn look(&self) -> Result<Option<(Rec, Version)>, WitnessError> {
        let Some(found) = self.ask("reading the record", Get(self.key.clone()))? else {
            return Ok(None);
        };
        let bad = || WitnessError::BadDocument { place: self.place.clone() };
        let document: Document = found.body.decode().map_err(|_| bad())?;
        if document.format != FORMAT {
            let (found, ours) = (document.format.into(), FORMAT.into());
            return Err(WitnessError::OtherFormat {
                file: self.place.as_str().into(),
                found,
                ours,
            });
        }
        let rec: Rec = decode(&document.rec.0, Limits::SERVER).map_err(|_| bad())?;
        if rec.version != document.version {
            return Err(bad());
        }
        Ok(Some((rec, found.version)))
    }
}

/// What an attempt comes to that was not made, or came too late.
fn answer(now: Option<Rec>, rec: &Rec) -> ClaimAnswer {
    // The same attempt may have come before: its author asks again until it is answered.
    match now {
        Some(now) if now.nonce == rec.nonce => ClaimAnswer::Won,
        now => ClaimAnswer::Lost(now),
    }
}

impl Witness for StoreWitness {
    fn read(&mut self) -> Result<Option<Rec>, WitnessError> {
        Ok(self.look()?.map(|(rec, _)| rec))
    }

    fn claim(&mut self, expect: u64, rec: &Rec) -> Result<ClaimAnswer, WitnessError> {
        if expect.checked_add(1) != Some(rec.version) {
            return Err(WitnessError::BadClaim { expect, version: rec.version });
        }
        let doing = "changing the record";
        let document =
            Document { format: FORMAT, version: rec.version, rec: Blob(encode(rec).into()) };
        let body = Body::of(&document).map_err(|error| self.failed(doing, error.into()))?;
        let key = self.key.clone();
        let write = match self.look()? {
            None if expect == 0 => Write::insert(key, body),
            Some((now, version)) if now.version == expect => Write::replace(key, body, version),
            now => return Ok(answer(now.map(|(now, _)| now), rec)),
        };
        match self.storage.try_submit(write).and_then(greenroom_storage::Ticket::wait) {
            Ok(_) => Ok(ClaimAnswer::Won),
            // Somebody else was first.
            Err(
                StorageError::Exists { .. }
                | StorageError::VersionMismatch { .. }
                | StorageError::Missing { .. },
            ) => Ok(answer(self.read()?, rec)),
            Err(source) => Err(self.failed(doing, source)),
        }
    }
}
