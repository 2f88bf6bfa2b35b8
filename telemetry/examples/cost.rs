//! What a span costs, to be counted by `valgrind --tool=cachegrind --cache-sim=no`:
//!
//! ```sh
//! cost collector                       # takes what is sent to it; prints its address, and ends with its input
//! cost spans http://ADDRESS COUNT RATE # ends COUNT pairs of spans, RATE a second, as a call that is sampled has them
//! ```
//!
//! With COUNT 0 there is the export alone, for as long as 1,000 pairs take at that rate.
#![expect(clippy::print_stdout, reason = "an example is for a terminal")]

use std::error::Error;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use greenroom_telemetry::{Export, Registry, SpanKind, TelemetryConfig, Who};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["collector"] => collect(),
        ["spans", endpoint, count, rate] => spans(endpoint, count.parse()?, rate.parse()?),
        _ => Err("cost collector | cost spans ENDPOINT COUNT RATE".into()),
    }
}

#[expect(clippy::disallowed_methods, reason = "no runtime is on this thread")]
fn spans(endpoint: &str, count: u32, rate: u32) -> Result<(), Box<dyn Error>> {
    let config = TelemetryConfig {
        endpoint: endpoint.to_owned(),
        sample: 1.0,
        interval: Duration::from_secs(3_600),
        ..TelemetryConfig::default()
    };
    let export = Export::start(&config, &Registry::default())?;
    let session = export.tracer(Who::new("session", "session-1"));
    let game = export.tracer(Who::new("game", "game-1"));
    let began = Instant::now();
    for n in 0..if count == 0 { 1_000 } else { count } {
        let next = began + Duration::from_secs(1) * n / rate;
        thread::sleep(next.saturating_duration_since(Instant::now()));
        if count == 0 {
            continue;
        }
        let Some(up) = session.root("call", SpanKind::Producer) else { continue };
        if let Some(mut span) = game.child(Some(up.context()), "call", SpanKind::Consumer) {
            span.set("greenroom.instance", "3m66tgs0hg7z8hc7bran0yr3hk");
            span.set("greenroom.kind", "echo");
            span.set("greenroom.seat", 0_u64);
        }
    }
    export.stop(Duration::from_secs(60));
    Ok(())
}

fn collect() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("http://{}", listener.local_addr()?);
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            thread::spawn(move || answer(&socket));
        }
    });
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// Answers requests until the other end closes.
fn answer(socket: &TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(socket);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim().to_lowercase();
            if let Some(of) = line.strip_prefix("content-length:") {
                length = of.trim().parse().unwrap_or(0);
            }
            if line.is_empty() {
                break;
            }
        }
        io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
        (&mut &*socket).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
    }
}
