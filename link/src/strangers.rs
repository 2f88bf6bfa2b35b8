//! Warnings of links that were not opened: strangers decide how many there are.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::LinkError;

/// Warnings of one span; the log has to have room for other things.
const A_SPAN_MAX: u32 = 10;
const SPAN: Duration = Duration::from_secs(10);

/// Tells of links that were not opened, at most ten in ten seconds. What is left out is counted in the next one told.
#[derive(Debug, Default)]
pub struct Strangers(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    /// Of the present span.
    began: Option<Instant>,
    count: u32,
    left_out: u64,
}

impl Strangers {
    /// Warns that a link was not opened, unless it is one too many.
    pub fn tell(&self, error: &LinkError) {
        let admitted = self.0.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now());
        if let Some(left_out) = admitted {
            let error = error as &dyn std::error::Error;
            tracing::warn!(error, left_out, "a link was not opened");
        }
    }
}

impl Told {
    /// How many were left out before this one, if it is told.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.began.is_none_or(|began| now.duration_since(began) >= SPAN) {
            (self.began, self.count) = (Some(now), 0);
        }
        if self.count == A_SPAN_MAX {
            self.left_out += 1;
            return None;
        }
        self.count += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_strangers_is_ten_warnings_and_a_number() {
        let (mut told, now) = (Told::default(), Instant::now());
        let admitted: Vec<_> = (0..1_000).filter_map(|_| told.admit(now)).collect();
        assert_eq!(admitted, [0; 10]);
        assert_eq!(told.admit(now + SPAN - Duration::from_millis(1)), None);
        assert_eq!(told.admit(now + SPAN), Some(991));
        assert_eq!(told.admit(now + SPAN), Some(0));
    }
}
