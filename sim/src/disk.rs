//! A disk that does things in order, may lose what was not synced, and may be full.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use greenroom_master_core::replica::{Apply, Entry, Input, Intents, Position, Recovered, Whose};

use greenroom_protocol::Incarnation;

use crate::machine::{Command, Machine, Piece};
use crate::rng::Rng;

#[derive(Clone, Debug)]
pub(crate) enum Write {
    Entries(Vec<Entry<Command>>),
    Sync(u64),
    Intents(Intents),
    Begin(Position, Whose),
    Pieces(Vec<Piece>),
    End,
}

impl Write {
    fn is_answered(&self) -> bool {
        match self {
            Self::Entries(_) | Self::Begin(..) | Self::Pieces(_) => false,
            Self::Sync(_) | Self::Intents(_) | Self::End => true,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    base: Position,
    state: Machine,
    entries: VecDeque<Entry<Command>>,
    intents: Intents,
    partial: Option<(Position, Whose, Vec<Piece>)>,
    waiting: VecDeque<Write>,
    /// The copied checkpoint that was begun.
    begun: Option<Position>,
    /// The one that was ended, until it is durable.
    copying: Option<Position>,
    /// Where the log ends that was written, durable or not.
    written: Position,
    /// The first life since which nothing that was written is gone.
    whole_since: Option<Incarnation>,
    /// A planted bug: only a loss of power since the last life counts.
    is_forgetful: bool,
}

impl Disk {
    /// Takes a write; gives whether an answer is due later.
    pub(crate) fn write(&mut self, write: Write) -> bool {
        let is_answered = write.is_answered();
        match &write {
            Write::Entries(entries) => {
                self.written = entries.last().map_or(self.written, Entry::position);
            }
            Write::Begin(at, whose) => self.begun = (*whose == Whose::Copied).then_some(*at),
            Write::End => {
                if let Some(at) = self.begun.take() {
                    (self.written, self.copying) = (at, Some(at));
                }
            }
            Write::Sync(_) | Write::Intents(_) | Write::Pieces(_) => {}
        }
        self.waiting.push_back(write);
        is_answered
    }

    /// Does everything up to the next write that is answered, and answers it.
    pub(crate) fn complete(&mut self) -> Option<Input<Command, Piece>> {
        while let Some(write) = self.waiting.pop_front() {
            let answer = match &write {
                Write::Entries(_) | Write::Begin(..) | Write::Pieces(_) => None,
                Write::Sync(lsn) => Some(Input::Synced(*lsn)),
                Write::Intents(intents) => Some(Input::IntentsDurable(intents.clone())),
                Write::End => self.partial.as_ref().map(|(at, ..)| Input::CheckpointDurable(*at)),
            };
            let is_answered = write.is_answered();
            self.keep(write);
            if is_answered {
                return answer;
            }
        }
        None
    }

    /// The process ends, or the machine if `power`: the first `kept` of the writes that wait are done, the others are
    /// lost.
    pub(crate) fn end(&mut self, kept: usize, power: bool) {
        self.whole_since.take_if(|_| power);
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().take(kept).for_each(|write| self.keep(write));
        self.forget();
    }

    /// How many writes wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether one of those that wait is answered.
    pub(crate) fn is_busy(&self) -> bool {
        self.waiting.iter().any(Write::is_answered)
    }

    /// Feeds `hasher` with all that matters later.
    pub(crate) fn fingerprint(&self, hasher: &mut impl Hasher) {
        let Self { base, state: _, entries, intents, partial, waiting, .. } = self;
        let Self { begun, copying, written, whole_since, is_forgetful: _, .. } = self;
        whole_since.hash(hasher);
        (base, entries.len(), entries.back().map(Entry::position), intents).hash(hasher);
        (begun, copying, written, waiting.len(), partial.is_some()).hash(hasher);
        if let Some((at, whose, pieces)) = partial {
            (at, *whose == Whose::Own, pieces.len()).hash(hasher);
        }
        for write in waiting {
            match write {
                Write::Entries(entries) => {
                    (0_u8, entries.len(), entries.last().map(Entry::position)).hash(hasher);
                }
                Write::Sync(lsn) => (1_u8, lsn).hash(hasher),
                Write::Intents(intents) => (2_u8, intents).hash(hasher),
                Write::Begin(at, whose) => (3_u8, at, *whose == Whose::Own).hash(hasher),
                Write::Pieces(pieces) => (4_u8, pieces.len()).hash(hasher),
                Write::End => 5_u8.hash(hasher),
            }
        }
    }

    /// What was in the memory of the process that ended.
    fn forget(&mut self) {
        self.partial = None;
        (self.begun, self.copying) = (None, None);
        self.written = self.end_of_log();
    }

    /// The process ends, or the machine: of what was not synced, a beginning is there.
    pub(crate) fn crash(&mut self, rng: &mut Rng, power: bool) {
        self.whole_since.take_if(|_| power);
        let waiting = std::mem::take(&mut self.waiting);
        let count = waiting.len() as u64;
        let kept = if power { rng.below(count + 1) } else { count };
        for write in waiting.into_iter().zip(0..kept).map(|(write, _)| write) {
            // The last entries of a batch may be torn, and are cut off with all that follows.
            if power
                && rng.permille(100)
                && let Write::Entries(mut entries) = write
            {
                let whole = rng.below(entries.len() as u64);
                entries.truncate(usize::try_from(whole).unwrap_or(0));
                self.keep(Write::Entries(entries));
                break;
            }
            self.keep(write);
        }
        self.forget();
    }

    /// Where the log ends that is durable.
    pub(crate) fn end_of_log(&self) -> Position {
        self.entries.back().map_or(self.base, Entry::position)
    }

    /// Where the log ends that was written, durable or not.
    pub(crate) fn written(&self) -> Position {
        self.written
    }

    /// Whether the beginning of the log that it was told to keep is not durable yet.
    pub(crate) fn is_copying(&self) -> bool {
        self.copying.is_some()
    }

    /// An empty disk, for a machine like this.
    pub(crate) fn of(state: Machine) -> Self {
        Self { state, ..Self::default() }
    }

    /// The same, with a bug: a life that began after a loss of power vouches for those before it.
    pub(crate) fn forgetful(self, is_forgetful: bool) -> Self {
        Self { is_forgetful, ..self }
    }

    /// Everything is gone.
    pub(crate) fn lose(&mut self) {
        *self = Self::of(self.state.empty()).forgetful(self.is_forgetful);
    }

    /// What a new life finds.
    pub(crate) fn recover(&mut self, life: Incarnation) -> (Machine, Recovered<Command>) {
        let first = if self.is_forgetful { Incarnation(0) } else { life };
        let found = self.whole_since;
        self.whole_since = found.or(Some(first));
        let whole_since = found.or(Some(life));
        let entries = self.entries.iter().cloned().collect();
        let intents = self.intents.clone();
        let recovered = Recovered { base: self.base, entries, intents, whole_since };
        (self.state.clone(), recovered)
    }

    /// The state that the log here leads to.
    pub(crate) fn state(&self) -> Machine {
        let mut state = self.state.clone();
        for entry in &self.entries {
            state.apply(&entry.header, &entry.command, &mut Vec::new());
        }
        state
    }

    /// Whether this entry, or the one that the log here begins after, is durable.
    pub(crate) fn has_entry(&self, lsn: u64) -> bool {
        (self.base.lsn..=self.end_of_log().lsn).contains(&lsn)
    }

    /// Whether this place of the log is durable.
    pub(crate) fn has(&self, at: Position) -> bool {
        if at.lsn <= self.base.lsn {
            return at.lsn < self.base.lsn || at == self.base;
        }
        let index = usize::try_from(at.lsn - self.base.lsn - 1).unwrap_or(usize::MAX);
        self.entries.get(index).is_some_and(|entry| entry.position() == at)
    }

    fn keep(&mut self, write: Write) {
        match write {
            Write::Entries(entries) => self.entries.extend(entries),
            Write::Sync(_) => {}
            Write::Intents(intents) => self.intents = intents,
            Write::Begin(at, whose) => self.partial = Some((at, whose, Vec::new())),
            Write::Pieces(pieces) => {
                if let Some((_, _, all)) = &mut self.partial {
                    all.extend(pieces);
                }
            }
            Write::End => {
                let Some((at, whose, pieces)) = self.partial.take() else { return };
                let Ok(state) = self.state.restore(pieces) else { return };
                if whose == Whose::Copied && self.copying == Some(at) {
                    self.copying = None;
                }
                self.state = state;
                self.base = at;
                match whose {
                    Whose::Copied => self.entries.clear(),
                    Whose::Own => self.entries.retain(|entry| entry.header.lsn > at.lsn),
                }
            }
        }
    }
}
