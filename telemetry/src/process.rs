//! What the system says of this process, under OpenTelemetry's names.

use std::time::{Duration, Instant};

use crate::instruments::{Description, Kind, Source, Unit, Value};

/// The process: read from the system whenever somebody asks.
#[derive(Debug)]
pub struct Process {
    started: Instant,
}

impl Process {
    /// Every instrument.
    pub const DESCRIPTIONS: &'static [Description] = &[CPU, MEMORY, FILES, UPTIME];

    /// The present process, as of which its uptime counts.
    pub fn starting_now() -> Self {
        Self { started: Instant::now() }
    }
}

const CPU: Description = Description {
    name: "process.cpu.time",
    kind: Kind::Counter,
    unit: Unit::Seconds,
    help: "Processor time of the process, user and system.",
};
const MEMORY: Description = Description {
    name: "process.memory.usage",
    kind: Kind::Gauge,
    unit: Unit::Bytes,
    help: "Memory of the process that is resident.",
};
const FILES: Description = Description {
    name: "process.unix.file_descriptor.count",
    kind: Kind::Gauge,
    unit: Unit::Of("file_descriptor"),
    help: "Files and sockets that the process has open.",
};
const UPTIME: Description = Description {
    name: "process.uptime",
    kind: Kind::Gauge,
    unit: Unit::Seconds,
    help: "Time since the process began.",
};

impl Source for Process {
    fn read(&self, each: &mut dyn FnMut(&'static Description, Value)) {
        let [cpu, memory, files, uptime] = Self::DESCRIPTIONS else { return };
        each(cpu, Value::Micros(micros(cpu_time())));
        // What this system does not say is left out.
        if let Some(bytes) = resident_bytes() {
            each(memory, Value::Whole(bytes));
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            each(files, Value::Whole(open.count() as u64));
        }
        each(uptime, Value::Micros(micros(self.started.elapsed())));
    }
}

fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

fn resident_bytes() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_used_memory_and_files() {
        let mut read = Vec::new();
        Process::starting_now().read(&mut |of, value| read.push((of.name, value)));
        for name in ["process.memory.usage", "process.unix.file_descriptor.count"] {
            let found = read.iter().find(|(of, _)| *of == name);
            assert!(matches!(found, Some((_, Value::Whole(1..)))), "{name}: {read:?}");
        }
    }
}
