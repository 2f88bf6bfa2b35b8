//! Ships events to a Kinesis stream, and reads a stream: what a server does beside its work, by itself.
//!
//! ```sh
//! stream ship FOLDER PROCESS kinesis://STREAM?region=REGION EVENTS [BYTES]   # stops when the standard input ends
//! stream read kinesis://STREAM?region=REGION                                 # prints each event that is in it
//! ```
//!
//! `BYTES` is how much of the log may be on disk; in memory is then little of it.
#![expect(clippy::print_stdout, reason = "an example is for a terminal")]

use std::{env, error::Error, io, path::Path, process::ExitCode, thread, time::Duration};

use greenroom_logs::{
    KinesisConfig, LogWriter, LogsConfig,
    kinds::CheckIn,
    ship::{ShipError, Shipper, Target, read_stream},
};
use greenroom_protocol::{ServerName, SessionId, UserId};
use greenroom_telemetry::{Source as _, Value};

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match *words {
        ["ship", folder, process, target, events] => {
            ship(Path::new(folder), process, &target.parse()?, events.parse()?, None)
        }
        ["ship", folder, process, target, events, bytes] => ship(
            Path::new(folder),
            process,
            &target.parse()?,
            events.parse()?,
            Some(bytes.parse()?),
        ),
        ["read", target] => read(&target.parse()?),
        _ => Err("ship FOLDER PROCESS TARGET EVENTS, or read TARGET".into()),
    }
}

fn ship(
    folder: &Path,
    process: &str,
    target: &Target,
    events: u64,
    bytes: Option<u64>,
) -> Result<(), Box<dyn Error>> {
    let mut config = LogsConfig::default();
    let mut kinesis = KinesisConfig::default();
    if let Some(bytes) = bytes {
        (config.total_bytes_max, config.segment_bytes_max) = (bytes, bytes / 8);
        kinesis.buffer_bytes_max = 64 << 10;
    }
    let writer = LogWriter::start(&config, folder, process)?;
    let config = KinesisConfig {
        stream: Some(target.stream.clone()),
        region: target.region.clone(),
        endpoint: target.endpoint.clone(),
        call_timeout: Duration::from_secs(2),
        ..kinesis
    };
    let shipper = Shipper::start(&config, folder, process, writer.logs())?;
    let logs = writer.logs().of(process, "game");
    for number in 0..events {
        let user = UserId::new(format!("user-{}", number % 50))?;
        let session = SessionId(number);
        let server = ServerName::new("session-1")?;
        logs.emit(&CheckIn { user, session, name: format!("{number}").into(), server });
        // What goes before the shipper has looked for the first time is not missed by it.
        while number == 0
            && bytes.is_some()
            && shipper.as_ref().is_some_and(|ships| calls(ships) == 0)
        {
            thread::park_timeout(Duration::from_millis(10));
        }
        if number % 1_000 == 999 {
            // As fast as the disk takes them: the queue is bounded.
            logs.flush(Duration::from_secs(10));
        }
    }
    logs.flush(Duration::from_secs(10));
    println!("emitted");
    // Whoever started this closes it.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    writer.stop();
    println!("dropped {}", logs.counters().dropped);
    if let Some(shipper) = shipper {
        let metrics = std::sync::Arc::clone(shipper.metrics());
        shipper.stop();
        metrics.read(&mut |of, value| {
            if let Value::Whole(value) = value {
                println!("{} {value}", of.name);
            }
        });
    }
    Ok(())
}

/// How many calls it has made.
fn calls(shipper: &Shipper) -> u64 {
    let mut calls = 0;
    shipper.metrics().read(&mut |of, value| {
        if let ("greenroom.logs.shipping.call.made", Value::Whole(value)) = (of.name, value) {
            calls = value;
        }
    });
    calls
}

fn read(target: &Target) -> Result<(), Box<dyn Error>> {
    read_stream(target, None, |_, text, _| {
        println!("{text}");
        Ok::<(), ShipError>(())
    })?;
    Ok(())
}
