//! Rank boards: who has which score, by the board's name.
//!
//! The highest score has rank 1. Of equal scores the one that was reached first is ahead: a board counts its changes,
//! and a member keeps the number of the one that gave it its score. So the order depends on the log alone.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, btree_map};
use std::num::NonZeroUsize;

use ecow::EcoString;
use greenroom_protocol::UserId;
use greenroom_protocol::wire::client_session::Ranked;

use crate::changes::{Ledger, Records, RowKey, Touched, Tracked, TrackedSlot};
use crate::directory::slot_of;
use crate::index::PointIndex;
use crate::mint::ClusterSecret;
use crate::ordered::{Entry, OrderedIndex};
use crate::record::Record;

/// Boards that there can be. They have names that games choose; a game that made one per match would fill the memory.
pub(crate) const BOARDS_MAX: usize = 1_024;

/// A user on a board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) user: UserId,
    /// The name to be shown.
    pub(crate) name: EcoString,
    pub(crate) score: i64,
    /// Which change of the board gave it this score, from 1. No other member has the same.
    pub(crate) since: u64,
}

/// By the number of the board and the slot in it.
impl Tracked for Member {
    type At = (u64, u32);
    fn key((board, slot): (u64, u32)) -> RowKey {
        RowKey::Member(board, slot)
    }
}

impl TrackedSlot for Member {
    fn slot((_, slot): (u64, u32)) -> u32 {
        slot
    }
}

/// Why a score was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotRanked {
    /// There are [`BOARDS_MAX`] boards, and this would be one more.
    BoardsFull,
    /// The board is full, and the score is not better than the last one.
    BelowLast,
}

/// All boards. Names of boards and of members come in as they are to stay: they are checked where they are read.
#[derive(Debug)]
pub(crate) struct Boards {
    /// None is empty.
    boards: BTreeMap<EcoString, Board>,
    /// Names of the boards by number.
    names: BTreeMap<u64, EcoString>,
    /// The number that the next board gets. Another master's boards may have others: they never show.
    next: u64,
    members_max: NonZeroUsize,
    secret: ClusterSecret,
}

#[derive(Debug)]
struct Board {
    name: EcoString,
    number: u64,
    members: Records<Member>,
    by_user: PointIndex<u32>,
    by_score: OrderedIndex,
    changes: u64,
}

impl Boards {
    /// No boards. Each will have at most `members_max` members, of which there can be 4,294,967,295.
    pub(crate) fn new(secret: &ClusterSecret, members_max: NonZeroUsize) -> Self {
        Self {
            boards: BTreeMap::new(),
            names: BTreeMap::new(),
            next: 0,
            members_max,
            secret: secret.clone(),
        }
    }

    /// Gives a user this score, and makes the board if there is none. A score that stays what it was keeps its place
    /// among equal ones. On a full board a better score pushes the last one out: then that user is returned.
    ///
    /// # Errors
    /// When the score is not taken; nothing changed then. Who is on the board already is never refused.
    pub(crate) fn set(
        &mut self,
        ledger: &mut Ledger,
        board: &EcoString,
        user: &UserId,
        name: &EcoString,
        score: i64,
    ) -> Result<Option<UserId>, NotRanked> {
        let members_max = self.members_max.get();
        let board = self.board_mut(board).ok_or(NotRanked::BoardsFull)?;
        board.set(ledger, user, name, score, members_max)
    }

    /// Puts back a member that was stored, who is not on the board, with the place among equal scores that it had, if
    /// nobody has it meanwhile. On a full board it pushes the last one out if it is better, who is returned; else it is
    /// left out, as it is where there would be too many boards.
    pub(crate) fn take_back(
        &mut self,
        ledger: &mut Ledger,
        board: &EcoString,
        member: Member,
    ) -> Option<UserId> {
        let members_max = self.members_max.get();
        self.board_mut(board)?.take_back(ledger, member, members_max)
    }

    /// Takes a user off a board; false for one who is not on it. With its last member the board is gone.
    pub(crate) fn remove(&mut self, ledger: &mut Ledger, board: &EcoString, user: &UserId) -> bool {
        let Some(there) = self.boards.get_mut(board) else { return false };
        let Some(slot) = there.find(user) else { return false };
        there.remove(ledger, slot);
        if there.members.is_empty() {
            self.names.remove(&there.number);
            self.boards.remove(board);
        }
        true
    }

    /// A user's place on a board.
    pub(crate) fn member(&self, board: &EcoString, user: &UserId) -> Option<&Member> {
        let board = self.boards.get(board)?;
        Some(&board.members[board.find(user)? as usize])
    }

    /// How many members a board has; none if there is no such board.
    pub(crate) fn members(&self, board: &EcoString) -> Option<usize> {
        self.boards.get(board).map(|board| board.members.len())
    }

    /// The `limit` members from this rank on, the best first. Rank 0 is taken for 1.
    pub(crate) fn top(
        &self,
        board: &EcoString,
        from_rank: u64,
        limit: usize,
    ) -> impl Iterator<Item = Ranked> {
        // A rank that no machine could hold is past the last one.
        let place = usize::try_from(from_rank.saturating_sub(1)).unwrap_or(usize::MAX);
        self.boards.get(board).into_iter().flat_map(move |board| board.from(place).take(limit))
    }

    /// A user with up to `each_side` members that are better and as many that are worse, the best first; none if the
    /// user is not on the board.
    pub(crate) fn around(
        &self,
        board: &EcoString,
        user: &UserId,
        each_side: usize,
    ) -> Option<impl Iterator<Item = Ranked>> {
        let board = self.boards.get(board)?;
        let place = board.place_of(board.find(user)?);
        let better = place.min(each_side);
        Some(board.from(place - better).take((better + 1).saturating_add(each_side)))
    }

    /// Every board by its name, and how many changes of scores it has seen.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&EcoString, u64)> {
        self.boards.iter().map(|(name, board)| (name, board.changes))
    }

    /// A member as a record, if there is one.
    pub(crate) fn record(&self, board: u64, slot: u32) -> Option<Record> {
        let board = self.boards.get(self.names.get(&board)?)?;
        Some(Record::member(&board.name, board.members.get(slot as usize)?))
    }

    /// The first member from this board and slot on.
    pub(crate) fn member_from(&self, (board, slot): (u64, u32)) -> Option<(u64, u32)> {
        self.names.range(board..).find_map(|(&number, name)| {
            let from = if number == board { slot } else { 0 };
            Some((number, self.boards.get(name)?.members.next(from)?))
        })
    }

    /// Puts back a board that [`Boards::iter`] gave. Its members follow.
    ///
    /// # Errors
    /// When it is one too many, or there already.
    pub(crate) fn restore_board(&mut self, name: &EcoString, changes: u64) -> Result<(), String> {
        let Some(board) = self.board_mut(name) else {
            return Err(format!("board {name} is one more than {BOARDS_MAX}"));
        };
        if board.changes > 0 {
            return Err(format!("board {name} is there twice"));
        }
        board.changes = changes;
        Ok(())
    }

    /// Puts back a member, in whatever order. What came in is not judged by the bound on members: a snapshot says what
    /// was.
    ///
    /// # Errors
    /// When no boards could have had this member. The boards are useless then.
    pub(crate) fn restore(
        &mut self,
        ledger: &mut Ledger,
        board: &EcoString,
        member: Member,
    ) -> Result<(), String> {
        let Some(there) = self.boards.get_mut(board) else {
            return Err(format!("{} is on board {board}, which is not there", member.user));
        };
        if member.since == 0 || member.since > there.changes {
            return Err(format!("{} is on board {board} by a change that was not", member.user));
        }
        if there.find(&member.user).is_some() {
            return Err(format!("{} is on board {board} twice", member.user));
        }
        if there.has_tie(&member) {
            return Err(format!("{} is on board {board} by another one's change", member.user));
        }
        there.insert(ledger, member);
        Ok(())
    }

    /// Counts everything again.
    ///
    /// # Errors
    /// What is wrong, for whoever debugs it.
    pub(crate) fn audit(&self) -> Result<(), String> {
        if self.boards.len() > BOARDS_MAX {
            return Err(format!("there are {} boards", self.boards.len()));
        }
        for (name, board) in &self.boards {
            board.audit().map_err(|wrong| format!("board {name}: {wrong}"))?;
        }
        Ok(())
    }

    /// The board of this name, which is made if there is room for one more.
    fn board_mut(&mut self, name: &EcoString) -> Option<&mut Board> {
        let full = self.boards.len() >= BOARDS_MAX;
        match self.boards.entry(name.clone()) {
            btree_map::Entry::Occupied(there) => Some(there.into_mut()),
            btree_map::Entry::Vacant(_) if full => None,
            btree_map::Entry::Vacant(place) => {
                let number = self.next;
                self.next += 1;
                self.names.insert(number, name.clone());
                Some(place.insert(Board::new(&self.secret, name, number)))
            }
        }
    }
}

impl Board {
    fn new(secret: &ClusterSecret, name: &EcoString, number: u64) -> Self {
        Self {
            name: name.clone(),
            number,
            members: Records::default(),
            by_user: PointIndex::new(secret),
            by_score: OrderedIndex::default(),
            changes: 0,
        }
    }

    fn touch(&self, ledger: &mut Ledger, slot: u32) -> Touched<Member> {
        let member = &self.members[slot as usize];
        ledger.touch((self.number, slot), || Some(Record::member(&self.name, member)))
    }

    fn set(
        &mut self,
        ledger: &mut Ledger,
        user: &UserId,
        name: &EcoString,
        score: i64,
        members_max: usize,
    ) -> Result<Option<UserId>, NotRanked> {
        let mut out = None;
        if let Some(slot) = self.find(user) {
            let member = &self.members[slot as usize];
            if member.score == score {
                if member.name != *name {
                    let touched = self.touch(ledger, slot);
                    self.members.get_mut(&touched).name = name.clone();
                }
                return Ok(None);
            }
            self.remove(ledger, slot);
        } else if self.members.len() >= members_max
            && let Some(last) = self.last()
        {
            // An equal score would be behind the last one, since it comes later.
            if score <= self.members[last as usize].score {
                return Err(NotRanked::BelowLast);
            }
            out = Some(self.remove(ledger, last).user);
        }
        self.changes += 1;
        let (user, name) = (user.clone(), name.clone());
        self.insert(ledger, Member { user, name, score, since: self.changes });
        Ok(out)
    }

    fn take_back(
        &mut self,
        ledger: &mut Ledger,
        mut member: Member,
        members_max: usize,
    ) -> Option<UserId> {
        let mut out = None;
        if self.members.len() >= members_max
            && let Some(last) = self.last()
        {
            if member.score <= self.members[last as usize].score {
                return None;
            }
            out = Some(self.remove(ledger, last).user);
        }
        self.changes = self.changes.max(member.since);
        if self.has_tie(&member) {
            self.changes += 1;
            member.since = self.changes;
        }
        self.insert(ledger, member);
        out
    }

    /// Adds a member whose user is not on the board.
    fn insert(&mut self, ledger: &mut Ledger, member: Member) {
        let number = self.number;
        let slot = self.members.insert(ledger, member, |slot| (number, slot));
        let member = &self.members[slot as usize];
        self.by_user.insert(&member.user, slot, |slot| &self.members[slot as usize].user);
        self.by_score.insert(entry_of(slot, member), order(&self.members));
    }

    fn remove(&mut self, ledger: &mut Ledger, slot: u32) -> Member {
        let touched = self.touch(ledger, slot);
        let entry = entry_of(slot, &self.members[slot as usize]);
        self.by_score.remove(entry, order(&self.members));
        let member = self.members.remove(&touched);
        self.by_user.remove(&member.user, slot);
        member
    }

    fn find(&self, user: &UserId) -> Option<u32> {
        self.by_user.get(user, |slot| &self.members[slot as usize].user)
    }

    /// Whether somebody has this score by the same change.
    fn has_tie(&self, member: &Member) -> bool {
        let before =
            self.by_score.rank(|there| is_ahead(&self.members[there.slot as usize], member));
        let next = self.by_score.nth(before).map(|there| &self.members[there.slot as usize]);
        next.is_some_and(|next| (next.score, next.since) == (member.score, member.since))
    }

    fn last(&self) -> Option<u32> {
        self.by_score.iter_back_from(self.by_score.len()).next().map(|entry| entry.slot)
    }

    /// How many members are ahead of this one.
    fn place_of(&self, slot: u32) -> usize {
        self.by_score.rank_of(entry_of(slot, &self.members[slot as usize]), order(&self.members))
    }

    /// The members that have at least so many ahead of them.
    fn from(&self, place: usize) -> impl Iterator<Item = Ranked> {
        let entries = self.by_score.iter_from(place).enumerate();
        entries.map(move |(k, entry)| ranked(place + k, &self.members[entry.slot as usize]))
    }

    fn audit(&self) -> Result<(), String> {
        let held = [self.members.len(), self.by_user.len(), self.by_score.len()];
        if held.iter().any(|&len| len != held[0] || len == 0) {
            return Err(format!("members, users and scores are {held:?}"));
        }
        for (slot, member) in self.members.iter() {
            if self.find(&member.user) != Some(slot_of(slot)) {
                return Err(format!("{} is not found", member.user));
            }
            if member.since == 0 || member.since > self.changes {
                return Err(format!("{} came with change {}", member.user, member.since));
            }
        }
        // As many entries as members, each of a member, and by their order no two of the same: each has its own.
        for entry in self.by_score.iter_from(0) {
            let member = self.members.get(entry.slot as usize);
            if member.is_none_or(|member| entry_of(entry.slot, member) != entry) {
                return Err(format!("{entry:?} is of no member, or of a score that was"));
            }
        }
        self.by_score.audit(order(&self.members))
    }
}

/// The entry of a member. An index begins with the lowest value, a board with the highest score: `!` turns the order of
/// all numbers round, where a minus would have no answer for the lowest.
fn entry_of(slot: u32, member: &Member) -> Entry {
    let tie = u32::try_from(member.since).unwrap_or(u32::MAX);
    Entry { value: !member.score, tie, slot }
}

/// Decides between equal scores after four thousand million changes, when the ties are all the same.
fn order(members: &Records<Member>) -> impl Fn(Entry, Entry) -> Ordering {
    |a, b| members[a.slot as usize].since.cmp(&members[b.slot as usize].since)
}

/// Whether one member is ahead of another.
fn is_ahead(one: &Member, other: &Member) -> bool {
    (Reverse(one.score), one.since) < (Reverse(other.score), other.since)
}

fn ranked(place: usize, member: &Member) -> Ranked {
    let rank = u64::try_from(place).expect("a count of what is in memory fits into 64 bits") + 1;
    let Member { user, name, score, since: _ } = member;
    Ranked { rank, user: user.clone(), name: name.clone(), score: *score }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Boards, and who is told of their changes.
    struct Kept {
        boards: Boards,
        ledger: Ledger,
    }

    impl std::ops::Deref for Kept {
        type Target = Boards;
        fn deref(&self) -> &Boards {
            &self.boards
        }
    }

    impl Kept {
        fn set(
            &mut self,
            board: &EcoString,
            user: &UserId,
            name: &EcoString,
            score: i64,
        ) -> Result<Option<UserId>, NotRanked> {
            self.boards.set(&mut self.ledger, board, user, name, score)
        }
        fn remove(&mut self, board: &EcoString, user: &UserId) -> bool {
            self.boards.remove(&mut self.ledger, board, user)
        }
        fn restore(&mut self, board: &EcoString, member: Member) -> Result<(), String> {
            self.boards.restore(&mut self.ledger, board, member)
        }
    }

    fn boards(members_max: usize) -> Kept {
        let secret = ClusterSecret::from_key(b"a cluster that is only a test");
        let members_max = NonZeroUsize::new(members_max).unwrap();
        Kept { boards: Boards::new(&secret, members_max), ledger: Ledger::new(&secret) }
    }

    /// Everything, by name of the board and by rank.
    fn rows(boards: &Boards) -> Vec<(&EcoString, u64, &Member)> {
        let of = |board: &'_ Board| board.by_score.iter_from(0).map(|entry| entry.slot).collect();
        let rows = boards.boards.iter().flat_map(|(name, board)| {
            let slots: Vec<u32> = of(board);
            slots.into_iter().map(move |slot| (name, board.changes, &board.members[slot as usize]))
        });
        rows.collect()
    }

    fn user(n: u32) -> UserId {
        UserId::new(format!("user {n}")).unwrap()
    }

    /// The same boards, made from their members in the order of their slots.
    fn restored(old: &Boards) -> Result<Kept, String> {
        let mut new = boards(old.members_max.get());
        for (board, changes) in old.iter() {
            new.boards.restore_board(board, changes)?;
        }
        let mut next = old.member_from((0, 0));
        while let Some((number, slot)) = next {
            let name = &old.names[&number];
            new.restore(name, old.boards[name].members[slot as usize].clone())?;
            next = old.member_from((number, slot + 1));
        }
        Ok(new)
    }

    /// Who is on which board, the best first.
    type Model = BTreeMap<EcoString, Vec<(UserId, EcoString, i64)>>;

    /// The rules as one would write them on a blackboard.
    fn set_in_model(
        board: &mut Vec<(UserId, EcoString, i64)>,
        member: (UserId, EcoString, i64),
        members_max: usize,
    ) -> Result<Option<UserId>, NotRanked> {
        if let Some(place) = board.iter().position(|there| there.0 == member.0) {
            if board[place].2 == member.2 {
                board[place].1 = member.1;
                return Ok(None);
            }
            board.remove(place);
        }
        let place = board.iter().position(|there| there.2 < member.2).unwrap_or(board.len());
        if place == members_max {
            return Err(NotRanked::BelowLast);
        }
        board.insert(place, member);
        Ok(if board.len() > members_max { board.pop().map(|last| last.0) } else { None })
    }

    fn in_model(board: &[(UserId, EcoString, i64)]) -> Vec<Ranked> {
        let ranked = |(rank, (user, name, score)): (u64, &(UserId, EcoString, i64))| Ranked {
            rank,
            user: user.clone(),
            name: name.clone(),
            score: *score,
        };
        (1..).zip(board).map(ranked).collect()
    }

    #[derive(Debug, Clone)]
    enum Step {
        Set {
            board: u8,
            user: u32,
            name: u8,
            score: i64,
        },
        Remove {
            board: u8,
            user: u32,
        },
        /// The board after four thousand million changes more.
        Age {
            board: u8,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let score = prop_oneof![8 => -3..4i64, 1 => Just(i64::MIN), 1 => Just(i64::MAX)];
        prop_oneof![
            12 => (0..3u8, 0..12u32, 0..3u8, score)
                .prop_map(|(board, user, name, score)| Step::Set { board, user, name, score }),
            3 => (0..3u8, 0..12u32).prop_map(|(board, user)| Step::Remove { board, user }),
            1 => (0..3u8).prop_map(|board| Step::Age { board }),
        ]
    }

    /// Where a user is on a board.
    fn place_of(boards: &Boards, board: &EcoString, user: &UserId) -> Option<Ranked> {
        boards.around(board, user, 0)?.next()
    }

    proptest! {
        #[test]
        fn a_board_is_a_list_by_score_and_then_by_time_and_so_is_what_its_rows_make(
            members_max in 1..10usize,
            steps in prop::collection::vec(step(), 1..120),
            restored_at in 0..120usize,
        ) {
            let (mut live, mut model) = (boards(members_max), Model::new());
            let mut twin = None;
            for (n, step) in steps.into_iter().enumerate() {
                if n == restored_at {
                    twin = Some(restored(&live).unwrap());
                }
                let both = [Some(&mut live), twin.as_mut()];
                match step {
                    Step::Set { board, user: n, name, score } => {
                        let board = EcoString::from(format!("board {board}"));
                        let (user, name) = (user(n), EcoString::from(format!("name {name}")));
                        let there = model.entry(board.clone()).or_default();
                        let member = (user.clone(), name.clone(), score);
                        let said = set_in_model(there, member, members_max);
                        for boards in both.into_iter().flatten() {
                            prop_assert_eq!(boards.set(&board, &user, &name, score), said.clone());
                        }
                    }
                    Step::Remove { board, user: n } => {
                        let board = EcoString::from(format!("board {board}"));
                        let there = model.entry(board.clone()).or_default();
                        let place = there.iter().position(|member| member.0 == user(n));
                        place.map(|place| there.remove(place));
                        for boards in both.into_iter().flatten() {
                            prop_assert_eq!(boards.remove(&board, &user(n)), place.is_some());
                        }
                    }
                    Step::Age { board } => {
                        for boards in both.into_iter().flatten() {
                            if let Some(there) = boards.boards.boards.get_mut(&*format!("board {board}")) {
                                there.changes += u64::from(u32::MAX);
                            }
                        }
                    }
                }
                model.retain(|_, members| !members.is_empty());
                prop_assert_eq!(live.audit(), Ok(()));
                if let Some(twin) = &twin {
                    prop_assert_eq!(rows(twin), rows(&live));
                    prop_assert_eq!(twin.audit(), Ok(()));
                }
            }

            prop_assert_eq!(live.boards.boards.len(), model.len());
            for (board, members) in &model {
                let members = in_model(members);
                prop_assert_eq!(live.members(board), Some(members.len()));
                prop_assert_eq!(&live.top(board, 0, usize::MAX).collect::<Vec<_>>(), &members);
                for from in 0..members.len() + 2 {
                    let rank = u64::try_from(from).unwrap() + 1;
                    let on: Vec<Ranked> = live.top(board, rank, 3).collect();
                    prop_assert_eq!(on, members.iter().skip(from).take(3).cloned().collect::<Vec<_>>());
                }
                for (place, member) in members.iter().enumerate() {
                    prop_assert_eq!(place_of(&live, board, &member.user), Some(member.clone()));
                    for each_side in [0, 2, usize::MAX] {
                        let from = place.saturating_sub(each_side);
                        let to = place.saturating_add(each_side).min(members.len() - 1);
                        let around: Vec<Ranked> =
                            live.around(board, &member.user, each_side).unwrap().collect();
                        prop_assert_eq!(&around[..], &members[from..=to]);
                    }
                }
            }
            let again = restored(&live).unwrap();
            prop_assert_eq!(rows(&live), rows(&again));
        }
    }

    #[test]
    fn ann_and_bo_have_the_same_score_and_ann_had_it_first() {
        let mut boards = boards(10);
        let (board, ann, bo) = ("wins".into(), user(1), user(2));
        let rank = |boards: &Kept, user| place_of(boards, &"wins".into(), user).unwrap().rank;
        boards.set(&board, &bo, &"Bo".into(), 6).unwrap();
        boards.set(&board, &ann, &"Ann".into(), 7).unwrap();
        boards.set(&board, &bo, &"Bo".into(), 7).unwrap();
        assert_eq!((rank(&boards, &ann), rank(&boards, &bo)), (1, 2));

        // The same score again, under a new name, is not a new score; one that was left and reached again is.
        boards.set(&board, &ann, &"Anna".into(), 7).unwrap();
        assert_eq!((rank(&boards, &ann), rank(&boards, &bo)), (1, 2));
        assert_eq!(place_of(&boards, &board, &ann).unwrap().name, "Anna");
        boards.set(&board, &ann, &"Anna".into(), 8).unwrap();
        boards.set(&board, &ann, &"Anna".into(), 7).unwrap();
        assert_eq!((rank(&boards, &ann), rank(&boards, &bo)), (2, 1));
    }

    #[test]
    fn a_game_with_a_board_per_match_is_stopped_and_the_boards_that_are_go_on() {
        let mut boards = boards(10);
        let name = |n: usize| EcoString::from(format!("match {n}"));
        for n in 0..BOARDS_MAX {
            assert_eq!(boards.set(&name(n), &user(1), &"Ann".into(), 1), Ok(None));
        }
        let one_more = name(BOARDS_MAX);
        let refused = boards.set(&one_more, &user(1), &"Ann".into(), 1);
        assert_eq!((refused, boards.members(&one_more)), (Err(NotRanked::BoardsFull), None));
        assert_eq!(boards.set(&name(0), &user(2), &"Bo".into(), 1), Ok(None));

        assert!(boards.remove(&name(7), &user(1)), "its last member");
        assert_eq!(boards.set(&one_more, &user(1), &"Ann".into(), 1), Ok(None));
        boards.audit().unwrap();
    }

    #[test]
    fn rows_that_no_board_gave_are_refused() {
        let member =
            |n, score, since| Member { user: user(n), name: "a name".into(), score, since };
        for (board, second) in [
            ("wins", member(1, 4, 2)),
            ("wins", member(2, 5, 1)),
            ("wins", member(2, 4, 0)),
            ("wins", member(2, 4, 5)),
            ("losses", member(2, 4, 2)),
        ] {
            let mut boards = boards(10);
            boards.boards.restore_board(&"wins".into(), 4).unwrap();
            boards.restore(&"wins".into(), member(1, 5, 1)).unwrap();
            boards.restore(&board.into(), second).unwrap_err();
        }
        let mut boards = boards(10);
        boards.boards.restore_board(&"wins".into(), 4).unwrap();
        boards.boards.restore_board(&"wins".into(), 4).unwrap_err();
        boards.restore(&"wins".into(), member(1, 5, 1)).unwrap();
        boards.restore(&"wins".into(), member(2, 5, 2)).unwrap();
        boards.audit().unwrap();
    }
}
