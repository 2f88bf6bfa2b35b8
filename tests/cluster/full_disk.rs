//! The disk of the event log is full, and nobody who plays notices.

use crate::{
    harness::{
        disk::{Filler, on_small_disk, seen_by},
        greenroom, rows, run, wait_until,
    },
    up::{admin_of, anywhere, plays, start_as},
};

/// Bots play while the log has no room: nothing is torn, what was lost is counted, and the log says so itself as soon
/// as there is room again; from then on nothing is lost.
#[test]
fn a_full_disk_stops_no_game_and_the_log_says_what_it_lost_once_there_is_room() {
    let folder = crate::harness::Folder::new();
    let logs = folder.path().join("logs");
    let mut command = greenroom();
    command.args(anywhere(&folder)).args(["--cluster-log", "info"]);
    command.args(["--logs-queue-events-max", "400"]);
    let up = start_as(&mut on_small_disk(&command, &logs, "4m"));
    let admin = admin_of(&up);
    let data = seen_by(&up, folder.path());
    let data = data.to_str().unwrap();
    let number = |question: &str| -> u64 { rows(data, question)[0].parse().unwrap() };
    let check_ins = "select count(*) from check_in";
    let lost = "select coalesce(sum(events), 0) from events_lost";
    plays(&admin, "10", "1s");
    wait_until("the first check-ins in the log", || number(check_ins) == 10);
    assert_eq!(number(lost), 0);

    let filler = Filler::of(&seen_by(&up, &logs));
    plays(&admin, "100", "4s");
    up.err.wait("what is wrong", |line| line.contains("the disk takes no events"));
    // What is there can be asked all the time.
    assert!(number(check_ins) >= 10);
    assert_eq!(number(lost), 0, "there is no room to say it");

    drop(filler);
    up.err.wait("what is well again", |line| line.contains("the disk takes events again"));
    wait_until("the log to tell what it lost", || number(lost) > 0);
    // What was emitted before is before it.
    let (before, missing) = (number(check_ins), number(lost));
    plays(&admin, "20", "1s");
    wait_until("the last check-ins in the log", || number(check_ins) == before + 20);
    assert_eq!(number(lost), missing);
    let output = run(&["logs", "sql", "select 1", "--data", data]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "nothing is torn or skipped: {said}");
    let (ok, text) = up.stop();
    assert!(ok, "{text}");
}
