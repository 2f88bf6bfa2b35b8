//! Real processes that write the log and are killed, or whose disk takes no more.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use greenroom_logs::{
    LogWriter, LogsConfig,
    read::{From, Reader, Skipped},
};
use greenroom_protocol::SessionId;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// How long what takes moments may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().and_then(Path::parent).unwrap().join("examples/emit")
}

/// A process that emits what it is told to.
struct Emits {
    process: Child,
    stdout: BufReader<ChildStdout>,
}

/// What became of its events.
#[derive(Clone, Copy, Debug)]
struct Counted {
    emitted: u64,
    written: u64,
    lost: u64,
    failures: u64,
}

impl Emits {
    fn start(mut command: Command, folder: &Path, queue: u64) -> Self {
        let command = command.arg(folder).args(["p", &queue.to_string()]);
        let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = streams.spawn().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        Self { process, stdout }
    }
    fn say(&mut self, events: u64) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{events}").unwrap();
    }
    fn hear(&mut self) -> Counted {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let mut numbers = line.split_whitespace().map(|number| number.parse().unwrap());
        let mut next = || numbers.next().unwrap_or_else(|| panic!("it said {line:?}"));
        Counted { emitted: next(), written: next(), lost: next(), failures: next() }
    }
    fn emit(&mut self, events: u64) -> Counted {
        self.say(events);
        self.hear()
    }
    /// Lets it end; gives what it complained of.
    fn stop(mut self) -> String {
        drop(self.process.stdin.take());
        let mut text = String::new();
        self.process.stderr.as_mut().unwrap().read_to_string(&mut text).unwrap();
        assert!(self.process.wait().unwrap().success(), "{text}");
        text
    }
}

/// Sessions of the check-ins, what `events_lost` says is missing, and what was no event.
fn read(folder: &Path) -> (Vec<u64>, u64, Skipped) {
    let mut reader = Reader::open(folder, From::Start).unwrap();
    let (mut sessions, mut lost) = (Vec::new(), 0);
    while let Some(record) = reader.next_record().unwrap() {
        let event = record.event();
        if event.kind == "check_in" {
            sessions.push(event.session.unwrap().parse::<SessionId>().unwrap().0);
        } else if event.kind == "events_lost" {
            let fields: serde_json::Value = serde_json::from_str(event.fields.get()).unwrap();
            lost += fields["events"].as_u64().unwrap();
        }
    }
    (sessions, lost, reader.skipped())
}

#[test]
fn a_process_that_is_killed_while_it_writes_has_lost_nothing_that_was_written() {
    for wanted in [1, 10, 30] {
        let folder = tempfile::tempdir().unwrap();
        let mut emits = Emits::start(Command::new(program()), folder.path(), 131_072);
        // It has more to do than it will live to do.
        (0..200).for_each(|_| emits.say(1_000));
        let mut written = 0;
        for _ in 0..wanted {
            let counted = emits.hear();
            assert_eq!(counted.lost, 0, "{counted:?}");
            written = counted.written;
        }
        emits.process.kill().unwrap();
        emits.process.wait().unwrap();
        // Whoever comes next finds a folder that is in order.
        let config = LogsConfig::default();
        LogWriter::start(&config, folder.path(), "p").unwrap().stop();
        let (sessions, lost, skipped) = read(folder.path());
        assert!(sessions.len() as u64 >= written, "{} of {written}", sessions.len());
        assert_eq!(
            sessions,
            (0..sessions.len() as u64).collect::<Vec<_>>(),
            "none is missing before another"
        );
        assert_eq!((lost, skipped), (0, Skipped::default()));
    }
}

/// A file of the process may grow to a limit, past which the system takes no more, as from a full disk; then it may
/// grow again. The signal that tells of the limit is ignored, as where no disk is full.
#[test]
fn a_disk_that_is_full_stops_nobody_and_what_it_cost_is_told_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -S -f 400; exec \"$0\" \"$@\""]).arg(program());
    let mut emits = Emits::start(command, folder.path(), 2_000);
    assert_eq!(emits.emit(100).failures, 0);
    let began = Instant::now();
    let mut last = emits.emit(1_000);
    while last.lost == 0 {
        assert!(began.elapsed() < PATIENCE, "the disk is never full: {last:?}");
        last = emits.emit(1_000);
    }
    assert!(last.failures > 0 && last.written < last.emitted - last.lost, "{last:?}");

    let pid = Pid::from_child(&emits.process);
    prlimit(Some(pid), Resource::Fsize, Rlimit { current: None, maximum: None }).unwrap();
    let began = Instant::now();
    let mut after = emits.emit(1);
    while after.written + after.lost < after.emitted {
        assert!(began.elapsed() < PATIENCE, "it never goes on: {after:?}");
        after = emits.emit(1);
    }
    let said = emits.stop();
    assert_eq!(said.matches("the disk takes no events").count(), 1, "{said}");
    assert!(
        said.contains("File too large") && said.contains("the disk takes events again"),
        "{said}"
    );

    let (sessions, lost, skipped) = read(folder.path());
    assert_eq!(lost, after.lost, "the log itself says how many are missing");
    assert_eq!(sessions.len() as u64 + lost, after.emitted, "each is there or counted");
    assert!(sessions.windows(2).all(|two| two[0] < two[1]), "none is there twice");
    assert_eq!(skipped, Skipped::default(), "no half of a line is left");
}
