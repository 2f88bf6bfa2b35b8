//! A Kinesis API that somebody else wrote: moto's server, from PyPI.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::Message;

/// The server, for as long as this is there.
pub(crate) struct Moto {
    server: Child,
    pub(crate) port: u16,
}

/// What somebody needs who signs: moto looks at none of it.
pub(crate) const CREDENTIALS: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "testing"),
    ("AWS_SECRET_ACCESS_KEY", "testing"),
    ("AWS_EC2_METADATA_DISABLED", "true"),
];

impl Moto {
    pub(crate) fn start() -> Self {
        let program = std::env::var("GREENROOM_MOTO")
            .expect("GREENROOM_MOTO names moto's server: `cargo xtask test` installs it");
        // It takes no port 0.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto's server starts");
        let moto = Self { server, port };
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "moto's server did not start");
            std::thread::yield_now();
        }
        moto
    }

    /// Makes a stream.
    pub(crate) fn create(&self, stream: &str, shards: u32) {
        self.ask("CreateStream", &json!({ "StreamName": stream, "ShardCount": shards }));
    }

    /// Asks for something, and gives the answer.
    pub(crate) fn ask(&self, verb: &str, what: &Value) -> Value {
        let headers = [
            ("Host", "127.0.0.1"),
            ("Content-Type", "application/x-amz-json-1.1"),
            ("X-Amz-Target", &format!("Kinesis_20131202.{verb}")),
            (
                "Authorization",
                "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/kinesis/aws4_request, SignedHeaders=host, \
                 Signature=0",
            ),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let body = serde_json::to_vec(what).unwrap();
        let asked = Message { first: "POST / HTTP/1.1".into(), headers, body };
        let answer = asked.ask(self.port).unwrap();
        let text = String::from_utf8_lossy(&answer.body);
        assert!(answer.first.contains(" 200 "), "{verb}: {} {text}", answer.first);
        serde_json::from_slice(&answer.body).unwrap_or(Value::Null)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.server.kill().and_then(|()| self.server.wait()).expect("moto's server ends");
    }
}
