//! The seats of an instance that are not free, and the messages of theirs that wait for the next step.

use ecow::EcoString;
use greenroom_protocol::{Generation, Refusal, Seat, Seq, SessionId};
use serde::{Deserialize, Serialize};

use crate::Who;
use crate::ring::Ring;
use crate::view::View;

/// Messages of one seat that may wait for a step: at 20 ticks per second, 2,560 a second.
pub const INBOX_MESSAGES_MAX: u16 = 128;
/// Bytes of them.
pub const INBOX_BYTES_MAX: usize = 64 * 1024;

/// A seat that is not free.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Seated {
    pub(crate) who: Who,
    pub(crate) session: SessionId,
    pub(crate) generation: Generation,
    /// Tells this holder from one before in the same seat.
    pub(crate) life: u32,
    /// In milliseconds of the instance, if the connection is gone.
    pub(crate) away: Option<Away>,
    /// Every reliable message up to this one has arrived.
    pub(crate) received: Seq,
    /// The seat has been told so up to this one.
    pub(crate) told: Seq,
    /// Something is to be acknowledged, and the seat is in [`crate::world::World::owing`].
    pub(crate) owing: bool,
    pub(crate) ring: Ring,
    waiting: u16,
    waiting_bytes: usize,
    /// Has been told in this step that there is no room.
    pub(crate) told_full: bool,
    pub(crate) own: View,
    /// Views that the seat asked for and gets with the next patch.
    pub(crate) wants: Wants,
    /// When it last got a whole view, in milliseconds of the instance.
    pub(crate) whole_at: Option<u64>,
    /// The seat ends with this step, and why.
    pub(crate) ending: Option<Refusal>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Away {
    pub(crate) since: u64,
    pub(crate) until: u64,
}

/// Which whole views a seat waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wants {
    pub(crate) shared: bool,
    pub(crate) own: bool,
}

impl Wants {
    pub(crate) const ALL: Self = Self { shared: true, own: true };
    pub(crate) const fn any(self) -> bool {
        self.shared || self.own
    }
}

impl Seated {
    pub(crate) fn new(who: Who, session: SessionId, generation: Generation, life: u32) -> Self {
        Self {
            who,
            session,
            generation,
            life,
            away: None,
            received: Seq(0),
            told: Seq(0),
            owing: false,
            ring: Ring::default(),
            waiting: 0,
            waiting_bytes: 0,
            told_full: false,
            own: View::default(),
            wants: Wants::default(),
            whole_at: None,
            ending: None,
        }
    }
    pub(crate) const fn is_attached(&self) -> bool {
        self.away.is_none()
    }
}

/// All seats, by number. Free ones take no memory but their place.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seats {
    all: Vec<Option<Box<Seated>>>,
    held: u32,
    attached: u32,
    /// Of the next holder.
    life: u32,
}

impl Seats {
    pub(crate) fn get(&self, seat: Seat) -> Option<&Seated> {
        self.all.get(usize::from(seat.0))?.as_deref()
    }
    pub(crate) fn get_mut(&mut self, seat: Seat) -> Option<&mut Seated> {
        self.all.get_mut(usize::from(seat.0))?.as_deref_mut()
    }
    /// Takes a free seat.
    pub(crate) fn take(&mut self, who: Who, session: SessionId, generation: Generation) {
        let at = usize::from(who.seat.0);
        if self.all.len() <= at {
            self.all.resize_with(at + 1, || None);
        }
        assert!(self.all[at].is_none(), "{} is taken", who.seat);
        self.all[at] = Some(Box::new(Seated::new(who, session, generation, self.life)));
        self.life = self.life.wrapping_add(1);
        self.held += 1;
        self.attached += 1;
    }
    /// Frees a seat.
    pub(crate) fn free(&mut self, seat: Seat) -> Option<Box<Seated>> {
        let seated = self.all.get_mut(usize::from(seat.0))?.take()?;
        self.held -= 1;
        self.attached -= u32::from(seated.is_attached());
        Some(seated)
    }
    /// The seat's connection is gone.
    pub(crate) fn detach(&mut self, seat: Seat, away: Away) {
        if let Some(seated) = self.get_mut(seat) {
            let was = seated.away.replace(away).is_none();
            self.attached -= u32::from(was);
        }
    }
    /// Another life of the instance begins: no seat has a connection, and both streams of each are new. Gives those
    /// that had one.
    pub(crate) fn begin_anew(&mut self, time: u64) -> Vec<Seat> {
        let mut dropped = Vec::new();
        for seated in self.all.iter_mut().filter_map(Option::as_deref_mut) {
            let Seated { who, session, generation, away, .. } = seated;
            if away.is_none() {
                dropped.push(who.seat);
            }
            let away = away.unwrap_or(Away { since: time, until: u64::MAX });
            // Calls of the life before are not answered: their numbers mean others by now.
            let anew = Seated::new(who.clone(), *session, *generation, self.life);
            *seated = Seated { away: Some(away), ..anew };
            self.life = self.life.wrapping_add(1);
        }
        self.attached = 0;
        dropped
    }
    /// The seat has a connection again.
    pub(crate) fn reattach(&mut self, seat: Seat) {
        if let Some(seated) = self.get_mut(seat) {
            let was = seated.away.take().is_some();
            self.attached += u32::from(was);
        }
    }
    /// Those that are not free, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Seated> {
        self.all.iter().filter_map(|seated| seated.as_deref())
    }
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Seated> {
        self.all.iter_mut().filter_map(|seated| seated.as_deref_mut())
    }
    pub(crate) const fn held(&self) -> u32 {
        self.held
    }
    pub(crate) const fn attached(&self) -> u32 {
        self.attached
    }
    pub(crate) const fn away(&self) -> u32 {
        self.held - self.attached
    }
    /// One more than the highest number that was ever taken.
    pub(crate) fn end(&self) -> u16 {
        u16::try_from(self.all.len()).expect("a kind has at most 32,768 seats")
    }
}

/// Messages that wait for the next step, in the order of their arrival.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Inbox {
    messages: Vec<Waiting>,
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Waiting {
    pub(crate) seat: Seat,
    pub(crate) life: u32,
    pub(crate) kind: u8,
    pub(crate) number: Seq,
    start: usize,
    end: usize,
}

impl Inbox {
    /// Keeps a message for the next step, if its seat does not have too many.
    pub(crate) fn push(
        &mut self,
        seated: &mut Seated,
        kind: u8,
        number: Seq,
        payload: &[u8],
    ) -> bool {
        if seated.waiting == INBOX_MESSAGES_MAX
            || seated.waiting_bytes + payload.len() > INBOX_BYTES_MAX
        {
            return false;
        }
        seated.waiting += 1;
        seated.waiting_bytes += payload.len();
        let start = self.bytes.len();
        self.bytes.extend_from_slice(payload);
        let (seat, life, end) = (seated.who.seat, seated.life, self.bytes.len());
        self.messages.push(Waiting { seat, life, kind, number, start, end });
        true
    }
    /// What waits.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Waiting, &[u8])> {
        self.messages.iter().map(|waiting| (*waiting, &self.bytes[waiting.start..waiting.end]))
    }
    /// All of it has been handled.
    pub(crate) fn clear(&mut self, seats: &mut Seats) {
        if self.messages.is_empty() {
            return;
        }
        self.messages.clear();
        self.bytes.clear();
        for seated in seats.iter_mut() {
            (seated.waiting, seated.waiting_bytes, seated.told_full) = (0, 0, false);
        }
    }
}

/// A line of the log, on its way out.
pub(crate) type Line = (crate::LogLevel, EcoString);
