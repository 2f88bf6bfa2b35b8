//! What clients ask for: check-in, and the verbs of the directory.

use ecow::eco_format;
use greenroom_protocol::wire::client_session::{
    Create, Created, Destroy, Found, Join, JoinOrCreate, Leave, Left, Listed, Request, Search,
};
use greenroom_protocol::wire::master_game::CreateInstance;
use greenroom_protocol::wire::server_server::Role;
use greenroom_protocol::wire::session_master::{
    Answer, Bind, BindRefused, Bound, EndSession, Granted, Outcome,
};
use greenroom_protocol::{
    Code, Generation, Key, KindName, Refusal, RequestId, Seat, SessionId, UserId,
};

use crate::command::{Effect, Origin};
use crate::deadlines::NEVER;
use crate::directory::{At, Instance, SeatRecord, SeatStage, Stage, Waiter, Wants};
use crate::servers::SessionSlot;
use crate::state::{State, Step};
use crate::users::{Life, Session};

/// What becomes of a request at once: an outcome, or nothing yet, since an instance has to run or to close first.
type Verdict = Result<Option<Outcome>, Refusal>;

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
                self.users.session_mut(slot).bound_by = Some(bind.number);
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
        let session = Session::new(id, Some(bind.session_key), Generation(1));
        let slot = self.users.insert(session, &bind.user, bind.name.clone());
        self.rebind(slot, server);
        Ok(slot)
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
            self.session_servers.get_mut(before).peer.out.push(told.into());
        }
        self.users.rename(user, &bind.name);
        let generation = &mut self.users.session_mut(slot).generation;
        *generation = Generation(generation.0.saturating_add(1));
        self.rebind(slot, server);
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
        let requests = &mut self.users.session_mut(slot).requests;
        if let Some(known) = requests.get(id) {
            return known.clone();
        }
        if id <= requests.answered.max(answered) {
            return refused(Code::Stale, Code::Stale.meaning());
        }
        requests.forget(answered);
        if requests.known.len() >= requests_max {
            return Some(Outcome::Refused(Refusal::new(
                Code::Busy,
                eco_format!("at most {requests_max} requests may be under way"),
            )));
        }
        // Known from here on, so that an instance may already write its outcome.
        requests.known.push((id, None));
        let verdict = match request {
            Request::Create(create) => self.create(step, slot, id, create),
            Request::Join(join) => self.join(slot, id, join),
            Request::JoinOrCreate(join) => self.join_or_create(step, slot, id, join),
            Request::Leave(leave) => self.leave(slot, leave),
            Request::Destroy(destroy) => self.destroy_own(slot, id, destroy),
            Request::Search(search) => Ok(Some(self.search(search))),
            Request::Watch(_) | Request::Unwatch(_) | Request::Rank(_) => {
                Err(Refusal::new(Code::UnexpectedKind, Code::UnexpectedKind.meaning()))
            }
            Request::Unknown(kind) => Err(Refusal::new(
                Code::UnexpectedKind,
                eco_format!("{kind:#04x} is no request of this version of the protocol"),
            )),
        };
        let outcome = verdict.unwrap_or_else(|refusal| Some(Outcome::Refused(refusal)))?;
        self.users.session_mut(slot).requests.decide(id, &outcome);
        Some(outcome)
    }

    fn create(
        &mut self,
        step: &mut Step<'_>,
        slot: u32,
        id: RequestId,
        create: &Create,
    ) -> Verdict {
        let Create { kind, key, params, .. } = create;
        let at = match key.as_ref().and_then(|key| self.directory.by_key(kind, key)) {
            Some(at) => at,
            None => self.grant(step, slot, kind, key.as_ref(), params)?,
        };
        match self.directory.get(at).stage {
            Stage::Granted => Ok(self.wait(at, slot, id, Wants::Created)),
            Stage::Running => Ok(Some(self.created(at))),
            Stage::Closing => Err(closing()),
        }
    }

    fn join(&mut self, slot: u32, id: RequestId, join: &Join) -> Verdict {
        let at = self.directory.find(join.instance);
        let at = at.ok_or_else(|| self.departed.refusal(join.instance))?;
        self.enter(at, slot, id)
    }

    /// One decision for the whole directory: two callers can't both find nothing and make two instances.
    fn join_or_create(
        &mut self,
        step: &mut Step<'_>,
        slot: u32,
        id: RequestId,
        join: &JoinOrCreate,
    ) -> Verdict {
        let JoinOrCreate { kind, key, params, .. } = join;
        let found = match key {
            Some(key) => self.directory.by_key(kind, key),
            // Who has a seat in such an instance comes back to it.
            None => self.seated(slot, kind).or_else(|| self.directory.open(kind).next()),
        };
        let at = match found {
            Some(at) => at,
            None => {
                if self.users.session(slot).seats.len() >= self.settings.seats_max {
                    return Err(self.seats_max());
                }
                self.grant(step, slot, kind, key.as_ref(), params)?
            }
        };
        self.enter(at, slot, id)
    }

    fn leave(&mut self, slot: u32, leave: &Leave) -> Verdict {
        let session = self.users.session(slot);
        let seat = session.seats.iter().find(|(instance, _)| *instance == leave.instance);
        let (Some(&(instance, seat)), Some(at)) = (seat, self.directory.find(leave.instance))
        else {
            return Err(Refusal::new(
                Code::NotSeated,
                eco_format!("you have no seat in instance {}", leave.instance),
            ));
        };
        let refusal = Refusal::new(Code::Left, Code::Left.meaning());
        self.free_seat(at, seat, session.id, &refusal);
        Ok(Some(Outcome::Left(Left { instance })))
    }

    fn destroy_own(&mut self, slot: u32, id: RequestId, destroy: &Destroy) -> Verdict {
        let at = self.directory.find(destroy.instance);
        let at = at.ok_or_else(|| self.departed.refusal(destroy.instance))?;
        if self.directory.get(at).owner.as_ref() != self.user_id(slot) {
            return Err(Refusal::new(
                Code::Forbidden,
                "only the user who made an instance, or an operator, may close it",
            ));
        }
        self.destroy(at, Refusal::new(Code::Destroyed, "its owner closed the instance"));
        Ok(self.wait(at, slot, id, Wants::Destroyed))
    }

    /// Instances of a kind that are running and open, by id. Changes nothing: it is read from the state as it is
    /// after the last command, and so sees every write that was acknowledged before.
    pub fn search(&self, search: &Search) -> Outcome {
        const LIMIT_MAX: u16 = 100;
        if search.limit == 0 || search.limit > LIMIT_MAX {
            return Outcome::Refused(Refusal::new(
                Code::Malformed,
                eco_format!("a limit is 1 to {LIMIT_MAX}; this one is {}", search.limit),
            ));
        }
        let found = self.directory.listed(&search.kind, None);
        let listed = |instance: &Instance| Listed {
            instance: instance.id,
            seats_taken: instance.seats_taken(),
            seats_max: instance.seats_max,
            created_ms: instance.created_ms,
            meta: instance.meta.clone(),
        };
        let instances = found.take(usize::from(search.limit)).map(listed).collect();
        Outcome::Found(Found { instances, cursor: None, explain: None })
    }

    /// Grants an instance: it is in the directory from here on, and runs when a game server says so. There is no
    /// deadline: the grant ends with the game server's word or with the game server. To make the instance elsewhere
    /// before either would be to have it twice.
    fn grant(
        &mut self,
        step: &mut Step<'_>,
        slot: u32,
        kind: &KindName,
        key: Option<&Key>,
        params: &greenroom_protocol::wire::Opaque,
    ) -> Result<At, Refusal> {
        let owner = self.user_id(slot).cloned();
        let (server, info) = self.game_servers.place(kind, self.settings.stream_max)?;
        let minted = step.mint.instance();
        let (instance, incarnation) = (minted.instance, minted.incarnation);
        let mut record =
            Instance::granted(instance, incarnation, server, info.seats_max, info.weight);
        record.owner.clone_from(&owner);
        record.key = key.cloned();
        record.created_ms = self.now_ms;
        let at = self.directory.insert(kind, record);
        let server = self.game_servers.get_mut(server);
        server.instances.insert(instance);
        let told = CreateInstance {
            instance,
            incarnation,
            kind: kind.clone(),
            params: params.clone(),
            seed: minted.seed,
            owner,
            key: key.cloned(),
            created_ms: self.now_ms,
            private: false,
        };
        server.peer.out.push(told.into());
        Ok(at)
    }

    /// Gives the session a seat in the instance: the one that it has, or a free one, reserved for it.
    fn enter(&mut self, at: At, slot: u32, id: RequestId) -> Verdict {
        let session = self.users.session(slot).id;
        let instance = self.directory.get(at);
        if instance.stage == Stage::Closing {
            return Err(closing());
        }
        let seat = match instance.seat_of(session) {
            Some(seat) => seat,
            None => self.seat_for(at, slot)?,
        };
        let instance = self.directory.get(at);
        let is_ready = instance.stage == Stage::Running && !instance.is_vacating(seat);
        let record = instance.seat(seat);
        if record.is_free() || record.stage == SeatStage::Reserved {
            let reserved = self.now_ms.saturating_add(self.settings.reservation_ms);
            let until_ms = if is_ready { reserved } else { NEVER };
            self.set_seat(at, seat, SeatRecord { stage: SeatStage::Reserved, session, until_ms });
        }
        Ok(if is_ready {
            Some(self.granted(at, seat))
        } else {
            self.wait(at, slot, id, Wants::Seat(seat))
        })
    }

    /// A seat for a session that has none there.
    fn seat_for(&self, at: At, slot: u32) -> Result<Seat, Refusal> {
        let instance = self.directory.get(at);
        if !instance.open {
            return Err(Refusal::new(Code::InstanceLocked, Code::InstanceLocked.meaning()));
        }
        if self.users.session(slot).seats.len() >= self.settings.seats_max {
            return Err(self.seats_max());
        }
        if self.game_servers.get(instance.server).peer.out.len() >= self.settings.stream_max {
            return Err(Refusal::new(
                Code::Busy,
                "the game server of the instance does not keep up; try again",
            ));
        }
        instance.seat_free().ok_or_else(|| {
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

    /// The instance of the kind in which the session has a seat.
    fn seated(&self, slot: u32, kind: &KindName) -> Option<At> {
        let seats = self.users.session(slot).seats.iter();
        let mut instances = seats.filter_map(|(instance, _)| self.directory.find(*instance));
        instances.find(|&at| {
            let instance = self.directory.get(at);
            // Who was on a server that is suspect wants to play on elsewhere.
            self.directory.kind(at) == kind && instance.stage != Stage::Closing && !instance.suspect
        })
    }

    /// The request is answered when the instance runs, or is closed.
    fn wait(&mut self, at: At, slot: u32, id: RequestId, wants: Wants) -> Option<Outcome> {
        let session = self.users.session(slot).id;
        self.directory.edit(at, |instance| instance.waiters.push(Waiter { session, id, wants }));
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
