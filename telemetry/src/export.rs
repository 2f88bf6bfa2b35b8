//! The way out: spans from their queue to a collector, in batches, and with them what is counted, from a thread of its
//! own that nobody waits for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::config::TelemetryConfig;
use crate::error::TelemetryError;
use crate::registry::{Registry, Who};
use crate::trace::Tracer;

crate::instruments! {
    /// What became of spans.
    pub struct Exported;
    /// Spans that ended.
    counter ended = "greenroom.telemetry.span.ended", "span";
    /// Spans that were dropped: the queue was full, or the collector did not take them.
    counter dropped = "greenroom.telemetry.span.dropped", "span";
    /// Spans that a collector has taken.
    counter sent = "greenroom.telemetry.span.sent", "span";
    /// Requests to a collector that failed.
    counter failed = "greenroom.telemetry.export.failed", "request";
}

impl Exported {
    pub(crate) fn add(counter: &std::sync::atomic::AtomicU64, more: u64) {
        // Spans end on every thread.
        counter.fetch_add(more, Relaxed);
    }
}

/// The export of one process: off, or a thread that sends.
pub struct Export {
    exported: Arc<Exported>,
    #[cfg(feature = "otlp")]
    sender: Option<crate::otlp::Sender>,
}

impl fmt::Debug for Export {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Export({})", if self.is_on() { "on" } else { "off" })
    }
}

impl Export {
    /// Starts sending what `registry` counts, and the spans of this export's tracers, if the configuration has a
    /// collector; else it is off.
    ///
    /// # Errors
    /// When the configuration can't be kept, this build can't send, or the system gives no thread.
    pub fn start(config: &TelemetryConfig, registry: &Registry) -> Result<Self, TelemetryError> {
        if !(0.0..=1.0).contains(&config.sample) {
            return Err(TelemetryError::Sample(config.sample));
        }
        if config.interval < Duration::from_secs(1) {
            return Err(TelemetryError::Interval(config.interval));
        }
        let exported = Arc::new(Exported::default());
        #[cfg(feature = "otlp")]
        let sender = match config.endpoint.as_str() {
            "" => None,
            _ => Some(crate::otlp::Sender::start(config, registry, &exported)?),
        };
        #[cfg(not(feature = "otlp"))]
        if !config.endpoint.is_empty() {
            return Err(TelemetryError::NotBuilt);
        }
        let export = Self {
            exported: Arc::clone(&exported),
            #[cfg(feature = "otlp")]
            sender,
        };
        if export.is_on() {
            registry.add(Who::process(), exported);
        }
        Ok(export)
    }

    /// What became of its spans.
    pub fn exported(&self) -> &Exported {
        &self.exported
    }

    #[cfg(feature = "otlp")]
    fn is_on(&self) -> bool {
        self.sender.is_some()
    }

    #[cfg(not(feature = "otlp"))]
    #[expect(clippy::unused_self, reason = "with otlp it depends")]
    const fn is_on(&self) -> bool {
        false
    }

    /// A tracer for a server or a client of this process; off if the export is.
    #[cfg(feature = "otlp")]
    pub fn tracer(&self, who: Who) -> Tracer {
        self.sender
            .as_ref()
            .map_or_else(Tracer::default, |sender| sender.tracer(who, &self.exported))
    }

    /// A tracer for a server or a client of this process: this build has none that is on.
    #[cfg(not(feature = "otlp"))]
    pub fn tracer(&self, _: Who) -> Tracer {
        Tracer::default()
    }

    /// Sends what waits, for `within` at most; then whatever is left is lost.
    #[cfg(feature = "otlp")]
    pub fn stop(self, within: Duration) {
        if let Some(sender) = self.sender {
            sender.stop(within);
        }
    }

    /// There is nothing to be sent.
    #[cfg(not(feature = "otlp"))]
    pub fn stop(self, _: Duration) {}
}
