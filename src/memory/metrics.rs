//! What is told of the memory of all clients.

use super::Memory;
use crate::metrics::{Registry, gauge_of};
use prometheus_client::metrics::gauge::Gauge;

/// The budget, and what is used of it.
#[derive(Clone, Debug)]
pub(crate) struct MemoryMetrics {
    used_bytes: Gauge,
    limit_bytes: Gauge,
}

impl MemoryMetrics {
    /// At zero.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        Self {
            used_bytes: registry.add("memory_used_bytes", "Bytes that clients hold in memory"),
            limit_bytes: registry.add("memory_limit_bytes", "Bytes that clients may hold in memory"),
        }
    }

    /// As it is now.
    pub(crate) fn show(&self, memory: &Memory) {
        self.used_bytes.set(gauge_of(memory.used()));
        self.limit_bytes.set(gauge_of(memory.max()));
    }
}
