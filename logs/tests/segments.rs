//! What is written and what is read of it, through files.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use greenroom_logs::{
    LogWriter, Logs, LogsConfig,
    kinds::CheckIn,
    read::{From, Position, Reader, Record},
};
use greenroom_protocol::{ServerName, SessionId, UserId};
use proptest::prelude::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn emit(logs: &Logs, n: u64) {
    let (user, session) = (UserId::new(format!("u{n}")).unwrap(), SessionId(n));
    let server = ServerName::new("s").unwrap();
    logs.emit(&CheckIn { user, session, name: format!("number {n}").into(), server });
}

fn start(folder: &Path, config: &LogsConfig) -> LogWriter {
    LogWriter::start(config, folder, "p").unwrap()
}

fn read(reader: &mut Reader) -> Vec<Record> {
    std::iter::from_fn(|| reader.next_record().unwrap()).collect()
}

fn read_all(folder: &Path) -> (Vec<Record>, Reader) {
    let mut reader = Reader::open(folder, From::Start).unwrap();
    (read(&mut reader), reader)
}

/// Sessions of the check-ins, in the order in which they were read.
fn check_ins(records: &[Record]) -> Vec<u64> {
    let events = records.iter().map(Record::event).filter(|event| event.kind == "check_in");
    events.map(|event| event.session.unwrap().parse::<SessionId>().unwrap().0).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(folder.join("p"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap() != "lock")
        .collect();
    all.sort();
    all
}

#[test]
fn what_is_emitted_is_read_in_its_order_and_ids_rise() {
    let folder = tempfile::tempdir().unwrap();
    let writer = start(folder.path(), &LogsConfig::default());
    let logs = writer.logs().of("session-1", "session");
    (0..1_000).for_each(|n| emit(&logs, n));
    assert!(logs.flush(PATIENCE));
    let (records, _) = read_all(folder.path());
    assert_eq!(check_ins(&records), (0..1_000).collect::<Vec<_>>());
    assert!(records.windows(2).all(|two| two[0].id() < two[1].id()));
    let event = records[7].event();
    assert_eq!((&*event.node, &*event.role, event.v), ("session-1", "session", 1));
    assert_eq!(event.fields.get(), r#"{"name":"number 7","server":"s"}"#);
    writer.stop();
    assert_eq!(logs.counters().written, 1_000);
}

#[test]
fn segments_rotate_by_size_and_closed_ones_are_compressed_and_read_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogsConfig { segment_bytes_max: 20_000, ..LogsConfig::default() };
    let writer = start(folder.path(), &config);
    for n in 0..1_000 {
        emit(writer.logs(), n);
        if n % 50 == 0 {
            assert!(writer.logs().flush(PATIENCE));
        }
    }
    assert!(writer.logs().flush(PATIENCE));
    writer.stop();
    let files = files(folder.path());
    let closed = files.iter().filter(|file| file.extension().unwrap() == "zst").count();
    assert_eq!((closed, files.len() - closed), (files.len() - 1, 1), "{files:?}");
    assert!(closed > 5, "{files:?}");
    let (records, reader) = read_all(folder.path());
    assert_eq!(check_ins(&records), (0..1_000).collect::<Vec<_>>());
    assert_eq!(reader.skipped(), Default::default());
}

#[test]
fn a_reader_goes_on_from_any_position_whatever_was_closed_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogsConfig { segment_bytes_max: 3_000, ..LogsConfig::default() };
    let writer = start(folder.path(), &config);
    (0..40).for_each(|n| emit(writer.logs(), n));
    assert!(writer.logs().flush(PATIENCE));
    let (records, _) = read_all(folder.path());
    let positions: Vec<_> = records.iter().map(|record| record.after.clone()).collect();
    for n in 40..80 {
        emit(writer.logs(), n);
        assert!(writer.logs().flush(PATIENCE));
    }
    writer.stop();
    for (n, position) in positions.iter().enumerate() {
        let text: Position = position.to_string().parse().unwrap();
        let mut reader = Reader::open(folder.path(), From::Positions(vec![text])).unwrap();
        let rest = check_ins(&read(&mut reader));
        assert_eq!(rest, (n as u64 + 1..80).collect::<Vec<_>>(), "from {position}");
    }
}

#[test]
fn positions_of_a_reader_lose_and_double_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let writers: Vec<_> = ["a", "b"]
        .map(|name| LogWriter::start(&LogsConfig::default(), folder.path(), name).unwrap())
        .into();
    for n in 0..100 {
        emit(writers[usize::from(n % 2 == 1)].logs(), n);
    }
    writers.iter().for_each(|writer| assert!(writer.logs().flush(PATIENCE)));
    let mut seen = Vec::new();
    let mut positions = Vec::new();
    for _ in 0..100 {
        let mut reader = Reader::open(folder.path(), From::Positions(positions)).unwrap();
        seen.push(reader.next_record().unwrap().unwrap());
        positions = reader.positions();
    }
    // Of two processes, events of one millisecond have no order; those of each have theirs.
    let seen = check_ins(&seen);
    let [even, odd] = [0, 1].map(|rest| seen.iter().filter(move |&n| n % 2 == rest));
    assert!(even.is_sorted() && odd.is_sorted(), "{seen:?}");
    let mut sorted = seen;
    sorted.sort_unstable();
    assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    let mut reader = Reader::open(folder.path(), From::Positions(positions)).unwrap();
    assert_eq!(reader.next_record().unwrap(), None);
}

#[test]
fn a_tail_follows_rotation_and_processes_that_come_later() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogsConfig { segment_bytes_max: 2_000, ..LogsConfig::default() };
    let writer = start(folder.path(), &config);
    (0..10).for_each(|n| emit(writer.logs(), n));
    assert!(writer.logs().flush(PATIENCE));
    let mut tail = Reader::open(folder.path(), From::End).unwrap();
    assert_eq!(tail.next_record().unwrap(), None, "what was there before is no news");
    for n in 10..60 {
        emit(writer.logs(), n);
        assert!(writer.logs().flush(PATIENCE));
        assert_eq!(check_ins(&read(&mut tail)), [n]);
    }
    let other = LogWriter::start(&config, folder.path(), "later").unwrap();
    emit(other.logs(), 60);
    assert!(other.logs().flush(PATIENCE));
    assert_eq!(check_ins(&read(&mut tail)), [60]);
}

#[test]
fn a_torn_last_line_is_cut_off_at_the_next_start_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let writer = start(folder.path(), &LogsConfig::default());
    (0..3).for_each(|n| emit(writer.logs(), n));
    writer.stop();
    let file = files(folder.path()).pop().unwrap();
    let torn = br#"{"id":"01KB4","ts":"20"#;
    fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(torn).unwrap();
    let writer = start(folder.path(), &LogsConfig::default());
    emit(writer.logs(), 3);
    writer.stop();
    let (records, reader) = read_all(folder.path());
    assert_eq!(check_ins(&records), [0, 1, 2, 3]);
    let told = records.iter().find(|record| record.event().kind == "torn_line").unwrap();
    assert_eq!(told.event().fields.get(), format!("{{\"bytes\":{}}}", torn.len()));
    assert_eq!(reader.skipped(), Default::default());
}

#[test]
fn past_the_bound_on_disk_the_oldest_segments_go_and_their_events_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        LogsConfig { segment_bytes_max: 10_000, total_bytes_max: 30_000, ..LogsConfig::default() };
    let writer = start(folder.path(), &config);
    for n in 0..5_000 {
        emit(writer.logs(), n);
        if n % 30 == 0 {
            assert!(writer.logs().flush(PATIENCE));
        }
    }
    let logs = writer.logs().clone();
    assert!(logs.flush(PATIENCE));
    writer.stop();
    let (records, _) = read_all(folder.path());
    let left = check_ins(&records);
    assert_eq!(*left.last().unwrap(), 4_999);
    assert!(left.windows(2).all(|two| two[0] + 1 == two[1]), "nothing is missing in between");
    let on_disk: u64 = files(folder.path()).iter().map(|file| file.metadata().unwrap().len()).sum();
    assert!(on_disk <= 30_000 + 10_000, "{on_disk} bytes");
    let dropped = logs.counters().dropped;
    assert_eq!(dropped + records.len() as u64, logs.counters().written, "each is there or counted");
}

#[test]
fn two_processes_of_one_name_write_to_folders_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let first = start(folder.path(), &LogsConfig::default());
    let second = start(folder.path(), &LogsConfig::default());
    emit(first.logs(), 1);
    emit(second.logs(), 2);
    first.stop();
    second.stop();
    assert!(folder.path().join("p").is_dir() && folder.path().join("p.2").is_dir());
    let mut all = check_ins(&read_all(folder.path()).0);
    all.sort_unstable();
    assert_eq!(all, [1, 2]);
}

#[test]
fn a_folder_that_can_not_be_made_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = LogWriter::start(&LogsConfig::default(), &file, "p").unwrap_err().to_string();
    assert!(error.contains("file/p") && error.contains("--logs-folder"), "{error}");
}

#[test]
fn a_full_queue_loses_events_counts_them_and_says_so_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogsConfig { queue_events_max: 10, ..LogsConfig::default() };
    let writer = start(folder.path(), &config);
    (0..100_000).for_each(|n| emit(writer.logs(), n));
    let logs = writer.logs().clone();
    writer.stop();
    let lost = logs.counters().lost;
    assert!(lost > 0);
    let (records, _) = read_all(folder.path());
    let told = records.iter().filter(|record| record.event().kind == "events_lost").map(|record| {
        let fields: serde_json::Value = serde_json::from_str(record.event().fields.get()).unwrap();
        fields["events"].as_u64().unwrap()
    });
    assert_eq!(told.sum::<u64>(), lost);
    assert_eq!(check_ins(&records).len() as u64 + lost, 100_000);
}

fn closed_segment(folder: &Path) -> PathBuf {
    let config = LogsConfig { segment_bytes_max: 50_000, ..LogsConfig::default() };
    let writer = start(folder, &config);
    for n in 0..1_000 {
        emit(writer.logs(), n);
        if n % 100 == 0 {
            assert!(writer.logs().flush(PATIENCE));
        }
    }
    writer.stop();
    files(folder).into_iter().find(|file| file.extension().unwrap() == "zst").unwrap()
}

#[test]
fn a_closed_segment_with_a_wrong_byte_is_found_by_its_checksum_and_the_rest_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = closed_segment(folder.path());
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() - 2;
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    let (records, reader) = read_all(folder.path());
    assert_eq!(reader.skipped().segments, 1);
    assert_eq!(*check_ins(&records).last().unwrap(), 999, "other segments are read");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is done to a segment, no line is given that was not written, and all that was not hurt are.
    #[test]
    fn garbage_in_the_middle_is_skipped_and_counted(
        garbage in prop::collection::vec(any::<u8>(), 1..200),
        at in any::<prop::sample::Index>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let writer = start(folder.path(), &LogsConfig::default());
        (0..20).for_each(|n| emit(writer.logs(), n));
        writer.stop();
        let file = files(folder.path()).pop().unwrap();
        let mut bytes = fs::read(&file).unwrap();
        let whole: Vec<String> = String::from_utf8(bytes.clone()).unwrap().lines().map(str::to_owned).collect();
        let at = at.index(bytes.len());
        let first = bytes[..at].iter().filter(|&&byte| byte == b'\n').count();
        bytes.splice(at..at, garbage);
        fs::write(&file, bytes).unwrap();
        let (records, reader) = read_all(folder.path());
        let read: Vec<_> = records.iter().map(|record| record.text.clone()).collect();
        for (n, line) in whole.iter().enumerate().filter(|(n, _)| *n != first) {
            prop_assert!(read.contains(line), "line {} is gone", n);
        }
        prop_assert!(read.iter().filter(|line| !whole.contains(line)).count() <= 1);
let is_seen = reader.skipped().lines > 0 || read.iter().any(|line| !whole.contains(line));
        // At the end without an end of a line, it may be one that is being written.
        prop_assert!(is_seen || at == whole.iter().map(|line| line.len() + 1).sum::<usize>());
    }
}

/// Somebody has put other things into the folder, which are named as segments are: nobody waits for them, opens them or
/// removes them, and what is a segment is read and written on.
#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_left_out_and_blocks_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let writer = start(folder.path(), &LogsConfig::default());
    emit(writer.logs(), 1);
    writer.stop();
    let process = folder.path().join("p");
    let strange = |number: u32, end: &str| process.join(format!("{number:08}-1795867200000.{end}"));
    for (number, end) in [(2, "jsonl"), (3, "jsonl.zst")] {
        let made = std::process::Command::new("mkfifo").arg(strange(number, end)).status().unwrap();
        assert!(made.success());
    }
    for (number, end) in [(4, "jsonl"), (5, "jsonl.zst"), (6, "jsonl.zst.new")] {
        fs::create_dir(strange(number, end)).unwrap();
    }
    std::os::unix::fs::symlink("/dev/zero", strange(7, "jsonl")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(strange(8, "jsonl")).unwrap();

    let (sender, ended) = std::sync::mpsc::channel();
    let path = folder.path().to_owned();
    // On a thread of its own, so that one that waits for ever is told apart.
    std::thread::spawn(move || {
        let (records, reader) = read_all(&path);
        let page = greenroom_logs::back::page(
            &path,
            None,
            greenroom_logs::back::Limits {
                events_max: 100,
                bytes_max: u64::MAX,
                time_max: PATIENCE,
            },
            || false,
            |_| true,
        );
        let before = (check_ins(&records), reader.skipped().segments, page.unwrap().records.len());
        // Each event is a segment, the closed ones are compressed, and the oldest go.
        let config =
            LogsConfig { segment_bytes_max: 1, total_bytes_max: 3_000, ..LogsConfig::default() };
        let writer = start(&path, &config);
        for n in 2..40 {
            emit(writer.logs(), n);
            assert!(writer.logs().flush(PATIENCE));
        }
        writer.stop();
        sender.send((before, check_ins(&read_all(&path).0))).unwrap();
    });
    let (before, after) = ended.recv_timeout(Duration::from_secs(60)).expect("nobody waits");
    assert_eq!(before, (vec![1], 6, 1));
    assert!(after.ends_with(&[38, 39]) && after.len() < 39, "{after:?}");
    let there = |(number, end)| fs::symlink_metadata(strange(number, end)).is_ok();
    let all =
        [(2, "jsonl"), (3, "jsonl.zst"), (4, "jsonl"), (5, "jsonl.zst"), (6, "jsonl.zst.new")];
    assert!(all.into_iter().chain([(7, "jsonl"), (8, "jsonl")]).all(there));
}
