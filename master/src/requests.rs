//! Requests of clients that wait for their answers: how long they take, and the spans of those that are sampled.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use greenroom_protocol::{RequestId, SessionId};
use greenroom_telemetry::Span;

/// Requests whose time is taken, at most; of more nobody takes it.
const REQUESTS_MAX: usize = 65_536;
/// One that has no answer after this time has lost it with its session.
const FORGET: Duration = Duration::from_secs(30);

/// What waits, by who asked.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    waiting: BTreeMap<(SessionId, RequestId), Waiting>,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    /// Ends when it is dropped.
    span: Option<Span>,
}

impl Requests {
    /// A request has come. One that is asked again is the same.
    pub(crate) fn asked(&mut self, session: SessionId, id: RequestId, span: Option<Span>) {
        if let Some(known) = self.waiting.get_mut(&(session, id)) {
            known.span = span.or(known.span.take());
        } else if self.waiting.len() < REQUESTS_MAX {
            self.waiting.insert((session, id), Waiting { since: Instant::now(), span });
        }
    }

    /// A request is answered. Gives how long it took, and its span.
    pub(crate) fn answered(
        &mut self,
        session: SessionId,
        id: RequestId,
    ) -> Option<(Duration, Option<Span>)> {
        let Waiting { since, span } = self.waiting.remove(&(session, id))?;
        Some((since.elapsed(), span))
    }

    /// Forgets what will have no answer from here.
    pub(crate) fn sweep(&mut self) {
        self.waiting.retain(|_, waiting| waiting.since.elapsed() < FORGET);
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
        requests.asked(session, id, None);
        requests.asked(session, id, None);
        assert!(requests.answered(session, id).is_some());
        assert!(requests.answered(session, id).is_none());
    }
}
