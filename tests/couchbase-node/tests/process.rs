//! The cluster as a process of its own: its line, its control port, and its documents after it was killed.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// A cluster that is killed with the test.
struct Process {
    child: Child,
    /// Where clients connect.
    address: String,
    control: u64,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_couchbase-node"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Process {
    fn start(ports: &str, folder: &Path) -> Self {
        let folder = folder.to_str().unwrap();
        let mut child = program(&["--ports", ports, "--folder", folder]).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        let address = ready["address"].as_str().unwrap().to_owned();
        Self { child, address, control: ready["control"].as_u64().unwrap() }
    }

    /// Asks the control port; the status and the answer.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream =
            TcpStream::connect(("127.0.0.1", self.control.try_into().unwrap())).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: control\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap())
    }

    fn told(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, answer) = self.ask(method, path, body);
        assert_eq!(status, 200, "{method} {path}: {answer}");
        answer
    }
}

/// Two nodes' ports that nobody listens on: they are chosen by the system and let go of.
fn free_ports() -> String {
    let listeners: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<_> =
        listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    format!("{}:{},{}:{}", ports[0], ports[1], ports[2], ports[3])
}

/// Method: a client of the official SDK writes; a fault, the clock and a node are set over the control port; then the
/// process is killed and started again on its ports and folder.
#[tokio::test]
async fn it_does_what_the_control_port_says_and_keeps_its_documents_when_it_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let ports = free_ports();
    let mut process = Process::start(&ports, folder.path());
    let known = process.told("GET", "/", "");
    assert_eq!(known["address"], *process.address);
    assert_eq!(known["ports"].as_array().unwrap().len(), 2);

    let client = support::connect(&process.address, "Administrator", "password").await;
    let bucket = client.bucket("greenroom");
    bucket.wait_until_ready(None).await.unwrap();
    let documents = bucket.default_collection();
    documents.upsert("kept", json!({"n": 1}), None).await.unwrap();

    assert_eq!(
        process.told("POST", "/faults", r#"{"what": "temporary_failure", "count": 1}"#),
        json!({})
    );
    // The SDK tries again by itself.
    documents.upsert("again", json!({"n": 2}), None).await.unwrap();
    assert_eq!(process.told("GET", "/faults", ""), json!({"happened": 1, "put_off": 0}));
    assert_eq!(process.told("DELETE", "/faults", ""), json!({}));

    let options = couchbase::options::kv_options::UpsertOptions::new();
    let short = options.expiry(std::time::Duration::from_secs(60));
    documents.upsert("short", json!({"n": 3}), short).await.unwrap();
    assert_eq!(process.told("POST", "/clock", r#"{"seconds": 61}"#), json!({}));
    let stored = process.told("GET", "/documents/greenroom/_default/_default", "");
    assert_eq!(stored, json!({"kept": {"n": 1}, "again": {"n": 2}}));

    // With one of two nodes the copies of the other's documents take over, and all is there.
    for path in ["/nodes/1/stop", "/nodes/1/fail-over"] {
        assert_eq!(process.told("POST", path, ""), json!({}));
    }
    let stored = process.told("GET", "/documents/greenroom/_default/_default", "");
    assert_eq!(stored.as_object().unwrap().len(), 2, "{stored}");
    for path in ["/nodes/1/start", "/rebalance"] {
        assert_eq!(process.told("POST", path, ""), json!({}));
    }

    for (method, path, body, named) in [
        ("POST", "/nodes/7/stop", "", "there is no node"),
        ("POST", "/faults", r#"{"what": "sulks"}"#, "sulks"),
        ("GET", "/nowhere", "", "/nowhere is unknown"),
    ] {
        let (status, answer) = process.ask(method, path, body);
        assert_eq!(status, 400, "{path}");
        assert!(answer["error"].as_str().unwrap().contains(named), "{path}: {answer}");
    }

    process.child.kill().unwrap();
    process.child.wait().unwrap();
    let process = Process::start(&ports, folder.path());
    let stored = process.told("GET", "/documents/greenroom/_default/_default", "");
    assert_eq!(stored["kept"], json!({"n": 1}), "{stored}");
    // The client of before finds it on its ports.
    let read = documents.get("kept", None).await.unwrap();
    assert_eq!(read.content_as::<Value>().unwrap(), json!({"n": 1}));
}

#[test]
fn a_command_line_that_it_does_not_know_is_named() {
    for (arguments, named) in [
        (&["--fast"][..], "--fast is unknown"),
        (&["--ports", "11210"][..], "no list of ports"),
        (&["--nodes"][..], "--nodes needs a value"),
    ] {
        let ended = program(arguments).output().unwrap();
        assert!(!ended.status.success());
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains(named), "{said}");
    }
}
