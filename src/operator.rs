//! Commands of operators: they talk to the admin port and to nothing else.

use std::{io::Write as _, path::Path, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Arg, ArgMatches, Command};
use greenroom_console::{AdminToken, client};
use greenroom_protocol::wire::admin_master::{Action, Promote, ServerStatus, Status};

use crate::keys::{Missing, admin_token};

/// Adds the flag that says where the admin port is.
pub(crate) fn with_admin(command: Command) -> Command {
    command.arg(
        Arg::new("admin")
            .long("admin")
            .env("GREENROOM_ADMIN")
            .hide_env(true)
            .value_name("ADDRESS")
            .default_value("127.0.0.1:4080,127.0.0.1:4090")
            .help(
                "The masters' admin ports, host:port with a comma between them: the active one answers \
                 [variable: GREENROOM_ADMIN]",
            ),
    )
}

/// Adds the flags of an action: where the admin port is, and the token that it wants.
pub(crate) fn with_token(command: Command) -> Command {
    with_admin(command).arg(
        Arg::new("data")
            .long("data")
            .env("GREENROOM_CLUSTER_DATA")
            .hide_env(true)
            .value_name("FOLDER")
            .default_value(".greenroom")
            .help("The data folder, which has the admin token"),
    )
}

/// Where the admin port is.
pub(crate) fn admin(matches: &ArgMatches) -> Result<&str> {
    Ok(matches.get_one::<String>("admin").context("--admin has a default")?)
}

/// Waits for something on this thread.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    Ok(runtime.block_on(future))
}

/// Who read the standard output has gone, as `head` does: the end of a command, and no failure of it.
#[derive(Debug)]
pub(crate) struct NobodyReads;

impl std::fmt::Display for NobodyReads {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("nobody reads the standard output any more")
    }
}

impl std::error::Error for NobodyReads {}

/// Prints to the standard output.
///
/// # Errors
/// [`NobodyReads`], or what the system says.
pub(crate) fn print(text: &str) -> Result<ExitCode> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(NobodyReads.into()),
        written => {
            written.context("writing to the standard output")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

pub(crate) fn status(matches: &ArgMatches) -> Result<ExitCode> {
    let status = wait(client::status(admin(matches)?))??;
    if matches.get_flag("json") {
        return print(&format!("{}\n", serde_json::to_string(&status)?));
    }
    print(&table(&status))
}

pub(crate) fn destroy(matches: &ArgMatches) -> Result<ExitCode> {
    let text = matches.get_one::<String>("instance").context("clap wants it")?;
    let instance = text.parse().with_context(|| format!("{text:?}"))?;
    act(matches, &Action::Destroy { instance })?;
    print(&format!("destroyed {instance}\n"))
}

pub(crate) fn kick(matches: &ArgMatches) -> Result<ExitCode> {
    let text = matches.get_one::<String>("user").context("clap wants it")?;
    let user: greenroom_protocol::UserId = text.parse()?;
    act(matches, &Action::Kick { user: user.clone() })?;
    print(&format!("kicked {user}\n"))
}

pub(crate) fn switchover(matches: &ArgMatches) -> Result<ExitCode> {
    wait(client::switchover(admin(matches)?, &token(matches)?))??;
    print("the standby is the active now, and the active the standby\n")
}

pub(crate) fn promote(matches: &ArgMatches) -> Result<ExitCode> {
    let at = admin(matches)?;
    anyhow::ensure!(
        !at.contains(','),
        "say which master is to be the active: --admin with the address of its admin port, and of no other"
    );
    let wish = Promote { accept_loss: matches.get_flag("accept-loss") };
    wait(client::promote(at, &token(matches)?, &wish))??;
    print(&format!("the master at {at} is the active\n"))
}

pub(crate) fn drain(matches: &ArgMatches) -> Result<ExitCode> {
    let text = matches.get_one::<String>("server").context("clap wants it")?;
    let server: greenroom_protocol::ServerName = text.parse()?;
    act(matches, &Action::Drain { server: server.clone() })?;
    print(&format!("draining {server}: it gets nothing new\n"))
}

fn act(matches: &ArgMatches, action: &Action) -> Result<()> {
    wait(client::act(admin(matches)?, &token(matches)?, action))??;
    Ok(())
}

fn token(matches: &ArgMatches) -> Result<AdminToken> {
    let data = matches.get_one::<String>("data").context("--data has a default")?;
    admin_token(Path::new(data), Missing::Refuse)
}

fn table(status: &Status) -> String {
    let mut rows = vec![["", "name", "state", "load", "busy", "where"].map(String::from)];
    for master in &status.masters {
        let mut place = format!("epoch {}, lsn {}, lag {}", master.epoch, master.lsn, master.lag);
        place.push_str(if master.in_sync { ", in sync" } else { ", not in sync" });
        for trouble in &master.troubles {
            place.push_str(&format!("; TROUBLE: {trouble}"));
        }
        rows.push([
            "master".into(),
            master.name.to_string(),
            master.role.to_string(),
            String::new(),
            String::new(),
            place,
        ]);
    }
    let mut servers = |role: &str, of: &[ServerStatus]| {
        for server in of {
            let load = format!("{}/{}", server.load, server.capacity);
            let busy = format!("{} %", server.busy_permille / 10);
            let addresses = server.addresses.join(" ");
            rows.push([
                role.into(),
                server.name.to_string(),
                server.state.to_string(),
                load,
                busy,
                addresses,
            ]);
        }
    };
    servers("session", &status.sessions);
    servers("game", &status.games);
    format!(
        "cluster {}: {} users, {} instances\n{}",
        status.cluster,
        status.users,
        status.instances,
        columns(&rows)
    )
}

/// Rows with their cells below each other. Each row has as many cells as the first.
pub(crate) fn columns<R: AsRef<[String]>>(rows: &[R]) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row.as_ref()[column].chars().count()).max().unwrap_or_default()
    };
    let count = rows.first().map_or(0, |row| row.as_ref().len());
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.as_ref().iter().zip(&widths);
        let cells: Vec<_> = cells.map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
