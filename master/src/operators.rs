//! What operators ask of this master, and those who wait for an answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ecow::{EcoString, eco_format};
use greenroom_master_core::Command;
use greenroom_master_core::replica::{self as pair, Role};
use greenroom_protocol::wire::admin_master::{MasterStatus, Promote, Status, WitnessStatus};
use greenroom_protocol::wire::master_game::{Measured, Measures};
use greenroom_protocol::wire::server_server::Identity;
use greenroom_protocol::{Code, InstanceId, Refusal};
use tokio::sync::oneshot;

use crate::handle::Question;
use crate::sequencer::{NOT_NOW, Sequencer};

/// How long an operator waits for another role: less than tools wait for an answer, so that they hear why.
const CHANGE_MAX: Duration = Duration::from_secs(8);

/// Who may wait for how an instance is doing; one more is told without it.
const MEASURING_MAX: usize = 64;

type Answer = oneshot::Sender<Result<(), Refusal>>;

/// A change of roles that somebody waits for.
#[derive(Debug)]
struct Change {
    answer: Answer,
    wanted: Wanted,
    until: Instant,
}

/// What is to become of the roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// The standby decides.
    Switchover,
    /// This master decides. It tries once it knows the witness's record: by an older one its attempt is lost.
    Promotion(Promote),
    /// The same, and it tries.
    Promoted,
}

/// Operators that wait.
#[derive(Debug, Default)]
pub(crate) struct Operators {
    /// By the number of the action.
    acting: BTreeMap<u64, Answer>,
    actions: u64,
    changes: Vec<Change>,
    /// Who waits for how an instance is doing.
    measuring: Vec<(InstanceId, oneshot::Sender<Measures>)>,
    /// The witness has said in this life what its record is.
    pub(crate) knows_record: bool,
}

impl Operators {
    pub(crate) fn counting_from(actions: u64) -> Self {
        Self { actions, ..Self::default() }
    }

    /// Whether somebody waits for the standby to decide.
    pub(crate) fn want_switchover(&self) -> bool {
        self.changes.iter().any(|change| change.wanted == Wanted::Switchover)
    }

    /// What became of an action. An action of another master's operator is nobody's here.
    pub(crate) fn acted(&mut self, number: u64, result: Result<(), Refusal>) {
        if let Some(operator) = self.acting.remove(&number) {
            // Who asked may have gone: then nobody misses the answer.
            let _gone = operator.send(result);
        }
    }

    /// A game server says how an instance is doing.
    pub(crate) fn measured(&mut self, measured: Measured) {
        for (_, answer) in self.measuring.extract_if(.., |(of, _)| *of == measured.instance) {
            // Who asked may have gone: then nobody misses the answer.
            let _gone = answer.send(measured.measures);
        }
    }

    /// This master decides no more: nobody will hear what becomes of an action.
    pub(crate) fn step_down(&mut self) {
        for (_, operator) in std::mem::take(&mut self.acting) {
            let text = "who decides has changed meanwhile; see whether it was done, and try again";
            let _gone = operator.send(Err(Refusal::new(Code::Unavailable, text)));
        }
    }
}

fn unavailable(text: impl Into<EcoString>) -> Refusal {
    Refusal::new(Code::Unavailable, text.into())
}

impl Sequencer {
    pub(crate) fn ask(&mut self, question: Question) {
        match question {
            Question::Status(answer) => {
                // Who asked may have gone: then nobody misses the answer.
                let _gone = answer.send(self.status());
            }
            Question::Find(find, answer) => match self.decides() {
                Ok(()) => self.find(find, answer),
                Err(refusal) => {
                    let _gone = answer.send(Err(refusal));
                }
            },
            Question::Instance(id, answer) => {
                let instance = self.decides().and_then(|()| self.state().instance_status(id));
                let _gone = answer.send(instance);
            }
            Question::Measure(id, answer) => {
                // Without a game server that could say it, the answer is dropped, and with it the question.
                if let Some(server) = self.core.state().runs_on(id).cloned()
                    && self.measure(&server, id)
                {
                    let measuring = &mut self.operators.measuring;
                    measuring.retain(|(_, answer)| !answer.is_closed());
                    if measuring.len() < MEASURING_MAX {
                        measuring.push((id, answer));
                    }
                }
            }
            Question::Placement(kind, answer) => {
                let placement = self.decides().and_then(|()| self.state().explain_placement(&kind));
                let _gone = answer.send(placement);
            }
            Question::Act(action, answer) => match self.decides() {
                Ok(()) => {
                    self.operators.actions = self.operators.actions.wrapping_add(1);
                    let number = self.operators.actions;
                    self.operators.acting.insert(number, answer);
                    tracing::info!(?action, "an operator acts");
                    self.submit(Command::Act { number, action });
                }
                Err(refusal) => {
                    let _gone = answer.send(Err(refusal));
                }
            },
            Question::Switchover(answer) => match self.may_switch_over() {
                Ok(()) => {
                    tracing::info!("an operator wants the standby to be the active");
                    self.wait_for(answer, Wanted::Switchover);
                    self.prepare_switchover();
                }
                Err(refusal) => {
                    let _gone = answer.send(Err(refusal));
                }
            },
            Question::Promote(promote, answer) => {
                if !self.operators.knows_record {
                    tracing::info!("an operator's promotion waits until the witness has answered");
                }
                self.wait_for(answer, Wanted::Promotion(promote));
                self.look_at_changes();
            }
        }
    }

    fn wait_for(&mut self, answer: Answer, wanted: Wanted) {
        let until = Instant::now() + CHANGE_MAX;
        self.operators.changes.push(Change { answer, wanted, until });
    }

    /// Tells operators that wait for another role, and begins what can begin by now.
    pub(crate) fn look_at_changes(&mut self) {
        for mut change in std::mem::take(&mut self.operators.changes) {
            let role = self.core.role();
            let result = match (change.wanted, role) {
                (Wanted::Promotion(Promote { accept_loss }), _) if self.operators.knows_record => {
                    let may = self.may_be_promoted(accept_loss);
                    if may.is_ok() {
                        tracing::warn!(accept_loss, "an operator makes this master the active");
                        change.wanted = Wanted::Promoted;
                        self.feed(pair::Input::Promote { accept_loss });
                        self.operators.changes.push(change);
                        continue;
                    }
                    may
                }
                (Wanted::Promoted, Role::Solo | Role::Paired)
                | (Wanted::Switchover, Role::Recovering | Role::Learner | Role::Standby) => Ok(()),
                (Wanted::Switchover, Role::Solo) if !self.core.is_handing_over() => {
                    Err(unavailable("the standby was lost meanwhile: this master goes on"))
                }
                _ if Instant::now() > change.until => Err(unavailable(
                    "the roles did not change in 8 s: is the witness there? `greenroom status` tells",
                )),
                (Wanted::Switchover | Wanted::Promotion(_) | Wanted::Promoted, _) => {
                    self.operators.changes.push(change);
                    continue;
                }
            };
            let _gone = change.answer.send(result);
        }
    }

    /// Whether this master answers for the cluster.
    fn decides(&self) -> Result<(), Refusal> {
        if self.serving {
            return Ok(());
        }
        let text = match self.core.role() {
            Role::Standby => "this master is the standby: ask the active one's admin port",
            Role::Learner | Role::Recovering => {
                "this master does not decide: ask the other one's admin port, or see `greenroom status`"
            }
            Role::Paired | Role::Solo | Role::Blocked => NOT_NOW,
        };
        Err(unavailable(text))
    }

    fn may_switch_over(&self) -> Result<(), Refusal> {
        self.decides()?;
        match self.core.role() {
            Role::Paired if self.peer.is_some() => Ok(()),
            Role::Paired => Err(unavailable(
                "there is no standby just now: the link to it is lost; `greenroom status` shows whether it comes back",
            )),
            Role::Solo if self.has_peer => Err(unavailable(
                "there is no standby that has everything: `greenroom status` shows how far it is",
            )),
            Role::Solo => Err(unavailable("this master is alone: `[master] peer` names no other")),
            Role::Recovering | Role::Learner | Role::Standby | Role::Blocked => {
                Err(unavailable(NOT_NOW))
            }
        }
    }

    fn may_be_promoted(&self, accept_loss: bool) -> Result<(), Refusal> {
        match self.core.role() {
            Role::Paired | Role::Solo => Err(unavailable("this master is the active already")),
            Role::Blocked => Err(unavailable(
                "this master decided and must find out whether it still does: it waits for the witness",
            )),
            _ if self.core.hears_active() && self.peer.is_some() => Err(unavailable(
                "the other master is the active and alive: use `greenroom switchover` there",
            )),
            Role::Standby => Ok(()),
            Role::Learner | Role::Recovering if accept_loss => Ok(()),
            Role::Learner | Role::Recovering => {
                let lsn = self.core.last().lsn;
                Err(unavailable(eco_format!(
                    "this master may lack what the other one has acknowledged: it has {lsn} commands, and by the \
                     witness's record it is not the standby. Start the other one, or add --force to go on without \
                     what is only there: players may lose what they were told was done"
                )))
            }
        }
    }

    fn status(&self) -> Status {
        let state = self.state();
        Status {
            cluster: self.cluster.clone(),
            masters: std::iter::once(self.this_status()).chain(self.other_status()).collect(),
            sessions: state.session_status(),
            games: state.game_status(),
            users: state.users(),
            instances: state.instances(),
            twins: state.twins(),
            witness: Some(WitnessStatus {
                place: self.witness_place.clone(),
                answers: !self.troubles.contains_key("witness"),
            }),
            kinds: state.kind_status(),
        }
    }

    fn this_status(&self) -> MasterStatus {
        let me = self.core.me();
        let role = self.core.role();
        let rec = self.core.rec();
        let (lsn, commit) = (self.core.last().lsn, self.core.commit());
        let is_active = matches!(role, Role::Paired | Role::Solo | Role::Blocked);
        MasterStatus {
            name: self.name.clone(),
            side: eco_format!("{}", me.side),
            role: text(role).into(),
            incarnation: me.incarnation,
            epoch: eco_format!("{}", self.core.seen()),
            lsn,
            commit,
            lag: if is_active { 0 } else { commit.saturating_sub(lsn) },
            in_sync: rec.is_some_and(|rec| rec.holder == me || rec.peer == Some(me)),
            troubles: self.troubles.values().map(EcoString::from).collect(),
        }
    }

    /// The other master, as far as it is known here.
    fn other_status(&self) -> Option<MasterStatus> {
        let rec = self.core.rec();
        let (Identity { name, incarnation, .. }, _) = self.peer.as_ref()?;
        let is_it = |master: pair::Master| master.incarnation == *incarnation;
        let is_holder = rec.is_some_and(|rec| is_it(rec.holder));
        let in_sync = is_holder || rec.and_then(|rec| rec.peer).is_some_and(is_it);
        let (last, commit) = (self.core.last().lsn, self.core.commit());
        // A standby knows of the active what it was told last.
        let lsn = match self.core.following() {
            Some((master, acked)) if is_it(master) => acked,
            Some(_) | None if self.serving => 0,
            Some(_) | None => commit,
        };
        let role = match (is_holder, in_sync) {
            (true, _) => "active",
            (false, true) => "standby",
            (false, false) => "learner",
        };
        Some(MasterStatus {
            name: name.clone(),
            side: eco_format!("{}", self.core.me().side.other()),
            role: role.into(),
            incarnation: *incarnation,
            epoch: eco_format!("{}", self.core.seen()),
            lsn,
            commit: lsn.min(commit),
            lag: if self.serving { last.saturating_sub(lsn) } else { 0 },
            in_sync,
            troubles: Vec::new(),
        })
    }
}

fn text(role: Role) -> &'static str {
    match role {
        Role::Recovering => "recovering",
        Role::Learner => "learner",
        Role::Standby => "standby",
        Role::Paired | Role::Solo => "active",
        Role::Blocked => "blocked",
    }
}
