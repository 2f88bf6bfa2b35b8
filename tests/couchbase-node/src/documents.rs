//! What the requests about documents do.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use crate::kv::Session;
use crate::state::{DOCUMENT_BYTES_MAX, Document, Key, Lock, State, expiry_at};
use crate::subdoc::{self, Changed, Spec, Subject};
use crate::wire::{Answer, Request, Status, datatype, feature, opcode};

/// Seconds that a lock holds when the client does not say, and at most.
const LOCK_SECONDS: u32 = 15;
const LOCK_SECONDS_MAX: u32 = 30;

/// An expiry that says "and do not create the counter".
const NO_CREATION: u32 = 0xffff_ffff;

/// The version that a reader sees of a document that is locked.
const CAS_OF_LOCKED: u64 = u64::MAX;

/// Flags of a request for parts of a document.
const MAKE_DOCUMENT: u8 = 0x01;
const ADD_DOCUMENT: u8 = 0x02;
const ACCESS_DELETED: u8 = 0x04;

/// A request about a document whose place is known.
struct Run<'a> {
    state: &'a mut State,
    session: &'a Session,
    bucket: &'a str,
    request: &'a Request,
    key: Key,
    now: Duration,
}

/// Does what the request asks for; the caller has checked that the part is here and that the collection exists.
pub(crate) fn run(
    state: &mut State,
    session: &Session,
    bucket: &str,
    request: &Request,
    key: Key,
    now: Duration,
) -> Result<Answer, Status> {
    let mut run = Run { state, session, bucket, request, key, now };
    match request.opcode {
        opcode::GET | opcode::GET_REPLICA => run.get(),
        opcode::GET_META => run.meta(),
        opcode::SET | opcode::ADD | opcode::REPLACE => run.put(),
        opcode::DELETE => run.delete(),
        opcode::INCREMENT | opcode::DECREMENT => run.count(),
        opcode::APPEND | opcode::PREPEND => run.extend(),
        opcode::TOUCH | opcode::GET_AND_TOUCH => run.touch(),
        opcode::GET_LOCKED => run.lock(),
        opcode::UNLOCK => run.unlock(),
        opcode::SUBDOC_MULTI_LOOKUP => run.look_up(),
        opcode::SUBDOC_MULTI_MUTATION => run.change_parts(),
        _ => Err(Status::UNKNOWN_COMMAND),
    }
}

impl Run<'_> {
    fn seconds(&self) -> u64 {
        self.now.as_secs()
    }

    fn document(&self) -> Option<&Document> {
        let bucket = &self.state.buckets[self.bucket];
        bucket.get(self.session.node, &self.key, self.seconds())
    }

    fn held(&self) -> Option<Lock> {
        self.state.buckets[self.bucket].lock(&self.key, self.seconds())
    }

    fn max_ttl(&self) -> u64 {
        let record = &self.state.buckets[self.bucket].record;
        let own = record.collection_by_id(self.key.0).map_or(0, |collection| collection.max_ttl);
        if own > 0 { own } else { record.max_ttl }
    }

    fn expiry(&self, asked: u32) -> u64 {
        expiry_at(asked, self.max_ttl(), self.seconds())
    }

    /// Refuses a write that the lock or the version does not let through.
    fn check_write(&self) -> Result<(), Status> {
        if let Some(lock) = self.held() {
            return if self.request.cas == lock.cas { Ok(()) } else { Err(Status::LOCKED) };
        }
        match self.document() {
            _ if self.request.cas == 0 => Ok(()),
            None => Err(Status::KEY_NOT_FOUND),
            Some(document) if document.cas == self.request.cas => Ok(()),
            Some(_) => Err(Status::KEY_EXISTS),
        }
    }

    fn check_durability(&self) -> Result<(), Status> {
        let level = match self.request.durability {
            None => return Ok(()),
            Some(Err(_)) => return Err(Status::DURABILITY_INVALID),
            Some(Ok(level)) => level,
        };
        let bucket = &self.state.buckets[self.bucket];
        self.state.can_be_durable(bucket, self.request.vbucket, level)
    }

    /// Stores the document, frees its lock, and says its version and its place among the writes of its part.
    fn store(&mut self, document: Document) -> Result<Answer, Status> {
        if document.plain().len() > DOCUMENT_BYTES_MAX {
            return Err(Status::TOO_BIG);
        }
        self.check_durability()?;
        let part = self.request.vbucket;
        let (cas, seqno) = self.state.store(self.bucket, part, &self.key, document, self.now);
        let bucket = self.state.buckets.get_mut(self.bucket).expect("it took the document");
        bucket.set_lock(self.key.clone(), None);
        let mut extras = BytesMut::new();
        if self.session.has(feature::MUTATION_TOKENS) {
            extras.put_u64(history_of(part));
            extras.put_u64(seqno);
        }
        Ok(Answer { cas, extras: extras.freeze(), ..Answer::default() })
    }

    fn get(&self) -> Result<Answer, Status> {
        let document = self.document().ok_or(Status::KEY_NOT_FOUND)?;
        Ok(self.whole(document))
    }

    /// An answer with the flags and the value, compressed only for those who understand it.
    fn whole(&self, document: &Document) -> Answer {
        let cas = if self.held().is_some() { CAS_OF_LOCKED } else { document.cas };
        let may_be_compressed = self.session.has(feature::SNAPPY);
        let (value, mut kind) = if may_be_compressed {
            (document.value.clone(), document.datatype)
        } else {
            (document.plain(), document.datatype & !datatype::SNAPPY)
        };
        if !self.session.has(feature::JSON) {
            kind &= !datatype::JSON;
        }
        let extras = Bytes::copy_from_slice(&document.flags.to_be_bytes());
        Answer { cas, datatype: kind, extras, value, ..Answer::default() }
    }

    fn meta(&self) -> Result<Answer, Status> {
        let bucket = &self.state.buckets[self.bucket];
        let document = bucket.any(self.session.node, &self.key).ok_or(Status::KEY_NOT_FOUND)?;
        let is_gone = !document.is_there(self.seconds());
        let mut extras = BytesMut::new();
        extras.put_u32(u32::from(is_gone));
        extras.put_u32(document.flags);
        extras.put_u32(u32::try_from(document.expiry).unwrap_or(u32::MAX));
        extras.put_u64(document.seqno);
        // The client asks for the second form, which ends with the kind of value.
        if self.request.extras.first() == Some(&2) {
            extras.put_u8(document.datatype);
        }
        Ok(Answer { cas: document.cas, extras: extras.freeze(), ..Answer::default() })
    }

    fn put(&mut self) -> Result<Answer, Status> {
        let mut extras = self.request.extras.clone();
        if extras.len() != 8 {
            return Err(Status::INVALID);
        }
        let (flags, expiry) = (extras.get_u32(), extras.get_u32());
        let is_there = self.document().is_some();
        match self.request.opcode {
            opcode::ADD if is_there && self.held().is_some() => return Err(Status::LOCKED),
            opcode::ADD if is_there => return Err(Status::KEY_EXISTS),
            opcode::REPLACE if !is_there => return Err(Status::KEY_NOT_FOUND),
            _ => self.check_write()?,
        }
        let (value, kind) = checked(&self.request.value, self.request.datatype)?;
        let expiry = match self.document() {
            Some(document) if self.request.preserve_expiry => document.expiry,
            _ => self.expiry(expiry),
        };
        self.store(document(value, kind, flags, expiry))
    }

    fn delete(&mut self) -> Result<Answer, Status> {
        if self.document().is_none() {
            return Err(Status::KEY_NOT_FOUND);
        }
        self.check_write()?;
        self.store(tombstone())
    }

    fn count(&mut self) -> Result<Answer, Status> {
        let mut extras = self.request.extras.clone();
        if extras.len() != 20 {
            return Err(Status::INVALID);
        }
        let (delta, initial, expiry) = (extras.get_u64(), extras.get_u64(), extras.get_u32());
        if self.held().is_some() {
            return Err(Status::LOCKED);
        }
        let (number, old) = match self.document() {
            None if expiry == NO_CREATION => return Err(Status::KEY_NOT_FOUND),
            None => (initial, None),
            Some(document) => {
                let text = document.plain();
                let number: u64 = std::str::from_utf8(&text)
                    .ok()
                    .and_then(|text| text.trim().parse().ok())
                    .ok_or(Status::BAD_DELTA)?;
                let new = if self.request.opcode == opcode::INCREMENT {
                    number.wrapping_add(delta)
                } else {
                    number.saturating_sub(delta)
                };
                (new, Some((document.flags, document.expiry)))
            }
        };
        let (flags, expiry) = old.unwrap_or_else(|| (0, self.expiry(expiry)));
        let value = Bytes::from(number.to_string());
        let mut answer = self.store(document(value, datatype::JSON, flags, expiry))?;
        answer.value = Bytes::copy_from_slice(&number.to_be_bytes());
        Ok(answer)
    }

    fn extend(&mut self) -> Result<Answer, Status> {
        let Some(old) = self.document().cloned() else { return Err(Status::NOT_STORED) };
        self.check_write()?;
        let (added, kind) = checked(&self.request.value, self.request.datatype)?;
        let added = Document { datatype: kind, value: added, ..old.clone() }.plain();
        let (first, second) = if self.request.opcode == opcode::APPEND {
            (old.plain(), added)
        } else {
            (added, old.plain())
        };
        let (value, kind) = checked(&[first, second].concat().into(), 0)?;
        let mut new = document(value, kind, old.flags, old.expiry);
        new.xattrs = old.xattrs;
        self.store(new)
    }

    fn touch(&mut self) -> Result<Answer, Status> {
        let mut extras = self.request.extras.clone();
        if extras.len() != 4 {
            return Err(Status::INVALID);
        }
        let expiry = self.expiry(extras.get_u32());
        let mut touched = self.document().ok_or(Status::KEY_NOT_FOUND)?.clone();
        if self.held().is_some() {
            return Err(Status::LOCKED);
        }
        touched.expiry = expiry;
        let stored = self.store(touched)?;
        if self.request.opcode == opcode::TOUCH {
            return Ok(Answer { cas: stored.cas, ..Answer::default() });
        }
        self.get()
    }

    fn lock(&mut self) -> Result<Answer, Status> {
        let mut extras = self.request.extras.clone();
        let seconds = if extras.len() == 4 { extras.get_u32() } else { 0 };
        let seconds =
            if (1..=LOCK_SECONDS_MAX).contains(&seconds) { seconds } else { LOCK_SECONDS };
        if self.document().is_none() {
            return Err(Status::KEY_NOT_FOUND);
        }
        if self.held().is_some() {
            return Err(Status::LOCKED);
        }
        let cas = self.state.next_cas(self.now);
        let mut answer = self.get()?;
        answer.cas = cas;
        let lock = Lock { until: self.seconds() + u64::from(seconds), cas };
        let bucket = self.state.buckets.get_mut(self.bucket).expect("it has the document");
        bucket.set_lock(self.key.clone(), Some(lock));
        Ok(answer)
    }

    fn unlock(&mut self) -> Result<Answer, Status> {
        if self.document().is_none() {
            return Err(Status::KEY_NOT_FOUND);
        }
        let lock = self.held().ok_or(Status::NOT_LOCKED)?;
        if lock.cas != self.request.cas {
            return Err(Status::LOCKED);
        }
        let bucket = self.state.buckets.get_mut(self.bucket).expect("it has the document");
        bucket.set_lock(self.key.clone(), None);
        Ok(Answer::default())
    }

    fn subject(&self, document: &Document) -> Subject {
        let raw = document.plain();
        Subject {
            body: serde_json::from_slice(&raw).ok(),
            xattrs: document.xattrs.clone(),
            document: self.virtual_document(document, &raw),
            vbucket: json!({"HLC": {"now": self.seconds().to_string(), "mode": "real"}}),
            raw,
        }
    }

    fn virtual_document(&self, document: &Document, raw: &Bytes) -> Value {
        let mut kinds = Vec::new();
        if document.datatype & datatype::JSON != 0 {
            kinds.push("json");
        }
        if document.datatype & datatype::SNAPPY != 0 {
            kinds.push("snappy");
        }
        if !document.xattrs.is_empty() {
            kinds.push("xattr");
        }
        json!({
            "CAS": format!("{:#018x}", document.cas),
            "datatype": kinds,
            "deleted": document.is_deleted,
            "exptime": document.expiry,
            "flags": document.flags,
            "last_modified": (document.cas / 1_000_000_000).to_string(),
            "revid": document.seqno.to_string(),
            "seqno": format!("{:#018x}", document.seqno),
            "value_bytes": raw.len(),
            "vbucket_uuid": format!("{:#018x}", history_of(self.request.vbucket)),
        })
    }

    fn look_up(&self) -> Result<Answer, Status> {
        let flags = self.request.extras.first().copied().unwrap_or(0);
        let specs = Spec::read_all(self.request.value.clone(), false)?;
        let bucket = &self.state.buckets[self.bucket];
        let document = bucket.any(self.session.node, &self.key).ok_or(Status::KEY_NOT_FOUND)?;
        let is_gone = !document.is_there(self.seconds());
        if is_gone && flags & ACCESS_DELETED == 0 {
            return Err(Status::KEY_NOT_FOUND);
        }
        let subject = self.subject(document);
        let mut value = BytesMut::new();
        let mut is_whole = true;
        for spec in &specs {
            let (status, found) = match subdoc::look_up(&subject, spec) {
                Ok(found) => (Status::SUCCESS, found),
                Err(status) => (status, Vec::new()),
            };
            is_whole &= status == Status::SUCCESS;
            value.put_u16(status.0);
            value.put_u32(u32::try_from(found.len()).map_err(|_| Status::TOO_BIG)?);
            value.put_slice(&found);
        }
        let status = match (is_whole, is_gone) {
            (true, false) => Status::SUCCESS,
            (true, true) => Status::SUCCESS_DELETED,
            (false, false) => Status::MULTI_PATH_FAILURE,
            (false, true) => Status::MULTI_PATH_FAILURE_DELETED,
        };
        let cas = if self.held().is_some() { CAS_OF_LOCKED } else { document.cas };
        Ok(Answer { cas, value: value.freeze(), ..Answer::status(status) })
    }

    fn change_parts(&mut self) -> Result<Answer, Status> {
        let mut extras = self.request.extras.clone();
        // None, the flags, the expiry, or the expiry and the flags.
        let (expiry, flags) = match extras.len() {
            0 => (0, 0),
            1 => (0, extras.get_u8()),
            4 => (extras.get_u32(), 0),
            5 => (extras.get_u32(), extras.get_u8()),
            _ => return Err(Status::INVALID),
        };
        let specs = Spec::read_all(self.request.value.clone(), true)?;
        let old = self.document().cloned();
        if flags & ADD_DOCUMENT != 0 && old.is_some() {
            return Err(Status::NOT_STORED);
        }
        let may_make = flags & (MAKE_DOCUMENT | ADD_DOCUMENT) != 0;
        if old.is_none() && !may_make {
            return Err(Status::KEY_NOT_FOUND);
        }
        self.check_write()?;
        let start = old
            .clone()
            .unwrap_or_else(|| document(Bytes::from_static(b"{}"), datatype::JSON, 0, 0));
        let mut subject = self.subject(&start);
        let cas = self.state.next_cas(self.now);
        let macros = |name: &str| match name {
            "${Mutation.CAS}" => Some(Value::from(format!("{:#018x}", cas.swap_bytes()))),
            "${Mutation.seqno}" => Some(Value::from(format!("{:#018x}", start.seqno + 1))),
            "${Mutation.value_crc32c}" => {
                Some(Value::from(format!("{:#010x}", crc32fast::hash(&start.plain()))))
            }
            "${$document.revid}" => Some(Value::from(start.seqno.to_string())),
            "${$document.exptime}" => Some(Value::from(start.expiry)),
            "${$document.CAS}" => Some(Value::from(format!("{:#018x}", start.cas))),
            _ => None,
        };
        let mut value = BytesMut::new();
        let mut body: Option<Bytes> = None;
        let mut is_removed = false;
        let mut are_parts_changed = false;
        for (at, spec) in specs.iter().enumerate() {
            let at = u8::try_from(at).expect("a request has 16 paths at most");
            match subdoc::change(&mut subject, spec, &macros) {
                Ok((Changed::Body(bytes), _)) => {
                    subject.body = serde_json::from_slice(&bytes).ok();
                    body = Some(bytes);
                }
                Ok((Changed::Removed, _)) => is_removed = true,
                Ok((Changed::Parts, answer)) => {
                    are_parts_changed |= !spec.is_xattr();
                    if let Some(answer) = answer {
                        value.put_u8(at);
                        value.put_u16(Status::SUCCESS.0);
                        value.put_u32(u32::try_from(answer.len()).map_err(|_| Status::TOO_BIG)?);
                        value.put_slice(&answer);
                    }
                }
                Err(status) => {
                    let mut failed = BytesMut::new();
                    failed.put_u8(at);
                    failed.put_u16(status.0);
                    let refusal = Answer::status(Status::MULTI_PATH_FAILURE);
                    return Ok(Answer { value: failed.freeze(), ..refusal });
                }
            }
        }
        let new = if is_removed {
            tombstone()
        } else {
            let raw = match body {
                Some(body) => body,
                None if are_parts_changed || old.is_none() => {
                    let body = subject.body.as_ref().ok_or(Status::NOT_JSON)?;
                    serde_json::to_vec(body).expect("JSON is written as JSON").into()
                }
                None => subject.raw.clone(),
            };
            let (raw, kind) = checked(&raw, 0)?;
            // Without an expiry of its own, a change of parts leaves the document's as it is.
            let expiry = match &old {
                Some(old) if expiry == 0 || self.request.preserve_expiry => old.expiry,
                _ => self.expiry(expiry),
            };
            let mut new = document(raw, kind, start.flags, expiry);
            new.xattrs = subject.xattrs;
            new
        };
        let mut answer = self.store(new)?;
        answer.value = value.freeze();
        Ok(answer)
    }
}

fn document(value: Bytes, kind: u8, flags: u32, expiry: u64) -> Document {
    let xattrs = Map::new();
    Document { cas: 0, seqno: 0, flags, expiry, datatype: kind, value, xattrs, is_deleted: false }
}

fn tombstone() -> Document {
    Document { is_deleted: true, ..document(Bytes::new(), 0, 0, 0) }
}

/// The value and its kind: whether it is JSON is the node's to find out, whether it is compressed the client's to say.
fn checked(value: &Bytes, sent: u8) -> Result<(Bytes, u8), Status> {
    let is_json = |bytes: &[u8]| serde_json::from_slice::<IgnoredAny>(bytes).is_ok();
    let kind = |is_json: bool| if is_json { datatype::JSON } else { 0 };
    if sent & datatype::SNAPPY == 0 {
        return Ok((value.clone(), kind(is_json(value))));
    }
    let length = snap::raw::decompress_len(value).map_err(|_| Status::INVALID)?;
    if length > DOCUMENT_BYTES_MAX {
        return Err(Status::TOO_BIG);
    }
    let plain = snap::raw::Decoder::new().decompress_vec(value).map_err(|_| Status::INVALID)?;
    Ok((value.clone(), kind(is_json(&plain)) | datatype::SNAPPY))
}

/// The identity of a part's history; ours never forks.
fn history_of(part: u16) -> u64 {
    0x6772_6565_0000_0000 | u64::from(part)
}
