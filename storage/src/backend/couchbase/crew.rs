//! The tasks that carry jobs out, each one job after another, and what they have for it.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::backend::Job;

/// How long tasks must have had nothing to do until they end: at the first job after that.
const SPARE: Duration = Duration::from_secs(10);

/// Tasks that wait for jobs. A job is carried out by large futures, the SDK's above all, whose memory a task keeps for
/// its next job. There are as many tasks as there were jobs under way at once.
#[derive(Debug)]
pub(super) struct Crew(Mutex<State>);

#[derive(Debug)]
struct State {
    /// For each of these a task has been woken, or is being made.
    jobs: VecDeque<Job>,
    /// Every task, with its waker if it has nothing to do.
    tasks: Slab<Option<Waker>>,
    /// Those with nothing to do; who came last is woken first.
    idle: Vec<usize>,
    /// The fewest that had nothing to do at once since `since`.
    spare: usize,
    since: Instant,
    /// So many are to end.
    ending: usize,
    is_closed: bool,
}

impl State {
    fn wake(&mut self, number: usize) {
        if let Some(waker) = self.tasks[number].take() {
            waker.wake();
        }
    }
}

impl Crew {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            jobs: VecDeque::new(),
            tasks: Slab::new(),
            idle: Vec::new(),
            spare: 0,
            since: Instant::now(),
            ending: 0,
            is_closed: false,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is done under this lock that could panic half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes jobs, and gives the places of tasks that are to be made, since there are not enough.
    pub(super) fn begin(self: &Arc<Self>, jobs: Vec<Job>) -> Vec<Place> {
        let mut state = self.lock();
        let mut places = Vec::new();
        for job in jobs {
            state.jobs.push_back(job);
            match state.idle.pop() {
                Some(number) => state.wake(number),
                None => {
                    let number = state.tasks.insert(None);
                    places.push(Place { crew: Arc::clone(self), number });
                }
            }
        }
        state.spare = state.spare.min(state.idle.len());
        let now = Instant::now();
        if now.saturating_duration_since(state.since) >= SPARE {
            // Those that have had nothing to do for longest.
            let spare: Vec<usize> = (0..state.spare).map(|place| state.idle[place]).collect();
            state.idle.drain(..spare.len());
            state.ending += spare.len();
            spare.into_iter().for_each(|number| state.wake(number));
            state.spare = state.idle.len();
            state.since = now;
        }
        places
    }

    /// Lets each task end when there is nothing more to do.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        while let Some(number) = state.idle.pop() {
            state.wake(number);
        }
    }
}

/// The place of one task in the crew.
pub(super) struct Place {
    crew: Arc<Crew>,
    number: usize,
}

impl Place {
    /// The next job; none, when the task is to end.
    pub(super) async fn next(&self) -> Option<Job> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&self, context: &Context<'_>) -> Poll<Option<Job>> {
        let mut state = self.crew.lock();
        if state.tasks[self.number].is_some() {
            // Woken by what it waited for in its last job.
            return Poll::Pending;
        }
        if let Some(job) = state.jobs.pop_front() {
            return Poll::Ready(Some(job));
        }
        if state.is_closed {
            return Poll::Ready(None);
        }
        if state.ending > 0 {
            state.ending -= 1;
            return Poll::Ready(None);
        }
        state.tasks[self.number] = Some(context.waker().clone());
        state.idle.push(self.number);
        Poll::Pending
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.crew.lock();
        state.tasks.remove(self.number);
        state.idle.retain(|number| *number != self.number);
    }
}

/// A timer for one call after another. It is left as it is where it is early enough: to be woken in vain once in a
/// while costs less than to set a timer for each call, and to take it back.
pub(super) struct Alarm {
    timer: Pin<Box<Sleep>>,
    set: Option<Instant>,
}

impl Alarm {
    pub(super) fn new() -> Self {
        Self { timer: Box::pin(sleep_until(Instant::now())), set: None }
    }

    /// Does the work, until `limit`; then there is nothing.
    pub(super) async fn until<T>(
        &mut self,
        limit: Instant,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        if self.set.is_none_or(|set| limit < set) {
            self.set(limit);
        }
        poll_fn(|context| {
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(Some(done));
            }
            while self.timer.as_mut().poll(context).is_ready() {
                if Instant::now() >= limit {
                    self.set = None;
                    return Poll::Ready(None);
                }
                self.set(limit);
            }
            Poll::Pending
        })
        .await
    }

    fn set(&mut self, at: Instant) {
        self.timer.as_mut().reset(at);
        self.set = Some(at);
    }
}
