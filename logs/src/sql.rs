//! Questions in SQL over events, wherever they come from.
//!
//! SQLite has them in a database of this process alone, which goes to a temporary file where it grows past its cache:
//! ten million events need no more memory than ten thousand. An event that is there twice counts once, by its id.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
    sync::mpsc::{self, SyncSender},
    thread,
};

use rusqlite::{
    Connection, ErrorCode, OpenFlags,
    hooks::{AuthAction, AuthContext, Authorization},
    types::ValueRef,
};

use crate::{
    Kind, LogsError,
    kinds::KINDS,
    read::{Entry, From, Reader, Record, Skipped},
};

/// Memory for the database, in KiB; what is more goes to a temporary file.
const CACHE_KIB: i64 = 128 << 10;
/// Bytes of its pages: an event has some hundred, and larger pages are fewer to be found.
const PAGE_BYTES: i64 = 16 << 10;
/// The columns of `events`, each a text.
pub const COLUMNS: [&str; 11] = [
    "id", "ts", "node", "role", "kind", "severity", "user", "instance", "session", "trace",
    "fields",
];
/// Events of a game's own kind whose fields are looked at, to know what its view has.
const LOOKED_AT: u32 = 100;
/// Kinds of games' own that have a view, in the order in which they come; the others are asked for in `events`.
const GAME_VIEWS_MAX: usize = 500;
/// Kinds without a view that are named in notes; of more, only how many.
const NAMED_MAX: usize = 10;
/// Letters of its name.
const NAME_CHARS_MAX: usize = 80;
/// Bytes of an answer, about: of an endless one, the beginning.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Events that are read at once, and their bytes; and how many such batches wait to be kept. The reader waits for room.
const BATCH_EVENTS: usize = 1_024;
const BATCH_BYTES: usize = 1 << 20;
const BATCHES_MAX: usize = 16;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// The events can't be read.
    #[error(transparent)]
    Logs(#[from] LogsError),
    /// The stream can't be read.
    #[cfg(feature = "kinesis")]
    #[error(transparent)]
    Stream(#[from] crate::ship::ShipError),
    /// The question is wrong; the text says where and what there is.
    #[error("{0}")]
    Question(String),
    /// The database can't be kept: no room in the temporary folder, most likely.
    #[error(
        "SQLite has no place for the events: make room in the temporary folder, or ask with --since"
    )]
    Database(#[source] rusqlite::Error),
    /// SQLite can't do what it always can.
    #[error("SQLite can't keep the events")]
    Broken(#[source] rusqlite::Error),
}

impl SqlError {
    /// Only where there is no room helps advice about room.
    fn keeping(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => {
                Self::Database(error)
            }
            _ => Self::Broken(error),
        }
    }
}

/// A value of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Nothing.
    Null,
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Real(f64),
    /// A text; bytes that are none are shown as far as they are.
    Text(String),
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Names of its columns.
    pub columns: Vec<String>,
    /// Its rows, each with as many cells.
    pub rows: Vec<Vec<Cell>>,
    /// There are more rows than these: the answer grew beyond 64 MiB.
    pub is_cut: bool,
}

/// What was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Events, each once.
    pub events: u64,
    /// Events that were there more than once.
    pub doubled: u64,
    /// What was no event.
    pub skipped: Skipped,
    /// What is said of kinds that have no view: few lines, however many kinds there are.
    pub notes: Vec<String>,
}

/// Events that can be asked.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    /// Fields of kinds that are games' own, and how many of its events were looked at.
    games: BTreeMap<String, (u32, BTreeSet<String>)>,
    /// There are kinds beyond those.
    has_more_kinds: bool,
    loaded: Loaded,
}

impl Database {
    /// An empty one.
    ///
    /// # Errors
    /// When SQLite can't begin.
    pub fn new() -> Result<Self, SqlError> {
        let open = || -> rusqlite::Result<Connection> {
            // No name: a temporary database of this connection's own.
            let connection = Connection::open_with_flags("", OpenFlags::default())?;
            connection.pragma_update(None, "page_size", PAGE_BYTES)?;
            connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
            connection.pragma_update(None, "journal_mode", "off")?;
            connection.pragma_update(None, "synchronous", "off")?;
            let columns = COLUMNS[1..].join(" text, ");
            connection.execute_batch(&format!(
                "create table events (id text primary key, {columns} text) without rowid; begin"
            ))?;
            Ok(connection)
        };
        let connection = open().map_err(SqlError::keeping)?;
        Ok(Self {
            connection,
            games: BTreeMap::new(),
            has_more_kinds: false,
            loaded: Loaded::default(),
        })
    }

    /// The events of a folder, from a time on, in milliseconds since 1970. `look` is told now and then how many events
    /// were read.
    ///
    /// # Errors
    /// When they can't be read or kept.
    pub fn load(
        folder: &Path,
        since_ms: Option<u64>,
        mut look: impl FnMut(u64),
    ) -> Result<Self, SqlError> {
        let mut database = Self::new()?;
        let reader = Reader::open(folder, since_ms.map_or(From::Start, From::Time))?;
        let (sender, batches) = mpsc::sync_channel(BATCHES_MAX);
        // Reading and keeping take about as long: each has a thread.
        database.loaded.skipped = thread::scope(|scope| {
            let reads = scope.spawn(move || read(reader, &sender));
            let mut read = 0;
            for batch in batches {
                database.add_all(&batch)?;
                read += batch.len() as u64;
                look(read);
            }
            // Where it panicked, nobody goes on with a part of the events.
            let skipped = reads.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, SqlError>(skipped?)
        })?;
        database.finish()?;
        Ok(database)
    }

    /// The events of a stream, from a time on, in milliseconds since 1970: the same as those of the folders that were
    /// shipped to it. `look` is told now and then how many events were read, and how far that is.
    ///
    /// # Errors
    /// When they can't be read or kept.
    #[cfg(feature = "kinesis")]
    pub fn load_stream(
        target: &crate::ship::Target,
        since_ms: Option<u64>,
        mut look: impl FnMut(u64, crate::ship::Place),
    ) -> Result<Self, SqlError> {
        let mut database = Self::new()?;
        let mut read = 0;
        let skipped = crate::ship::read_stream(target, since_ms, |event, _, place| {
            read += 1;
            if read % BATCH_EVENTS as u64 == 1 {
                look(read, place);
            }
            database.add(event)
        })?;
        database.loaded.skipped = skipped;
        database.finish()?;
        Ok(database)
    }

    fn add_all(&mut self, batch: &[Record]) -> Result<(), SqlError> {
        for record in batch {
            self.add(&record.event())?;
        }
        Ok(())
    }

    /// Adds an event. Before [`Self::finish`].
    ///
    /// # Errors
    /// When it can't be kept.
    pub fn add(&mut self, event: &Entry<'_>) -> Result<(), SqlError> {
        let text = "insert or ignore into events values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        let inserted = self.connection.prepare_cached(text);
        let inserted = inserted.and_then(|mut insert| insert.execute(values(event)));
        match inserted.map_err(SqlError::keeping)? {
            0 => self.loaded.doubled += 1,
            _ => self.loaded.events += 1,
        }
        // Servers' own kinds have no point in their names.
        if event.kind.contains('.') {
            if self.games.len() == GAME_VIEWS_MAX && !self.games.contains_key(&*event.kind) {
                self.has_more_kinds = true;
                return Ok(());
            }
            let (looked_at, names) = self.games.entry(event.kind.to_string()).or_default();
            if *looked_at < LOOKED_AT {
                *looked_at += 1;
                let of: BTreeMap<String, serde::de::IgnoredAny> =
                    serde_json::from_str(event.fields.get()).unwrap_or_default();
                names.extend(of.into_keys());
            }
        }
        Ok(())
    }

    /// Makes the views, and lets nothing be changed from here on.
    ///
    /// # Errors
    /// When there is no room.
    pub fn finish(&mut self) -> Result<(), SqlError> {
        let mut text = "commit; create index by_kind on events (kind);".to_owned();
        for kind in KINDS {
            text.push_str(&view(kind.name, kind.fields.iter().map(|field| field.name)));
        }
        self.connection.execute_batch(&text).map_err(SqlError::keeping)?;
        // A log says what it likes: a name that is none for SQLite costs its own view, and no other.
        let mut refused = Vec::new();
        for (kind, (_, fields)) in &self.games {
            let made =
                self.connection.execute_batch(&view(kind, fields.iter().map(String::as_str)));
            if let Err(error) = made {
                let error = SqlError::keeping(error);
                let SqlError::Broken(why) = error else { return Err(error) };
                refused.push((kind.clone(), plain(&why)));
            }
        }
        self.loaded.notes = self.notes(&refused);
        for (kind, _) in refused {
            self.games.remove(&kind);
        }
        self.connection.authorizer(Some(authorize)).map_err(SqlError::keeping)
    }

    fn notes(&self, refused: &[(String, String)]) -> Vec<String> {
        let named = refused.iter().take(NAMED_MAX).map(|(kind, why)| {
            let short: String = kind.chars().take(NAME_CHARS_MAX).collect();
            let (kind, why) = (crate::event::harmless(&short), crate::event::harmless(why));
            format!("the kind {kind} has no view: {why}; its events are in the table events")
        });
        let mut notes: Vec<_> = named.collect();
        if refused.len() > NAMED_MAX {
            notes.push(format!("{} more kinds have no view either", refused.len() - NAMED_MAX));
        }
        if self.has_more_kinds {
            notes.push(format!(
                "there are more than {GAME_VIEWS_MAX} kinds of games' own: those beyond have no view; their events \
                 are in the table events"
            ));
        }
        notes
    }

    /// What was loaded.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// Answers a question.
    ///
    /// # Errors
    /// When it is none, or wants something changed.
    pub fn ask(&self, question: &str) -> Result<Answer, SqlError> {
        let answer = || -> rusqlite::Result<Answer> {
            let mut statement = self.connection.prepare(question)?;
            let columns: Vec<_> = statement.column_names().map(str::to_owned).collect();
            let mut found = statement.query([])?;
            let (mut rows, mut bytes) = (Vec::new(), 0);
            while let Some(row) = found.next()? {
                if bytes > ANSWER_BYTES_MAX {
                    return Ok(Answer { columns, rows, is_cut: true });
                }
                let cells = (0..columns.len()).map(|n| row.get_ref(n).map(Cell::from));
                let cells = cells.collect::<rusqlite::Result<Vec<_>>>()?;
                bytes += size_of::<Vec<Cell>>() + cells.iter().map(Cell::bytes).sum::<usize>();
                rows.push(cells);
            }
            Ok(Answer { columns, rows, is_cut: false })
        };
        answer().map_err(|error| self.explain(&error, question))
    }

    /// Whether events are such as a condition wants: what stands after `where`.
    ///
    /// # Errors
    /// When it is no condition.
    pub fn filter(condition: &str) -> Result<Filter, SqlError> {
        let mut database = Self::new()?;
        database.finish()?;
        let columns: Vec<_> =
            COLUMNS.iter().enumerate().map(|(n, name)| format!("?{} as {name}", n + 1)).collect();
        let text = format!("select 1 from (select {}) where ({condition}\n)", columns.join(", "));
        let prepared = database.connection.prepare(&text).map(drop);
        prepared.map_err(|error| {
            let message = plain(&error);
            SqlError::Question(format!("--where {condition}: {message}"))
        })?;
        Ok(Filter { database, text })
    }

    fn explain(&self, error: &rusqlite::Error, question: &str) -> SqlError {
        let mut text = plain(error);
        if let rusqlite::Error::SqlInputError { offset, .. } = error
            && let Ok(offset) = usize::try_from(*offset)
            && let Some(before) = question.get(..offset)
        {
            let line = before.matches('\n').count();
            let column = before.chars().rev().take_while(|&letter| letter != '\n').count();
            let shown = question.lines().nth(line).unwrap_or_default();
            write!(text, "\n  {shown}\n  {}^", " ".repeat(column)).expect("writing to a text");
        }
        if text.contains("no such table") {
            let games = self.games.keys().map(|kind| format!("\"{kind}\""));
            let all = KINDS.iter().map(|kind| kind.name.to_owned()).chain(games);
            text.push_str("\nthere is the table events, and for each kind a view: ");
            text.push_str(&all.collect::<Vec<_>>().join(", "));
        } else if text.contains("no such column") {
            let columns = COLUMNS.join(", ");
            write!(
                text,
                "\nevents has {columns}; a field is fields->>'name', or a column of the view of its kind: see \
                 `greenroom logs kinds`"
            )
            .expect("writing to a text");
        }
        SqlError::Question(text)
    }
}

/// A condition on events.
#[derive(Debug)]
pub struct Filter {
    database: Database,
    text: String,
}

impl Filter {
    /// Whether it holds.
    ///
    /// # Errors
    /// When it can't be decided for this event: a function was given what it does not take.
    pub fn holds(&self, event: &Entry<'_>) -> Result<bool, SqlError> {
        let prepared = self.database.connection.prepare_cached(&self.text);
        let holds = prepared.and_then(|mut statement| statement.exists(values(event)));
        holds.map_err(|error| SqlError::Question(plain(&error)))
    }
}

/// Reads a log to its end, batch by batch; ends early if nobody takes them. Gives what was no event.
fn read(mut reader: Reader, batches: &SyncSender<Vec<Record>>) -> Result<Skipped, LogsError> {
    let (mut batch, mut bytes) = (Vec::with_capacity(BATCH_EVENTS), 0);
    while let Some(record) = reader.next_record()? {
        bytes += record.text.len();
        batch.push(record);
        if batch.len() == BATCH_EVENTS || bytes >= BATCH_BYTES {
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH_EVENTS));
            bytes = 0;
            if batches.send(full).is_err() {
                return Ok(reader.skipped());
            }
        }
    }
    // Who takes none any more says why.
    let _nobody = batches.send(batch);
    Ok(reader.skipped())
}

/// An event's values, in the order of [`COLUMNS`].
fn values<'a>(event: &'a Entry<'_>) -> [Option<&'a str>; COLUMNS.len()] {
    [
        Some(&event.id),
        Some(&event.ts),
        Some(&event.node),
        Some(&event.role),
        Some(&event.kind),
        Some(&event.severity),
        event.user.as_deref(),
        event.instance.as_deref(),
        event.session.as_deref(),
        event.trace.as_deref(),
        Some(event.fields.get()),
    ]
}

/// A view of a kind, with its fields as columns.
fn view<'a>(kind: &str, fields: impl Iterator<Item = &'a str>) -> String {
    let name = |text: &str| text.replace('"', "\"\"");
    let value = |text: &str| text.replace('\'', "''");
    let mut text = format!(
        "create view \"{}\" as select id, ts, node, role, severity, user, instance, session, trace",
        name(kind)
    );
    // SQL ends at a NUL: no column can be called so.
    for field in fields.filter(|field| !COLUMNS.contains(field) && !field.contains('\0')) {
        // A name with a quote in it can't be said in a path.
        let path = field.replace('"', "");
        write!(text, ", fields->>'$.\"{}\"' as \"{}\"", value(&path), name(field))
            .expect("writing to a text");
    }
    write!(text, " from events where kind = '{}';", value(kind)).expect("writing to a text");
    text
}

/// Whoever asks may read, and nothing else: no file is opened, nothing is written, no setting is changed.
fn authorize(context: AuthContext<'_>) -> Authorization {
    #[expect(clippy::wildcard_enum_match_arm, reason = "what is not named here is not allowed")]
    match context.action {
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Recursive => {
            Authorization::Allow
        }
        AuthAction::Function { function_name } if function_name != "load_extension" => {
            Authorization::Allow
        }
        _ => Authorization::Deny,
    }
}

/// What SQLite says, in words.
fn plain(error: &rusqlite::Error) -> String {
    if matches!(error, rusqlite::Error::MultipleStatement) {
        return "one question at a time: leave out what stands after the `;`".into();
    }
    // A text without a statement in it.
    if error.sqlite_error_code() == Some(ErrorCode::ApiMisuse) {
        return "there is no question: ask with a select, such as select kind, count(*) from events group by kind"
            .into();
    }
    let text = if let rusqlite::Error::SqlInputError { msg, .. } = error {
        msg.clone()
    } else {
        error.to_string()
    };
    if text.contains("not authorized") || text.contains("authorization denied") {
        return "events can only be read: `select` and `with` are possible; `attach`, `pragma` and whatever writes \
                are not"
            .into();
    }
    text
}

impl std::convert::From<ValueRef<'_>> for Cell {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(value) => Self::Integer(value),
            ValueRef::Real(value) => Self::Real(value),
            ValueRef::Text(text) | ValueRef::Blob(text) => {
                Self::Text(String::from_utf8_lossy(text).into_owned())
            }
        }
    }
}

impl Cell {
    fn bytes(&self) -> usize {
        size_of::<Self>() + if let Self::Text(text) = self { text.len() } else { 0 }
    }

    /// As it is shown: nothing in it that a terminal takes for more than text.
    pub fn shown(&self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Integer(value) => value.to_string(),
            Self::Real(value) => value.to_string(),
            Self::Text(text) => crate::event::harmless(text),
        }
    }
}

impl Answer {
    /// As comma-separated values, RFC 4180.
    pub fn csv(&self) -> String {
        let quoted = |text: String| match text.contains([',', '"', '\n']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text,
        };
        let mut out = String::new();
        let names = self.columns.iter().map(|name| quoted(crate::event::harmless(name)));
        out.push_str(&names.collect::<Vec<_>>().join(","));
        for row in &self.rows {
            out.push('\n');
            out.push_str(
                &row.iter().map(|cell| quoted(cell.shown())).collect::<Vec<_>>().join(","),
            );
        }
        out.push('\n');
        out
    }

    /// One JSON object a line.
    pub fn json(&self) -> String {
        let mut out = Vec::new();
        for row in &self.rows {
            out.push(b'{');
            for (n, (name, cell)) in self.columns.iter().zip(row).enumerate() {
                if n > 0 {
                    out.push(b',');
                }
                crate::event::whole_text(&mut out, name);
                out.push(b':');
                match cell {
                    Cell::Real(value) if value.is_finite() => {
                        out.extend_from_slice(value.to_string().as_bytes());
                    }
                    Cell::Null | Cell::Real(_) => out.extend_from_slice(b"null"),
                    Cell::Integer(value) => out.extend_from_slice(value.to_string().as_bytes()),
                    Cell::Text(text) => crate::event::whole_text(&mut out, text),
                }
            }
            out.extend_from_slice(b"}\n");
        }
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// A kind as the reference has it: its name, and what is known of its events.
pub fn about(kind: &Kind) -> String {
    let names = kind.about.iter().copied().chain(kind.fields.iter().map(|field| field.name));
    names.collect::<Vec<_>>().join(", ")
}
