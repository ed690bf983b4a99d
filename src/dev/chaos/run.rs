//! What the phases of a run share.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use parking_lot::Mutex;

use super::callers::Organization;
use super::database::Database;
use super::faults::Counts;
use super::history::History;
use super::monitor::Monitor;
use super::proxy::Proxy;
use super::replicas::Replicas;
use super::time::Time;
use super::workload::Workload;
use crate::config;
use crate::dev::sandbox::Sandbox;

/// A run.
pub(super) struct Run {
    pub settings: config::Chaos,
    pub seed: u64,
    pub time: Time,
    pub began: Instant,
    pub folder: PathBuf,
    pub database: Arc<Database>,
    pub sandbox: Sandbox,
    pub stripe: Proxy,
    pub webhooks: Proxy,
    pub replicas: Replicas,
    pub organizations: Vec<Arc<Organization>>,
    pub history: Arc<History>,
    pub backlog: Arc<AtomicUsize>,
    pub workload: Arc<Workload>,
    pub monitor: Arc<Monitor>,
    pub counts: Arc<Counts>,
    pub phase: Mutex<&'static str>,
    /// What did not finish in time.
    pub incomplete: Mutex<Vec<String>>,
    /// Open Checkout sessions that Paybridge did not know once it had caught up after the faults.
    pub unknown_sessions: Mutex<Vec<String>>,
}

impl Run {
    pub fn phase(&self) -> &'static str {
        *self.phase.lock()
    }

    pub fn set_phase(&self, phase: &'static str) {
        *self.phase.lock() = phase;
    }

    pub fn add_incomplete(&self, incomplete: String) {
        self.incomplete.lock().push(incomplete);
    }
}
