//! Refusals as events: who was turned away, and why.

use std::{cell::Cell, net::IpAddr};

use greenroom_logs::{
    Logs,
    kinds::{CheckInRefused, SecurityRefusal},
};
use greenroom_protocol::{Code, Moment, Refusal, SessionId, TraceContext, UserId};

/// Refusals of one second that are told one by one. Strangers decide how many there are, and the log has to have room
/// for other things; what is left out is counted in the next one that is told.
const A_SECOND_MAX: u32 = 100;

#[derive(Debug)]
pub(crate) struct Refusals {
    logs: Logs,
    /// The present second, and how many were told in it.
    told: Cell<(u64, u32)>,
    left_out: Cell<u64>,
}

impl Refusals {
    pub(crate) fn new(logs: Logs) -> Self {
        Self { logs, told: Cell::default(), left_out: Cell::default() }
    }

    /// Tells that a client was turned away. `holder` is whose it was, if it was checked in; `trace` is of its check-in,
    /// if that is sampled.
    pub(crate) fn tell(
        &self,
        now: Moment,
        address: Option<IpAddr>,
        holder: Option<&(UserId, SessionId)>,
        refusal: &Refusal,
        trace: Option<TraceContext>,
    ) {
        // The course of things, which the master tells of as far as it matters.
        if holder.is_some() && !is_offence(&refusal.code) {
            return;
        }
        let second = now.0 / 1_000;
        let (of, told) = self.told.get();
        let told = if of == second { told } else { 0 };
        if told >= A_SECOND_MAX {
            return self.left_out.set(self.left_out.get() + 1);
        }
        self.told.set((second, told + 1));
        let left_out = self.left_out.take();
        let code = refusal.code.name().into();
        let logs = match trace {
            Some(trace) => &self.logs.within(trace),
            None => &self.logs,
        };
        match holder {
            Some((user, session)) => logs.emit(&SecurityRefusal {
                user: user.clone(),
                session: *session,
                code,
                text: refusal.message.clone(),
                address,
                left_out,
            }),
            None => logs.emit(&CheckInRefused { code, address, left_out }),
        }
    }
}

/// Whether somebody who was checked in went over limits, or spoke no protocol.
fn is_offence(code: &Code) -> bool {
    matches!(
        code,
        Code::Malformed
            | Code::TooLarge
            | Code::UnexpectedKind
            | Code::NotCheckedIn
            | Code::RateLimited
            | Code::SlowConsumer
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use greenroom_logs::{
        LogWriter, LogsConfig,
        read::{From, Reader},
    };

    use super::*;

    #[test]
    fn a_flood_of_refusals_fills_no_log_and_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let writer = LogWriter::start(&LogsConfig::default(), folder.path(), "s").unwrap();
        let refusals = Refusals::new(writer.logs().of("session-1", "session"));
        let refusal = Refusal::new(Code::RateLimited, "slower");
        for n in 0..1_000 {
            refusals.tell(Moment(5_000 + n % 900), None, None, &refusal, None);
        }
        let holder = (UserId::new("ann").unwrap(), SessionId(7));
        refusals.tell(Moment(6_000), None, Some(&holder), &refusal, None);
        let superseded = Refusal::new(Code::Superseded, "newer");
        refusals.tell(Moment(6_000), None, Some(&holder), &superseded, None);
        assert!(writer.logs().flush(Duration::from_secs(10)));
        let mut reader = Reader::open(folder.path(), From::Start).unwrap();
        let mut records = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            records.push(record);
        }
        assert_eq!(records.len(), 101);
        let last = records.last().unwrap().event();
        assert_eq!(last.kind, "security_refusal");
        assert_eq!(last.user.as_deref(), Some("ann"));
        assert!(last.fields.get().contains("\"left_out\":900"), "{}", last.fields.get());
    }
}
