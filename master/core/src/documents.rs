//! What is to stay in the store, whatever becomes of the masters: told as it changes, and written by the shell of the
//! one that decides.
//!
//! A document is told whole, as its command left it. So of two with one key only the later one matters, and a shell
//! that falls behind writes that one.

use ecow::EcoString;
use greenroom_protocol::wire::client_session::Meta;
use greenroom_protocol::{Epoch, Incarnation, InstanceId, Key, KindName, ServerName, UserId};
use serde::{Deserialize, Serialize};

use crate::boards::Member;
use crate::directory::{At, Stage};
use crate::newest::Newest;
use crate::report::is_board;
use crate::servers::GameSlot;
use crate::state::State;

/// How long they are kept, in milliseconds of the log: longer than a store stumbles. What an active could not write for
/// longer is found by who compares the directory with the store.
pub(crate) const AGE_MS: u64 = 30_000;

/// The newest documents that changed.
pub type Documents = Newest<Document>;

/// Something that the store is to have, or not to have any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// A user has checked in.
    CheckedIn(CheckedIn),
    /// An instance that stays is there, as this says.
    Kept(Box<KeptInstance>),
    /// An instance that was to stay is over.
    Over(InstanceId),
    /// What is stored of an instance is of no use to anybody: it is over, and no game server is there to say so.
    Unstored(InstanceId, Incarnation),
    /// A user's place on a rank board.
    Ranked(RankedMember),
    /// A user is not on a rank board any more.
    Unranked {
        /// The board's name.
        board: EcoString,
        /// Who.
        user: UserId,
    },
}

/// A user who has checked in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedIn {
    /// Who.
    pub user: UserId,
    /// The name that others see.
    pub name: EcoString,
}

/// An instance of a durable kind, or with a unique key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptInstance {
    /// Which.
    pub instance: InstanceId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Of which kind.
    pub kind: KindName,
    /// Its unique key.
    pub key: Option<Key>,
    /// It goes on elsewhere when its game server is lost.
    pub durable: bool,
    /// `granted`, `running`, `restoring` or `closing`.
    pub state: &'static str,
    /// The game server that it is on, or was on last.
    pub server: ServerName,
    /// Who asked for it.
    pub owner: Option<UserId>,
    /// When it was granted, by the log's clock in milliseconds since 1970.
    pub created_ms: u64,
    /// Seats in all.
    pub seats_max: u16,
    /// It takes new holders of seats.
    pub open: bool,
    /// Nobody finds it who has neither its id nor its key.
    pub private: bool,
    /// What the game says of it.
    pub meta: Meta,
}

/// A user on a rank board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankedMember {
    /// The board's name.
    pub board: EcoString,
    /// Who.
    pub user: UserId,
    /// The name to be shown.
    pub name: EcoString,
    /// The score: the highest has rank 1.
    pub score: i64,
    /// Of equal scores, the one with the smaller number is ahead.
    pub since: u64,
}

impl RankedMember {
    pub(crate) fn of(board: &EcoString, member: &Member) -> Self {
        let Member { user, name, score, since } = member.clone();
        Self { board: board.clone(), user, name, score, since }
    }
}

/// What of an instance is worth a write; what it says of itself is, too.
type Note = (Stage, GameSlot, Incarnation, bool, bool);

impl State {
    /// The newest documents that changed, for the store.
    pub fn documents(&self) -> &Documents {
        &self.documents
    }

    /// The numbers of the last command, which are those of what is read of the state now.
    pub fn stands_at(&self) -> (Epoch, u64) {
        (self.epoch, self.lsn)
    }

    /// Whether a user is on a board.
    pub fn is_ranked(&self, board: &EcoString, user: &UserId) -> bool {
        self.boards.member(board, user).is_some()
    }

    /// What an earlier era has stored is taken back, unless this one knows better.
    pub(crate) fn take_back(&mut self, members: &[RankedMember]) {
        for RankedMember { board, user, name, score, since } in members {
            let (user, name, score) = (user.clone(), name.clone(), *score);
            let member = Member { user, name, score, since: (*since).max(1) };
            if !is_board(board) || self.is_ranked(board, &member.user) {
                continue;
            }
            if let Some(out) = self.boards.take_back(&mut self.ledger, board, member) {
                self.unranked(board, out);
            }
        }
    }

    /// A user is not on a board any more.
    pub(crate) fn unranked(&mut self, board: &EcoString, user: UserId) {
        self.documents.push(Document::Unranked { board: board.clone(), user });
    }

    /// What stands in an instance's document, if it has one.
    pub(crate) fn noted(&self, at: At) -> Option<Note> {
        let instance = self.directory.get(at);
        instance.is_kept().then_some((
            instance.stage,
            instance.server,
            instance.incarnation,
            instance.open,
            instance.private,
        ))
    }

    /// An instance is there, or another one than before.
    pub(crate) fn keep(&mut self, at: At) {
        if self.directory.get(at).is_kept() {
            let kept = self.kept_instance(at);
            self.documents.push(Document::Kept(Box::new(kept)));
        }
    }

    /// An instance is over, and whoever ran it does not remove what is stored of it. A life before this one can't write
    /// it anew.
    pub(crate) fn forget_snapshot(&mut self, at: At) {
        let instance = self.directory.get(at);
        if instance.durable() {
            self.documents.push(Document::Unstored(instance.id, instance.incarnation));
        }
    }

    fn kept_instance(&self, at: At) -> KeptInstance {
        let instance = self.directory.get(at);
        KeptInstance {
            instance: instance.id,
            incarnation: instance.incarnation,
            kind: self.directory.kind(at).clone(),
            key: instance.key().cloned(),
            durable: instance.durable(),
            state: match instance.stage {
                Stage::Granted => "granted",
                Stage::Running => "running",
                Stage::Closing => "closing",
                Stage::Stranded | Stage::Restoring => "restoring",
            },
            server: self.game_servers.get(instance.server).peer.name.clone(),
            owner: instance.owner.clone(),
            created_ms: instance.created_ms,
            seats_max: instance.seats_max,
            open: instance.open,
            private: instance.private,
            meta: self.directory.meta(at),
        }
    }
}
