//! What the kernel knows: processor time, memory, cores, open files.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// User and system time of a process with all its threads so far; in steps of 10 ms.
///
/// # Errors
/// When the process is gone.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    // The name, in brackets, may hold blanks and brackets; after it stands field 3.
    let fields = stat.rsplit_once(") ").context("a line of /proc/*/stat")?.1;
    let ticks = |n: usize| fields.split(' ').nth(n - 3).and_then(|field| field.parse::<u64>().ok());
    let ticks = ticks(14).zip(ticks(15)).context("fields 14 and 15 of /proc/*/stat")?;
    Ok(of_ticks(ticks.0 + ticks.1))
}

/// Time that all cores were busy since the machine started.
///
/// # Errors
/// When `/proc/stat` is not as it should be.
pub(crate) fn cpu_of_all() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let line = stat.lines().next().context("an empty /proc/stat")?;
    let fields: Vec<u64> =
        line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    ensure!(fields.len() >= 8, "the first line of /proc/stat");
    // user, nice, system; not idle and waiting; interrupts; what the host took is somebody else's too.
    Ok(of_ticks(fields[..3].iter().chain(&fields[5..8]).sum()))
}

fn of_ticks(ticks: u64) -> Duration {
    Duration::from_secs(ticks)
        / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100)
}

/// Resident memory of a process, in bytes.
///
/// # Errors
/// When the process is gone.
pub(crate) fn rss(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.context("VmRSS of /proc/*/status")? * 1024)
}

/// Keeps this process, and what it starts, on one core.
///
/// # Errors
/// When there is no such core for us.
pub(crate) fn pin(core: usize) -> anyhow::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).with_context(|| {
        format!(
            "core {core} is not ours: servers and generator need a core each; \
             --server-core and --generator-core choose them"
        )
    })
}

/// How many cores are ours.
pub(crate) fn cores() -> u32 {
    sched_getaffinity(None).map_or(1, |cores| cores.count())
}

/// Asks for as many open files as allowed; servers inherit it.
///
/// # Errors
/// When fewer than `needed` are allowed.
pub(crate) fn allow_files(needed: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    // Whoever may, raises the hard limit as well.
    let raised = limit.maximum.map(|maximum| maximum.max(needed));
    if setrlimit(Resource::Nofile, Rlimit { current: raised, maximum: raised }).is_err() {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
            .context("raising the limit of open files")?;
    }
    let now = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    ensure!(
        now >= needed,
        "this needs {needed} open files and {now} are allowed: run `ulimit -n {needed}` first, \
         or measure fewer connections"
    );
    Ok(())
}

/// The machine in one line: cores, processor, memory, kernel.
pub(crate) fn describe() -> String {
    let line = |path: &str, key: &str| {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.rsplit(':').next()?.trim().to_owned())
    };
    let model = line("/proc/cpuinfo", "model name").unwrap_or_default();
    let memory = line("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} cores, {model}, {memory}, Linux {}", cores(), kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_has_used_some_memory_and_no_more_time_than_the_machine() {
        assert!(rss(std::process::id()).unwrap() > 100_000);
        assert!(cpu(std::process::id()).unwrap() <= cpu_of_all().unwrap());
    }
}
