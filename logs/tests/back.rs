//! The log read backwards, page by page, through files.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::{collections::HashSet, fs, path::Path, time::Duration};

use greenroom_logs::{
    LogWriter, LogsConfig,
    back::{self, Limits, Page},
    kinds::CheckIn,
    read::{Entry, From, Position, Reader, Record},
};
use greenroom_protocol::{ServerName, SessionId, UserId};

const PATIENCE: Duration = Duration::from_secs(20);
const ALL: Limits = Limits { events_max: usize::MAX, bytes_max: u64::MAX, time_max: Duration::MAX };

fn emit(writer: &LogWriter, n: u64) {
    let (user, session) = (UserId::new(format!("u{}", n % 3)).unwrap(), SessionId(n));
    let server = ServerName::new("s").unwrap();
    writer.logs().emit(&CheckIn { user, session, name: "Ann".into(), server });
    assert!(writer.logs().flush(PATIENCE));
}

/// A log of two processes in many small segments, most of them closed.
fn written(folder: &Path) -> [LogWriter; 2] {
    let config = LogsConfig { segment_bytes_max: 2_000, ..LogsConfig::default() };
    let writers = ["one", "two"].map(|name| LogWriter::start(&config, folder, name).unwrap());
    (0..120).for_each(|n| emit(&writers[usize::from(n % 4 == 0)], n));
    writers
}

fn ids(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| record.id().to_owned()).collect()
}

/// What a reader gives of it, the newest first.
fn forwards(folder: &Path, wanted: impl Fn(&Entry<'_>) -> bool) -> Vec<String> {
    let mut reader = Reader::open(folder, From::Start).unwrap();
    let records = std::iter::from_fn(|| reader.next_record().unwrap());
    let mut all: Vec<_> = records.filter(|record| wanted(&record.event())).collect();
    all.reverse();
    ids(&all)
}

/// All pages, one after the other.
fn backwards(folder: &Path, limits: Limits, wanted: impl Fn(&Entry<'_>) -> bool) -> Vec<Page> {
    let mut pages: Vec<Page> = Vec::new();
    while pages.last().is_none_or(|page| page.has_more) {
        let end = pages.last().map(|page| page.begin.as_slice());
        pages.push(back::page(folder, end, limits, || false, &wanted).unwrap());
        assert!(pages.len() < 2_000, "the pages have an end");
    }
    pages
}

#[test]
fn pages_of_any_size_give_each_event_once_in_the_order_of_time() {
    let folder = tempfile::tempdir().unwrap();
    let _writers = written(folder.path());
    let all = forwards(folder.path(), |_| true);
    assert_eq!(all.len(), 120);
    for events_max in [1, 2, 7, 50, 119, 120, 500] {
        let pages = backwards(folder.path(), Limits { events_max, ..ALL }, |_| true);
        let given: Vec<_> = pages.iter().flat_map(|page| ids(&page.records)).collect();
        assert_eq!(given, all, "{events_max} on a page");
        assert!(pages.iter().all(|page| page.records.len() <= events_max));
    }
}

#[test]
fn a_page_that_may_look_at_little_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let _writers = written(folder.path());
    let of_one = |event: &Entry<'_>| event.user.as_deref() == Some("u1");
    for (events_max, bytes_max) in [(3, 1), (100, 1), (100, 5_000), (3, u64::MAX)] {
        let pages = backwards(folder.path(), Limits { events_max, bytes_max, ..ALL }, of_one);
        let given: Vec<_> = pages.iter().flat_map(|page| ids(&page.records)).collect();
        assert_eq!(given.len(), 40);
        assert_eq!(given, forwards(folder.path(), of_one), "{events_max} and {bytes_max}");
        // A step is a segment here: each process makes one, and more below the bound.
        assert!(pages.iter().all(|page| page.bytes < bytes_max.saturating_add(6_000)));
    }
    let none = backwards(folder.path(), Limits { events_max: 9, bytes_max: 1, ..ALL }, |_| false);
    assert!(none.len() > 10 && none.iter().all(|page| page.records.is_empty()));
}

/// What is written while somebody pages is in the tail behind the first page, and on none of the later ones.
#[test]
fn a_page_and_the_tail_behind_it_are_everything() {
    let folder = tempfile::tempdir().unwrap();
    let writers = written(folder.path());
    let limits = Limits { events_max: 30, ..ALL };
    let first = back::page(folder.path(), None, limits, || false, |_| true).unwrap();
    (120..200).for_each(|n| emit(&writers[usize::from(n % 2 == 0)], n));
    let late = LogWriter::start(&LogsConfig::default(), folder.path(), "three").unwrap();
    emit(&late, 200);
    let mut tail = Reader::open(folder.path(), From::Positions(first.end.clone())).unwrap();
    let tail: Vec<_> = std::iter::from_fn(|| tail.next_record().unwrap()).collect();
    assert_eq!(tail.len(), 81, "all that came since, and all of the process that came");
    let rest = back::page(folder.path(), Some(&first.begin), ALL, || false, |_| true).unwrap();
    assert_eq!((first.records.len(), rest.records.len(), rest.has_more), (30, 90, false));
    let all = [tail, first.records, rest.records].concat();
    assert_eq!(ids(&all).into_iter().collect::<HashSet<_>>().len(), all.len());
}

#[test]
fn what_is_no_line_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let writer = LogWriter::start(&LogsConfig::default(), folder.path(), "p").unwrap();
    (0..10).for_each(|n| emit(&writer, n));
    let all = forwards(folder.path(), |_| true);
    let files = fs::read_dir(folder.path().join("p")).unwrap();
    let file = files.map(|file| file.unwrap().path()).find(|path| path.extension().is_some());
    let file = file.unwrap();
    let lines = fs::read(&file).unwrap();
    // Longer than what is read at once, and a line behind it that is torn.
    let garbage = vec![b'x'; 3 << 20];
    fs::write(&file, [&lines, &garbage, &b"\n"[..], &lines[..50]].concat()).unwrap();
    let pages = backwards(folder.path(), Limits { events_max: 3, ..ALL }, |_| true);
    let given: Vec<_> = pages.iter().flat_map(|page| ids(&page.records)).collect();
    assert_eq!(given, all);
}

#[test]
fn a_folder_that_is_not_there_is_empty_and_a_process_that_is_not_has_no_past() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = back::page(&folder.path().join("none"), None, ALL, || false, |_| true).unwrap();
    assert!(nowhere.records.is_empty() && nowhere.end.is_empty() && !nowhere.has_more);
    let _writers = written(folder.path());
    // A name is compared with those that are there, and never made into a path.
    let outside: Position = "../two/9/100000".parse().unwrap();
    let page = back::page(folder.path(), Some(&[outside]), ALL, || false, |_| true).unwrap();
    assert!(page.records.is_empty() && !page.has_more);
}

/// A step is bounded in a closed segment too, however large that is: the page ends, and the next one goes on inside.
#[test]
fn a_large_closed_segment_is_looked_at_in_steps() {
    const LINES: u32 = 10_000;
    let folder = tempfile::tempdir().unwrap();
    let process = folder.path().join("p");
    fs::create_dir(&process).unwrap();
    let padding = "x".repeat(4_000);
    let line = |n: u32| {
        format!(
            "{{\"id\":\"{n:026}\",\"ts\":\"2026-11-28T12:00:01.000Z\",\"node\":\"n\",\"role\":\"game\",\"kind\":\"k\",\
             \"v\":1,\"severity\":\"info\",\"user\":\"u{}\",\"fields\":{{\"padding\":\"{padding}\"}}}}\n",
            n % 500
        )
    };
    let text: String = (0..LINES).map(line).collect();
    let closed = process.join("00000001-1795867200000.jsonl.zst");
    fs::write(closed, zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
    let step = 16 << 20;
    assert!(text.len() > 2 * step);

    let newest = Limits { events_max: 5, ..ALL };
    let page = back::page(folder.path(), None, newest, || false, |_| true).unwrap();
    let expected: Vec<_> = (LINES - 5..LINES).rev().map(|n| format!("{n:026}")).collect();
    assert_eq!(ids(&page.records), expected);
    assert!(page.has_more && page.bytes <= step as u64, "{}", page.bytes);

    let of_one = |event: &Entry<'_>| event.user.as_deref() == Some("u7");
    for limits in [Limits { bytes_max: 1, ..ALL }, Limits { time_max: Duration::ZERO, ..ALL }] {
        let pages = backwards(folder.path(), limits, of_one);
        assert!(pages.len() > 2 && pages.iter().all(|page| page.bytes <= step as u64));
        let given: Vec<_> = pages.iter().flat_map(|page| ids(&page.records)).collect();
        let expected: Vec<_> = (0..LINES).rev().filter(|n| n % 500 == 7).collect();
        assert_eq!(given, expected.iter().map(|n| format!("{n:026}")).collect::<Vec<_>>());
    }
}

/// A name that leads nowhere is looked at twice, and no more: whoever reads the log comes to its end.
#[cfg(unix)]
#[test]
fn a_segment_that_leads_nowhere_is_skipped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let writer = LogWriter::start(&LogsConfig::default(), folder.path(), "one").unwrap();
    emit(&writer, 1);
    writer.stop();
    let process = folder.path().join("one");
    for name in ["00000007-1795867200000.jsonl", "00000008-1795867200000.jsonl.zst"] {
        std::os::unix::fs::symlink("/nowhere/at/all", process.join(name)).unwrap();
    }
    let mut reader = Reader::open(folder.path(), From::Start).unwrap();
    let mut read = 0;
    while reader.next_record().unwrap().is_some() {
        read += 1;
    }
    assert!(read >= 1 && reader.skipped().segments == 2, "{read}, {:?}", reader.skipped());
    let page = back::page(folder.path(), None, ALL, || false, |_| true).unwrap();
    assert_eq!(page.records.len(), read);
    assert!(!page.has_more && page.skipped.segments >= 1, "{:?}", page.skipped);
}

/// Nobody waits any more, in the middle of a segment or between two: what is left is not read, and not passed over.
#[test]
fn a_page_that_is_stopped_leaves_the_rest_for_whoever_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let _writers = written(folder.path());
    let all = forwards(folder.path(), |_| true);
    for looks in [0, 1, 2, 5] {
        let asked = std::cell::Cell::new(0);
        let is_stopped = || asked.replace(asked.get() + 1) >= looks;
        let first = back::page(folder.path(), None, ALL, is_stopped, |_| true).unwrap();
        assert!(first.has_more && first.records.len() < all.len(), "{looks}");
        let rest = back::page(folder.path(), Some(&first.begin), ALL, || false, |_| true).unwrap();
        let given = [ids(&first.records), ids(&rest.records)].concat();
        assert_eq!(given, all, "{looks}");
    }
    let late = Limits { time_max: Duration::ZERO, ..ALL };
    let pages = backwards(folder.path(), late, |_| true);
    assert!(
        pages.len() > 2
            && pages[0].is_late
            && pages.iter().all(|page| page.has_more || !page.is_late)
    );
    let given: Vec<_> = pages.iter().flat_map(|page| ids(&page.records)).collect();
    assert_eq!(given, all);
}
