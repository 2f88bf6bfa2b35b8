//! Our deltas in other hands and theirs in ours: Debian's `fossil` and npm's `fossil-delta`.
//!
//! Method: pairs of states as games have them and with random edits, the same in every run. Each
//! pair is encoded by all three; what fossil and npm make of our delta, and we of theirs, is the
//! target to the byte.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail it by panicking")]

use std::env;
use std::ffi::OsString;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use greenroom_delta::{Encoder, apply};

#[test]
fn fossil_and_npm_apply_our_deltas_and_we_theirs() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compatibility");
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir_all(&folder).unwrap();
    let file = |pair: usize, kind: &str| folder.join(format!("{pair}.{kind}"));

    let pairs = pairs();
    let mut encoder = Encoder::new();
    for (number, Pair { base, target, .. }) in pairs.iter().enumerate() {
        let mut ours = Vec::new();
        encoder.encode(base, target, &mut ours);
        fs::write(file(number, "base"), base).unwrap();
        fs::write(file(number, "target"), target).unwrap();
        fs::write(file(number, "ours"), ours).unwrap();
    }
    npm(&folder, pairs.len());
    let fossil = Fossil::find(&folder);
    for number in 0..pairs.len() {
        let file = |kind| file(number, kind);
        fossil.run(&["test-delta-create".into(), file("base"), file("target"), file("fossil")]);
        fossil.run(&[
            "test-delta-apply".into(),
            file("base"),
            file("ours"),
            file("fossil-applied"),
        ]);
    }

    for (number, Pair { name, base, target }) in pairs.iter().enumerate() {
        for applied in ["fossil-applied", "npm-applied"] {
            let applied_by_them = fs::read(file(number, applied)).unwrap();
            assert!(
                applied_by_them == *target,
                "pair {number}, {name}: {applied} is not the target"
            );
        }
        for theirs in ["fossil", "npm"] {
            let delta = fs::read(file(number, theirs)).unwrap();
            let mut applied = Vec::new();
            apply(base, &delta, target.len(), &mut applied).unwrap_or_else(|error| {
                panic!("pair {number}, {name}, delta of {theirs}: {error}")
            });
            assert!(applied == *target, "pair {number}, {name}, delta of {theirs}: another target");
        }
    }
}

/// Says why the test cannot run: without the third parties it would prove nothing, so it must not
/// pass.
fn missing(tool: impl Debug, error: impl Debug) -> ! {
    panic!("{tool:?} does not run ({error:?}): run `cargo xtask test`, which installs them")
}

fn npm(folder: &Path, count: usize) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let modules = env::var_os("GREENROOM_NODE_MODULES")
        .map_or_else(|| here.join("../target/tools/node_modules"), PathBuf::from);
    if !modules.join("fossil-delta").exists() {
        missing("npm's fossil-delta", format!("not in {}", modules.display()));
    }
    let output = Command::new("node")
        .arg(here.join("tests/compatibility.mjs"))
        .args([&modules, folder])
        .arg(count.to_string())
        .output()
        .unwrap_or_else(|error| missing("node", error));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

struct Fossil<'a> {
    binary: OsString,
    /// Where it keeps its settings, so that it touches nobody's.
    home: &'a Path,
}

impl<'a> Fossil<'a> {
    fn find(home: &'a Path) -> Self {
        Self { binary: env::var_os("GREENROOM_FOSSIL").unwrap_or_else(|| "fossil".into()), home }
    }

    /// Its help is wrong for `test-delta-apply`: that takes ORIGIN, DELTA and TARGET.
    fn run(&self, arguments: &[PathBuf; 4]) {
        let output = Command::new(&self.binary)
            .args(arguments)
            .env("FOSSIL_HOME", self.home)
            .output()
            .unwrap_or_else(|error| missing(&self.binary, error));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
    }
}

struct Pair {
    name: String,
    base: Vec<u8>,
    target: Vec<u8>,
}

fn pairs() -> Vec<Pair> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut pairs = Vec::new();
    let mut add = |name: String, base: Vec<u8>, target: Vec<u8>| {
        pairs.push(Pair { name, base, target });
    };
    for (base, target) in [("", ""), ("", "x"), ("x", ""), ("same", "same"), ("abc", "abd")] {
        add("a handful of bytes".into(), base.into(), target.into());
    }
    for count in [1, 16, 100, 400] {
        for percent in [0, 10, 50, 100] {
            for leaving in [0, 1, 3] {
                let mut game = Game::new(count, &mut random);
                let base = game.view();
                game.step(percent, leaving, &mut random);
                let name = format!("{count} entities, {percent} % move, {leaving} leave");
                add(name, base, game.view());
            }
        }
    }
    for size in [15, 16, 17, 63, 64, 65, 1000, 5000] {
        for edits in [0, 1, 3, 10, 30] {
            let base = random.bytes(size);
            let mut target = base.clone();
            for _ in 0..edits {
                random.edit(&mut target);
            }
            add(format!("{size} random bytes, {edits} edits"), base, target);
        }
    }
    for size in [10, 1000, 70_000] {
        let (base, target) = (random.bytes(size), random.bytes(size + 1));
        add(format!("{size} bytes, nothing in common"), base, target);
        add(format!("{size} equal bytes, some more"), vec![7; size], vec![7; size + size / 3]);
    }
    let base = random.bytes(300_000);
    let target = [&base[200_000..], &base[..200_000]].concat();
    add("far copies, of five digits".into(), base, target);
    assert!(pairs.len() >= 100, "{} pairs", pairs.len());
    pairs
}

/// A state as games have it: what a MessagePack encoder makes of named fields.
struct Game {
    tick: u32,
    entities: Vec<Entity>,
}

struct Entity {
    id: u32,
    x: f32,
    y: f32,
    health: u8,
}

impl Game {
    fn new(count: u32, random: &mut Random) -> Self {
        let mut entity =
            |id| Entity { id, x: random.coordinate(), y: random.coordinate(), health: 100 };
        Self { tick: 1, entities: (0..count).map(&mut entity).collect() }
    }

    /// Moves some, lets some leave, has every second come back as another, and heals one past 127,
    /// from where on MessagePack needs a byte more.
    fn step(&mut self, percent: usize, leaving: usize, random: &mut Random) {
        self.tick += 1;
        for entity in &mut self.entities {
            if random.below(100) < percent {
                entity.x += random.coordinate() / 100.0;
                entity.y -= random.coordinate() / 100.0;
            }
        }
        for left in 0..leaving.min(self.entities.len()) {
            let mut gone = self.entities.remove(random.below(self.entities.len()));
            if left % 2 == 1 {
                gone.id += 1000;
                self.entities.insert(random.below(self.entities.len() + 1), gone);
            }
        }
        if percent == 50
            && let Some(entity) = self.entities.last_mut()
        {
            entity.health = 200;
        }
    }

    fn view(&self) -> Vec<u8> {
        let mut view = b"\x82\xa4tick\xce".to_vec();
        view.extend(self.tick.to_be_bytes());
        view.extend(b"\xa8entities\xde");
        view.extend(u16::try_from(self.entities.len()).unwrap().to_be_bytes());
        for Entity { id, x, y, health } in &self.entities {
            view.push(0xa5);
            view.extend(format!("p{id:04}").bytes());
            view.extend(b"\x83\xa1x\xca");
            view.extend(x.to_be_bytes());
            view.extend(b"\xa1y\xca");
            view.extend(y.to_be_bytes());
            view.extend(b"\xa2hp");
            view.extend(if *health < 128 { vec![*health] } else { vec![0xcc, *health] });
        }
        view
    }
}

/// Xorshift: the same pairs in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 32).unwrap() % end
    }

    fn coordinate(&mut self) -> f32 {
        u16::try_from(self.next() >> 48).map(f32::from).unwrap() / 64.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[3]).collect()
    }

    /// Removes, inserts, replaces or moves a few bytes.
    fn edit(&mut self, state: &mut Vec<u8>) {
        let start = self.below(state.len() + 1);
        let end = (start + self.below(60)).min(state.len());
        let count = self.below(60);
        match self.below(3) {
            0 => drop(state.drain(start..end)),
            1 => drop(state.splice(start..end, self.bytes(count))),
            _ => {
                let moved: Vec<u8> = state.drain(start..end).collect();
                let to = self.below(state.len() + 1);
                state.splice(to..to, moved);
            }
        }
    }
}
