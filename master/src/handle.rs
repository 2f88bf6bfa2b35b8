use greenroom_protocol::wire::admin_master::{Action, Status};
use greenroom_protocol::{Code, Refusal};
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait for the sequencer. An operator waits for each, so more would only be older.
pub(crate) const QUESTIONS_MAX: usize = 64;

/// What is asked through a [`MasterHandle`].
#[derive(Debug)]
pub(crate) enum Question {
    Status(oneshot::Sender<Status>),
    Act(Action, oneshot::Sender<Result<(), Refusal>>),
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

    /// Does what an operator wants.
    ///
    /// # Errors
    /// Why not, by name; `Busy` and `Unavailable` as for [`MasterHandle::status`].
    pub async fn act(&self, action: Action) -> Result<(), Refusal> {
        let (answer, result) = oneshot::channel();
        self.ask(Question::Act(action, answer))?;
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
