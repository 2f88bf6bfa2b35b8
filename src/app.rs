//! The command line.

use std::{borrow::Cow, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, Result};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use greenroom_game_core::{Instance, Registry};
use greenroom_master::{Placement, Weighted};
use greenroom_protocol::search::FieldType;
use greenroom_session::{Additions, Pages};
use greenroom_storage::{Collection, Index, Schema};

use crate::{bots, find, logs, operator, roles, settings, store, up};

/// The SDK for browsers, as pages import it.
const SDK: &[u8] = include_bytes!("../clients/typescript/dist/greenroom.min.js");

/// A program that has every role of a cluster, and runs the kinds of instances that it was given.
pub struct App {
    pub(crate) registry: Registry,
    pub(crate) placement: Arc<dyn Placement>,
    pub(crate) additions: Option<Arc<dyn Fn() -> Additions + Send + Sync>>,
    pub(crate) pages: Pages,
    indexes: Vec<Index>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "App({:?})", self.registry)
    }
}

impl Default for App {
    fn default() -> Self {
        Self {
            registry: Registry::default(),
            placement: Arc::new(Weighted),
            additions: None,
            pages: Pages::default(),
            indexes: Vec::new(),
        }
    }
}

impl App {
    /// An app without any game.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a kind of instance.
    ///
    /// # Panics
    /// When two kinds have the same name.
    #[must_use]
    pub fn instance<K: Instance>(mut self) -> Self {
        self.registry = self.registry.with::<K>();
        self
    }

    /// Adds authenticators, transports and pages of the studio's own; called once for each session server that starts.
    #[must_use]
    pub fn session(mut self, additions: impl Fn() -> Additions + Send + Sync + 'static) -> Self {
        self.additions = Some(Arc::new(additions));
        self
    }

    /// Adds a page, or another file for browsers, which session servers then serve where WebSocket clients connect,
    /// while they are on loopback or where `session.pages` says so. What ends with `/index.html` is the page of its
    /// folder: `.page("/duel/index.html", include_bytes!("duel.html"))` is `/duel/`. The SDK for browsers is there as
    /// `/greenroom.js`.
    ///
    /// # Panics
    /// If the path does not begin with a slash, or has anything but letters, digits, `-`, `_` and `.` between slashes.
    #[must_use]
    pub fn page(mut self, path: &str, body: impl Into<Cow<'static, [u8]>>) -> Self {
        self.pages = self.pages.file(path, body);
        self
    }

    /// Adds many pages at once, as [`App::page`] does one.
    ///
    /// # Panics
    /// As [`App::page`].
    #[must_use]
    pub fn pages(self, files: &[(&str, &'static [u8])]) -> Self {
        files.iter().fold(self, |app, (path, body)| app.page(path, *body))
    }

    /// Adds a folder of pages under a path, read when they are asked for: what is edited there is seen at the next
    /// reload of the page. The folder may be relative to where the program is started.
    ///
    /// # Panics
    /// As [`App::page`].
    #[must_use]
    pub fn page_folder(mut self, path: &str, folder: impl Into<PathBuf>) -> Self {
        self.pages = self.pages.folder(path, folder);
        self
    }

    /// Chooses among the game servers that can take an instance in a way of the studio's own. Without it, the one with
    /// the smallest share of its capacity and its time in use. Every master of a cluster needs the same.
    #[must_use]
    pub fn placement(mut self, placement: impl Placement + 'static) -> Self {
        self.placement = Arc::new(placement);
        self
    }

    /// Declares an index over the documents of its games: what the store keeps in order, and by that what
    /// [`storage::Query`](crate::storage::Query) may ask of `documents`. The fields are of the documents' top level,
    /// the most selective first. A document that lacks one, or holds something else there, is found by no filter on it.
    ///
    /// # Panics
    /// For no field, more than four, one twice, or a name that no field can have.
    #[must_use]
    pub fn index(mut self, fields: &[(&str, FieldType)]) -> Self {
        match Index::new(Collection::Documents, fields) {
            Ok(index) => self.indexes.push(index),
            Err(error) => panic!("an index over {fields:?}: {error}"),
        }
        self
    }

    /// Every index of its store: of what the masters write, and of what its games do.
    pub(crate) fn schema(&self) -> Result<Schema> {
        let indexes = [greenroom_master::indexes(), self.indexes.clone()].concat();
        Schema::new(indexes).context("the indexes of this program's games")
    }

    /// What its session servers have besides.
    pub(crate) fn session_additions(&self) -> Additions {
        let mut additions = self.additions.as_ref().map_or_else(Additions::default, |make| make());
        additions.pages = additions.pages.and(self.pages.clone());
        if !additions.pages.is_empty() {
            additions.pages = additions.pages.and(Pages::default().file("/greenroom.js", SDK));
        }
        additions
    }

    /// Does what the command line says. Errors go to the standard error, whole.
    #[must_use]
    pub fn main(self) -> ExitCode {
        let matches = command().get_matches();
        match self.run(&matches) {
            Ok(code) => code,
            Err(error) if error.is::<operator::NobodyReads>() => ExitCode::SUCCESS,
            Err(error) => {
                // Nobody may be there to be told.
                let _nobody_listens = std::io::Write::write_fmt(
                    &mut std::io::stderr(),
                    format_args!("error: {error:#}\n"),
                );
                ExitCode::FAILURE
            }
        }
    }

    fn run(self, matches: &ArgMatches) -> Result<ExitCode> {
        match matches.subcommand() {
            Some(("up", matches)) => up::run(self, matches),
            Some(("master", matches)) => roles::master(self, matches),
            Some(("witness", matches)) => roles::witness(matches),
            Some(("session", matches)) => roles::session(&self, matches),
            Some(("game", matches)) => roles::game(self, matches),
            Some(("bots", matches)) => bots::run(matches),
            Some(("status", matches)) => operator::status(matches),
            Some(("destroy", matches)) => operator::destroy(matches),
            Some(("kick", matches)) => operator::kick(matches),
            Some(("drain", matches)) => operator::drain(matches),
            Some(("switchover", matches)) => operator::switchover(matches),
            Some(("promote", matches)) => operator::promote(matches),
            Some(("find", matches)) => find::find(matches),
            Some(("placement", matches)) => find::placement(matches),
            Some(("metrics", _)) => operator::print(&crate::telemetry::reference()),
            Some(("store", matches)) => store::run(&self.schema()?, matches),
            Some(("logs", matches)) => logs::run(matches),
            Some(("settings", _)) => operator::print(&settings::reference()),
            _ => anyhow::bail!("no such command; `greenroom help` lists them"),
        }
    }
}

fn command() -> Command {
    let role = |name: &'static str, about: &'static str| {
        let child = Arg::new("until-stdin-closes")
            .long("until-stdin-closes")
            .action(ArgAction::SetTrue)
            .help("Stop when the standard input ends: for a process that is somebody's child");
        let tables: &[_] = match name {
            "master" => &["cluster", "master", "storage", "console", "telemetry", "logs"],
            "game" => &["cluster", "game", "storage", "telemetry", "logs"],
            name => &["cluster", name, "telemetry", "logs"],
        };
        settings::flags(Command::new(name).about(about), tables).arg(child)
    };
    let json =
        || Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object a line");
    Command::new("greenroom")
        .about("Runs instance-based multiplayer games: rooms, matches, dungeons, parties")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            settings::flags(
                Command::new("up").about("Every role on this machine"),
                &["cluster", "master", "storage", "console", "session", "game", "telemetry", "logs"],
            )
            .arg(
                Arg::new("processes")
                    .long("processes")
                    .action(ArgAction::SetTrue)
                    .help("Each server a process of its own: two masters, two session servers, two game servers"),
            ),
        )
        .subcommand(role("master", "The directories of users, servers and instances, and the admin port"))
        .subcommand(role("witness", "Keeps the record of which master decides, on a third machine"))
        .subcommand(role("session", "Holds clients' connections"))
        .subcommand(role("game", "Runs instances"))
        .subcommand(operator::with_admin(Command::new("status").about("The cluster at a glance")).arg(json()))
        .subcommand(
            operator::with_token(Command::new("destroy").about("Closes an instance"))
                .arg(Arg::new("instance").value_name("INSTANCE").required(true).help("Its id, 26 characters")),
        )
        .subcommand(
            operator::with_token(Command::new("kick").about("Ends a user's session"))
                .arg(Arg::new("user").value_name("USER").required(true).help("The user's id")),
        )
        .subcommand(
            operator::with_token(Command::new("drain").about("Gives a server nothing new"))
                .arg(Arg::new("server").value_name("SERVER").required(true).help("Its name")),
        )
        .subcommand(operator::with_token(
            Command::new("switchover").about("Makes the standby the active, and the active the standby"),
        ))
        .subcommand(
            operator::with_token(Command::new("promote").about("Makes a master the active, without the other")).arg(
                Arg::new("accept-loss").long("force").action(ArgAction::SetTrue).help(
                    "Go on although the other master may have acknowledged what this one lacks: players may lose what \
                     they were told was done",
                ),
            ),
        )
        .subcommand(find::command().arg(json()))
        .subcommand(
            operator::with_admin(
                Command::new("placement").about("Where an instance would be made now, and why there"),
            )
            .arg(Arg::new("kind").value_name("KIND").required(true).help("Of which kind"))
            .arg(json()),
        )
        .subcommand(
            operator::with_admin(Command::new("bots").about("Simulated clients that play, and a report"))
                .arg(
                    Arg::new("users")
                        .long("users")
                        .value_name("NUMBER")
                        .value_parser(value_parser!(u32).range(1..=1_000_000))
                        .default_value("100")
                        .help("How many"),
                )
                .arg(
                    Arg::new("for")
                        .long("for")
                        .value_name("TIME")
                        .value_parser(bots::span)
                        .default_value("30s")
                        .help("How long they play, after the last one has started"),
                )
                .arg(
                    Arg::new("game")
                        .long("game")
                        .value_name("KIND")
                        .default_value("arena")
                        .help("What they play: arena, duel or echo"),
                )
                .arg(
                    Arg::new("results")
                        .long("results")
                        .value_name("FILE")
                        .help("Write the ids of the results that they were told, one a line: of duels"),
                )
                .arg(
                    Arg::new("servers")
                        .long("servers")
                        .value_name("LIST")
                        .value_delimiter(',')
                        .help("Session servers that they know at first [default: those that the admin port names]"),
                )
                .arg(
                    Arg::new("transport")
                        .long("transport")
                        .value_name("NAME")
                        .default_value("any")
                        .help("any, tcp or ws"),
                )
                .arg(
                    Arg::new("trust")
                        .long("trust")
                        .value_name("FILE")
                        .help("The only certificates to trust on tls:// and wss:// (PEM)"),
                )
                .arg(
                    Arg::new("seed")
                        .long("seed")
                        .value_name("NUMBER")
                        .value_parser(value_parser!(u64))
                        .default_value("1")
                        .help("The same seed plans the same moves"),
                )
                .arg(json()),
        )
        .subcommand(Command::new("metrics").about("Every metric: name, kind, unit, meaning"))
        .subcommand(store::command())
        .subcommand(logs::command())
        .subcommand(Command::new("settings").about("Every setting: key of greenroom.toml, default, flag, variable"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_two_flags_of_a_command_have_one_name() {
        super::command().debug_assert();
    }
}
