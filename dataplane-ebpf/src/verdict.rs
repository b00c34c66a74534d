//! How a packet leaves a program: verdicts, counted drops, and the kernel's numbers for both.
//!
//! Service translation fails open: what is not understood passes untouched. What is understood and cannot be delivered is
//! dropped with a reason, never silently.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_redirect, bpf_redirect_neigh},
};
use dataplane_common::DropReason;

use crate::maps::count_drop;

/// A stage either yields a value or ends the packet with a counted drop.
pub type Step<T> = Result<T, DropReason>;

/// What becomes of a packet that is not dropped.
#[must_use]
#[derive(Clone, Copy)]
pub enum Verdict {
    /// On to the next program and the stack.
    Pass,
    /// Out of this interface, its link-layer addresses being set.
    Transmit(u32),
    /// Out of this interface; the kernel resolves the neighbour.
    TransmitToNeighbour(u32),
    /// Into the stack, as if received on this interface.
    Receive(u32),
}

impl Verdict {
    /// The value for the kernel; for the redirects, after having told it where to.
    #[inline(always)]
    pub fn into_tc(self) -> i32 {
        match self {
            // "Continue": other programs at the same hook and the qdisc's own filters still have their say.
            Self::Pass => TC_ACT_UNSPEC,
            // SAFETY: the helper only records the target.
            Self::Transmit(interface) => unsafe { bpf_redirect(interface, 0) as i32 },
            Self::TransmitToNeighbour(interface) => {
                // SAFETY: null parameters mean a FIB lookup by the kernel.
                unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32 }
            }
            // SAFETY: the helper only records the target.
            Self::Receive(interface) => unsafe { bpf_redirect(interface, u64::from(BPF_F_INGRESS)) as i32 },
        }
    }
}

/// Converts the outcome of a pipeline for the kernel and counts a drop.
#[inline(always)]
pub fn finish(outcome: Step<Verdict>) -> i32 {
    match outcome {
        Ok(verdict) => verdict.into_tc(),
        Err(reason) => {
            count_drop(reason);
            TC_ACT_SHOT
        }
    }
}
