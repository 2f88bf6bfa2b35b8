use std::time::Duration;

use greenroom_protocol::wire::admin_master::{
    Action, Find, InstanceStatus, Placement, Promote, Rows, Status,
};
use greenroom_protocol::wire::master_game::Measures;
use greenroom_protocol::{Code, InstanceId, KindName, Refusal};
use tokio::{
    sync::{mpsc, oneshot},
    time,
};

/// How long a game server may take to say how an instance is doing.
const MEASURE_MAX: Duration = Duration::from_millis(500);
/// Questions that may wait for the sequencer. An operator waits for each, so more would only be older.
pub(crate) const QUESTIONS_MAX: usize = 64;

/// What is asked through a [`MasterHandle`].
#[derive(Debug)]
pub(crate) enum Question {
    Status(oneshot::Sender<Status>),
    Find(Find, oneshot::Sender<Result<Rows, Refusal>>),
    Instance(InstanceId, oneshot::Sender<Result<InstanceStatus, Refusal>>),
    Measure(InstanceId, oneshot::Sender<Measures>),
    Placement(KindName, oneshot::Sender<Result<Placement, Refusal>>),
    Act(Action, oneshot::Sender<Result<(), Refusal>>),
    Switchover(oneshot::Sender<Result<(), Refusal>>),
    Promote(Promote, oneshot::Sender<Result<(), Refusal>>),
}

/// A way to ask a running master from any thread.
#[derive(Clone, Debug)]
pub struct MasterHandle {
    pub(crate) questions: mpsc::Sender<Question>,
}

impl MasterHandle {
    /// The cluster at a glance.
    ///
    /// # Errors
    /// `Busy` when too many ask at once, `Unavailable` when the master has stopped.
    pub async fn status(&self) -> Result<Status, Refusal> {
        let (answer, status) = oneshot::channel();
        self.ask(Question::Status(answer))?;
        status.await.map_err(|_| stopped())
    }

    /// Searches instances, users or servers, whatever clients may find.
    ///
    /// # Errors
    /// What is wrong with the search, by name; `Busy` and `Unavailable` as for [`MasterHandle::status`].
    pub async fn find(&self, find: Find) -> Result<Rows, Refusal> {
        let (answer, rows) = oneshot::channel();
        self.ask(Question::Find(find, answer))?;
        rows.await.map_err(|_| stopped())?
    }

    /// One instance with its seats, and how it is doing by the word of its game server.
    ///
    /// # Errors
    /// What became of one that is not there; `Busy` and `Unavailable` as for [`MasterHandle::status`].
    pub async fn instance(&self, id: InstanceId) -> Result<InstanceStatus, Refusal> {
        let (answer, instance) = oneshot::channel();
        self.ask(Question::Instance(id, answer))?;
        let (told, measures) = oneshot::channel();
        self.ask(Question::Measure(id, told))?;
        let instance = instance.await.map_err(|_| stopped())??;
        // One of an older build does not answer, nor one that hangs; what the directory knows is told all the same.
        let measures = time::timeout(MEASURE_MAX, measures).await;
        Ok(InstanceStatus { measures: measures.ok().and_then(Result::ok), ..instance })
    }

    /// How an instance of the kind would be placed now, and why.
    ///
    /// # Errors
    /// `KindUnknown`; `Busy` and `Unavailable` as for [`MasterHandle::status`].
    pub async fn placement(&self, kind: KindName) -> Result<Placement, Refusal> {
        let (answer, placement) = oneshot::channel();
        self.ask(Question::Placement(kind, answer))?;
        placement.await.map_err(|_| stopped())?
    }

    /// Does what an operator wants.
    ///
    /// # Errors
    /// Why not, by name; `Busy` and `Unavailable` as for [`MasterHandle::status`].
    pub async fn act(&self, action: Action) -> Result<(), Refusal> {
        let (answer, result) = oneshot::channel();
        self.ask(Question::Act(action, answer))?;
        result.await.map_err(|_| stopped())?
    }

    /// Makes the standby the active, and this master the standby.
    ///
    /// # Errors
    /// `Unavailable` with the reason, if there is no standby that has everything, or it was lost meanwhile.
    pub async fn switchover(&self) -> Result<(), Refusal> {
        let (answer, result) = oneshot::channel();
        self.ask(Question::Switchover(answer))?;
        result.await.map_err(|_| stopped())?
    }

    /// Makes this master the active, without the other.
    ///
    /// # Errors
    /// `Unavailable` with the reason: another one decides, or what was acknowledged might be lost and nobody has
    /// accepted that.
    pub async fn promote(&self, promote: Promote) -> Result<(), Refusal> {
        let (answer, result) = oneshot::channel();
        self.ask(Question::Promote(promote, answer))?;
        result.await.map_err(|_| stopped())?
    }

    fn ask(&self, question: Question) -> Result<(), Refusal> {
        self.questions.try_send(question).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Refusal::new(Code::Busy, "too many operators ask at once; try again")
            }
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })
    }
}

fn stopped() -> Refusal {
    Refusal::new(Code::Unavailable, "the master has stopped")
}
