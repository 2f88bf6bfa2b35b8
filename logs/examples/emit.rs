//! Emits as many events as each line of the standard input says, and prints what became of all so far.
//!
//! ```sh
//! emit FOLDER PROCESS QUEUE
//! ```
//!
//! `QUEUE` is how many events may wait for the disk.
#![expect(clippy::print_stdout, reason = "an example is for a terminal")]

use std::{env, error::Error, io, path::Path, process::ExitCode, time::Duration};

use greenroom_logs::{LogWriter, LogsConfig, kinds::CheckIn};
use greenroom_protocol::{ServerName, SessionId, UserId};

/// How long a disk is waited for after each line.
const PATIENCE: Duration = Duration::from_secs(1);

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
    let [folder, process, queue] = &words[..] else { return Err("FOLDER PROCESS QUEUE".into()) };
    let config = LogsConfig { queue_events_max: queue.parse()?, ..LogsConfig::default() };
    let writer = LogWriter::start(&config, Path::new(folder), process)?;
    let logs = writer.logs().of(process, "session");
    let mut next = 0;
    for line in io::stdin().lines() {
        let end = next + line?.parse::<u64>()?;
        for number in next..end {
            let (user, session) =
                (UserId::new(format!("user-{}", number % 50))?, SessionId(number));
            let (name, server) = (format!("number {number}").into(), ServerName::new("session-1")?);
            logs.emit(&CheckIn { user, session, name, server });
        }
        next = end;
        logs.flush(PATIENCE);
        let counted = logs.counters();
        println!("{next} {} {} {}", counted.written, counted.lost, counted.failures);
    }
    writer.stop();
    Ok(())
}
