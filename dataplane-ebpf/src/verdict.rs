//! How a packet leaves a program: verdicts, counted drops, and the kernel's numbers for both.
//!
//! Service translation fails open: what is not understood passes untouched. What is understood and cannot be delivered is
//! dropped with a reason, never silently.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
};
use dataplane_common::DropReason;

use crate::{family::IcmpError, maps::count_drop};

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
    /// Into the network namespace at the other end of this interface.
    HandToPeer(u32),
    /// Into the stack, as if received on this interface.
    Receive(u32),
}

impl Verdict {
    /// Tells the kernel where a redirected packet goes.
    #[inline(always)]
    pub fn act(self) -> Outcome {
        Outcome(match self {
            Self::Pass => return Outcome::PASS,
            // SAFETY: the helper only records the target.
            Self::Transmit(interface) => unsafe { bpf_redirect(interface, 0) as i32 },
            Self::TransmitToNeighbour(interface) => {
                // SAFETY: null parameters mean a FIB lookup by the kernel.
                unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32 }
            }
            // SAFETY: the helper only records the target.
            Self::HandToPeer(interface) => unsafe { bpf_redirect_peer(interface, 0) as i32 },
            // SAFETY: the helper only records the target.
            Self::Receive(interface) => unsafe { bpf_redirect(interface, u64::from(BPF_F_INGRESS)) as i32 },
        })
    }
}

/// What a stage leaves: a value for the kernel, or which stage comes next.
#[must_use]
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Outcome(i32);

impl Outcome {
    /// "Continue": other programs at the same hook and the qdisc's own filters still have their say.
    pub const PASS: Self = Self(TC_ACT_UNSPEC);
    /// The end of a packet whose drop has been counted.
    pub const DROP: Self = Self(TC_ACT_SHOT);

    // Beyond every action that the kernel knows.
    /// The packet belongs to no flow.
    pub const UNKNOWN_FLOW: Self = Self(0x100);
    /// The same, and it is a segment that opens no connection.
    pub const UNKNOWN_CONNECTION: Self = Self(0x106);
    /// It is of a connection whose tuple a flow has taken.
    pub const UNTRACKED: Self = Self(0x10a);
    /// Its flow has just been begun.
    pub const BEGUN: Self = Self(0x101);
    /// Nobody can take it, and its sender is to be told.
    pub const REFUSED: Self = Self(0x102);
    /// Its hop limit ends here, and its sender is to be told.
    pub const OUT_OF_HOPS: Self = Self(0x109);
    /// The first of those that say "larger than the next link takes, and its sender is to be told", each with what it takes.
    const TOO_BIG: i32 = 0x1_0000;
    /// The first of those that say the same of a packet that may be cut.
    const TO_BE_CUT: i32 = 0x2_0000;
    /// Where its flow's packets go next has to be looked up again.
    pub const STALE_WAY: Self = Self(0x104);
    /// It is part of no flow that could be translated.
    pub const NO_FLOW: Self = Self(0x107);
    /// It is part of a flow that another node answers, which is to be told of the frontend.
    pub const TELLING: Self = Self(0x108);
    /// It is for no frontend.
    pub const UNTRANSLATED: Self = Self(0x105);
    /// It is an ICMP message, maybe an error about a flow.
    pub const ICMP_ERROR: Self = Self(0x103);

    /// The outcome of a stage; counts a drop.
    #[inline(always)]
    pub fn of(step: Step<Self>) -> Self {
        match step {
            Ok(outcome) => outcome,
            Err(reason) => {
                count_drop(reason);
                Self::DROP
            }
        }
    }

    /// It is larger than the next link takes, which are `mtu` bytes, and its sender is to be told.
    #[inline(always)]
    pub const fn too_big(mtu: u16) -> Self {
        Self(Self::TOO_BIG | mtu as i32)
    }

    /// The same of a packet that may be cut.
    #[inline(always)]
    pub const fn to_be_cut(mtu: u16) -> Self {
        Self(Self::TO_BE_CUT | mtu as i32)
    }

    /// What the next link takes, of a packet that is larger and may be cut.
    #[inline(always)]
    pub const fn cut_to(self) -> Option<u16> {
        if self.0 >= Self::TO_BE_CUT { Some(self.0 as u16) } else { None }
    }

    /// What the packet's sender is to be told.
    #[inline(always)]
    pub const fn error(self) -> Option<IcmpError> {
        if self.0 >= Self::TOO_BIG {
            return Some(IcmpError::TooBig(self.0 as u16));
        }
        match self {
            Self::REFUSED => Some(IcmpError::PortUnreachable),
            Self::OUT_OF_HOPS => Some(IcmpError::TimeExceeded),
            _ => None,
        }
    }

    /// The value for the kernel.
    #[inline(always)]
    pub const fn into_tc(self) -> i32 {
        self.0
    }
}
