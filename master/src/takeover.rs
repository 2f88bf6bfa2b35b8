//! Where the time of a takeover goes, step by step, for who has to make it shorter.

use std::time::{Duration, Instant};

use greenroom_protocol::Epoch;

/// The steps from the last sign of the active to the word that this master decides.
#[derive(Debug)]
pub(crate) struct Takeover {
    /// When the active last said something, while this master is its standby.
    heard: Option<Instant>,
    /// When it was decided to take over.
    decided: Option<Instant>,
    /// When the intent was durable.
    intended: Option<Instant>,
    /// When the witness had answered.
    claimed: Option<Instant>,
}

impl Takeover {
    pub(crate) fn new() -> Self {
        Self { heard: None, decided: None, intended: None, claimed: None }
    }

    /// The active said something to its standby: whatever was tried is over, or has not begun.
    pub(crate) fn heard(&mut self) {
        *self = Self { heard: Some(Instant::now()), ..Self::new() };
    }

    /// This master is no standby.
    pub(crate) fn is_off(&mut self) {
        *self = Self::new();
    }

    pub(crate) fn decides(&mut self) {
        self.decided.get_or_insert_with(Instant::now);
    }

    pub(crate) fn intends(&mut self) {
        self.intended.get_or_insert_with(Instant::now);
    }

    pub(crate) fn claims(&mut self) {
        self.claimed.get_or_insert_with(Instant::now);
    }

    /// This master decides from now on.
    pub(crate) fn announces(&mut self, epoch: Epoch) {
        if let (Some(heard), Some(decided), Some(intended), Some(claimed)) =
            (self.heard, self.decided, self.intended, self.claimed)
        {
            let us = |from: Instant, to: Instant| {
                let span: Duration = to.saturating_duration_since(from);
                u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
            };
            tracing::info!(
                %epoch,
                detect_us = us(heard, decided),
                intent_us = us(decided, intended),
                claim_us = us(intended, claimed),
                announce_us = us(claimed, Instant::now()),
                "took over"
            );
        }
        self.is_off();
    }
}
