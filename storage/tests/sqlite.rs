//! SQLite as a store of several processes, which die, on disks that are full and in files that are broken.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use greenroom_protocol::search::{FieldType, Filter};
use greenroom_protocol::wire::client_session::MetaValue;
use greenroom_storage::backend::Backend;
use greenroom_storage::backend::sqlite::Sqlite;
use greenroom_storage::{
    Body, Clock, Collection, Index, Key, OpenError, Query, RawQuery, Schema, Storage,
    StorageConfig, StorageError, Write,
};

#[path = "support/disk.rs"]
mod disk;

/// Says to this same program that it is the child of a test, and what to do.
const CHILD: &str = "GREENROOM_STORAGE_TEST_CHILD";

fn config(file: &Path) -> StorageConfig {
    let store = format!("sqlite:{}", file.display()).into();
    StorageConfig { store, deadline: Duration::from_secs(60), ..StorageConfig::default() }
}

fn open(file: &Path) -> Storage {
    greenroom_storage::open(&config(file), Schema::default()).unwrap()
}

fn refused(file: &Path) -> String {
    match greenroom_storage::open(&config(file), Schema::default()) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{} was opened", file.display()),
    }
}

fn key(id: &str) -> Key {
    Key::new(Collection::Documents, id).unwrap()
}

fn body(number: i64) -> Body {
    Body::of(&serde_json::json!({ "number": number })).unwrap()
}

fn number(storage: &Storage, id: &str, field: &str) -> i64 {
    let document = storage.try_submit(greenroom_storage::Get(key(id))).unwrap().wait().unwrap();
    let json = document.map(|document| document.body.decode::<serde_json::Value>().unwrap());
    json.map_or(0, |json| json[field].as_i64().unwrap())
}

/// Writes for ever, and says what was acknowledged: `key number` a line.
fn write_until_killed(file: &Path, name: &str) {
    let storage = open(file);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").unwrap();
        out.flush().unwrap();
    };
    for number in 0..8 {
        let (writer, id) = (storage.clone(), format!("{name}-{number}"));
        local.spawn_local(async move {
            for number in 1.. {
                writer.upsert(key(&id), body(number)).await.unwrap();
                say(format!("wrote {id} {number}"));
            }
        });
        let storage = storage.clone();
        local.spawn_local(async move {
            loop {
                // All processes count the same ones.
                let id = format!("shared-{}", number % 2);
                storage.count(key(&id), 1).await.unwrap();
                say(format!("counted {id} 1"));
            }
        });
    }
    runtime.block_on(local);
}

/// The same program again, as a child that runs the test of this name.
fn child(test: &str, what: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, what)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// What was acknowledged is there after each of three processes was killed in the middle of its writes, and what was
/// not is there once at most.
///
/// Method: three processes write keys of their own and count shared ones; each is killed when it has acknowledged some
/// hundred writes; three times on the same file.
#[test]
fn what_was_acknowledged_survives_the_death_of_every_writer() {
    if let Ok(what) = std::env::var(CHILD) {
        let (name, file) = what.split_once(' ').unwrap();
        write_until_killed(Path::new(file), name);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    let mut counted: BTreeMap<String, i64> = BTreeMap::new();
    let mut deaths = 0;
    for round in 0..3 {
        let children = (0..3).map(|number| {
            let what = format!("{round}{number} {}", file.display());
            let mut child =
                child("what_was_acknowledged_survives_the_death_of_every_writer", &what);
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            // Each is killed at another place, by the thread that reads what it says.
            std::thread::spawn(move || {
                let mut said = Vec::new();
                let mut is_killed = false;
                for line in lines {
                    let line = line.unwrap();
                    // The test's own lines are not ours; the last may be torn.
                    let parts: Vec<String> = line.split(' ').map(str::to_owned).collect();
                    if let [verb, id, number] = parts.as_slice()
                        && let Ok(number) = number.parse::<i64>()
                        && matches!(verb.as_str(), "wrote" | "counted")
                    {
                        said.push((verb.clone(), id.clone(), number));
                    }
                    if said.len() >= 200 + 150 * number && !is_killed {
                        is_killed = true;
                        child.kill().unwrap();
                    }
                }
                child.wait().unwrap();
                assert!(is_killed, "it ended by itself after {} writes", said.len());
                said
            })
        });
        let children: Vec<_> = children.collect();
        let said: Vec<_> = children.into_iter().map(|child| child.join().unwrap()).collect();
        deaths += said.len();
        let mut written: BTreeMap<String, i64> = BTreeMap::new();
        for (verb, id, number) in said.into_iter().flatten() {
            match verb.as_str() {
                "wrote" => written.insert(id, number),
                _ => counted
                    .insert(id.clone(), counted.get(&id).copied().unwrap_or_default() + number),
            };
        }
        let storage = open(&file);
        assert!(written.len() >= 20, "{written:?}");
        for (id, acknowledged) in written {
            let stored = number(&storage, &id, "number");
            // The next may have been written, and its answer lost.
            assert!(
                (acknowledged..=acknowledged + 1).contains(&stored),
                "{id}: {acknowledged}, {stored}"
            );
        }
        for (id, acknowledged) in &counted {
            let stored = number(&storage, id, "count");
            // Each process that was killed may have had eight under way.
            let lost_answers = 8 * i64::try_from(deaths).unwrap();
            assert!(
                (*acknowledged..=acknowledged + lost_answers).contains(&stored),
                "{id}: {acknowledged} acknowledged, {stored} stored"
            );
        }
    }
}

/// What writes and reads until the disk is full, makes room, and goes on; all that was acknowledged is there. Gives
/// the first refusal.
fn fill_and_go_on(file: &Path, make_room: impl FnOnce()) -> String {
    let storage = open(file).with_deadline(Duration::from_secs(3));
    let large = |number: i64| {
        let json = serde_json::json!({ "number": number, "text": "x".repeat(100_000) });
        Body::of(&json).unwrap()
    };
    let write = |number: i64| {
        let write = Write::upsert(key(&number.to_string()), large(number));
        storage.try_submit(write).unwrap().wait()
    };
    let mut acknowledged = 0;
    let error = loop {
        match write(acknowledged) {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1_000, "the disk does not become full");
    };
    assert!(matches!(error, StorageError::Unavailable(_)), "{error}");
    assert!(acknowledged > 3);
    // Several at once, of which none fits.
    let tickets: Vec<_> = (0..5)
        .map(|more| {
            let number = acknowledged + more;
            storage.try_submit(Write::upsert(key(&number.to_string()), large(number))).unwrap()
        })
        .collect();
    for ticket in tickets {
        let error = ticket.wait().unwrap_err();
        assert!(matches!(error, StorageError::Unavailable(_)), "{error}");
    }
    for kept in 0..acknowledged {
        assert_eq!(number(&storage, &kept.to_string(), "number"), kept);
    }
    make_room();
    let patient = storage.with_deadline(Duration::from_secs(60));
    for more in 0..5 {
        let number = acknowledged + more;
        let write = Write::upsert(key(&number.to_string()), large(number));
        patient.try_submit(write).unwrap().wait().unwrap();
    }
    for kept in 0..acknowledged + 5 {
        assert_eq!(number(&patient, &kept.to_string(), "number"), kept);
    }
    drop_of(&patient);
    let again = open(file);
    for kept in 0..acknowledged + 5 {
        assert_eq!(number(&again, &kept.to_string(), "number"), kept);
    }
    error.to_string()
}

/// On a full disk writes are refused with a reason and reads go on; nothing is lost, and when there is room again,
/// writes are stored again.
///
/// Method: a child on a file system of 8 MiB, of which something else holds the half until it is taken away.
#[test]
fn a_full_disk_loses_nothing_and_is_left_behind() {
    if let Ok(folder) = std::env::var(CHILD) {
        let folder = Path::new(&folder);
        let ballast = folder.join("ballast");
        fs::write(&ballast, vec![7; 4 * 1024 * 1024]).unwrap();
        let make_room = || fs::remove_file(&ballast).unwrap();
        let refused = fill_and_go_on(&folder.join("store.sqlite"), make_room);
        println!("a full disk was left behind: {refused}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let variable = (CHILD, folder.path().to_str().unwrap());
    let test = "a_full_disk_loses_nothing_and_is_left_behind";
    let output = disk::on_a_disk_of(8 * 1024, folder.path(), test, variable);
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("left behind"), "{said}{errors}");
    assert!(said.contains("store.sqlite is full"), "{said}");
}

/// The same where a file may not grow any more (`EFBIG`), of which SQLite knows only that a write failed.
///
/// Method: a child whose files may not grow past a limit, which it lifts itself.
#[test]
fn a_file_that_may_not_grow_loses_nothing_and_is_left_behind() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    if let Ok(file) = std::env::var(CHILD) {
        let refused = fill_and_go_on(Path::new(&file), || {
            let limit = getrlimit(Resource::Fsize);
            setrlimit(Resource::Fsize, Rlimit { current: limit.maximum, ..limit }).unwrap();
        });
        println!("a full disk was left behind: {refused}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    drop_of(&open(&file));
    // 2 MiB in blocks of 512 bytes; without the trap, the signal would end it.
    let script = "trap '' XFSZ; ulimit -S -f 4096; exec \"$0\" \"$@\"";
    let test = "a_file_that_may_not_grow_loses_nothing_and_is_left_behind";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, &file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("left behind"), "{said}{errors}");
}

fn drop_of(storage: &Storage) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(storage.close());
}

/// Processes that start at once make one store.
#[test]
fn many_make_the_same_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..10 {
        let file = folder.path().join(format!("{round}.sqlite"));
        let (start, file) = (std::sync::Barrier::new(6), &file);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    start.wait();
                    let storage = open(file);
                    let count = storage.try_submit(greenroom_storage::Count {
                        key: key("starts"),
                        by: 1,
                        expiry: greenroom_storage::Expiry::Never,
                    });
                    count.unwrap().wait().unwrap();
                });
            }
        });
        assert_eq!(number(&open(file), "starts", "count"), 6);
    }
}

/// A file that is no store of ours is refused with what to do, and not changed.
#[test]
fn a_file_that_is_no_store_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let unchanged = |file: &Path, bytes: &[u8]| assert!(fs::read(file).unwrap() == bytes);

    let text = path("notes.txt");
    fs::write(&text, "not a database at all".repeat(100)).unwrap();
    let error = refused(&text);
    assert!(error.contains("no SQLite database") && error.contains("notes.txt"), "{error}");
    unchanged(&text, "not a database at all".repeat(100).as_bytes());

    let foreign = path("foreign.sqlite");
    let connection = rusqlite::Connection::open(&foreign).unwrap();
    connection.execute_batch("CREATE TABLE theirs (a)").unwrap();
    drop(connection);
    let before = fs::read(&foreign).unwrap();
    let error = refused(&foreign);
    assert!(error.contains("database of something else") && error.contains("--store"), "{error}");
    unchanged(&foreign, &before);

    let newer = path("newer.sqlite");
    drop_of(&open(&newer));
    let connection = rusqlite::Connection::open(&newer).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(refused(&newer).contains("newer Greenroom (format 99"), "{}", refused(&newer));

    let not_a_folder = text.join("store.sqlite");
    let error = refused(&not_a_folder);
    assert!(error.contains("its folder can't be made") && error.contains("--data"), "{error}");
    let a_folder = path("folder.sqlite");
    fs::create_dir(&a_folder).unwrap();
    let error = refused(&a_folder);
    assert!(error.contains("can't be opened for writing") && error.contains("--store"), "{error}");
}

/// A file whose pages are broken is refused by name; nothing of it is repaired, moved or removed.
#[test]
fn a_corrupt_file_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    let storage = open(&file);
    let tickets: Vec<_> = (0..1_000)
        .map(|number| {
            storage.try_submit(Write::upsert(key(&number.to_string()), body(number))).unwrap()
        })
        .collect();
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    drop_of(&storage);
    let connection = rusqlite::Connection::open(&file).unwrap();
    connection.pragma_update(None, "wal_checkpoint", "truncate").unwrap();
    drop(connection);
    let bytes = fs::metadata(&file).unwrap().len();
    assert!(bytes > 40_000, "{bytes}");
    let mut broken = fs::OpenOptions::new().write(true).open(&file).unwrap();
    broken.seek(SeekFrom::Start(8_192)).unwrap();
    broken.write_all(&vec![0x5a; usize::try_from(bytes - 8_192).unwrap()]).unwrap();
    drop(broken);
    let before = fs::read(&file).unwrap();
    let error = refused(&file);
    assert!(error.contains("corrupt") && error.contains("restore it from a backup"), "{error}");
    assert!(fs::read(&file).unwrap() == before);
}

/// Another process that holds the file holds up writes, not reads; they are stored when it lets go.
#[test]
fn writes_wait_for_another_process_and_reads_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    let storage = open(&file);
    storage.try_submit(Write::upsert(key("a"), body(1))).unwrap().wait().unwrap();
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let hasty = storage.with_deadline(Duration::from_millis(200));
    let began = Instant::now();
    let late = hasty.try_submit(Write::upsert(key("a"), body(2))).unwrap().wait();
    assert!(
        matches!(late, Err(StorageError::Undecided { .. } | StorageError::Unavailable(_))),
        "{late:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_eq!(number(&storage, "b", "number"), 0);
    let waiting = storage.try_submit(Write::upsert(key("c"), body(3))).unwrap();
    other.execute_batch("COMMIT").unwrap();
    waiting.wait().unwrap();
    assert_eq!(number(&storage, "c", "number"), 3);
}

/// Questions in SQL can read only, and their values are parameters.
#[test]
fn a_raw_query_reads_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(&folder.path().join("store.sqlite"));
    for number in 0..5 {
        storage
            .try_submit(Write::upsert(key(&number.to_string()), body(number)))
            .unwrap()
            .wait()
            .unwrap();
    }
    let ask = |statement, parameters: Vec<MetaValue>| {
        storage.try_submit(RawQuery { statement, parameters, limit: 3 }).unwrap().wait()
    };
    let page = ask(
        "SELECT id, json_extract(body, '$.number') AS number FROM documents \
         WHERE json_extract(body, '$.number') >= ?1 ORDER BY number",
        vec![MetaValue::Int(1)],
    );
    let page = page.unwrap();
    assert!(page.is_cut);
    assert_eq!(page.rows[0], serde_json::json!({ "id": "1", "number": 1 }));
    let text = vec![MetaValue::Text("'; DROP TABLE documents; --".into())];
    let none = ask("SELECT id FROM documents WHERE id = ?1", text).unwrap();
    assert_eq!((none.rows.len(), none.is_cut), (0, false));
    for bad in [
        "DELETE FROM documents",
        "UPDATE documents SET version = 1",
        "DROP TABLE documents",
        "SELECT nothing FROM nowhere",
        "SELEKT 1",
        "INSERT INTO documents (id, version) VALUES ('x', 1) RETURNING id",
    ] {
        let refused = ask(bad, Vec::new());
        assert!(matches!(refused, Err(StorageError::BadQuery(_))), "{bad}: {refused:?}");
    }
    assert_eq!(number(&storage, "4", "number"), 4);
}

/// A question that takes too long is cut off at its deadline, and the next gets its turn.
#[test]
fn a_query_past_its_deadline_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(&folder.path().join("store.sqlite"));
    let statement =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
    let hasty = storage.with_deadline(Duration::from_millis(100));
    let endless =
        hasty.try_submit(RawQuery { statement, parameters: Vec::new(), limit: 1 }).unwrap();
    let next = RawQuery { statement: "SELECT 1 AS one", parameters: Vec::new(), limit: 1 };
    let next = storage.try_submit(next).unwrap();
    assert!(matches!(endless.wait(), Err(StorageError::Unavailable(_))));
    assert_eq!(next.wait().unwrap().rows, [serde_json::json!({ "one": 1 })]);
}

/// What is asked for by an index is found by it.
#[test]
fn declared_indexes_are_made_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    let index = Index::new(
        Collection::Documents,
        &[("mode", FieldType::Keyword), ("level", FieldType::Number)],
    );
    let schema = || Schema::new(vec![index.clone().unwrap()]).unwrap();
    let backend = |file: PathBuf| {
        async move || {
            Ok::<_, OpenError>(Arc::new(Sqlite::open(&file, Clock::system())?) as Arc<dyn Backend>)
        }
    };
    // Twice: the second finds it made.
    for _ in 0..2 {
        let storage = Storage::start(&config(&file), schema(), backend(file.clone())).unwrap();
        let filter = Filter::parse("mode = 'duel' and level >= 5").unwrap();
        let order =
            Some(greenroom_protocol::search::Order { field: "level".into(), descending: false });
        let query = Query { order, ..Query::new(Collection::Documents, filter) };
        assert!(storage.try_submit(query).unwrap().wait().unwrap().documents.is_empty());
        let plan = RawQuery {
            statement: "EXPLAIN QUERY PLAN SELECT id FROM documents WHERE \
                (CASE json_type(body, '$.mode') WHEN 'text' THEN json_extract(body, '$.mode') END) = ?1 AND \
                (CASE WHEN json_type(body, '$.level') = 'integer' \
                 AND typeof(json_extract(body, '$.level')) = 'integer' \
                 THEN json_extract(body, '$.level') END) >= ?2 ORDER BY \
                (CASE WHEN json_type(body, '$.level') = 'integer' \
                 AND typeof(json_extract(body, '$.level')) = 'integer' \
                 THEN json_extract(body, '$.level') END), id",
            parameters: vec![MetaValue::Text("duel".into()), MetaValue::Int(5)],
            limit: 9,
        };
        let plan = storage.try_submit(plan).unwrap().wait().unwrap();
        assert_eq!(plan.rows.len(), 1, "no sort beside the walk: {:?}", plan.rows);
        let detail = plan.rows[0]["detail"].as_str().unwrap();
        assert!(
            detail.contains("INDEX documents_by_mode_t_level_n (<expr>=? AND <expr>>?)"),
            "{detail}"
        );
        drop_of(&storage);
    }
}

/// `init` makes what is missing and says so; `check` says what is missing, and in what file.
#[tokio::test]
async fn a_store_is_made_once_and_what_it_lacks_is_named() {
    use greenroom_storage::{check, init};
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.sqlite");
    let config = config(&file);
    let index = Index::new(Collection::Documents, &[("level", FieldType::Number)]).unwrap();
    let with_index = Schema::new(vec![index]).unwrap();
    let found = check(&config, &with_index).await.unwrap();
    assert!(found[0].contains("is not there") && found[0].contains("store init"), "{found:?}");
    assert!(!file.exists(), "a check makes nothing");
    let made = init(&config, &Schema::default()).await.unwrap();
    assert!(made.len() == 1 && made[0].contains("with its tables"), "{made:?}");
    assert_eq!(check(&config, &Schema::default()).await.unwrap(), [""; 0]);
    let found = check(&config, &with_index).await.unwrap();
    assert!(found.len() == 1 && found[0].contains("the index documents_by_level_n"), "{found:?}");
    let made = init(&config, &with_index).await.unwrap();
    assert_eq!(made, ["the index documents_by_level_n of documents"]);
    assert!(init(&config, &with_index).await.unwrap().is_empty());
    assert_eq!(check(&config, &with_index).await.unwrap(), [""; 0]);
    std::fs::write(folder.path().join("notes.txt"), "x".repeat(5_000)).unwrap();
    let other = format!("sqlite:{}", folder.path().join("notes.txt").display()).into();
    let found = check(&StorageConfig { store: other, ..config }, &with_index).await.unwrap();
    assert!(found.len() == 1 && found[0].contains("no SQLite database"), "{found:?}");
}
