//! Stands before a Kinesis API and does what stand-ins of it don't: throttles, fails in parts, cuts, loses answers. And
//! it asks one thing at a time: of records that come at the same time moto's server keeps some, and acknowledges all.

use std::collections::VecDeque;
use std::io::BufReader;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

use crate::http::Message;

/// What happens to a call that puts records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// Every second record is refused: its shard takes no more.
    Throttle,
    /// The call is refused whole.
    Refuse,
    /// The connection is cut before anything is done.
    Cut,
    /// It is done, and the connection is cut instead of an answer.
    Swallow,
}

/// The proxy. It lives as long as the process.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<Mutex<State>>,
    /// Held while the API is asked.
    turn: Arc<Mutex<()>>,
}

struct State {
    /// What happens to the next calls, one after the other.
    next: VecDeque<Fault>,
    /// What happens to all others.
    always: Fault,
    seen: Seen,
}

/// What has happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) calls: usize,
    pub(crate) faults: usize,
    pub(crate) records_refused: usize,
    /// Records that were taken although the answer was lost: they come again.
    pub(crate) records_swallowed: usize,
}

impl Proxy {
    pub(crate) fn start(behind: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { next: VecDeque::new(), always: Fault::None, seen: Seen::default() };
        let proxy = Self { port, state: Arc::new(Mutex::new(state)), turn: Arc::default() };
        let of_thread = proxy.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let proxy = of_thread.clone();
                thread::spawn(move || proxy.serve(stream, behind));
            }
        });
        proxy
    }

    /// The next calls have these faults.
    pub(crate) fn next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().unwrap().next.extend(faults);
    }
    /// All calls have this fault, until something else is said.
    pub(crate) fn always(&self, fault: Fault) {
        self.state.lock().unwrap().always = fault;
    }
    pub(crate) fn seen(&self) -> Seen {
        self.state.lock().unwrap().seen
    }

    fn serve(&self, mut client: TcpStream, behind: u16) {
        let mut reader = BufReader::new(client.try_clone().unwrap());
        while let Ok(Some(asked)) = Message::read(&mut reader) {
            let puts =
                asked.header("x-amz-target").is_some_and(|verb| verb.ends_with(".PutRecords"));
            let fault = match puts {
                true => self.fault(),
                false => Fault::None,
            };
            let turn = self.turn.lock().unwrap();
            let answer = match fault {
                Fault::None => asked.ask(behind).ok(),
                Fault::Throttle => Some(self.in_parts(&asked, behind)),
                Fault::Refuse => Some(refusal("ProvisionedThroughputExceededException")),
                Fault::Cut => None,
                Fault::Swallow => {
                    let records = records(&asked).len();
                    let done = asked.ask(behind).is_ok_and(|answer| answer.first.contains(" 200 "));
                    self.state.lock().unwrap().seen.records_swallowed +=
                        usize::from(done) * records;
                    None
                }
            };
            drop(turn);
            let written = answer.is_some_and(|answer| answer.write(&mut client).is_ok());
            if !written {
                break;
            }
        }
        // The client may have hung up first.
        _ = client.shutdown(Shutdown::Both);
    }

    fn fault(&self) -> Fault {
        let mut state = self.state.lock().unwrap();
        state.seen.calls += 1;
        let fault = state.next.pop_front().unwrap_or(state.always);
        state.seen.faults += usize::from(fault != Fault::None);
        fault
    }

    /// Passes every other record on, and refuses the rest by name.
    fn in_parts(&self, asked: &Message, behind: u16) -> Message {
        let mut body: Value = serde_json::from_slice(&asked.body).unwrap();
        let all = records(asked);
        let passed: Vec<Value> = all.iter().step_by(2).cloned().collect();
        let refused = all.len() - passed.len();
        body["Records"] = json!(passed);
        let changed = Message { body: serde_json::to_vec(&body).unwrap(), ..asked.clone() };
        let Ok(mut answer) = changed.ask(behind) else { return refusal("InternalFailure") };
        let mut body: Value = serde_json::from_slice(&answer.body).unwrap();
        let mut done = body["Records"].as_array().unwrap().clone().into_iter();
        let no = json!({
            "ErrorCode": "ProvisionedThroughputExceededException",
            "ErrorMessage": "Rate exceeded for shard shardId-000000000000",
        });
        let results: Vec<Value> = (0..all.len())
            .map(|at| if at % 2 == 0 { done.next().unwrap() } else { no.clone() })
            .collect();
        body["Records"] = json!(results);
        body["FailedRecordCount"] = json!(refused);
        answer.body = serde_json::to_vec(&body).unwrap();
        self.state.lock().unwrap().seen.records_refused += refused;
        answer
    }
}

fn records(asked: &Message) -> Vec<Value> {
    let body: Value = serde_json::from_slice(&asked.body).unwrap();
    body["Records"].as_array().unwrap().clone()
}

fn refusal(code: &str) -> Message {
    Message {
        first: "HTTP/1.1 400 Bad Request".into(),
        headers: vec![
            ("content-type".into(), "application/x-amz-json-1.1".into()),
            ("x-amzn-errortype".into(), code.into()),
        ],
        body: serde_json::to_vec(&json!({ "__type": code, "message": "Rate exceeded" })).unwrap(),
    }
}
