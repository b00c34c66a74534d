//! The benchmark: parts that measure, and what all of them share.

pub mod control;
pub mod loads;
pub mod packet;
pub mod rows;

pub mod contenders;
pub mod findings;
pub mod plan;
pub mod report;
pub mod rounds;
pub mod statistics;

pub mod cpu;
pub mod flood;
pub mod installed;
pub mod slice;
pub mod worker;

pub mod catalogue;
mod chains;
pub mod iptables;
pub mod kube_proxy;
pub mod nftables;

pub mod programs;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Result, bail};
use indicatif::ProgressBar;

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scale {
    /// Every row, within five minutes altogether.
    Quick,
    /// Enough for a report.
    Usual,
    /// The largest clusters, too.
    Full,
}

/// What every part is told.
#[derive(Debug)]
pub struct Settings<'a> {
    /// How much is measured.
    pub scale: Scale,
    /// Parts of the ids of rows that are wanted; all when empty.
    pub only: Vec<String>,
    /// Where a report goes, when one is wanted.
    pub report: Option<PathBuf>,
    /// Shows how far it is; each part sets its length and its message.
    pub progress: ProgressBar,
    /// Set when everything is to end early and in order.
    pub stop: &'a AtomicBool,
}

impl Settings<'_> {
    /// Whether the row `id` is asked for.
    pub fn wants(&self, id: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| id.contains(part.as_str()))
    }

    /// Fails when the run is to end early; to be called between steps.
    pub fn go_on(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}
