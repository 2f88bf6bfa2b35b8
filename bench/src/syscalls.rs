//! System calls of the servers, counted by `perf stat` in a window of its own, after the one that is timed.
//!
//! `/proc/*/io` does not know what goes over sockets, and strace slows a server down so far that it finds more to do
//! at each turn: it would count fewer calls than there are. perf costs a little, and needs root.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::process::{Child, Command, Stdio};

use anyhow::Context;

/// Seconds that are counted.
pub(crate) const COUNTED_SECONDS: f64 = 1.0;
/// Every call.
const ALL: &str = "raw_syscalls:sys_enter";
/// Calls that send on a socket.
const SENDS: [&str; 3] =
    ["syscalls:sys_enter_sendto", "syscalls:sys_enter_sendmsg", "syscalls:sys_enter_writev"];

/// Calls of one process a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Calls {
    pub(crate) all: f64,
    /// Those that send on a link to another server.
    pub(crate) link_writes: f64,
}

/// A count under way.
#[derive(Debug)]
pub(crate) struct Count {
    perfs: Vec<(&'static str, Child)>,
}

impl Count {
    /// Starts counting the calls of `processes`, and what they send on their links, which are the connections to or
    /// from one of `link_ports`.
    ///
    /// # Errors
    /// When there is no perf.
    pub(crate) fn start(
        processes: &[(&'static str, u32)],
        link_ports: &[u16],
    ) -> anyhow::Result<Self> {
        let mut count = Self { perfs: Vec::new() };
        for &(name, pid) in processes {
            let mut perf = Command::new("perf");
            perf.args(["stat", "-x", ",", "-p", &pid.to_string(), "-e", ALL]);
            let links = link_files(pid, link_ports)?;
            if !links.is_empty() {
                let is_link: Vec<String> = links.iter().map(|fd| format!("fd == {fd}")).collect();
                for event in SENDS {
                    perf.args(["-e", event, "--filter", &is_link.join(" || ")]);
                }
            }
            perf.args(["--", "sleep", &COUNTED_SECONDS.to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            let perf = perf.spawn();
            count.perfs.push((
                name,
                perf.context("syscalls are counted by `perf`, which is not installed")?,
            ));
        }
        Ok(count)
    }

    /// Whether every window is over.
    pub(crate) fn is_over(&mut self) -> bool {
        self.perfs.iter_mut().all(|(_, perf)| !matches!(perf.try_wait(), Ok(None)))
    }

    /// What was counted, by name of the process.
    ///
    /// # Errors
    /// When perf may not.
    pub(crate) fn finish(mut self) -> anyhow::Result<HashMap<&'static str, Calls>> {
        let mut calls = HashMap::new();
        for (name, perf) in std::mem::take(&mut self.perfs) {
            let output = perf.wait_with_output().context("waiting for perf")?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let counted = read(&text).filter(|_| output.status.success());
            calls.insert(
                name,
                counted.with_context(|| {
                    format!(
                        "syscalls are counted by `perf`, which may not here (root may):\n{text}"
                    )
                })?,
            );
        }
        Ok(calls)
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        for (_, perf) in &mut self.perfs {
            drop(perf.kill());
            drop(perf.wait());
        }
    }
}

/// File descriptors of a process that are connections to or from one of `ports`.
fn link_files(pid: u32, ports: &[u16]) -> anyhow::Result<Vec<String>> {
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/tcp")).context("/proc/*/net/tcp")?;
    // number: local address and port in hex, the other side's, state (01: established), …, inode at 9
    let is_ours = |address: &str| {
        let port = address.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
        port.is_some_and(|port| ports.contains(&port))
    };
    let inodes: BTreeSet<String> = (sockets.lines())
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.len() > 9 && fields[3] == "01")
        .filter(|fields| is_ours(fields[1]) || is_ours(fields[2]))
        .map(|fields| format!("socket:[{}]", fields[9]))
        .collect();
    let files = fs::read_dir(format!("/proc/{pid}/fd")).context("/proc/*/fd")?;
    Ok(files
        .flatten()
        .filter(|file| {
            fs::read_link(file.path())
                .is_ok_and(|what| inodes.contains(what.to_string_lossy().as_ref()))
        })
        .map(|file| file.file_name().to_string_lossy().into_owned())
        .collect())
}

/// Reads lines `count,,event,…`.
fn read(text: &str) -> Option<Calls> {
    let mut calls = Calls::default();
    for line in text.lines() {
        let mut fields = line.split(',');
        let (Some(count), _, Some(event)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        if event == ALL {
            calls.all += count.parse::<f64>().ok()?;
        } else if SENDS.contains(&event) {
            calls.link_writes += count.parse::<f64>().ok()?;
        }
    }
    Some(Calls {
        all: calls.all / COUNTED_SECONDS,
        link_writes: calls.link_writes / COUNTED_SECONDS,
    })
    .filter(|calls| calls.all > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_perf_are_read_and_its_excuses_are_not() {
        let text = "2103,,raw_syscalls:sys_enter,1004,100.00,,\n1000,,syscalls:sys_enter_sendto,1,1,,\n\
                    7,,syscalls:sys_enter_writev,1,1,,\n";
        assert_eq!(read(text), Some(Calls { all: 2103.0, link_writes: 1007.0 }));
        assert_eq!(read("<not counted>,,raw_syscalls:sys_enter,0,100.00,,"), None);
        assert_eq!(read("No permission to enable raw_syscalls:sys_enter event."), None);
    }
}
