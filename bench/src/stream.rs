//! A Kinesis API of somebody else's to ship to: moto's server, from PyPI.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use greenroom_logs::KinesisConfig;

/// The variable that names its program.
const PROGRAM: &str = "GREENROOM_MOTO";
/// The longest that it may take to start.
const READY_MAX: Duration = Duration::from_secs(60);
/// The region that it thinks it is in.
const REGION: &str = "us-east-1";

/// The server, for as long as this is there.
#[derive(Debug)]
pub(crate) struct Service {
    server: Child,
    port: u16,
}

impl Service {
    /// Starts it; nothing if nobody says where its program is.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start() -> anyhow::Result<Option<Self>> {
        let Some(program) = std::env::var_os(PROGRAM) else { return Ok(None) };
        ensure!(
            std::env::var_os("AWS_ACCESS_KEY_ID").is_some(),
            "{PROGRAM} is set, and AWS_ACCESS_KEY_ID is not: set it and AWS_SECRET_ACCESS_KEY, to anything"
        );
        // It takes no port 0.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let server = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let service = Self { server, port };
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            ensure!(began.elapsed() < READY_MAX, "moto's server did not start");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(Some(service))
    }

    /// Makes a stream.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) fn create(&self, stream: &str, shards: u32) -> anyhow::Result<()> {
        let body = format!("{{\"StreamName\":{stream:?},\"ShardCount\":{shards}}}");
        let head = format!(
            "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-amz-json-1.1\r\n\
             X-Amz-Target: Kinesis_20131202.CreateStream\r\nAuthorization: AWS4-HMAC-SHA256 \
             Credential=testing/20260101/{REGION}/kinesis/aws4_request, SignedHeaders=host, Signature=0\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        socket.write_all(format!("{head}{body}").as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        ensure!(answer.contains(" 200 "), "making the stream {stream}: {answer}");
        Ok(())
    }

    /// Settings of a shipper in this process.
    pub(crate) fn config(&self, stream: &str) -> KinesisConfig {
        KinesisConfig {
            stream: Some(stream.into()),
            region: Some(REGION.into()),
            endpoint: Some(self.endpoint().into()),
            ..KinesisConfig::default()
        }
    }

    /// Flags of a server that ships.
    pub(crate) fn flags(&self, stream: &str) -> Vec<String> {
        let endpoint = self.endpoint();
        [("stream", stream), ("region", REGION), ("endpoint", &endpoint)]
            .into_iter()
            .flat_map(|(name, value)| [format!("--logs-kinesis-{name}"), value.to_owned()])
            .collect()
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.server.kill());
        drop(self.server.wait());
    }
}
