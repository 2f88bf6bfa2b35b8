//! What a run stands on: ports, files, pauses.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// Ports that we take: below those that the kernel gives to whoever dials, so that the port of a process that is
/// down stays free until it is back.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Lets the other processes have the cores.
pub(crate) fn pause(span: Duration) {
    let until = Instant::now() + span;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::park_timeout(left);
    }
}

/// Addresses on loopback that nobody listens on.
///
/// # Errors
/// When there are not so many.
pub(crate) fn free_ports(count: usize) -> anyhow::Result<Vec<SocketAddr>> {
    let mut seed = [0; 2];
    getrandom::fill(&mut seed).context("drawing random bits")?;
    let span = PORTS.end - PORTS.start;
    let first = u16::from_le_bytes(seed) % span;
    let mut held = Vec::new();
    for step in 0..span {
        let port = PORTS.start + (first + step) % span;
        // Held until all are found, so that none is found twice.
        held.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
        if held.len() == count {
            break;
        }
    }
    ensure!(held.len() == count, "no {count} ports are free between {PORTS:?}");
    held.iter().map(|held| held.local_addr().context("looking for free ports")).collect()
}

/// What was written to a file since the last look.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    read: u64,
    rest: String,
}

impl Tail {
    /// Whole lines that are new.
    pub(crate) fn lines(&mut self, path: &Path) -> Vec<String> {
        let Ok(mut file) = File::open(path) else { return Vec::new() };
        let mut text = Vec::new();
        let sought = file.seek(SeekFrom::Start(self.read));
        if sought.is_err() || file.read_to_end(&mut text).is_err() {
            return Vec::new();
        }
        self.read += text.len() as u64;
        self.rest.push_str(&String::from_utf8_lossy(&text));
        let Some(end) = self.rest.rfind('\n') else { return Vec::new() };
        let rest = self.rest.split_off(end + 1);
        let lines = std::mem::replace(&mut self.rest, rest);
        lines.lines().map(str::to_owned).collect()
    }
}

/// Writes a file, with its folder.
///
/// # Errors
/// When it can't be written.
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let mut file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("writing {}", path.display()))
}
