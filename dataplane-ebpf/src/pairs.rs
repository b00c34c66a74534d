//! Pairs of addresses: a hash of both, and which of them have had flows.
//!
//! Most packets that nobody translates here are told by one bit, in memory that stays in the processor's cache. To look for their entry
//! in conntrack costs several times as much, since it is not there, or is for the other side of the stack, and nothing of what is looked
//! at has been used before.

use core::arch::asm;

use dataplane_common::{Addr as _, Side, map as spec};

use crate::{
    family::Datapath,
    maps::{FLOW_PAIRS, Table as _},
};

/// A hash of both addresses; the upper bits are the best.
#[inline(always)]
pub fn hash<F: Datapath>(src: &F::Addr, dst: &F::Addr) -> u32 {
    // Fibonacci hashing: the odd multiplier spreads neighbouring addresses.
    const MULTIPLIER: u32 = 0x9e37_79b1;
    let fold =
        |addr: &F::Addr| addr.words().iter().fold(0, |sum: u32, word| sum.wrapping_mul(31).wrapping_add(word.to_be()));
    fold(src).wrapping_mul(MULTIPLIER).wrapping_add(fold(dst)).wrapping_mul(MULTIPLIER)
}

/// Sides of the stack, as bits.
#[derive(Clone, Copy)]
pub struct Sides(u32);

impl Sides {
    /// Both.
    pub const BOTH: Self = Self(Self::of(Side::Ingress as u8).0 | Self::of(Side::Egress as u8).0);

    /// The one that an entry's byte stands for.
    #[inline(always)]
    pub const fn of(side: u8) -> Self {
        Self(1 << (side % 2))
    }
}

/// Whether conntrack may have an entry for packets from `src` to `dst` that are translated on one of `sides`. No is certain; yes may be
/// that of another pair, or of flows that are over.
#[inline(always)]
pub fn may_have_flows<F: Datapath>(src: &F::Addr, dst: &F::Addr, sides: Sides) -> bool {
    let (word, shift) = place::<F>(src, dst);
    // SAFETY: array elements never move, and a word is read.
    FLOW_PAIRS.find(&word).is_none_or(|bits| unsafe { *bits } >> shift & sides.0 != 0)
}

/// Remembers that there are entries for packets from `src` to `dst` that are translated on the side of this byte: before they are written.
#[inline(always)]
pub fn note_flow<F: Datapath>(src: &F::Addr, dst: &F::Addr, side: u8) {
    let (word, shift) = place::<F>(src, dst);
    let bit = Sides::of(side).0 << shift;
    let Some(bits) = FLOW_PAIRS.find(&word) else { return };
    // Seldom: what is written by one processor has to be fetched again by the others.
    // SAFETY: array elements never move, and a word is read.
    if unsafe { *bits } & bit == 0 {
        // SAFETY: the word is aligned and part of the map; other processors set their bits in it at the same time.
        unsafe { asm!("lock *(u32 *)({0} + 0) |= {1}", in(reg) bits, in(wreg) bit, options(nostack)) };
    }
}

/// The word of `flow_pairs`, and by how much the bits of the pair are shifted in it.
#[inline(always)]
fn place<F: Datapath>(src: &F::Addr, dst: &F::Addr) -> (u32, u32) {
    const PAIRS: u32 = u32::BITS / 2;
    const BITS: u32 = PAIRS.ilog2() + spec::FLOW_PAIRS.entries.ilog2();
    const { assert!(spec::FLOW_PAIRS.entries.is_power_of_two()) };
    let place = hash::<F>(src, dst) >> (u32::BITS - BITS);
    (place / PAIRS, place % PAIRS * 2)
}
