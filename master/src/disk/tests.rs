//! Lives of a master that end in all ways, and what the next one finds.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use greenroom_master_core::replica::{Intent, Master, Side};
use greenroom_master_core::{ClusterSecret, Command, Header, Settings, State};
use greenroom_protocol::Epoch;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// `count` entries that continue a log.
fn entries(after: Position, count: u64) -> Vec<Entry<Logged>> {
    let mut before = after;
    let mut all = Vec::new();
    for number in 1..=count {
        let lsn = after.lsn + number;
        let header = Header { lsn, epoch: Epoch { era: 1, epoch: 1 }, now_ms: lsn, seed: lsn };
        let command = Arc::new(Logged::new(Command::Expire));
        let entry = Entry::after(before, header, command);
        before = entry.position();
        all.push(entry);
    }
    all
}

/// The state of a master that has just begun, as a checkpoint has it.
fn pieces() -> Vec<Record> {
    let secret = ClusterSecret::from_key(&[7; 32]);
    State::new(&secret, Settings::default()).records().collect()
}

fn start() -> Position {
    Position { lsn: 100, chain: 12_345 }
}

fn intents(upto: Position) -> Intents {
    let by = Master { side: Side::A, incarnation: Incarnation(9), copy: 0 };
    let intent = Intent { at: Epoch { era: 1, epoch: 3 }, by, upto };
    Intents { proven: Some(intent), pending: vec![intent] }
}

fn next(disk: &mut Disk) -> Done {
    disk.done.blocking_recv().unwrap()
}

fn files(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap());
    let mut found: Vec<_> = all
        .filter(|file| file.file_name().to_string_lossy().starts_with(prefix))
        .map(|file| file.path())
        .collect();
    found.sort();
    found
}

/// What the process leaves behind when it is killed now.
fn killed(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in files(folder, "") {
        let to = copy.path().join(file.file_name().unwrap());
        match std::fs::copy(&file, to) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            copied => assert!(copied.is_ok()),
        }
    }
    copy
}

/// What a life finds that begins on what another one left.
fn found(folder: &Path) -> Found {
    Disk::open(folder).unwrap().1
}

#[test]
fn what_was_written_survives_a_process_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, first) = Disk::open(folder.path()).unwrap();
    assert!(first.records.is_none() && first.recovered.entries.is_empty());
    let written = entries(Position::default(), 5);
    disk.write(&written[..2]);
    disk.write(&written[2..]);
    let left = killed(folder.path());
    disk.sync(5);
    assert_eq!(next(&mut disk), Done::Synced(5));
    let again = found(left.path());
    assert_eq!(again.recovered.entries, written);
    assert_eq!(again.notes, Vec::<String>::new());
    assert!(again.incarnation > first.incarnation);
}

#[test]
fn the_log_goes_on_from_life_to_life_and_each_has_a_larger_incarnation() {
    let folder = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    let mut last = Position::default();
    let mut incarnation = Incarnation(0);
    for life in 0..4 {
        // The clock goes backwards.
        let (mut disk, found) =
            Disk::open_with(folder.path(), Arc::new(System), 1_000 - life).unwrap();
        assert_eq!(found.recovered.entries, all);
        assert!(found.incarnation > incarnation);
        incarnation = found.incarnation;
        let more = entries(last, 3);
        disk.write(&more);
        disk.write_intents(intents(more[2].position()));
        assert_eq!(next(&mut disk), Done::Intents(intents(more[2].position())));
        last = more[2].position();
        all.extend(more);
    }
    assert_eq!(found(folder.path()).recovered.intents, intents(last));
}

#[test]
fn a_folder_is_used_by_one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, _) = Disk::open(folder.path()).unwrap();
    let error = Disk::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("in use") && error.contains(&folder.path().display().to_string()),
        "{error}"
    );
    drop(disk);
    assert!(Disk::open(folder.path()).is_ok());
}

#[test]
fn a_log_that_is_torn_at_any_byte_begins_with_whole_entries_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let written = entries(Position::default(), 4);
    let (mut disk, _) = Disk::open(folder.path()).unwrap();
    disk.write(&written);
    let segment = files(folder.path(), "log-").remove(0);
    let mut whole = std::fs::read(&segment).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    whole.truncate(end);
    let each = (end - 64) / 4;
    for len in 0..=end {
        let left = tempfile::tempdir().unwrap();
        let torn = left.path().join(segment.file_name().unwrap());
        std::fs::write(&torn, &whole[..len]).unwrap();
        let (mut disk, found) = Disk::open_with(left.path(), Arc::new(Careless), 1).unwrap();
        let kept = len.saturating_sub(64) / each;
        assert_eq!(found.recovered.entries, written[..kept], "{len} bytes");
        let is_clean = len == 0 || len >= 64 && (len - 64) % each == 0;
        assert_eq!(found.notes.is_empty(), is_clean, "{len} bytes: {:?}", found.notes);
        if len % 7 != 0 {
            continue;
        }
        // What the next life writes instead is what counts from then on.
        let last = found.recovered.entries.last().map_or(Position::default(), Entry::position);
        let mut other = entries(last, 1);
        other[0].header.now_ms = 77;
        let other = Entry::after(last, other[0].header, Arc::clone(&other[0].command));
        disk.write(std::slice::from_ref(&other));
        drop(disk);
        let (_, again) = Disk::open_with(left.path(), Arc::new(Careless), 1).unwrap();
        assert_eq!(again.recovered.entries.last(), Some(&other), "{len} bytes");
        assert_eq!(again.recovered.entries.len(), kept + 1);
        assert_eq!(again.notes, Vec::<String>::new());
    }
}

#[test]
fn what_was_durable_and_is_damaged_is_missed_and_the_intents_do_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let written = entries(Position::default(), 6);
    let (mut disk, _) = Disk::open(folder.path()).unwrap();
    disk.write(&written[..4]);
    disk.write_intents(intents(written[0].position()));
    next(&mut disk);
    disk.write(&written[4..]);
    drop(disk);
    let segment = files(folder.path(), "log-").remove(0);
    let file = OpenOptions::new().write(true).open(&segment).unwrap();
    // In the third entry, of which the sync said that it is durable.
    let each = (std::fs::read(&segment).unwrap().iter().rposition(|byte| *byte != 0).unwrap() + 1
        - 64)
        / 6;
    file.write_all_at(&[0xFF; 3], 64 + 2 * each as u64 + 20).unwrap();
    let damaged = found(folder.path());
    assert_eq!(damaged.recovered.entries, written[..2]);
    assert_eq!(damaged.recovered.intents, Intents::default());
    let notes = damaged.notes.join("\n");
    assert!(notes.contains("entries 3 to 4") && notes.contains("may not decide"), "{notes}");
    assert_eq!(found(folder.path()).recovered.intents, Intents::default(), "for ever");
}

#[test]
fn a_checkpoint_of_its_own_takes_the_place_of_the_entries_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, _) = Disk::open(folder.path()).unwrap();
    let written = entries(Position::default(), 9);
    disk.write(&written[..5]);
    let at = written[4].position();
    disk.begin_checkpoint(at, Whose::Own);
    disk.write(&written[5..7]);
    for piece in pieces() {
        disk.checkpoint_pieces(vec![piece]);
    }
    let before = killed(folder.path());
    disk.end_checkpoint();
    disk.write(&written[7..]);
    assert_eq!(next(&mut disk), Done::Checkpoint(at));
    drop(disk);
    let half = found(before.path());
    assert!(half.records.is_none());
    assert_eq!(half.recovered.entries, written[..7]);
    let whole = found(folder.path());
    assert_eq!(whole.records, Some(pieces()));
    assert_eq!((whole.recovered.base, whole.recovered.entries), (at, written[5..].to_vec()));
    assert_eq!(whole.notes, Vec::<String>::new());
    assert_eq!(files(folder.path(), "checkpoint").len(), 1);
    assert_eq!(
        files(folder.path(), "log-").len(),
        2,
        "the covered one is gone, the next life has one more"
    );
}

#[test]
fn until_a_copied_checkpoint_is_durable_the_log_before_it_is_what_counts() {
    let folder = tempfile::tempdir().unwrap();
    let calls = Arc::new(Faulty::default());
    let (mut disk, _) = Disk::open_with(folder.path(), Arc::clone(&calls) as _, 1).unwrap();
    let old = entries(Position::default(), 5);
    disk.write(&old);
    let new = entries(start(), 3);
    let mut lives = vec![killed(folder.path())];
    disk.begin_checkpoint(start(), Whose::Copied);
    disk.checkpoint_pieces(pieces());
    lives.push(killed(folder.path()));
    calls.fail(ErrorKind::StorageFull);
    disk.end_checkpoint();
    disk.write(&new[..1]);
    let Done::Trouble(text) = next(&mut disk) else { panic!("it can't be finished") };
    assert!(text.contains("make room"), "{text}");
    lives.push(killed(folder.path()));
    for life in &lives {
        let found = found(life.path());
        assert!(found.records.is_none());
        assert_eq!(found.recovered.entries, old);
    }
    calls.mend();
    disk.write(&new[1..]);
    assert_eq!(next(&mut disk), Done::Well);
    assert_eq!(next(&mut disk), Done::Checkpoint(start()));
    drop(disk);
    let found = found(folder.path());
    assert_eq!(found.records, Some(pieces()));
    assert_eq!((found.recovered.base, found.recovered.entries), (start(), new));
    assert_eq!(found.notes, Vec::<String>::new());
}

#[test]
fn a_checkpoint_that_is_given_up_for_another_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, _) = Disk::open(folder.path()).unwrap();
    let written = entries(Position::default(), 2);
    disk.write(&written);
    disk.begin_checkpoint(written[1].position(), Whose::Own);
    disk.checkpoint_pieces(pieces());
    disk.begin_checkpoint(start(), Whose::Copied);
    disk.checkpoint_pieces(pieces());
    disk.end_checkpoint();
    assert_eq!(next(&mut disk), Done::Checkpoint(start()));
    disk.sync(100);
    assert_eq!(next(&mut disk), Done::Synced(100));
    drop(disk);
    assert_eq!(found(folder.path()).recovered.base, start());
}

#[test]
fn without_its_checkpoint_a_log_is_put_aside_and_the_intents_do_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, _) = Disk::open(folder.path()).unwrap();
    disk.begin_checkpoint(start(), Whose::Copied);
    disk.checkpoint_pieces(pieces());
    disk.end_checkpoint();
    disk.write(&entries(start(), 2));
    disk.write_intents(intents(Position::default()));
    drop(disk);
    let checkpoint = files(folder.path(), "checkpoint-").remove(0);
    let file = OpenOptions::new().write(true).open(&checkpoint).unwrap();
    file.write_all_at(&[0xFF; 2], 80).unwrap();
    let found = found(folder.path());
    assert!(found.records.is_none() && found.recovered.entries.is_empty());
    assert_eq!((found.recovered.base, found.recovered.intents), Default::default());
    let notes = found.notes.join("\n");
    assert!(
        notes.contains("is damaged and was put aside") && notes.contains("may not decide"),
        "{notes}"
    );
    assert_eq!(files(folder.path(), "checkpoint-")[0].extension().unwrap(), "damaged");
}

#[test]
fn a_log_of_other_rules_or_another_format_is_refused_and_left_alone() {
    for (at, word) in [(8, "format 999"), (10, "version 999")] {
        let folder = tempfile::tempdir().unwrap();
        drop(Disk::open(folder.path()).unwrap());
        let segment = files(folder.path(), "log-").remove(0);
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[at..at + 2].copy_from_slice(&999_u16.to_le_bytes());
        let sum = crc32fast::hash(&bytes[..48]).to_le_bytes();
        bytes[48..52].copy_from_slice(&sum);
        std::fs::write(&segment, &bytes).unwrap();
        let error = Disk::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("move the folder away"), "{error}");
        assert_eq!(std::fs::read(&segment).unwrap(), bytes);
    }
}

/// A disk of a machine that was started anew each time that the number is another one.
struct Started(Arc<AtomicU32>, Arc<Faulty>);

impl Calls for Started {
    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        self.1.write_at(file, bytes, at)
    }

    fn boot(&self) -> Option<String> {
        Some(format!("boot-{}", self.0.load(Ordering::SeqCst)))
    }
}

/// Whether the log of this life and those after it has all that they wrote is known of each life, and by itself.
#[test]
fn a_folder_knows_since_which_life_its_machine_has_lost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (starts, faulty) = (Arc::new(AtomicU32::new(1)), Arc::new(Faulty::default()));
    let calls = || Arc::new(Started(Arc::clone(&starts), Arc::clone(&faulty)));
    let mut lives = 0;
    let mut open = || {
        lives += 1;
        let (disk, found) = Disk::open_with(folder.path(), calls(), lives).unwrap();
        (disk, found.recovered.whole_since.unwrap())
    };
    let whole = folder.path().join("whole");
    // As a killed process leaves it: what it says of itself at its end is taken back.
    let killed = |disk: Disk| {
        let said = std::fs::read(&whole).unwrap();
        drop(disk);
        std::fs::write(&whole, said).unwrap();
    };
    let (disk, since) = open();
    assert_eq!(since, Incarnation(1), "an empty folder knows of nobody before");
    killed(disk);
    let (disk, since) = open();
    assert_eq!(since, Incarnation(1), "a process that is killed loses nothing");
    killed(disk);
    starts.store(2, Ordering::SeqCst);
    let (disk, since) = open();
    assert_eq!(since, Incarnation(3), "a machine that starts anew may have");
    killed(disk);
    let (disk, since) = open();
    assert_eq!(since, Incarnation(3), "and what is lost stays lost");
    drop(disk);
    starts.store(3, Ordering::SeqCst);
    let (mut disk, since) = open();
    assert_eq!(since, Incarnation(3), "who ended with everything synced has lost nothing");
    faulty.fail(ErrorKind::StorageFull);
    disk.write(&entries(Position::default(), 1));
    assert!(!whole.exists(), "what waits in memory goes with the process");
    faulty.mend();
    let began = Instant::now();
    while !whole.exists() {
        assert!(began.elapsed().as_secs() < 60, "the disk takes writes again");
        std::thread::yield_now();
    }
    killed(disk);
    let (_, since) = open();
    assert_eq!(since, Incarnation(3));
}

/// A disk that never syncs, for tests that look at files only.
struct Careless;

impl Calls for Careless {
    fn sync(&self, _: &File) -> io::Result<()> {
        Ok(())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// A disk that can be full, or broken.
#[derive(Default)]
struct Faulty {
    /// What each call fails with: 0 nothing, 1 full, 2 broken when it syncs.
    fault: AtomicU32,
    /// Syncs that failed and would succeed if they were repeated on the same file.
    lies: AtomicU32,
}

impl Faulty {
    fn fail(&self, kind: ErrorKind) {
        self.fault.store(if kind == ErrorKind::StorageFull { 1 } else { 2 }, Ordering::SeqCst);
    }

    fn mend(&self) {
        self.fault.store(0, Ordering::SeqCst);
    }
}

impl Calls for Faulty {
    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        if self.fault.load(Ordering::SeqCst) == 1 {
            // Some of it fits.
            file.write_all_at(&bytes[..bytes.len() / 2], at)?;
            return Err(ErrorKind::StorageFull.into());
        }
        file.write_all_at(bytes, at)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        match self.fault.load(Ordering::SeqCst) {
            0 => file.sync_data(),
            1 => Err(ErrorKind::StorageFull.into()),
            _ => {
                // As Linux does: it fails once, what was not written is gone, and the next sync knows nothing of it.
                file.set_len(64)?;
                self.lies.fetch_add(1, Ordering::SeqCst);
                self.mend();
                Err(io::Error::other("the disk has an error"))
            }
        }
    }
}

#[test]
fn on_a_full_disk_what_comes_waits_in_order_and_nothing_is_called_durable() {
    let folder = tempfile::tempdir().unwrap();
    let calls = Arc::new(Faulty::default());
    let (mut disk, _) = Disk::open_with(folder.path(), Arc::clone(&calls) as _, 1).unwrap();
    let written = entries(Position::default(), 6);
    disk.write(&written[..2]);
    calls.fail(ErrorKind::StorageFull);
    disk.write(&written[2..4]);
    disk.write(&written[4..]);
    disk.sync(6);
    let Done::Trouble(text) = next(&mut disk) else { panic!("a full disk is said") };
    assert!(text.contains("writing the log") && text.contains("tried again"), "{text}");
    assert_eq!(found(killed(folder.path()).path()).recovered.entries[..2], written[..2]);
    assert!(disk.done.try_recv().is_err(), "once, and no sync is done");
    calls.mend();
    assert_eq!(next(&mut disk), Done::Well);
    assert_eq!(next(&mut disk), Done::Synced(6));
    drop(disk);
    assert_eq!(found(folder.path()).recovered.entries, written);
}

#[test]
fn what_a_failed_sync_may_have_lost_is_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let calls = Arc::new(Faulty::default());
    let (mut disk, _) = Disk::open_with(folder.path(), Arc::clone(&calls) as _, 1).unwrap();
    let written = entries(Position::default(), 6);
    disk.write(&written[..4]);
    calls.fail(ErrorKind::Other);
    disk.sync(4);
    let Done::Trouble(text) = next(&mut disk) else { panic!("a failed sync is said") };
    assert!(text.contains("the disk has an error"), "{text}");
    disk.write(&written[4..]);
    assert_eq!(next(&mut disk), Done::Well);
    assert_eq!(next(&mut disk), Done::Synced(4));
    disk.sync(6);
    assert_eq!(next(&mut disk), Done::Synced(6));
    assert_eq!(calls.lies.load(Ordering::SeqCst), 1);
    drop(disk);
    let found = found(folder.path());
    assert_eq!(found.recovered.entries, written);
    assert_eq!(found.notes, Vec::<String>::new());
}

#[test]
fn a_checkpoint_whose_sync_failed_is_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let calls = Arc::new(Faulty::default());
    let (mut disk, _) = Disk::open_with(folder.path(), Arc::clone(&calls) as _, 1).unwrap();
    disk.begin_checkpoint(Position::default(), Whose::Own);
    disk.checkpoint_pieces(pieces());
    disk.sync(0);
    assert_eq!(next(&mut disk), Done::Synced(0));
    calls.fail(ErrorKind::StorageFull);
    disk.end_checkpoint();
    assert!(matches!(next(&mut disk), Done::Trouble(_)));
    calls.mend();
    assert_eq!(next(&mut disk), Done::Well);
    assert_eq!(next(&mut disk), Done::Checkpoint(Position::default()));
    drop(disk);
    assert_eq!(found(folder.path()).records, Some(pieces()));
}

#[test]
fn entries_that_leave_a_hole_are_not_written_and_somebody_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, _) = Disk::open(folder.path()).unwrap();
    disk.write(&entries(start(), 1));
    let Done::Trouble(text) = next(&mut disk) else { panic!("a bug is said") };
    assert!(text.contains("entry 101") && text.contains("restart"), "{text}");
    disk.sync(101);
    drop(disk);
    assert!(found(folder.path()).recovered.entries.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_files_contain_a_folder_opens_or_is_refused(
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        has_header in any::<bool>(),
        name in prop::sample::select(vec![
            "log-00000000-00000000",
            "checkpoint-00000000-0000000000000005",
            "intents",
            "incarnation",
        ]),
    ) {
        let folder = tempfile::tempdir().unwrap();
        if has_header {
            let magic = if name.starts_with("log") { format::LOG } else { format::CHECKPOINT };
            let header = format::Header { generation: 0, at: Position::default(), synced: 0 };
            bytes.splice(0..0, header.bytes(magic));
        }
        std::fs::write(folder.path().join(name), &bytes).unwrap();
        if let Ok((disk, _)) = Disk::open(folder.path()) {
            drop(disk);
            prop_assert!(Disk::open(folder.path()).unwrap().1.recovered.entries.is_empty());
        }
    }

    #[test]
    fn a_byte_that_changed_anywhere_in_a_log_leaves_a_beginning_of_it(at in 0_usize..800, bit in 0_u8..8) {
        let folder = tempfile::tempdir().unwrap();
        let written = entries(Position::default(), 8);
        let (mut disk, _) = Disk::open(folder.path()).unwrap();
        disk.write(&written);
        drop(disk);
        let segment = files(folder.path(), "log-").remove(0);
        let mut byte = [0];
        let file = OpenOptions::new().read(true).write(true).open(&segment).unwrap();
        file.read_exact_at(&mut byte, at as u64).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << bit)], at as u64).unwrap();
        if let Ok((_, found)) = Disk::open(folder.path()) {
            let kept = found.recovered.entries;
            prop_assert_eq!(&written[..kept.len()], &kept[..]);
        }
    }
}

#[test]
#[ignore = "a measurement: cargo test -p greenroom-master --release disk -- --ignored --nocapture"]
fn how_long_a_batch_takes() {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, _) = Disk::open(folder.path()).unwrap();
    let (mut writes, mut syncs) = (Vec::new(), Vec::new());
    let mut last = Position::default();
    for _ in 0..200 {
        let batch = entries(last, 300);
        last = batch[299].position();
        let bytes: usize = batch.iter().map(|entry| entry.encoded_len()).sum();
        assert!(
            (15_000..30_000).contains(&bytes),
            "about as much as 100 entries of 200 bytes: {bytes}"
        );
        let begun = Instant::now();
        disk.write(&batch);
        writes.push(begun.elapsed());
        let begun = Instant::now();
        disk.sync(last.lsn);
        assert_eq!(next(&mut disk), Done::Synced(last.lsn));
        syncs.push(begun.elapsed());
    }
    writes.sort();
    syncs.sort();
    println!("write: median {:?}, 99 of 100 {:?}", writes[100], writes[198]);
    println!("sync: median {:?}, 99 of 100 {:?}", syncs[100], syncs[198]);
}
