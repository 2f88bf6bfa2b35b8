//! A key-value connection: from the greeting to documents.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::config;
use crate::documents;
use crate::faults::{self, Misbehaviour, PutOff};
use crate::scram::{self, Exchange, Hash};
use crate::state::{KEY_BYTES_MAX, KEY_IN_COLLECTION_BYTES_MAX, Key, Right, State};
use crate::wire::{self, Answer, Request, Status, feature, opcode};

/// Answers and requests that wait for their time on one connection; one more and it is cut.
const LATER_MAX: usize = 65_536;

/// What a connection knows of its client.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) node: usize,
    features: Vec<u16>,
    user: Option<String>,
    exchange: Option<Exchange>,
    pub(crate) bucket: Option<String>,
    /// The revision of the map that the client was given last.
    map_given: u64,
}

impl Session {
    pub(crate) fn has(&self, feature: u16) -> bool {
        self.features.contains(&feature)
    }

    fn may(&self, state: &State, right: Right) -> bool {
        let user = self.user.as_ref().and_then(|name| state.users.get(name));
        user.is_some_and(|user| user.rights.contains(&right))
    }
}

/// What is done at a later time.
enum Later {
    Apply(Request),
    Send(Bytes),
}

/// What becomes of a connection after a request.
#[derive(PartialEq)]
enum Flow {
    Goes,
    IsCut,
}

struct Connection {
    shared: Arc<Shared>,
    session: Session,
    out: BytesMut,
    later: BTreeMap<(Instant, u64), (Later, PutOff)>,
    later_number: u64,
}

/// Serves one connection until either side ends it.
pub(crate) async fn serve<S>(
    mut stream: S,
    shared: Arc<Shared>,
    node: usize,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let session = Session {
        node,
        features: Vec::new(),
        user: None,
        exchange: None,
        bucket: None,
        map_given: 0,
    };
    let mut maps = shared.map_changes.subscribe();
    let mut connection = Connection {
        shared,
        session,
        out: BytesMut::new(),
        later: BTreeMap::new(),
        later_number: 0,
    };
    let mut source = BytesMut::with_capacity(16 * 1024);
    loop {
        let flow = connection.take_all(&mut source);
        // Without an end to what the client does not read, a stop would wait for it.
        let written = tokio::select! {
            () = stop.cancelled() => return,
            written = stream.write_all_buf(&mut connection.out) => written,
        };
        if written.is_err() || flow == Flow::IsCut {
            return;
        }
        let next = connection.later.first_key_value().map(|((at, _), _)| *at);
        tokio::select! {
            () = stop.cancelled() => return,
            read = stream.read_buf(&mut source) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            },
            changed = maps.changed() => match changed {
                Ok(()) => connection.tell_of_the_map(),
                Err(_) => return,
            },
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                connection.run_due();
            }
        }
    }
}

impl Connection {
    /// Takes the requests that are there.
    fn take_all(&mut self, source: &mut BytesMut) -> Flow {
        loop {
            match Request::decode(source) {
                Ok(Some(request)) => {
                    if self.take(request) == Flow::IsCut {
                        return Flow::IsCut;
                    }
                }
                Ok(None) => return Flow::Goes,
                Err(error) => {
                    tracing::warn!(%error, "a client sent what is no request");
                    return Flow::IsCut;
                }
            }
        }
    }

    fn take(&mut self, request: Request) -> Flow {
        let code = request.opcode;
        let misbehaviour = (faults::is_write(code) || faults::is_read(code))
            .then(|| self.shared.faults.decide(code, &request.key, self.session.node))
            .flatten();
        let Some(misbehaviour) = misbehaviour else {
            let answer = self.answer(&request);
            self.send(&request, &answer);
            return Flow::Goes;
        };
        if let Some(status) = misbehaviour.refusal() {
            let answer = if status == Status::NOT_MY_VBUCKET {
                let shared = Arc::clone(&self.shared);
                self.not_my_vbucket(&shared.lock())
            } else {
                self.refusal(status)
            };
            self.send(&request, &answer);
            return Flow::Goes;
        }
        if let Some(after) = misbehaviour.applied_after() {
            return self.put_off(after, Later::Apply(request));
        }
        match misbehaviour {
            Misbehaviour::RequestSwallowed => Flow::Goes,
            Misbehaviour::CutBefore => Flow::IsCut,
            Misbehaviour::AnswerSwallowed => {
                self.answer(&request);
                Flow::Goes
            }
            Misbehaviour::CutAfter => {
                self.answer(&request);
                Flow::IsCut
            }
            Misbehaviour::AmbiguousApplied => {
                let answer = self.answer(&request);
                let is_done = answer.status == Status::SUCCESS.0;
                let ambiguous = self.refusal(Status::SYNC_WRITE_AMBIGUOUS);
                self.send(&request, if is_done { &ambiguous } else { &answer });
                Flow::Goes
            }
            Misbehaviour::HalfAnswer => {
                let answer = self.answer(&request);
                let whole = self.packet(&request, &answer);
                self.out.put_slice(&whole[..whole.len() / 2]);
                Flow::IsCut
            }
            Misbehaviour::Late(millis) => {
                let answer = self.answer(&request);
                let packet = self.packet(&request, &answer);
                self.put_off(Duration::from_millis(millis), Later::Send(packet))
            }
            Misbehaviour::Slow(_)
            | Misbehaviour::TemporaryFailure
            | Misbehaviour::Busy
            | Misbehaviour::Locked
            | Misbehaviour::StaleAuthentication
            | Misbehaviour::DurabilityImpossible
            | Misbehaviour::AmbiguousLost
            | Misbehaviour::SyncWriteInProgress
            | Misbehaviour::SyncWriteRecommit
            | Misbehaviour::NotMyVbucket
            | Misbehaviour::Internal => unreachable!("a refusal or a delay was dealt with above"),
        }
    }

    fn put_off(&mut self, after: Duration, what: Later) -> Flow {
        if self.later.len() >= LATER_MAX {
            return Flow::IsCut;
        }
        self.later_number += 1;
        let put_off = self.shared.faults.put_one_off();
        self.later.insert((Instant::now() + after, self.later_number), (what, put_off));
        Flow::Goes
    }

    fn run_due(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.later.first_entry().filter(|entry| entry.key().0 <= now) {
            // It counts as put off until it is done.
            let (what, _put_off) = entry.remove();
            match what {
                Later::Send(packet) => self.out.put_slice(&packet),
                Later::Apply(request) => {
                    let answer = self.answer(&request);
                    self.send(&request, &answer);
                }
            }
        }
    }

    fn packet(&self, request: &Request, answer: &Answer) -> Bytes {
        let mut packet = BytesMut::new();
        // One microsecond: the node answers at once, and 0 would look as if it had not measured.
        let micros = self.session.has(feature::DURATIONS).then_some(1);
        answer.encode(request.opcode, request.opaque, micros, &mut packet);
        packet.freeze()
    }

    fn send(&mut self, request: &Request, answer: &Answer) {
        let micros = self.session.has(feature::DURATIONS).then_some(1);
        answer.encode(request.opcode, request.opaque, micros, &mut self.out);
    }

    /// A refusal, with words for clients that want them.
    fn refusal(&self, status: Status) -> Answer {
        let mut answer = Answer::status(status);
        if self.session.has(feature::EXTENDED_ERRORS) {
            let context = format!("the node answers with status {:#04x}", status.0);
            let words = serde_json::json!({"error": {"context": context}});
            answer.value = words.to_string().into();
            answer.datatype = wire::datatype::JSON;
        }
        answer
    }

    fn not_my_vbucket(&mut self, state: &State) -> Answer {
        let mut answer = Answer::status(Status::NOT_MY_VBUCKET);
        let bucket = self.session.bucket.as_ref().and_then(|name| state.buckets.get(name));
        let is_known = self.session.has(feature::DEDUPLICATED_MAPS)
            && self.session.map_given == state.revision;
        if let Some(bucket) = bucket.filter(|_| !is_known) {
            answer.value = config::bucket_map(state, bucket, self.session.node).to_string().into();
            answer.datatype = wire::datatype::JSON;
            self.session.map_given = state.revision;
        }
        answer
    }

    /// Tells a client that asked for it that there is a new map.
    fn tell_of_the_map(&mut self) {
        let Some(bucket) = self.session.bucket.clone() else { return };
        if self.session.has(feature::MAP_CHANGE_BRIEF) {
            let revision = self.shared.lock().revision;
            self.out.put_slice(&wire::map_changed(&bucket, config::EPOCH, revision));
        }
    }

    fn answer(&mut self, request: &Request) -> Answer {
        if let Some(_frame) = request.unknown_frame {
            return self.refusal(Status::NOT_SUPPORTED);
        }
        let outcome = match request.opcode {
            opcode::HELLO => Ok(self.hello(request)),
            opcode::GET_ERROR_MAP => Ok(Answer::json(config::error_map().to_string())),
            opcode::SASL_LIST_MECHANISMS => {
                Ok(Answer::value(&b"SCRAM-SHA512 SCRAM-SHA256 SCRAM-SHA1 PLAIN"[..]))
            }
            opcode::SASL_AUTH => self.authenticate(request),
            opcode::SASL_STEP => self.prove(request),
            opcode::NOOP => Ok(Answer::default()),
            _ if self.session.user.is_none() => Err(Status::ACCESS),
            opcode::SELECT_BUCKET => self.select_bucket(request),
            opcode::GET_CLUSTER_CONFIG => Ok(self.map(request)),
            opcode::GET_COLLECTION_ID => return self.collection_id(request),
            code if faults::is_write(code) || faults::is_read(code) => {
                return self.document(request);
            }
            _ => Err(Status::UNKNOWN_COMMAND),
        };
        outcome.unwrap_or_else(|status| self.refusal(status))
    }

    fn hello(&mut self, request: &Request) -> Answer {
        let mut wanted = request.value.clone();
        let mut agreed = BytesMut::new();
        self.session.features.clear();
        while wanted.remaining() >= 2 {
            let feature = wanted.get_u16();
            if feature::SPOKEN.contains(&feature) {
                self.session.features.push(feature);
                agreed.put_u16(feature);
            }
        }
        Answer::value(agreed.freeze())
    }

    fn authenticate(&mut self, request: &Request) -> Result<Answer, Status> {
        self.session.user = None;
        if request.key == "PLAIN" {
            let (user, password) = scram::plain(&request.value).ok_or(Status::INVALID)?;
            let state = self.shared.lock();
            let known = state.users.get(user).filter(|known| known.password == password);
            self.session.user = Some(known.ok_or(Status::AUTH_ERROR)?.name.clone());
            return Ok(Answer::default());
        }
        let hash = Hash::of_mechanism(&request.key).ok_or(Status::AUTH_ERROR)?;
        let seed = self.shared.next_seed();
        let (exchange, message) =
            Exchange::start(hash, &request.value, seed).ok_or(Status::INVALID)?;
        self.session.exchange = Some(exchange);
        Ok(Answer { value: message.into(), ..Answer::status(Status::AUTH_CONTINUE) })
    }

    fn prove(&mut self, request: &Request) -> Result<Answer, Status> {
        let exchange = self.session.exchange.take().ok_or(Status::AUTH_ERROR)?;
        let state = self.shared.lock();
        let user = state.users.get(&exchange.user).ok_or(Status::AUTH_ERROR)?;
        let proof = exchange.finish(&request.value, &user.password).ok_or(Status::AUTH_ERROR)?;
        self.session.user = Some(user.name.clone());
        Ok(Answer::value(proof))
    }

    fn select_bucket(&mut self, request: &Request) -> Result<Answer, Status> {
        let name = std::str::from_utf8(&request.key).map_err(|_| Status::INVALID)?;
        let state = self.shared.lock();
        if !state.buckets.contains_key(name) {
            return Err(Status::KEY_NOT_FOUND);
        }
        if !self.session.may(&state, Right::Read) && !self.session.may(&state, Right::Write) {
            return Err(Status::ACCESS);
        }
        self.session.bucket = Some(name.to_owned());
        Ok(Answer::default())
    }

    fn map(&mut self, request: &Request) -> Answer {
        let state = self.shared.lock();
        let mut known = request.extras.clone();
        if known.len() == 16
            && (known.get_u64(), known.get_u64()) == (config::EPOCH, state.revision)
        {
            return Answer::default();
        }
        let bucket = self.session.bucket.as_ref().and_then(|name| state.buckets.get(name));
        let map = match bucket {
            Some(bucket) => config::bucket_map(&state, bucket, self.session.node),
            None => config::cluster_map(&state, self.session.node),
        };
        self.session.map_given = state.revision;
        Answer::json(map.to_string())
    }

    fn collection_id(&self, request: &Request) -> Answer {
        let state = self.shared.lock();
        let bucket = self.session.bucket.as_ref().and_then(|name| state.buckets.get(name));
        let Some(bucket) = bucket else { return self.refusal(Status::NO_BUCKET) };
        // Older clients send the path as the key.
        let path = if request.value.is_empty() { &request.key } else { &request.value };
        let Some((scope, collection)) =
            std::str::from_utf8(path).ok().and_then(|path| path.split_once('.'))
        else {
            return self.refusal(Status::INVALID);
        };
        let default =
            |name: &str| if name.is_empty() { "_default".to_owned() } else { name.to_owned() };
        let (scope, collection) = (default(scope), default(collection));
        if !bucket.record.scopes.contains_key(&scope) {
            return self.unknown_collection(Status::UNKNOWN_SCOPE, bucket.record.manifest);
        }
        match bucket.record.collection(&scope, &collection) {
            Some(found) => {
                let mut extras = BytesMut::new();
                extras.put_u64(bucket.record.manifest);
                extras.put_u32(found.id);
                Answer { extras: extras.freeze(), ..Answer::default() }
            }
            None => self.unknown_collection(Status::UNKNOWN_COLLECTION, bucket.record.manifest),
        }
    }

    fn unknown_collection(&self, status: Status, manifest: u64) -> Answer {
        let words = serde_json::json!({"manifest_uid": format!("{manifest:x}")});
        Answer {
            datatype: wire::datatype::JSON,
            value: words.to_string().into(),
            ..Answer::status(status)
        }
    }

    fn document(&mut self, request: &Request) -> Answer {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let right = if faults::is_write(request.opcode) { Right::Write } else { Right::Read };
        if !self.session.may(&state, right) {
            return self.refusal(Status::ACCESS);
        }
        let Some(name) = self.session.bucket.clone() else {
            return self.refusal(Status::NO_BUCKET);
        };
        let Some(bucket) = state.buckets.get(&name) else {
            return self.refusal(Status::NO_BUCKET);
        };
        let key = match self.key_of(request) {
            Ok(key) => key,
            Err(status) => return self.refusal(status),
        };
        if bucket.record.collection_by_id(key.0).is_none() {
            return self.unknown_collection(Status::UNKNOWN_COLLECTION, bucket.record.manifest);
        }
        let holders = bucket.map.get(usize::from(request.vbucket));
        let is_here = holders.is_some_and(|holders| {
            if request.opcode == opcode::GET_REPLICA {
                holders.contains(&Some(self.session.node))
            } else {
                holders.first() == Some(&Some(self.session.node))
            }
        });
        if !is_here {
            return self.not_my_vbucket(&state);
        }
        let now = shared.clock.now();
        match documents::run(&mut state, &self.session, &name, request, key, now) {
            Ok(answer) => answer,
            Err(status) => self.refusal(status),
        }
    }

    fn key_of(&self, request: &Request) -> Result<Key, Status> {
        let key = if self.session.has(feature::COLLECTIONS) {
            wire::split_collection(&request.key).ok_or(Status::INVALID)?
        } else {
            (0, request.key.clone())
        };
        let longest = if key.0 == 0 { KEY_BYTES_MAX } else { KEY_IN_COLLECTION_BYTES_MAX };
        if key.1.is_empty() || key.1.len() > longest {
            return Err(Status::INVALID);
        }
        Ok(key)
    }
}
