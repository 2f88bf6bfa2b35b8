//! What an instance that is frozen is to be told when it thaws. It does nothing and says nothing until then, so that
//! nobody sees two of an instance of which there may be one.

use std::collections::{BTreeMap, BTreeSet};

use greenroom_game_core::{
    INBOX_BYTES_MAX, INBOX_MESSAGES_MAX, Input, StoreRefusal, StoreTicket, Stored,
};
use greenroom_protocol::wire::session_game::Attach;
use greenroom_protocol::{Code, Generation, MemberId, Refusal, Seat, Seq, SessionId};

use crate::host::LinkKey;

/// What waits, in the order in which it came.
///
/// It is bounded: of each seat, as many frames as an instance takes between two steps; one connection that was lost,
/// since there is one; one wish for views anew; one that wants to be attached. And the outcomes of what it asked of the
/// store, of which there are as many as may be under way.
#[derive(Debug, Default)]
pub(crate) struct Frozen {
    waiting: Vec<Waiting>,
    frames: BTreeMap<Seat, (u16, usize)>,
    /// Seats of which a frame was dropped: their later ones are dropped as well, and all are sent again.
    full: BTreeSet<Seat>,
}

/// One thing that waits.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// A member that wants a seat.
    Attach(Asked),
    Lost(Seat, Generation),
    Frame {
        seat: Seat,
        kind: u8,
        number: Seq,
        ack: Seq,
        payload: Vec<u8>,
    },
    Refresh(Seat),
    Free(Seat, SessionId, Refusal),
    Stored(StoreTicket, Result<Stored, StoreRefusal>),
}

/// A member that wants a seat, and over which link.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) link: LinkKey,
    pub(crate) attach: Box<Attach>,
}

impl Frozen {
    /// Keeps an input.
    pub(crate) fn keep(&mut self, input: Input<'_>) {
        match input {
            Input::Frame { seat, kind, number, ack, payload } => {
                let (frames, bytes) = self.frames.entry(seat).or_default();
                if *frames == INBOX_MESSAGES_MAX || *bytes + payload.len() > INBOX_BYTES_MAX {
                    self.full.insert(seat);
                }
                if !self.full.contains(&seat) {
                    *frames += 1;
                    *bytes += payload.len();
                    let payload = payload.to_vec();
                    self.waiting.push(Waiting::Frame { seat, kind, number, ack, payload });
                }
            }
            Input::Lost { seat, generation } => self.waiting.push(Waiting::Lost(seat, generation)),
            Input::Refresh { seat } => {
                let same =
                    |waiting: &Waiting| matches!(waiting, Waiting::Refresh(of) if *of == seat);
                if !self.waiting.iter().any(same) {
                    self.waiting.push(Waiting::Refresh(seat));
                }
            }
            Input::Free { seat, session, refusal } => {
                self.waiting.push(Waiting::Free(seat, session, refusal));
            }
            Input::Stored { ticket, outcome } => {
                self.waiting.push(Waiting::Stored(ticket, outcome));
            }
            Input::Attach { .. }
            | Input::Revived { .. }
            | Input::Tick
            | Input::Wake
            | Input::Destroy { .. } => {
                unreachable!(
                    "members ask through `ask`, time stands still, and the end comes at once"
                )
            }
        }
    }
    /// Keeps the wish of a member. Gives who is refused for it: the one before of the same session, or the new one.
    pub(crate) fn ask(&mut self, asked: Asked) -> Option<(Asked, Refusal)> {
        let seat = asked.attach.seat;
        let before = self.waiting.iter_mut().find_map(|waiting| match waiting {
            Waiting::Attach(before) if before.attach.seat == seat => Some(before),
            Waiting::Attach(_)
            | Waiting::Lost(..)
            | Waiting::Frame { .. }
            | Waiting::Refresh(_)
            | Waiting::Free(..)
            | Waiting::Stored(..) => None,
        });
        let Some(before) = before else {
            self.waiting.push(Waiting::Attach(asked));
            return None;
        };
        if before.attach.session != asked.attach.session {
            let text =
                "the instance waits for the master, and somebody else for this seat; try again";
            return Some((asked, Refusal::new(Code::Busy, text)));
        }
        let text = "the seat follows a newer connection";
        let refusal = Refusal::new(Code::Superseded, text);
        if before.attach.generation > asked.attach.generation {
            return Some((asked, refusal));
        }
        let is_same = (before.link, before.attach.member) == (asked.link, asked.attach.member);
        let before = std::mem::replace(before, asked);
        (!is_same).then_some((before, refusal))
    }
    /// A member wants nothing any more; without one, all of the link.
    pub(crate) fn forget(&mut self, link: LinkKey, member: Option<MemberId>) {
        self.waiting.retain(|waiting| match waiting {
            Waiting::Attach(asked) => {
                asked.link != link || member.is_some_and(|member| member != asked.attach.member)
            }
            Waiting::Lost(..)
            | Waiting::Frame { .. }
            | Waiting::Refresh(_)
            | Waiting::Free(..)
            | Waiting::Stored(..) => true,
        });
    }
    /// Everything that waits, and the seats that have to send again.
    pub(crate) fn thaw(self) -> (Vec<Waiting>, BTreeSet<Seat>) {
        (self.waiting, self.full)
    }
}

#[cfg(test)]
mod tests {
    use greenroom_protocol::{Channel, Incarnation, InstanceId, UserId};

    use super::*;

    fn frame(seat: u16, number: u32, payload: &[u8]) -> Input<'_> {
        Input::Frame { seat: Seat(seat), kind: 0x20, number: Seq(number), ack: Seq(0), payload }
    }

    fn asked(link: usize, member: u32, session: u64, generation: u32) -> Asked {
        let attach = Attach {
            member: MemberId(member),
            channel: Channel(8),
            instance: InstanceId(1),
            incarnation: Incarnation(1),
            seat: Seat(0),
            user: UserId::new("ann").unwrap(),
            name: "Ann".into(),
            session: SessionId(session),
            generation: Generation(generation),
            options: Default::default(),
        };
        Asked { link: LinkKey(link), attach: Box::new(attach) }
    }

    /// Who waits: link and member.
    fn members(frozen: Frozen) -> Vec<(usize, u32)> {
        let waiting = frozen.thaw().0.into_iter();
        let members = waiting.filter_map(|waiting| match waiting {
            Waiting::Attach(asked) => Some((asked.link.0, asked.attach.member.0)),
            Waiting::Lost(..)
            | Waiting::Frame { .. }
            | Waiting::Refresh(_)
            | Waiting::Free(..)
            | Waiting::Stored(..) => None,
        });
        members.collect()
    }

    #[test]
    fn a_seat_that_sends_too_much_sends_again_from_the_first_that_was_dropped() {
        let mut frozen = Frozen::default();
        let half = vec![0; INBOX_BYTES_MAX / 2];
        for number in 1..=2 {
            frozen.keep(frame(0, number, &half));
        }
        frozen.keep(frame(0, 3, &[1]));
        frozen.keep(frame(0, 4, &[])); // It has room, and would leave a gap.
        for number in 0..=u32::from(INBOX_MESSAGES_MAX) {
            frozen.keep(frame(1, number, &[]));
        }
        frozen.keep(frame(2, 1, &[7]));
        let (waiting, full) = frozen.thaw();
        assert_eq!(waiting.len(), 2 + usize::from(INBOX_MESSAGES_MAX) + 1);
        assert_eq!(full, BTreeSet::from([Seat(0), Seat(1)]));
    }

    #[test]
    fn one_wish_for_views_of_each_seat_is_kept() {
        let mut frozen = Frozen::default();
        for seat in [0, 1, 0, 1] {
            frozen.keep(Input::Refresh { seat: Seat(seat) });
        }
        assert_eq!(frozen.thaw().0.len(), 2);
    }

    #[test]
    fn of_one_seat_the_newest_connection_of_its_session_waits() {
        let mut frozen = Frozen::default();
        assert!(frozen.ask(asked(1, 1, 7, 2)).is_none());
        let (older, refusal) = frozen.ask(asked(2, 2, 7, 1)).unwrap();
        assert_eq!((older.attach.member, refusal.code), (MemberId(2), Code::Superseded));
        let (older, refusal) = frozen.ask(asked(2, 3, 7, 3)).unwrap();
        assert_eq!((older.attach.member, refusal.code), (MemberId(1), Code::Superseded));
        assert!(frozen.ask(asked(2, 3, 7, 3)).is_none(), "the same again");
        let (other, refusal) = frozen.ask(asked(2, 4, 8, 1)).unwrap();
        assert_eq!((other.attach.member, refusal.code), (MemberId(4), Code::Busy));
        assert_eq!(members(frozen), [(2, 3)]);
    }

    #[test]
    fn who_is_gone_wants_nothing_any_more() {
        let waiting = |link, member| {
            let mut frozen = Frozen::default();
            frozen.ask(asked(1, 1, 7, 1));
            frozen.forget(LinkKey(link), member);
            members(frozen).len()
        };
        assert_eq!((waiting(2, None), waiting(1, Some(MemberId(2)))), (1, 1));
        assert_eq!((waiting(1, None), waiting(1, Some(MemberId(1)))), (0, 0));
    }
}
