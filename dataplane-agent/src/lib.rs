//! The agent behind the `sluice` binary: it watches the cluster and keeps the BPF maps as the cluster wants them.
//!
//! The arrows between the modules point one way, from top to bottom of this list; see `docs/ARCHITECTURE.md`.

#![warn(missing_docs)]

pub mod cli;
pub mod datapath;
pub mod health;
pub mod maps;
pub mod metrics;
pub mod model;
pub mod netlink;
pub mod plan;
pub mod sync;
pub mod tables;
pub mod watch;
