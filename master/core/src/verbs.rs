//! What clients ask for: check-in, and the verbs of the directory.

use std::collections::BTreeSet;

use ecow::eco_format;
use greenroom_protocol::search::{Filter, LIMIT_MAX};
use greenroom_protocol::wire::Opaque;
use greenroom_protocol::wire::client_session::{
    Create, Created, Destroy, Destroyed, Join, JoinOrCreate, Leave, Left, Rank, RankPart, Ranking,
    Request,
};
use greenroom_protocol::wire::master_game::CreateInstance;
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::{
    Answer, Bind, BindRefused, Bound, EndSession, Granted, Outcome,
};
use greenroom_protocol::{
    Code, Generation, InstanceId, Key, KindName, Refusal, RequestId, Seat, SessionId, UserId,
};

use crate::command::{Effect, Origin};
use crate::deadlines::NEVER;
use crate::directory::{At, Instance, SeatRecord, SeatStage, Stage, Waiter, Wants};
use crate::documents::{CheckedIn, Document};
use crate::facts::{Asker, Fact};
use crate::rejoin::Waiting;
use crate::report::{BOARD_NAMES, is_board};
use crate::servers::SessionSlot;
use crate::state::{State, Step, Verdict};
use crate::users::{Asked, Life, Session};

/// Instances that are looked at, at most, for one with seats for several. Most have one more than the last one had.
const LOOKED_MAX: usize = 1_000;
/// Answers that are kept for each request that a session may have under way: while one takes long, those after it are
/// answered and can't be acknowledged, since acknowledgements are cumulative.
const KEPT_FOR_EACH: usize = 4;

/// What an instance is to be.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    kind: &'a KindName,
    key: Option<&'a Key>,
    params: &'a Opaque,
    private: bool,
    /// Who wants any that this lets through gets the same one while it is made.
    filter: Option<&'a Filter>,
    /// Seats that are wanted at once.
    seats: usize,
}

impl State {
    /// Binds a user's session to a session server. The same key is the same session on a new connection; another key
    /// is a new session, and the user's older one ends.
    pub(crate) fn bind(&mut self, step: &mut Step<'_>, origin: &Origin, bind: &Bind) {
        let Some(server) = self.session_servers.speaker(origin) else { return };
        // Said twice on one link: the first answer is on its way. On a new link the report comes first, and undoes a
        // binding whose answer was lost.
        let known = self.users.find_key(&bind.session_key).map(|slot| self.users.session(slot));
        if known.is_some_and(|session| {
            session.binding == Some(server) && session.bound_by == Some(bind.number)
        }) {
            return;
        }
        let message = match self.bound(step, server, bind) {
            Ok(slot) => {
                self.session_mut(slot).bound_by = Some(bind.number);
                let session = self.users.session(slot);
                Bound {
                    number: bind.number,
                    session: session.id,
                    generation: session.generation,
                    session_servers: self.announced.clone(),
                }
                .into()
            }
            Err(refusal) => BindRefused { number: bind.number, refusal }.into(),
        };
        step.effects.push(Effect::ToSession(origin.server.clone(), message));
    }

    fn bound(
        &mut self,
        step: &mut Step<'_>,
        server: SessionSlot,
        bind: &Bind,
    ) -> Result<u32, Refusal> {
        if let Some(slot) = self.users.find_key(&bind.session_key) {
            return self.bound_again(slot, server, bind);
        }
        let older = self.users.find_user(&bind.user).map(|user| user.session);
        if let Some(slot) = older.filter(|&slot| self.users.session(slot).key.is_none()) {
            return Ok(self.bound_anew(slot, server, bind));
        }
        if self.users.sessions_len() >= self.settings.sessions_max {
            return Err(Refusal::new(
                Code::Busy,
                "there are as many sessions as there may be; try again later",
            ));
        }
        if let Some(older) = older {
            self.end(step, older, &Refusal::new(Code::Superseded, Code::Superseded.meaning()));
        }
        let id = step.mint.session();
        self.facts.push(Fact::SessionBegan {
            user: bind.user.clone(),
            session: id,
            name: bind.name.clone(),
            server: self.session_server_name(server).clone(),
        });
        let (user, name) = (bind.user.clone(), bind.name.clone());
        self.documents.push(Document::CheckedIn(CheckedIn { user, name }));
        let session = Session::new(id, Some(bind.session_key), Generation(1));
        let slot = self.users.insert(&mut self.ledger, session, &bind.user, bind.name.clone());
        self.rebind(slot, server);
        Ok(slot)
    }

    /// Binds a session that only a game server told of, after the master's memory was lost: nobody here knows its key,
    /// but this is its user, whose seats wait. Should another session server have it, that one is told that it has not.
    fn bound_anew(&mut self, slot: u32, server: SessionSlot, bind: &Bind) -> u32 {
        let touched = self.touch(slot);
        self.users.set_key(&touched, bind.session_key);
        self.users.rename(&touched, &bind.name);
        // Larger than any that it had: generations count bindings, and nobody binds once a second for years.
        let seconds = u32::try_from(self.now_ms / 1_000).unwrap_or(u32::MAX);
        let generation = &mut self.users.session_mut(&touched).generation;
        *generation = Generation(generation.0.saturating_add(1).max(seconds));
        self.rebind(slot, server);
        self.resumed(slot);
        let (user, name) = (bind.user.clone(), bind.name.clone());
        self.documents.push(Document::CheckedIn(CheckedIn { user, name }));
        slot
    }

    fn resumed(&mut self, slot: u32) {
        if let Some(Asker { user, session }) = self.asker(slot) {
            self.facts.push(Fact::SessionResumed(user, session));
        }
    }

    fn bound_again(&mut self, slot: u32, server: SessionSlot, bind: &Bind) -> Result<u32, Refusal> {
        let session = self.users.session(slot);
        let user = match &session.life {
            Life::Ended(refusal) => return Err((**refusal).clone()),
            Life::Live { user } => *user,
        };
        if self.users.user(user).id != bind.user {
            return Err(Refusal::new(
                Code::CredentialsInvalid,
                "this session key belongs to another user: make a new one",
            ));
        }
        if let Some(before) = session.binding {
            let told = EndSession {
                session: session.id,
                generation: session.generation,
                refusal: Refusal::new(Code::Superseded, "the session has a newer connection"),
            };
            self.tell_session(before, told.into());
        }
        let touched = self.touch(slot);
        self.users.rename(&touched, &bind.name);
        let generation = &mut self.users.session_mut(&touched).generation;
        *generation = Generation(generation.0.saturating_add(1));
        self.rebind(slot, server);
        self.resumed(slot);
        Ok(slot)
    }

    /// A client's request, once: a repetition gets the answer that was given, or waits with the first.
    pub(crate) fn ask(
        &mut self,
        step: &mut Step<'_>,
        origin: &Origin,
        session: SessionId,
        id: RequestId,
        answered: RequestId,
        request: &Request,
    ) {
        if self.session_servers.speaker(origin).is_none() {
            return step.illegal(Role::Session, &origin.server, "a question without a report");
        }
        if let Some(outcome) = self.asked(step, session, id, answered, request) {
            let answer = Answer { session, id, outcome };
            step.effects.push(Effect::ToSession(origin.server.clone(), answer.into()));
        }
    }

    fn asked(
        &mut self,
        step: &mut Step<'_>,
        session: SessionId,
        id: RequestId,
        answered: RequestId,
        request: &Request,
    ) -> Option<Outcome> {
        let live =
            self.users.find(session).filter(|&slot| self.users.session(slot).user().is_some());
        let Some(slot) = live else {
            return refused(Code::SessionExpired, "the session is over: check in again");
        };
        let requests_max = self.settings.requests_max;
        if let Some(known) = self.users.session(slot).requests.get(id) {
            return self.answered(known);
        }
        if id <= self.users.session(slot).requests.answered.max(answered) {
            return refused(Code::Stale, Code::Stale.meaning());
        }
        let requests = &mut self.session_mut(slot).requests;
        requests.forget(answered);
        // One that takes long holds back the acknowledgement of those after it: they may go on for a while.
        let kept_max = KEPT_FOR_EACH * requests_max;
        if requests.undecided() >= requests_max || requests.len() >= kept_max {
            return Some(Outcome::Refused(Refusal::new(
                Code::Busy,
                eco_format!(
                    "at most {requests_max} requests may be without an answer, and {kept_max} without its \
                     acknowledgement"
                ),
            )));
        }
        let has_to_wait = self.has_to_wait(request);
        if has_to_wait && let Err(refusal) = self.may_wait() {
            return Some(Outcome::Refused(refusal));
        }
        // Known from here on, so that an instance may already write its outcome.
        self.session_mut(slot).requests.begin(id);
        if has_to_wait {
            self.rejoin.waiting.push_back(Waiting { session, id, request: request.clone() });
            return None;
        }
        let outcome = self.decide(step, slot, id, request)?;
        self.decided(slot, id, &outcome);
        Some(outcome)
    }

    /// What a request was answered, to the letter; nothing yet if it is not decided.
    pub(crate) fn answered(&self, asked: &Asked) -> Option<Outcome> {
        match asked {
            Asked::Undecided(_) => None,
            Asked::Created(_, created) => Some(Outcome::Created((**created).clone())),
            Asked::Granted(_, at, seat) => Some(self.granted(*at, *seat)),
            Asked::Left(_, left) => Some(Outcome::Left((**left).clone())),
            Asked::Destroyed(_, destroyed) => Some(Outcome::Destroyed((**destroyed).clone())),
            Asked::Refused(_, refusal) => Some(Outcome::Refused((**refusal).clone())),
            Asked::Other(_, outcome) => Some((**outcome).clone()),
        }
    }

    /// An answer as it is kept for a session with these seats. A seat is told by where it is only while the directory
    /// says just that of it.
    pub(crate) fn kept(&self, seats: &[(At, Seat)], id: RequestId, outcome: &Outcome) -> Asked {
        let is_said = |(at, seat): &&(At, Seat)| self.granted(*at, *seat) == *outcome;
        match seats.iter().find(is_said) {
            Some((at, seat)) => Asked::Granted(id, *at, *seat),
            None => Asked::lasting(id, outcome),
        }
    }

    /// Writes the outcome of a request that is not decided yet.
    pub(crate) fn decided(&mut self, slot: u32, id: RequestId, outcome: &Outcome) -> bool {
        let decided = self.kept(&self.users.session(slot).seats, id, outcome);
        let is_first = self.session_mut(slot).requests.decide(decided);
        if is_first {
            self.tell_decided(slot, outcome);
        }
        is_first
    }

    /// Tells what became of a request.
    fn tell_decided(&mut self, slot: u32, outcome: &Outcome) {
        let Some(asker) = self.asker(slot) else { return };
        let kind_of = |instance| {
            let at = self.directory.find(instance)?;
            Some(self.directory.kind(at).clone())
        };
        let fact = match outcome {
            Outcome::Created(Created { instance }) => {
                Fact::Created(asker, *instance, kind_of(*instance))
            }
            Outcome::Granted(granted) => {
                Fact::Joined(asker, granted.instance, granted.kind.clone(), granted.seat)
            }
            Outcome::Left(Left { instance }) => Fact::Left(asker, *instance, kind_of(*instance)),
            Outcome::Destroyed(destroyed) => Fact::Destroyed(asker, destroyed.instance),
            Outcome::Refused(refusal) => Fact::Refused(asker, refusal.code.clone()),
            // They change nothing in the directory.
            Outcome::Found(_)
            | Outcome::Watching(_)
            | Outcome::Unwatched(_)
            | Outcome::Ranking(_) => return,
        };
        self.facts.push(fact);
    }

    /// Writes the answers that say a seat out as they were given. To be called before the seat has another holder, the
    /// instance is gone, or its server has another name or address: whoever asks again hears what was said first.
    pub(crate) fn write_out(&mut self, at: At, seat: Seat) {
        let holder = self.directory.get(at).seat(seat).holder();
        if let Some(slot) = holder.and_then(|session| self.users.find(session)) {
            let outcome = self.granted(at, seat);
            self.session_mut(slot).requests.write_out(at, seat, &outcome);
        }
    }

    /// What becomes of a request; nothing while it waits for an instance.
    pub(crate) fn decide(
        &mut self,
        step: &mut Step<'_>,
        slot: u32,
        id: RequestId,
        request: &Request,
    ) -> Option<Outcome> {
        let verdict = match request {
            Request::Create(create) => self.create(step, slot, id, create),
            Request::Join(join) => self.join(slot, id, join),
            Request::JoinOrCreate(join) => self.join_or_create(step, slot, id, join),
            Request::Leave(leave) => self.leave(slot, leave),
            Request::Destroy(destroy) => self.destroy_own(step, slot, id, destroy),
            Request::Search(search) => Ok(Some(self.search(search))),
            Request::Rank(rank) => Ok(Some(self.rank(rank, self.users.session(slot).id))),
            Request::Watch(watch) => self.watch(slot, id, watch),
            Request::Unwatch(unwatch) => self.unwatch(slot, unwatch),
            Request::Unknown(kind) => Err(Refusal::new(
                Code::UnexpectedKind,
                eco_format!("{kind:#04x} is no request of this version of the protocol"),
            )),
        };
        verdict.unwrap_or_else(|refusal| Some(Outcome::Refused(refusal)))
    }

    /// An instance, and a seat for each who is expected, the caller too if it is named.
    fn create(
        &mut self,
        step: &mut Step<'_>,
        slot: u32,
        id: RequestId,
        create: &Create,
    ) -> Verdict {
        let Create { kind, key, params, private, expected } = create;
        let expected: BTreeSet<&UserId> = expected.iter().collect();
        let at = match key.as_ref().and_then(|key| self.directory.by_key(kind, key)) {
            Some(at) => at,
            None => {
                let (key, private, seats) = (key.as_ref(), *private, expected.len());
                self.grant(step, slot, Wanted { kind, key, params, private, filter: None, seats })?
            }
        };
        if self.directory.get(at).stage == Stage::Closing {
            return Err(closing());
        }
        self.may_expect(at, None, &expected)?;
        self.expect_users(at, &expected);
        match self.directory.get(at).stage {
            Stage::Granted | Stage::Closing | Stage::Stranded | Stage::Restoring => {
                Ok(self.wait(at, slot, id, Wants::Created))
            }
            Stage::Running => Ok(Some(self.created(at))),
        }
    }

    fn join(&mut self, slot: u32, id: RequestId, join: &Join) -> Verdict {
        let at = self.directory.find(join.instance);
        let at = at.ok_or_else(|| self.departed.refusal(join.instance))?;
        self.enter(at, slot, id, &BTreeSet::new())
    }

    /// One decision for the whole directory: two callers can't both find nothing and make two instances.
    fn join_or_create(
        &mut self,
        step: &mut Step<'_>,
        slot: u32,
        id: RequestId,
        join: &JoinOrCreate,
    ) -> Verdict {
        let JoinOrCreate { kind, key, filter, params, private, expected, .. } = join;
        filter.check()?;
        let mut expected: BTreeSet<&UserId> = expected.iter().collect();
        if let Some(user) = self.user_id(slot) {
            expected.remove(user);
        }
        let found = match key {
            // The key alone says which one.
            Some(key) => self.directory.by_key(kind, key),
            None => self.any(slot, kind, filter, &expected)?,
        };
        let at = match found {
            Some(at) => at,
            None => {
                if self.users.session(slot).seats.len() >= self.settings.seats_max {
                    return Err(self.seats_max());
                }
                let meets = key.is_none() && !private && !filter.is_empty();
                let filter = meets.then_some(filter);
                let (key, private, seats) = (key.as_ref(), *private, expected.len() + 1);
                self.grant(step, slot, Wanted { kind, key, params, private, filter, seats })?
            }
        };
        self.enter(at, slot, id, &expected)
    }

    /// An instance of the kind that the filter lets through, with seats for the caller and for who is expected: the one
    /// in which the caller has a seat or is expected, else the fullest, else one that is made for the same filter.
    fn any(
        &self,
        slot: u32,
        kind: &KindName,
        filter: &Filter,
        expected: &BTreeSet<&UserId>,
    ) -> Result<Option<At>, Refusal> {
        let has_room = |at: &At| {
            let wanted = self.seats_wanted(*at, Some(slot), expected);
            wanted == 0 || wanted <= usize::from(self.directory.get(*at).seats_free())
        };
        let is_made_for =
            |at: &At| self.directory.get(*at).wishes().filter.as_ref() == Some(filter);
        let compiled = if filter.is_empty() { None } else { Some(self.compile(kind, filter)?) };
        // What is only granted has not said yet what it is.
        let lets_through = |at: &At| {
            compiled.as_ref().is_none_or(|compiled| {
                self.directory.get(*at).stage == Stage::Running && self.lets_through(compiled, *at)
            })
        };
        let mut own = self.own(slot, kind).filter(|at| is_made_for(at) || lets_through(at));
        if let Some(at) = own.find(has_room) {
            return Ok(Some(at));
        }
        let found = match &compiled {
            None => self.directory.open(kind).take(LOOKED_MAX).find(has_room),
            Some(compiled) => self.open_matching(kind, compiled, has_room)?,
        };
        if let Some(at) = found {
            return Ok(Some(at));
        }
        let meet = self.meets.get(&(kind.clone(), filter.clone()));
        let met = meet.and_then(|id| self.directory.find(*id)).filter(|at| {
            let instance = self.directory.get(*at);
            instance.stage == Stage::Granted && !instance.suspect
        });
        Ok(met.filter(has_room))
    }

    fn leave(&mut self, slot: u32, leave: &Leave) -> Verdict {
        let session = self.users.session(slot).id;
        let at = self.directory.find(leave.instance);
        let seat = at.and_then(|at| Some((at, self.directory.get(at).seat_of(session)?)));
        let Some((at, seat)) = seat else {
            return Err(Refusal::new(
                Code::NotSeated,
                eco_format!("you have no seat in instance {}", leave.instance),
            ));
        };
        let refusal = Refusal::new(Code::Left, Code::Left.meaning());
        self.free_seat(at, seat, session, &refusal);
        Ok(Some(Outcome::Left(Left { instance: leave.instance })))
    }

    fn destroy_own(
        &mut self,
        step: &mut Step<'_>,
        slot: u32,
        id: RequestId,
        destroy: &Destroy,
    ) -> Verdict {
        let at = self.directory.find(destroy.instance);
        let at = at.ok_or_else(|| self.departed.refusal(destroy.instance))?;
        if self.directory.get(at).owner.as_ref() != self.user_id(slot) {
            return Err(Refusal::new(
                Code::Forbidden,
                "only the user who made an instance, or an operator, may close it",
            ));
        }
        let refusal = Refusal::new(Code::Destroyed, "its owner closed the instance");
        self.destroy(step, at, refusal);
        // One that ran nowhere is gone by now.
        if self.directory.find(destroy.instance) != Some(at) {
            return Ok(Some(Outcome::Destroyed(Destroyed { instance: destroy.instance })));
        }
        Ok(self.wait(at, slot, id, Wants::Destroyed))
    }

    /// A part of a rank board, as `session` asks. Changes nothing: it is read from the state as it is after the last
    /// command.
    pub fn rank(&self, rank: &Rank, session: SessionId) -> Outcome {
        self.ranking(rank, session).map_or_else(Outcome::Refused, Outcome::Ranking)
    }

    fn ranking(&self, rank: &Rank, session: SessionId) -> Result<Ranking, Refusal> {
        let Rank { board, part, limit } = rank;
        if !(1..=LIMIT_MAX).contains(limit) {
            return Err(Refusal::new(
                Code::LimitInvalid,
                eco_format!("a limit is 1 to {LIMIT_MAX}; this one is {limit}"),
            ));
        }
        if !is_board(board) {
            return Err(Refusal::new(Code::NameInvalid, BOARD_NAMES));
        }
        let unknown = |message| Refusal::new(Code::RankUnknown, message);
        let members = self.boards.members(board);
        let members = members.ok_or_else(|| unknown(eco_format!("there is no board {board:?}")))?;
        let limit = usize::from(*limit);
        let ranks = match part {
            RankPart::From(from) => self.boards.top(board, *from, limit).collect(),
            RankPart::Around(user) => {
                let caller = self.users.find(session).and_then(|slot| self.user_id(slot));
                let user = user.as_ref().or(caller).ok_or_else(|| {
                    Refusal::new(Code::SessionExpired, "the session is over: check in again")
                })?;
                let ranks = self.boards.around(board, user, (limit - 1) / 2);
                let text = || unknown(eco_format!("{user} is not on the board {board:?}"));
                ranks.ok_or_else(text)?.collect()
            }
        };
        Ok(Ranking { members: members as u64, ranks })
    }

    /// Grants an instance: it is in the directory from here on, and runs when a game server says so. There is no
    /// deadline: the grant ends with the game server's word or with the game server. To make the instance elsewhere
    /// before either would be to have it twice.
    fn grant(&mut self, step: &mut Step<'_>, slot: u32, wanted: Wanted<'_>) -> Result<At, Refusal> {
        let Wanted { kind, key, params, private, filter, seats } = wanted;
        let owner = self.user_id(slot).cloned();
        let (server, info) = self.place(kind)?;
        if seats > usize::from(info.seats_max) {
            let max = info.seats_max;
            return Err(Refusal::new(
                Code::InstanceFull,
                eco_format!("an instance of {kind:?} has {max} seats, and {seats} are wanted"),
            ));
        }
        let minted = step.mint.instance();
        let (instance, incarnation) = (minted.instance, minted.incarnation);
        let (weight, durable) = (info.weight, info.durable);
        let mut record = Instance::granted(instance, incarnation, server, info.seats_max, weight);
        record.owner.clone_from(&owner);
        record.key_set(key.cloned());
        record.private = private;
        record.durable_set(durable);
        record.created_ms = self.shown_ms();
        if let Some(filter) = filter {
            record.wish(|wishes| wishes.filter = Some(filter.clone()));
            self.meets.insert((kind.clone(), filter.clone()), instance);
        }
        let at = self.directory.insert(&mut self.ledger, kind, record);
        self.keep(at);
        let name = self.game_servers.get(server).peer.name.clone();
        self.facts.push(Fact::Granted(instance, kind.clone(), name, incarnation));
        self.game_servers.get_mut(server).add(instance, weight);
        let told = CreateInstance {
            instance,
            incarnation,
            kind: kind.clone(),
            params: params.clone(),
            seed: minted.seed,
            owner,
            key: key.cloned(),
            created_ms: self.shown_ms(),
            private,
            restore: None,
        };
        self.tell_game(server, told.into());
        Ok(at)
    }

    /// Gives the session a seat in the instance: the one that it has, or that is kept for its user, or a free one. It
    /// is reserved for it, and one is kept for each who is expected.
    fn enter(&mut self, at: At, slot: u32, id: RequestId, expected: &BTreeSet<&UserId>) -> Verdict {
        let session = self.users.session(slot).id;
        let instance = self.directory.get(at);
        if instance.stage == Stage::Closing {
            return Err(closing());
        }
        let seat = match instance.seat_of(session) {
            Some(seat) => seat,
            None => self.seat_for(at, slot)?,
        };
        self.may_expect(at, Some(slot), expected)?;
        let instance = self.directory.get(at);
        let is_ready = instance.stage == Stage::Running && !instance.is_vacating(seat);
        match instance.seat(seat).stage {
            SeatStage::Free | SeatStage::Expected | SeatStage::Reserved => {
                let reserved = self.now_ms.saturating_add(self.settings.reservation_ms);
                let until_ms = if is_ready { reserved } else { NEVER };
                let record = SeatRecord { stage: SeatStage::Reserved, session, until_ms };
                self.set_seat(at, seat, record);
            }
            SeatStage::Taken | SeatStage::Away => {}
        }
        self.expect_users(at, expected);
        Ok(if is_ready {
            Some(self.granted(at, seat))
        } else {
            self.wait(at, slot, id, Wants::Seat(seat))
        })
    }

    /// Whether a user has a seat there, or is expected.
    fn has_place(&self, at: At, user: &UserId) -> bool {
        let instance = self.directory.get(at);
        let session = self.users.find_user(user).map(|user| self.users.session(user.session).id);
        instance.seat_expecting(user).is_some()
            || session.is_some_and(|session| instance.seat_of(session).is_some())
    }

    /// How many free seats a session, if there is one, and the users who are expected need beside what they have.
    fn seats_wanted(&self, at: At, slot: Option<u32>, expected: &BTreeSet<&UserId>) -> usize {
        let own = slot.and_then(|slot| self.user_id(slot));
        let users = own.into_iter().chain(expected.iter().copied());
        users.filter(|user| !self.has_place(at, user)).count()
    }

    /// Whether seats can be kept for the users who are expected, beside the one of a session.
    fn may_expect(
        &self,
        at: At,
        slot: Option<u32>,
        expected: &BTreeSet<&UserId>,
    ) -> Result<(), Refusal> {
        if expected.iter().all(|user| self.has_place(at, user)) {
            return Ok(());
        }
        let instance = self.directory.get(at);
        if !instance.open {
            return Err(Refusal::new(Code::InstanceLocked, Code::InstanceLocked.meaning()));
        }
        let (wanted, free) = (self.seats_wanted(at, slot, expected), instance.seats_free());
        if wanted > usize::from(free) {
            return Err(Refusal::new(
                Code::InstanceFull,
                eco_format!("{wanted} seats are wanted; free are {free} of {}", instance.seats_max),
            ));
        }
        Ok(())
    }

    /// Keeps a seat for each who is expected and has none there.
    fn expect_users(&mut self, at: At, expected: &BTreeSet<&UserId>) {
        for &user in expected {
            if !self.has_place(at, user)
                && let Some(seat) = self.directory.get(at).seat_free()
            {
                self.expect_user(at, seat, user.clone());
            }
        }
    }

    /// A seat for a session that has none there: the one that is kept for its user, or a free one.
    fn seat_for(&self, at: At, slot: u32) -> Result<Seat, Refusal> {
        let instance = self.directory.get(at);
        let kept = self.user_id(slot).and_then(|user| instance.seat_expecting(user));
        if !instance.open && kept.is_none() {
            return Err(Refusal::new(Code::InstanceLocked, Code::InstanceLocked.meaning()));
        }
        if self.users.session(slot).seats.len() >= self.settings.seats_max {
            return Err(self.seats_max());
        }
        if self.game_servers.get(instance.server).peer.out().len() >= self.settings.stream_max {
            return Err(Refusal::new(
                Code::Busy,
                "the game server of the instance does not keep up; try again",
            ));
        }
        kept.or_else(|| instance.seat_free()).ok_or_else(|| {
            Refusal::new(
                Code::InstanceFull,
                eco_format!("every one of the {} seats is taken", instance.seats_max),
            )
        })
    }

    fn seats_max(&self) -> Refusal {
        Refusal::new(
            Code::SeatsMax,
            eco_format!("a session has at most {} seats: leave one first", self.settings.seats_max),
        )
    }

    /// The instances of the kind in which the session has a seat, then those in which its user is expected.
    fn own(&self, slot: u32, kind: &KindName) -> impl Iterator<Item = At> {
        let seated = self.users.session(slot).seats.iter().map(|(at, _)| *at);
        let from = self.user_id(slot).map(|user| (user.clone(), kind.clone(), InstanceId(0)));
        let expected = from.into_iter().flat_map(|from| {
            let to = (from.0.clone(), from.1.clone(), InstanceId(u128::MAX));
            self.expected.range(from..=to).filter_map(|(_, _, id)| self.directory.find(*id))
        });
        seated.chain(expected).filter(move |&at| {
            let instance = self.directory.get(at);
            // Who was on a server that is suspect wants to play on elsewhere.
            let may_be_soon = !matches!(instance.stage, Stage::Closing | Stage::Stranded);
            self.directory.kind(at) == kind && may_be_soon && !instance.suspect
        })
    }

    /// The request is answered when the instance runs, or is closed.
    fn wait(&mut self, at: At, slot: u32, id: RequestId, wants: Wants) -> Option<Outcome> {
        let session = self.users.session(slot).id;
        self.edit(at, |instance| instance.waiters_mut().push(Waiter { session, id, wants }));
        None
    }

    pub(crate) fn created(&self, at: At) -> Outcome {
        Outcome::Created(Created { instance: self.directory.get(at).id })
    }

    pub(crate) fn granted(&self, at: At, seat: Seat) -> Outcome {
        let instance = self.directory.get(at);
        let server = self.game_servers.get(instance.server);
        Outcome::Granted(Granted {
            instance: instance.id,
            kind: self.directory.kind(at).clone(),
            incarnation: instance.incarnation,
            seat,
            server: server.peer.name.clone(),
            address: server.address.clone(),
            durable: instance.durable(),
        })
    }

    fn user_id(&self, slot: u32) -> Option<&UserId> {
        self.users.session(slot).user().map(|user| &self.users.user(user).id)
    }
}

fn refused(code: Code, message: &str) -> Option<Outcome> {
    Some(Outcome::Refused(Refusal::new(code, message)))
}

fn closing() -> Refusal {
    Refusal::new(Code::InstanceClosed, "the instance is closing; ask again in a moment")
}
