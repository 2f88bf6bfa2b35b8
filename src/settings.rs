//! Every setting, once: its name, form, default and line of help. From this table come the flags, the environment
//! variables, what `greenroom settings` prints, and the check of `greenroom.toml`.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::{Deserialize, de::DeserializeOwned};
use toml::{Table, Value};

/// How a setting is written as a flag or in the environment. In the file it has TOML's own form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A text, a path, an address, or a span of time such as `10s`.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Truth,
    /// Texts with commas between them.
    List,
    /// A value of TOML.
    Toml,
}

/// One setting.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) table: &'static str,
    pub(crate) key: &'static str,
    pub(crate) form: Form,
    /// As it would be written as a flag; empty where nothing is set.
    pub(crate) default: &'static str,
    pub(crate) help: &'static str,
}

const fn setting(
    table: &'static str,
    key: &'static str,
    form: Form,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting { table, key, form, default, help }
}

use Form::{List, Number, Text, Toml, Truth};

#[rustfmt::skip]
pub(crate) const SETTINGS: &[Setting] = &[
    setting("cluster", "name", Text, "greenroom", "Name of the cluster: servers of another name are refused"),
    setting("cluster", "data", Text, ".greenroom", "Folder for keys and everything that is to stay"),
    setting("cluster", "key_file", Text, "",
        "The cluster's key: 64 hexadecimal digits [default: cluster.key in the data folder]"),
    setting("cluster", "log", Text, "warn",
        "What is logged to the standard error: error, warn, info, debug, or a filter such as \
         greenroom_master=debug"),

    setting("master", "name", Text, "master-1", "Its name in the cluster"),
    setting("master", "listen", Text, "127.0.0.1:4100",
        "Where session servers, game servers and the other master dial it; port 0 for any"),
    setting("master", "side", Text, "a", "Which of the two masters it is, for ever: a or b"),
    setting("master", "peer", Text, "", "Where the other master listens [default: this one is alone]"),
    setting("master", "witness", Text, "",
        "What tells which master decides: host:port of a `greenroom witness`, couchbase://HOST,HOST (as the user of \
         [storage], in its bucket and scope), or sqlite:FILE where both masters are on one machine [default, for one \
         that is alone: in its folder]"),
    setting("master", "takeover_after", Text, "500ms", "Silence of the active after which the standby takes over"),
    setting("master", "solo_after", Text, "250ms",
        "Silence of the standby after which the active goes on without it"),
    setting("master", "session_grace", Text, "2m", "How long a session without a connection keeps its seats"),
    setting("master", "reservation", Text, "15s", "How long a reserved seat waits to be taken"),
    setting("master", "server_grace", Text, "15s", "How long a server without a link keeps what it has"),
    setting("master", "proof_of_death", Text, "machine",
        "What proves that a game server is gone, so that server_grace need not pass: machine (its port is refused on \
         the master's own machine), network (on any, where no firewall rejects with a reset) or never"),
    setting("master", "rejoin_grace", Text, "3s",
        "How long after its start the master waits for game servers to say what they run; 0s with `up` in one process"),
    setting("master", "board_members_max", Number, "1000000", "Users on one rank board"),
    setting("master", "sessions_max", Number, "", "Sessions in all; past it a check-in is refused as busy"),
    setting("master", "seats_max", Number, "8", "Seats that one session may hold"),
    setting("master", "log_entries_max", Number, "65536",
        "Newest commands that the log keeps in memory: a standby that was away for no longer needs no snapshot"),

    setting("witness", "name", Text, "witness", "Its name in the cluster"),
    setting("witness", "listen", Text, "127.0.0.1:4200", "Where masters dial it; port 0 for any"),

    setting("storage", "store", Text, "",
        "Where documents that are to stay are: sqlite:FILE (all servers on one machine), memory, or \
         couchbase://HOST,HOST [default: store.sqlite in the data folder]"),
    setting("storage", "lanes", Number, "8", "Tasks that documents are spread over by their keys"),
    setting("storage", "lane_under_way_max", Number, "256", "Operations of one lane that the store works on at once"),
    setting("storage", "queue_count_max", Number, "100000", "Operations that wait for the store"),
    setting("storage", "queue_bytes_max", Number, "268435456", "Bytes of the documents that wait for the store"),
    setting("storage", "document_bytes_max", Number, "20971520", "Bytes of one document, at most 20 MiB"),
    setting("storage", "spool", Text, "",
        "Folder where a game server keeps snapshots while the store is away [default: spool in the data folder]"),
    setting("storage", "spool_bytes_max", Number, "268435456", "Bytes of that folder"),
    setting("storage", "deadline", Text, "5s", "How long an operation may take: then it is answered as unavailable"),
    setting("storage", "couchbase_user", Text, "greenroom", "Who logs in to Couchbase"),
    setting("storage", "couchbase_password", Text, "",
        "With which password; better in the environment than on a command line"),
    setting("storage", "couchbase_certificate", Text, "",
        "File (PEM) with the issuer of the certificate of couchbases:// [default: those that everybody trusts]"),
    setting("storage", "couchbase_bucket", Text, "greenroom", "The bucket"),
    setting("storage", "couchbase_scope", Text, "greenroom", "The scope in it, which is the store's alone"),
    setting("storage", "couchbase_durability", Text, "majority",
        "How safe a write is before it is answered: none, majority, majority_and_persist_active or \
         persist_to_majority, and behind it exceptions: majority,snapshots=none"),
    setting("storage", "couchbase_connect_timeout", Text, "10s", "How long connecting to Couchbase may take"),
    setting("storage", "couchbase_request_timeout", Text, "1s",
        "How long one request to Couchbase may take before its outcome is looked up: less than the deadline"),

    setting("console", "listen", Text, "127.0.0.1:4080",
        "Where operators' tools find the admin port, and browsers its pages; port 0 for any"),
    setting("console", "other", Text, "",
        "The other master's admin port (http://host:port): the pages of a master that does not decide lead there"),

    setting("session", "name", Text, "", "Its name in the cluster [default: session- and its port]"),
    setting("session", "masters", List, "127.0.0.1:4100", "Addresses of the masters"),
    setting("session", "tcp", Text, "127.0.0.1:4000", "Where TCP clients connect; port 0 for any"),
    setting("session", "ws", Text, "127.0.0.1:4001", "Where WebSocket clients connect; port 0 for any"),
    setting("session", "public_urls", List, "",
        "URLs that clients are given, where they differ from what it listens on"),
    setting("session", "tls.certificate", Text, "",
        "File with the certificate chain (PEM): public ports then speak TLS only"),
    setting("session", "tls.key", Text, "", "File with the certificate's private key (PEM)"),
    setting("session", "origins", List, "",
        "Origins of pages that may open a WebSocket (https://game.example, or * for all)"),
    setting("session", "hosts", List, "",
        "Names by which browsers may call the WebSocket port, besides addresses, localhost and those of public_urls, \
         or * for all [default: none while it is on loopback, else all]"),
    setting("session", "pages", Truth, "",
        "Serve the program's pages to browsers on the WebSocket port [default: true while all public ports are on \
         loopback]"),
    setting("session", "connections_max", Number, "",
        "Connections at most [default: what the limit on open files leaves]"),
    setting("session", "heartbeat", Text, "30s", "How often each side of a connection says that it is there"),
    setting("session", "round_trip_every", Text, "15s",
        "How often each client is pinged to measure its round trip"),
    setting("session", "labels", List, "",
        "Free words about this server, such as its region: events about its connections have them"),
    setting("session", "limits", Text, "default",
        "What clients may send: default, or load (rates lifted, for benchmarks)"),
    setting("session", "drain_timeout", Text, "10s",
        "How long a stopping server waits for its clients to go elsewhere"),
    setting("session", "auth.guest", Truth, "",
        "Let users without an account in [default: true while all public ports are on loopback]"),
    setting("session", "auth.jwt.keys", Toml, "",
        "Keys of tokens: [{ file = \"key.pem\", algorithm = \"EdDSA\" }]; HS256, EdDSA or RS256"),
    setting("session", "auth.jwt.jwks", Text, "", "File with a JSON Web Key Set, besides or instead of keys"),
    setting("session", "auth.jwt.audience", Text, "", "The audience that tokens must be for"),
    setting("session", "auth.jwt.issuer", Text, "", "The issuer that tokens must be from"),
    setting("session", "auth.jwt.leeway", Text, "30s", "How far clocks may differ"),
    setting("session", "auth.jwt.lifetime_max", Text, "24h", "How long a token may be valid in all"),
    setting("session", "auth.http.url", Text, "",
        "Your service that decides who may check in: it is POSTed the credentials as JSON"),
    setting("session", "auth.http.scheme", Text, "http", "The scheme of credentials that it decides on"),
    setting("session", "auth.http.bearer", Text, "", "Token that it is sent, so that it knows who asks"),
    setting("session", "auth.http.ca", Text, "",
        "File with the certificate authority of its certificate (PEM) [default: the system's]"),
    setting("session", "auth.http.timeout", Text, "3s", "How long it may take"),
    setting("session", "auth.http.under_way_max", Number, "64", "Questions to it under way at most"),
    setting("session", "auth.http.name_is_account", Truth, "false",
        "Count failures by the name in the credentials"),
    setting("session", "auth.attempts.address_per_minute_max", Number, "20",
        "Check-ins a minute from one address"),
    setting("session", "auth.attempts.account_failures_per_minute_max", Number, "5",
        "Failed check-ins a minute for one account"),
    setting("session", "auth.attempts.entries_max", Number, "16384",
        "Addresses and accounts that are remembered"),
    setting("session", "auth.attempts.count_loopback", Truth, "false",
        "Count check-ins from this machine too"),

    setting("game", "name", Text, "", "Its name in the cluster [default: game- and its port]"),
    setting("game", "masters", List, "127.0.0.1:4100", "Addresses of the masters"),
    setting("game", "listen", Text, "127.0.0.1:0", "Where session servers dial it; port 0 for any"),
    setting("game", "public_address", Text, "",
        "What session servers are told to dial, where it differs: host:port"),
    setting("game", "capacity", Number, "10000", "How much it takes: the sum of its instances' weights"),
    setting("game", "labels", List, "",
        "Free words about this server: kinds that need one are placed where it is"),
    setting("game", "lease", Text, "10s",
        "How long instances with a unique key run on without a word of the master, 2s to 10s"),
    setting("game", "tick_grid", Text, "5ms",
        "Steps begin at multiples of this, so that their frames leave together"),
    setting("game", "report_interval", Text, "1s", "How often the master is told the load"),
    setting("game", "drain_timeout", Text, "30s",
        "How long a stopping server waits for its instances to end"),

    setting("telemetry", "listen", Text, "",
        "Where this process shows its metrics to Prometheus: host:port [default: nowhere; a master's are on its admin \
         port]"),
    setting("telemetry", "endpoint", Text, "",
        "Collector that spans and metrics are sent to by OTLP over HTTP: http://HOST:4318 [default: none]"),
    setting("telemetry", "sample", Toml, "0.0",
        "Share of what clients send that is traced, 0.0 to 1.0, beside what they sample themselves"),
    setting("telemetry", "service", Text, "greenroom",
        "What the system is called at the collector: its services are SERVICE-master and so on"),
    setting("telemetry", "interval", Text, "10s", "How often metrics are sent to the collector"),

    setting("logs", "folder", Text, "",
        "Where the event log is: each process has a folder of its own in it [default: logs in the data folder]"),
    setting("logs", "level", Text, "info",
        "Events that are written: those of this severity and above, of error, warn, info and debug; or off"),
    setting("logs", "segment_bytes_max", Number, "67108864",
        "Bytes after which a segment is closed and compressed"),
    setting("logs", "segment_time_max", Text, "1h", "Time after which a segment is closed"),
    setting("logs", "total_bytes_max", Number, "2147483648",
        "Bytes of a process's segments on disk; past it the oldest go"),
    setting("logs", "queue_events_max", Number, "131072",
        "Events that wait for the disk; more are lost, and counted"),
    setting("logs", "queue_bytes_max", Number, "33554432", "Bytes of them"),
    setting("logs", "kinesis.stream", Text, "",
        "Kinesis stream that events are shipped to [default: none; they stay on this machine]"),
    setting("logs", "kinesis.region", Text, "", "Its region [default: that of the environment or the profile]"),
    setting("logs", "kinesis.endpoint", Text, "", "Another endpoint than the region's, as a URL"),
    setting("logs", "kinesis.call_records_max", Number, "500", "Records of a call, 1 to 500"),
    setting("logs", "kinesis.call_bytes_max", Number, "5242880", "Bytes of a call, keys included; at most 10 MiB"),
    setting("logs", "kinesis.record_bytes_max", Number, "1048576",
        "Bytes of a record, its key included: what the stream takes"),
    setting("logs", "kinesis.record_bytes", Number, "102400",
        "Bytes at which a record leaves without waiting for more events"),
    setting("logs", "kinesis.linger", Text, "200ms", "How long an event waits for others to share a record with"),
    setting("logs", "kinesis.calls_max", Number, "4", "Calls under way at most, 1 to 64"),
    setting("logs", "kinesis.call_timeout", Text, "10s", "How long a call may take before it is made again"),
    setting("logs", "kinesis.buffer_bytes_max", Number, "16777216",
        "Bytes of events in memory that are not shipped yet; the rest waits on disk"),
];

/// The `[cluster]` table: what every process of a cluster has in common.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClusterConfig {
    pub(crate) name: ecow::EcoString,
    pub(crate) data: PathBuf,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) log: String,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            name: "greenroom".into(),
            data: ".greenroom".into(),
            key_file: None,
            log: "warn".into(),
        }
    }
}

impl Setting {
    fn path(&self) -> String {
        format!("{}.{}", self.table, self.key)
    }
    /// The environment variable.
    pub(crate) fn variable(&self) -> String {
        format!("GREENROOM_{}_{}", self.table, self.key.replace('.', "_")).to_uppercase()
    }
    /// The flag: a role's own command leaves the role's name out.
    fn flag(&self, command: &str) -> String {
        let key = self.key.replace(['.', '_'], "-");
        if self.table == "console" && self.key == "listen" {
            return "admin".into();
        }
        if self.table == "storage" && self.key == "store" {
            return "store".into();
        }
        match self.table == command
            || self.table == "cluster" && !matches!(self.key, "name" | "log")
        {
            true => key,
            false => format!("{}-{key}", self.table),
        }
    }
    /// Its flags, for the reference: of every command, and of its role's own.
    fn flags(&self) -> String {
        let (shared, own) = (self.flag(""), self.flag(self.table));
        match self.table {
            // No command but its own takes them.
            "witness" => format!("--{own}"),
            "master" | "session" | "game" => {
                format!("--{shared}, or --{own} of `greenroom {}`", self.table)
            }
            _ => format!("--{shared}"),
        }
    }
    fn value(&self, text: &str) -> Result<Value> {
        let wrong = || format!("{} = {text:?}", self.path());
        Ok(match self.form {
            Text => Value::String(text.into()),
            Number => {
                Value::Integer(text.parse().with_context(wrong).context("not a whole number")?)
            }
            Truth => {
                Value::Boolean(text.parse().with_context(wrong).context("neither true nor false")?)
            }
            List => Value::Array(
                text.split(',')
                    .map(str::trim)
                    .filter(|part| !part.is_empty())
                    .map(|part| part.to_owned().into())
                    .collect(),
            ),
            Toml => {
                let mut table: Table = format!("value = {text}").parse().with_context(wrong)?;
                table.remove("value").with_context(wrong)?
            }
        })
    }
}

/// The tables of `greenroom.toml`, in the order of the settings.
fn table_names() -> Vec<&'static str> {
    let mut names: Vec<&str> = SETTINGS.iter().map(|setting| setting.table).collect();
    names.dedup();
    names
}

/// Adds the flags of `tables` to a command.
pub(crate) fn flags(mut command: Command, tables: &[&'static str]) -> Command {
    let name = command.get_name().to_owned();
    command = command.arg(
        Arg::new("config")
            .long("config")
            .env("GREENROOM_CONFIG")
            .value_name("FILE")
            .help("File with settings [default: greenroom.toml, if it is there]"),
    );
    for setting in SETTINGS.iter().filter(|setting| tables.contains(&setting.table)) {
        let mut help = setting.help.to_owned();
        if !setting.default.is_empty() {
            write!(help, " [default: {}]", setting.default)
                .expect("writing to a text does not fail");
        }
        let mut arg = Arg::new(setting.path())
            .long(setting.flag(&name))
            .env(setting.variable())
            .hide_env(true)
            .action(ArgAction::Set)
            .value_name(match setting.form {
                Text => "TEXT",
                Number => "NUMBER",
                Truth => "TRUE|FALSE",
                List => "LIST",
                Toml => "TOML",
            })
            .help(help);
        if setting.key == "masters" && setting.table == name {
            arg = arg.visible_alias("master");
        }
        command = command.arg(arg);
    }
    command
}

/// All that was set: the file, over it the environment, over it the flags.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    tables: Table,
    /// For messages.
    file: Option<PathBuf>,
}

impl Settings {
    /// Reads the file and what `matches` has of flags and environment.
    pub(crate) fn read(matches: &ArgMatches) -> Result<Self> {
        let given = matches.get_one::<String>("config").map(PathBuf::from);
        let file = given
            .clone()
            .or_else(|| Some("greenroom.toml".into()).filter(|file: &PathBuf| file.exists()));
        let mut tables = Table::new();
        if let Some(file) = &file {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("reading {}", file.display()))?;
            tables = text.parse().with_context(|| format!("{} is no TOML", file.display()))?;
            let known = table_names();
            if let Some(unknown) = tables.keys().find(|key| !known.contains(&key.as_str())) {
                let file = file.display();
                bail!("{file}: there is no table [{unknown}]; there are: [{}]", known.join("], ["));
            }
        }
        for (name, _) in std::env::vars() {
            let of_a_table = name.strip_prefix("GREENROOM_").is_some_and(|rest| {
                table_names().iter().any(|table| {
                    rest.strip_prefix(&table.to_uppercase()).is_some_and(|key| key.starts_with('_'))
                })
            });
            if of_a_table && !SETTINGS.iter().any(|setting| setting.variable() == name) {
                bail!(
                    "the environment sets {name}, which is no setting; `greenroom settings` lists them"
                );
            }
        }
        for setting in SETTINGS {
            if let Ok(Some(text)) = matches.try_get_one::<String>(&setting.path()) {
                put(&mut tables, &setting.path(), setting.value(text)?)?;
            }
        }
        Ok(Self { tables, file })
    }

    fn get(&self, path: &str) -> Option<&Value> {
        let (table, rest) = path.split_once('.')?;
        rest.split('.').try_fold(self.tables.get(table)?, |at, key| at.get(key))
    }

    /// A text, if it is set.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        self.get(path)?.as_str().map(str::to_owned)
    }

    /// Sets a value unless it is set already.
    pub(crate) fn or(&mut self, path: &str, text: &str) -> Result<()> {
        match self.get(path) {
            Some(_) => Ok(()),
            None => self.set(path, text),
        }
    }

    /// All that was set, as a file.
    pub(crate) fn to_toml(&self) -> Result<String> {
        toml::to_string(&self.tables).context("writing settings as TOML")
    }

    /// Sets a value, whatever was set before.
    pub(crate) fn set(&mut self, path: &str, text: &str) -> Result<()> {
        let setting = SETTINGS
            .iter()
            .find(|setting| setting.path() == path)
            .context("a setting of the table")?;
        put(&mut self.tables, path, setting.value(text)?)
    }

    /// A table as its role's own type.
    ///
    /// # Errors
    /// A misspelt key or a wrong value, with the file and the table it stands in.
    pub(crate) fn table<T: DeserializeOwned>(&self, table: &str) -> Result<T> {
        let value = self.tables.get(table).cloned().unwrap_or_else(|| Value::Table(Table::new()));
        value.try_into().with_context(|| match &self.file {
            Some(file) => format!("[{table}] of {} (or its flags and variables)", file.display()),
            None => format!("the settings of [{table}]"),
        })
    }

    /// The folder for what is to stay, made if it is not there.
    pub(crate) fn data(&self) -> Result<PathBuf> {
        let data = self.data_if_any()?;
        make_folder(&data)?;
        Ok(data)
    }

    /// The same for who only looks: it may not be there.
    pub(crate) fn data_if_any(&self) -> Result<PathBuf> {
        Ok(self.table::<ClusterConfig>("cluster")?.data)
    }
}

/// Only its owner looks into a folder that is made here: the logs and the store have the keys of sessions in them.
pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    let mut maker = std::fs::DirBuilder::new();
    maker.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut maker, 0o700);
    maker.create(folder).with_context(|| {
        format!(
            "making the data folder {}: choose another with --data, or mend its rights",
            folder.display()
        )
    })
}

fn put(tables: &mut Table, path: &str, value: Value) -> Result<()> {
    let (parents, key) = path.rsplit_once('.').context("a setting has a table")?;
    let mut at = tables;
    for parent in parents.split('.') {
        let entry = at.entry(parent).or_insert_with(|| Value::Table(Table::new()));
        at = entry.as_table_mut().with_context(|| format!("{parent} in {path} is no table"))?;
    }
    at.insert(key.into(), value);
    Ok(())
}

/// Every setting, for `greenroom settings` and the reference in `docs/`.
pub(crate) fn reference() -> String {
    let mut text = String::new();
    let mut table = "";
    for setting in SETTINGS {
        if setting.table != table {
            table = setting.table;
            writeln!(text, "{}[{table}]", if text.is_empty() { "" } else { "\n" })
                .expect("writing to a text");
        }
        let default = match setting.form {
            _ if setting.default.is_empty() => "(not set)".to_owned(),
            Text => format!("{:?}", setting.default),
            List => format!("{:?}", setting.default.split(',').collect::<Vec<_>>()),
            Number | Truth | Toml => setting.default.to_owned(),
        };
        writeln!(
            text,
            "{} = {default}\n    {}\n    {}\n    {}",
            setting.key,
            setting.help,
            setting.flags(),
            setting.variable()
        )
        .expect("writing to a text");
    }
    text
}

#[cfg(test)]
mod tests {
    use greenroom_console::ConsoleConfig;
    use greenroom_game::GameConfig;
    use greenroom_logs::LogsConfig;
    use greenroom_master::{MasterConfig, WitnessConfig};
    use greenroom_session::SessionConfig;
    use greenroom_storage::StorageConfig;
    use greenroom_telemetry::TelemetryConfig;

    use super::*;

    /// Keys that a configuration's type knows, from what serde says when it meets one that it does not know.
    fn fields<T: DeserializeOwned>() -> Vec<String> {
        let unknown: Value = "misspelt = 1".parse::<Table>().map(Value::Table).unwrap();
        let error = match unknown.try_into::<T>() {
            Err(error) => error.to_string(),
            Ok(_) => panic!("a misspelt key is taken for granted"),
        };
        error.split('`').skip(3).step_by(2).map(str::to_owned).collect()
    }

    fn covers<T: DeserializeOwned>(table: &str) {
        let fields = fields::<T>();
        assert!(!fields.is_empty(), "{table}");
        let keys: Vec<_> = SETTINGS.iter().filter(|setting| setting.table == table).collect();
        for field in &fields {
            let covered =
                |setting: &&&Setting| setting.key.split('.').next() == Some(field.as_str());
            assert!(keys.iter().any(|setting| covered(&setting)), "{table}.{field} is no flag");
        }
        let mut settings = Settings::default();
        for setting in keys {
            if !setting.default.is_empty()
                && !setting.key.starts_with("auth.jwt")
                && !setting.key.starts_with("auth.http")
            {
                settings.set(&setting.path(), setting.default).unwrap();
            }
        }
        settings
            .table::<T>(table)
            .unwrap_or_else(|error| panic!("a default of [{table}] is not taken: {error:#}"));
    }

    #[test]
    fn every_setting_of_every_role_is_a_flag_a_variable_and_a_key_of_the_file() {
        covers::<ClusterConfig>("cluster");
        covers::<MasterConfig>("master");
        covers::<WitnessConfig>("witness");
        covers::<StorageConfig>("storage");
        covers::<ConsoleConfig>("console");
        covers::<SessionConfig>("session");
        covers::<GameConfig>("game");
        covers::<TelemetryConfig>("telemetry");
        covers::<LogsConfig>("logs");
    }

    #[cfg(unix)]
    #[test]
    fn a_data_folder_that_is_made_is_its_owners_and_one_that_is_there_stays_as_it_is() {
        use std::os::unix::fs::PermissionsExt;
        let above = std::env::temp_dir().join(format!("greenroom-modes-{}", std::process::id()));
        let folder = above.join("data");
        let mode = || std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777;
        make_folder(&folder).unwrap();
        assert_eq!(mode(), 0o700);
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o750)).unwrap();
        make_folder(&folder).unwrap();
        assert_eq!(mode(), 0o750);
        std::fs::remove_dir_all(above).unwrap();
    }

    #[test]
    fn the_reference_names_each_flag_as_the_commands_have_it() {
        let text = reference();
        let after = |help: &str| {
            let mut lines = text.lines().skip_while(|line| !line.contains(help)).skip(1);
            lines.next().unwrap_or_default().trim().to_owned()
        };
        assert_eq!(after("Where operators' tools find the admin port"), "--admin");
        assert_eq!(
            after("Where TCP clients connect"),
            "--session-tcp, or --tcp of `greenroom session`"
        );
        assert_eq!(after("Where masters dial it"), "--listen");
        let has = |command: &'static str, tables: &[&'static str], flag: &str| {
            let command = flags(Command::new(command), tables);
            command.get_arguments().any(|arg| arg.get_long() == Some(flag))
        };
        let up =
            ["cluster", "master", "storage", "console", "session", "game", "telemetry", "logs"];
        for setting in SETTINGS {
            let named = setting.flags();
            let mut named = named.split(", or ").map(|flag| &flag.split(' ').next().unwrap()[2..]);
            if setting.table != "witness" {
                let flag = named.next().unwrap();
                assert!(has("up", &up, flag), "`greenroom up` has no --{flag}");
            }
            for flag in named {
                assert!(
                    has(setting.table, &[setting.table], flag),
                    "--{flag} of {}",
                    setting.table
                );
            }
        }
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_table_and_what_there_is() {
        let settings =
            Settings { tables: "[session]\nhartbeat = \"3s\"".parse().unwrap(), file: None };
        let error = format!("{:#}", settings.table::<SessionConfig>("session").unwrap_err());
        assert!(
            error.contains("[session]")
                && error.contains("hartbeat")
                && error.contains("heartbeat"),
            "{error}"
        );
    }

    #[test]
    fn flags_win_over_the_environment_and_the_environment_over_the_file() {
        let command = || flags(Command::new("session"), &["cluster", "session"]);
        let folder =
            std::env::temp_dir().join(format!("greenroom-settings-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("greenroom.toml");
        std::fs::write(&file, "[session]\nheartbeat = \"7s\"\ntcp = \"127.0.0.1:7\"\n").unwrap();
        let file = file.to_str().unwrap();
        let matches =
            command().get_matches_from(["session", "--config", file, "--tcp", "127.0.0.1:9"]);
        let session: SessionConfig = Settings::read(&matches).unwrap().table("session").unwrap();
        assert_eq!(session.heartbeat, std::time::Duration::from_secs(7));
        assert_eq!(session.tcp, Some("127.0.0.1:9".parse().unwrap()));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
