//! Requests of clients that wait for their answers: how long they took, for the metrics.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use greenroom_protocol::{RequestId, SessionId};

/// Requests whose time is taken, at most; of more nobody takes it.
const REQUESTS_MAX: usize = 65_536;
/// One that has no answer after this time has lost it with its session.
const FORGET: Duration = Duration::from_secs(30);

/// What waits, by who asked.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    waiting: BTreeMap<(SessionId, RequestId), Instant>,
}

impl Requests {
    /// A request has come. One that is asked again is the same.
    pub(crate) fn asked(&mut self, session: SessionId, id: RequestId) {
        if self.waiting.len() < REQUESTS_MAX {
            self.waiting.entry((session, id)).or_insert_with(Instant::now);
        }
    }

    /// A request is answered. Gives how long it took.
    pub(crate) fn answered(&mut self, session: SessionId, id: RequestId) -> Option<Duration> {
        Some(self.waiting.remove(&(session, id))?.elapsed())
    }

    /// Forgets what will have no answer from here.
    pub(crate) fn sweep(&mut self) {
        self.waiting.retain(|_, since| since.elapsed() < FORGET);
    }

    /// This master decides no more: others answer.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_asked_twice_is_answered_once() {
        let mut requests = Requests::default();
        let (session, id) = (SessionId(1), RequestId(7));
        requests.asked(session, id);
        requests.asked(session, id);
        assert!(requests.answered(session, id).is_some());
        assert!(requests.answered(session, id).is_none());
    }
}
