//! What the programs cost: instructions that the verifier walks, map operations and time per packet.
//!
//! The figures are checked in, so that growth shows in review: `docs/costs.json` is the record, `docs/costs.md` shows it.

pub mod paths;
pub mod programs;
pub mod record;
pub mod report;
pub mod stack;

pub(crate) mod empty;
mod scenarios;
