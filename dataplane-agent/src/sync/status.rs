//! What the loop tells about itself: shown by `sluice status`, counted by metrics.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::Source;

/// The state of the agent's loop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The node whose maps these are.
    pub node: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Sources that have not yet delivered everything; nothing is written to the maps before.
    pub waiting_for: Vec<String>,
    /// Services whose rows are installed.
    pub services: usize,
    /// Frontends installed.
    pub frontends: usize,
    /// Backends that exist.
    pub backends: usize,
    /// Milliseconds since the epoch of the last application that changed something; zero when there was none.
    pub last_change_millis: u64,
    /// Map operations that succeeded since the agent started.
    pub operations: u64,
    /// Map operations that failed since the agent started.
    pub failed_operations: u64,
    /// Applications of changes since the agent started.
    pub rounds: u64,
    /// Services that are not installed as they should be, and why.
    pub errors: BTreeMap<String, String>,
    /// Frontends that more than one service claims: who has it and who does not.
    pub conflicts: BTreeMap<String, String>,
}

/// A source's name as the status shows it.
pub fn source_name(source: Source) -> &'static str {
    match source {
        Source::Services => "services",
        Source::EndpointSlices => "endpoint slices",
        Source::Nodes => "nodes",
        Source::Addresses => "addresses",
    }
}
