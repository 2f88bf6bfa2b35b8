//! The encoder.

use crate::{checksum, number};

/// Equal bytes at one distance that are worth looking at as a copy: shorter ones save a byte at
/// most, see [`pays`]. A run this long covers an eighth byte, so [`next_run`] skips the others.
const RUN: usize = 8;

/// Equal bytes at one distance that are taken without asking whether another distance fits better.
const RUN_LONG: usize = 24;

/// How far behind a difference a run is looked for before other distances are tried.
const WINDOW: usize = 64;

/// Distance of the places at which two states of one length are asked whether parts have moved.
const SAMPLE: usize = 128;

/// Searches in a row without a better distance, after which 4 to the power of this many runs are
/// taken as they come: where everything moves a little, runs are short and none has a better one.
const VAIN_MAX: u32 = 2;

/// Bytes that must be equal for a copy from another distance. Less would find the field names and
/// key prefixes that every record of a state has in common.
const BLOCK: usize = 16;

/// Distance of the base's blocks in the index: a run of `BLOCK + STRIDE - 1` bytes holds one whole.
const STRIDE: usize = 8;

/// Misses after which the search takes larger steps, so that two states without anything in common
/// are not searched byte by byte.
const PATIENCE: usize = 256;

/// The largest step. Steps are odd: an even one could pass by every [`STRIDE`]th byte for ever.
const STEP_MAX: usize = 15;

/// Makes deltas, reusing its scratch memory from one to the next.
#[derive(Debug, Default)]
pub struct Encoder {
    index: Index,
    /// A second attempt, when the first was poor.
    attempt: Vec<u8>,
}

impl Encoder {
    /// An encoder without scratch memory yet: it grows with the first calls and is then kept.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends to `out` the delta that makes `target` of `base`.
    ///
    /// The same two states give the same delta, whatever was encoded before. It is at most 21 bytes
    /// longer than `target`.
    ///
    /// # Panics
    /// If a state is longer than the format's numbers count, 4 GiB.
    pub fn encode(&mut self, base: &[u8], target: &[u8], out: &mut Vec<u8>) {
        assert!(
            u32::try_from(base.len().max(target.len())).is_ok(),
            "a state of more than 4 GiB has no delta"
        );
        number::write(target.len(), out);
        out.push(b'\n');
        let commands = out.len();
        let mut index = LazyIndex { base, index: &mut self.index, built: false };
        if base.len() == target.len() {
            aligned(base, target, out);
            // Much differs: either much changed, or much of it is now at another place.
            if out.len() - commands > 32 + target.len() / 8 && index.knows_a_sample(target) {
                self.attempt.clear();
                shifted(base, target, &mut index, &mut self.attempt);
                if self.attempt.len() < out.len() - commands {
                    out.truncate(commands);
                    out.extend_from_slice(&self.attempt);
                }
            }
        } else {
            shifted(base, target, &mut index, out);
        }
        if out.len() - commands > number::digits(target.len()) + 1 + target.len() {
            out.truncate(commands);
            Commands { target, written: 0, out }.insert_up_to(target.len());
        }
        number::write(checksum(target) as usize, out);
        out.push(b';');
    }
}

/// Commands for two states of one length, comparing each byte with the one at the same place.
fn aligned(base: &[u8], target: &[u8], out: &mut Vec<u8>) {
    let mut commands = Commands { target, written: 0, out };
    let mut next = Some(0);
    while let Some(at) = next {
        let run = common_prefix(&base[at..], &target[at..]);
        if pays(run, at) {
            commands.copy(at, at, run);
        }
        next = next_run::<RUN>(base, target, at + run, target.len());
    }
    commands.insert_up_to(target.len());
}

/// Commands for two states of which parts may have moved.
///
/// Follows one distance between target and base as long as it fits, small differences included, and
/// looks another one up where it does not.
fn shifted(base: &[u8], target: &[u8], index: &mut LazyIndex<'_>, out: &mut Vec<u8>) {
    let mut commands = Commands { target, written: 0, out };
    // The end is known beforehand, so that nothing is searched in it.
    let suffix = common_suffix(base, target);
    let end = target.len() - suffix;
    let mut search = Search { base, target, end, index, vain: 0, trust: 0 };
    let mut run = Run { at: 0, from: 0, length: common_prefix(base, target) };
    loop {
        if pays(run.length, run.from) {
            commands.copy(run.at, run.from, run.length);
        }
        let (at, from) = (run.at + run.length, run.from + run.length);
        if at >= end {
            break;
        }
        match search.next(at, from, commands.written) {
            Some(found) => run = found,
            None => break,
        }
    }
    let left = suffix.min(target.len() - commands.written);
    if pays(left, base.len() - left) {
        commands.copy(target.len() - left, base.len() - left, left);
    }
    commands.insert_up_to(target.len());
}

/// Looks for the next run that pays, in a target that may have come off its distance to the base.
struct Search<'a, 'base> {
    base: &'a [u8],
    target: &'a [u8],
    /// Where the end begins that both have in common.
    end: usize,
    index: &'a mut LazyIndex<'base>,
    /// Searches in a row which found no better distance.
    vain: u32,
    /// Runs to take before asking again whether another distance fits better.
    trust: u32,
}

impl Search<'_, '_> {
    /// The next run, where `target[at]` and `base[from]` are the first that differ.
    fn next(&mut self, at: usize, from: usize, written: usize) -> Option<Run> {
        let here = &self.target[at..];
        let there = self.base.get(from..).unwrap_or_default();
        // The same distance first: a changed number, and then everything is as before.
        if let Some(skipped) = next_run::<RUN>(there, here, 0, WINDOW) {
            let length = common_prefix(&there[skipped..], &here[skipped..]);
            if length >= RUN_LONG || self.trust > 0 && pays(length, from + skipped) {
                self.trust = self.trust.saturating_sub(1);
                return Some(Run { at: at + skipped, from: from + skipped, length });
            }
        }
        let (mut probe, mut misses) = (at, 0);
        while probe < self.end {
            if let Some(found) = self.index.find(self.target, probe, written) {
                return Some(self.taken(found, at, from));
            }
            let skipped = probe - at;
            let there = there.get(skipped..).unwrap_or_default();
            let same = common_prefix(there, &here[skipped..]);
            if same >= RUN && pays(same, from + skipped) {
                // Records look alike: a better run may begin within this one.
                let better = (probe + 1..(probe + STRIDE).min(self.end))
                    .find_map(|probe| self.index.find(self.target, probe, written))
                    .filter(|better| better.length > same);
                let same = Run { at: probe, from: from + skipped, length: same };
                return Some(self.taken(better.unwrap_or(same), at, from));
            }
            misses += 1;
            probe += (misses / PATIENCE * 2 + 1).min(STEP_MAX);
        }
        None
    }

    /// Learns from a run whether it was worth asking: it was if the distance is another one.
    fn taken(&mut self, run: Run, at: usize, from: usize) -> Run {
        if run.at + from == run.from + at {
            self.vain = (self.vain + 1).min(VAIN_MAX);
            self.trust = 4_u32.pow(self.vain);
        } else {
            (self.vain, self.trust) = (0, 0);
        }
        run
    }
}

/// `length` bytes of the target, from `at` on, that the base has from `from` on.
struct Run {
    at: usize,
    from: usize,
    length: usize,
}

/// Whether a copy is shorter than its bytes as part of an insert.
///
/// The copy costs two numbers, `@` and `,`; the insert it interrupts begins again with a number and
/// `:`. Taking the latter as two bytes is right for inserts shorter than 64.
fn pays(length: usize, from: usize) -> bool {
    length > number::digits(length) + number::digits(from) + 4
}

/// Appends commands whose inserts are what no copy made.
struct Commands<'a> {
    target: &'a [u8],
    /// Bytes of the target that the commands so far make.
    written: usize,
    out: &'a mut Vec<u8>,
}

impl Commands<'_> {
    fn copy(&mut self, at: usize, from: usize, length: usize) {
        self.insert_up_to(at);
        number::write(length, self.out);
        self.out.push(b'@');
        number::write(from, self.out);
        self.out.push(b',');
        self.written = at + length;
    }

    fn insert_up_to(&mut self, end: usize) {
        let bytes = &self.target[self.written..end];
        if !bytes.is_empty() {
            number::write(bytes.len(), self.out);
            self.out.push(b':');
            self.out.extend_from_slice(bytes);
            self.written = end;
        }
    }
}

/// Where in the base a block of [`BLOCK`] bytes is, by its hash; of several, the last.
#[derive(Debug, Default)]
struct Index {
    /// Numbers of blocks, `STRIDE` bytes apart. Zero is one like another: every hit is compared.
    blocks: Vec<u32>,
    /// Bits of the hash that are dropped.
    shift: u32,
}

impl Index {
    fn build(&mut self, base: &[u8]) {
        let size = (base.len() / STRIDE).next_power_of_two().max(2);
        self.shift = 64 - size.ilog2();
        self.blocks.clear();
        self.blocks.resize(size, 0);
        for (number, block) in (0_u32..).zip(base.windows(BLOCK).step_by(STRIDE)) {
            let slot = self.slot(block);
            self.blocks[slot] = number;
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the shift leaves the bits of a slot")]
    fn slot(&self, block: &[u8]) -> usize {
        let (low, high) = (word(block), word(&block[8..]));
        let mixed = (low ^ high.rotate_left(29).wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .wrapping_mul(0xd6e8_feb8_6659_fd93);
        (mixed >> self.shift) as usize
    }
}

/// The index of one base, built when it is first asked: most pairs of states never do.
struct LazyIndex<'a> {
    base: &'a [u8],
    index: &'a mut Index,
    built: bool,
}

impl LazyIndex<'_> {
    /// Whether something of the target is in the base, but at another place: a look at a few
    /// places, an eighth of the cost of a search.
    fn knows_a_sample(&mut self, target: &[u8]) -> bool {
        let moved = |at| {
            let from = self.block(target, at)?;
            let at_the_same_place = self.base[at..].starts_with(&target[at..at + BLOCK]);
            (!at_the_same_place).then_some(from)
        };
        (0..target.len()).step_by(SAMPLE).flat_map(|at| at..at + STRIDE).find_map(moved).is_some()
    }

    /// The run around `target[at]` that the index knows, not reaching before `written`.
    fn find(&mut self, target: &[u8], at: usize, written: usize) -> Option<Run> {
        let from = self.block(target, at)?;
        let before = common_suffix(&self.base[..from], &target[written..at]);
        let after = common_prefix(&self.base[from..], &target[at..]);
        Some(Run { at: at - before, from: from - before, length: before + after })
    }

    /// Where the base has the block at `target[at]`.
    fn block(&mut self, target: &[u8], at: usize) -> Option<usize> {
        let block = target.get(at..at + BLOCK)?;
        if !self.built {
            self.index.build(self.base);
            self.built = true;
        }
        let from = self.index.blocks[self.index.slot(block)] as usize * STRIDE;
        (self.base.get(from..from + BLOCK) == Some(block)).then_some(from)
    }
}

/// The first place from `start` to before `end` at which `RUN` bytes of `a` and `b` are the same.
///
/// Looks at the last byte of each place first, so most of what differs is never read.
fn next_run<const RUN: usize>(a: &[u8], b: &[u8], start: usize, end: usize) -> Option<usize> {
    let length = a.len().min(b.len());
    let (a, b) = (&a[..length], &b[..length]);
    let mut start = start;
    while start < end && start + RUN <= length {
        let last = start + RUN - 1;
        let same = (start..=last).rev().take_while(|&at| a[at] == b[at]).count();
        if same == RUN {
            return Some(start);
        }
        start += RUN - same;
    }
    None
}

fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let length = a.len().min(b.len());
    let (a, b) = (&a[..length], &b[..length]);
    let (blocks, _) = a.as_chunks::<32>();
    let (others, _) = b.as_chunks::<32>();
    let same = blocks.iter().zip(others).take_while(|(a, b)| a == b).count() * 32;
    let (a, b) = (&a[same..], &b[same..]);
    let (words, rest) = a.as_chunks::<8>();
    let (others, other_rest) = b.as_chunks::<8>();
    for (number, (a, b)) in words.iter().zip(others).enumerate() {
        let difference = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        if difference != 0 {
            return same + number * 8 + difference.trailing_zeros() as usize / 8;
        }
    }
    same + words.len() * 8 + rest.iter().zip(other_rest).take_while(|(a, b)| a == b).count()
}

fn common_suffix(a: &[u8], b: &[u8]) -> usize {
    let length = a.len().min(b.len());
    let (a, b) = (&a[a.len() - length..], &b[b.len() - length..]);
    let (rest, words) = a.as_rchunks::<8>();
    let (other_rest, others) = b.as_rchunks::<8>();
    for (number, (a, b)) in words.iter().zip(others).rev().enumerate() {
        let difference = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        if difference != 0 {
            return number * 8 + difference.leading_zeros() as usize / 8;
        }
    }
    let same = rest.iter().rev().zip(other_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    words.len() * 8 + same
}

fn word(bytes: &[u8]) -> u64 {
    let word = bytes.first_chunk().expect("the caller passes the 16 bytes of a block");
    u64::from_le_bytes(*word)
}
