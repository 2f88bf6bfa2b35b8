//! Requests of clients that wait for their answers: how long they take, and the spans of those that are sampled.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use greenroom_protocol::{RequestId, ServerName, SessionId};
use greenroom_telemetry::Span;

/// Requests whose time is taken, at most; of more nobody takes it.
const REQUESTS_MAX: usize = 65_536;
/// Check-ins that are sampled and wait for their answers, at most; of more there is no span.
const CHECK_INS_MAX: usize = 1_024;
/// One that has no answer after this time has lost it with its session.
const FORGET: Duration = Duration::from_secs(30);

/// What waits, by who asked.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    waiting: BTreeMap<(SessionId, RequestId), Waiting>,
    /// Check-ins that are sampled, by their session server and its number.
    check_ins: BTreeMap<(ServerName, u64), (Instant, Span)>,
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

    /// Somebody checks in, and that is sampled.
    pub(crate) fn checks_in(&mut self, server: ServerName, number: u64, span: Span) {
        if self.check_ins.len() < CHECK_INS_MAX {
            self.check_ins.insert((server, number), (Instant::now(), span));
        }
    }

    /// A check-in is answered. Gives its span, if it is sampled.
    #[inline]
    pub(crate) fn checked_in(&mut self, server: &ServerName, number: u64) -> Option<Span> {
        if self.check_ins.is_empty() {
            return None;
        }
        self.check_ins.remove(&(server.clone(), number)).map(|(_, span)| span)
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
        self.check_ins.retain(|_, (since, _)| since.elapsed() < FORGET);
    }

    /// This master decides no more: others answer.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
        self.check_ins.clear();
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
