//! What the ports for operators count.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

greenroom_telemetry::instruments! {
    /// Counters of a process's admin port and of its port for Prometheus, both together.
    pub struct Metrics;
    /// Connections of the admin port, and of the port for metrics, that are open now.
    gauge open = "greenroom.console.connection.count", "connection";
    /// Connections that were refused, because there were as many as there may be.
    counter refused = "greenroom.console.connection.refused", "connection";
    /// Connections that were closed, because who asked took nothing of the answer for 10 s.
    counter stuck = "greenroom.console.connection.stuck", "connection";
}

impl Metrics {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn sub(gauge: &AtomicU64) {
        gauge.fetch_sub(1, Relaxed);
    }
}
