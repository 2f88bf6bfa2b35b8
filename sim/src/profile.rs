//! Kinds of bad days. Each seed of a kind is another day of it; `swarm` draws which faults there are at all.

use crate::rng::Rng;

/// Names of the profiles.
pub const PROFILES: [&str; 16] = [
    "calm",
    "lossy",
    "slow-net",
    "crash-storm",
    "pause-storm",
    "witness-flaky",
    "asymmetric",
    "double-fault",
    "restart-loop",
    "skewed",
    "disk",
    "switchover",
    "leases",
    "both",
    "witness-back",
    "swarm",
];

/// What happens in a run, and how often. Shares are of a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Profile {
    pub(crate) loss: u64,
    pub(crate) doubled: u64,
    pub(crate) delay_us: u64,
    pub(crate) late: u64,
    /// Mean time between two faults.
    pub(crate) fault_us: u64,
    pub(crate) crash: u64,
    pub(crate) power: u64,
    pub(crate) pause: u64,
    pub(crate) cut: u64,
    pub(crate) witness: u64,
    pub(crate) full: u64,
    pub(crate) slow_disk: u64,
    pub(crate) wipe: u64,
    pub(crate) switch: u64,
    /// A fault may hit although it kills the last copy of what is committed.
    pub(crate) cruel: u64,
    /// Both masters die at once.
    pub(crate) both: u64,
    /// The witness goes back in time or loses its record, until it is repaired.
    pub(crate) back: u64,
    pub(crate) witness_loss: u64,
    pub(crate) restart_us: u64,
    pub(crate) skew: bool,
    /// There are game servers, cut off from the masters and asleep for as long as a minute.
    pub(crate) games: bool,
    /// Mean time between two requests of a client.
    pub(crate) think_us: u64,
    pub(crate) length_us: u64,
}

impl Profile {
    /// The profile of this name; nothing if there is none.
    pub(crate) fn named(name: &str, rng: &mut Rng) -> Option<Self> {
        let calm = Self {
            loss: 0,
            doubled: 0,
            delay_us: 400,
            late: 2,
            fault_us: 150_000,
            crash: 2,
            power: 300,
            pause: 1,
            cut: 1,
            witness: 1,
            full: 0,
            slow_disk: 5,
            wipe: 0,
            switch: 1,
            cruel: 20,
            both: 0,
            back: 0,
            witness_loss: 10,
            restart_us: 200_000,
            skew: false,
            games: false,
            think_us: 10_000,
            length_us: if rng.permille(300) { 6_000_000 } else { 2_000_000 },
        };
        Some(match name {
            "calm" => Self { fault_us: 1_000_000, ..calm },
            "lossy" => Self { loss: 100, doubled: 100, late: 50, ..calm },
            "slow-net" => Self { delay_us: 20_000, late: 50, doubled: 20, ..calm },
            "crash-storm" => Self { crash: 10, restart_us: 100_000, ..calm },
            "pause-storm" => Self { pause: 10, slow_disk: 50, fault_us: 80_000, ..calm },
            "witness-flaky" => Self { witness: 6, witness_loss: 300, crash: 4, pause: 4, ..calm },
            "asymmetric" => Self { cut: 10, loss: 20, ..calm },
            "double-fault" => Self { fault_us: 30_000, cruel: 200, crash: 4, ..calm },
            "restart-loop" => {
                Self { crash: 10, fault_us: 40_000, restart_us: 20_000, cruel: 300, ..calm }
            }
            "skewed" => Self { skew: true, pause: 4, loss: 20, ..calm },
            "disk" => {
                Self { full: 6, slow_disk: 100, crash: 6, power: 800, wipe: 1, cruel: 200, ..calm }
            }
            "switchover" => Self { switch: 12, crash: 2, loss: 20, ..calm },
            "witness-back" => Self { back: 5, crash: 8, pause: 4, cut: 4, cruel: 0, ..calm },
            "both" => Self {
                both: 8,
                crash: 3,
                witness: 3,
                pause: 2,
                cut: 2,
                switch: 2,
                power: 500,
                slow_disk: 50,
                witness_loss: 50,
                fault_us: 200_000,
                restart_us: if rng.permille(300) { 600_000 } else { 100_000 },
                ..calm
            },
            "leases" => Self {
                games: true,
                think_us: 2_000_000,
                fault_us: 4_000_000,
                restart_us: 2_000_000,
                loss: 20,
                length_us: 100_000_000,
                ..calm
            },
            "swarm" => {
                let mut some = |max: u64| if rng.permille(500) { rng.below(max + 1) } else { 0 };
                Self {
                    loss: some(200),
                    doubled: some(200),
                    late: some(60),
                    crash: some(10) + 1,
                    power: some(1_000),
                    pause: some(8),
                    cut: some(8),
                    witness: some(6),
                    full: some(4),
                    slow_disk: some(100),
                    switch: some(8),
                    both: some(4),
                    cruel: some(300),
                    witness_loss: some(400),
                    skew: some(1) == 1,
                    delay_us: 200 + some(10_000),
                    fault_us: 20_000 + rng.below(300_000),
                    restart_us: 1_000 + rng.below(400_000),
                    ..calm
                }
            }
            _ => return None,
        })
    }
}
