//! What waits for a lane: operations that were taken, and answers of the store.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::backend::Completion;
use crate::lane::Submitted;

/// What other threads give a lane, which takes all of it at once: a lane that is at work is not woken, and a sleeping
/// one by the first that comes.
///
/// It has no bound of its own: operations have a place in the queue before they come here, and there is one answer for
/// each job under way.
#[derive(Debug)]
pub(crate) struct Inbox(Mutex<Waiting>);

#[derive(Debug)]
struct Waiting {
    arrived: VecDeque<Submitted>,
    completed: Vec<Completion>,
    is_open: bool,
    /// The lane's, if it sleeps.
    sleeper: Option<Waker>,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Waiting {
            arrived: VecDeque::new(),
            completed: Vec::new(),
            is_open: true,
            sleeper: None,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing is done under this lock that could panic half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the lane an operation; back, if it takes none any more.
    pub(crate) fn submit(&self, submitted: Submitted) -> Result<(), Submitted> {
        let mut waiting = self.lock();
        if !waiting.is_open {
            return Err(submitted);
        }
        waiting.arrived.push_back(submitted);
        wake(waiting);
        Ok(())
    }

    /// Gives the lane answers.
    pub(crate) fn complete(&self, completed: impl IntoIterator<Item = Completion>) {
        let mut waiting = self.lock();
        waiting.completed.extend(completed);
        wake(waiting);
    }

    /// Refuses operations from now on.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.is_open = false;
        wake(waiting);
    }

    /// Closes it for good, and gives back what nobody takes any more.
    pub(crate) fn end(&self) -> VecDeque<Submitted> {
        let mut waiting = self.lock();
        waiting.is_open = false;
        std::mem::take(&mut waiting.arrived)
    }

    /// Takes what is there, behind what is in `arrived` and `completed`. Pending, if there is nothing, and nothing new
    /// about whether the inbox is open: then the lane is woken when there is.
    pub(crate) fn poll_take(
        &self,
        context: &Context<'_>,
        arrived: &mut VecDeque<Submitted>,
        completed: &mut Vec<Completion>,
        is_open: &mut bool,
    ) -> Poll<()> {
        let mut waiting = self.lock();
        let is_there = !waiting.arrived.is_empty() || !waiting.completed.is_empty();
        if !is_there && waiting.is_open == *is_open {
            waiting.sleeper = Some(context.waker().clone());
            return Poll::Pending;
        }
        match arrived.is_empty() {
            true => std::mem::swap(arrived, &mut waiting.arrived),
            false => arrived.append(&mut waiting.arrived),
        }
        completed.append(&mut waiting.completed);
        *is_open = waiting.is_open;
        Poll::Ready(())
    }
}

fn wake(mut waiting: MutexGuard<'_, Waiting>) {
    let sleeper = waiting.sleeper.take();
    drop(waiting);
    if let Some(sleeper) = sleeper {
        sleeper.wake();
    }
}
