//! Stays on one processor: what programs keep per processor would else be found again or not as the scheduler likes.

use anyhow::Result;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

/// The calling thread, and those that it starts, stay on the processor where it is for as long as this lives.
#[derive(Debug)]
pub(super) struct Bound {
    before: CpuSet,
}

impl Bound {
    /// Binds the calling thread.
    pub(super) fn here() -> Result<Self> {
        let calling = Pid::from_raw(0);
        let before = sched_getaffinity(calling)?;
        let mut only = CpuSet::new();
        only.set(sched_getcpu()?)?;
        sched_setaffinity(calling, &only)?;
        Ok(Self { before })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Should it fail, the thread is as bound as before.
        let _still_bound = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}
