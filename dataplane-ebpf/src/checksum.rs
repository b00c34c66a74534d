//! Internet checksum arithmetic (RFC 1071, RFC 1624) on words as they lie in memory.

use aya_ebpf::helpers::bpf_csum_diff;
use dataplane_common::{Addr, FlowKey};

/// Adds with end-around carry.
#[inline(always)]
pub const fn fold32(sum: u64) -> u32 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    ((sum >> 32) + (sum & 0xffff_ffff)) as u32
}

/// Folds a sum to the 16 bits of a checksum field, without complement.
#[inline(always)]
pub const fn fold16(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// The checksum field `check` after its data changed by `difference`.
#[inline(always)]
pub const fn updated(check: [u8; 2], difference: u32) -> [u8; 2] {
    let sum = !u16::from_ne_bytes(check) as u64 + difference as u64;
    (!fold16(fold32(sum))).to_ne_bytes()
}

/// What a change of a source and a destination adds to a sum over them.
#[inline(always)]
pub fn address_change<A: Addr>(old_src: &A, new_src: &A, old_dst: &A, new_dst: &A) -> u32 {
    fold32(replaced(old_src, new_src) + replaced(old_dst, new_dst))
}

/// What a change of the addresses from `old` to `new` adds to a sum over them.
#[inline(always)]
pub fn address_difference<A: Addr>(old: &FlowKey<A>, new: &FlowKey<A>) -> u32 {
    address_change(&old.src, &new.src, &old.dst, &new.dst)
}

/// The same for the ports; zero when they stay.
#[inline(always)]
pub fn port_difference<A: Addr>(old: &FlowKey<A>, new: &FlowKey<A>) -> u32 {
    if old.src_port == new.src_port && old.dst_port == new.dst_port {
        return 0;
    }
    !u32::from(old.src_port.0) % 0x1_0000
        + u32::from(new.src_port.0)
        + !u32::from(old.dst_port.0) % 0x1_0000
        + u32::from(new.dst_port.0)
}

/// Sum of an address' words.
#[inline(always)]
pub fn sum<A: Addr>(addr: &A) -> u64 {
    let mut sum = 0;
    for word in addr.words() {
        sum += u64::from(*word);
    }
    sum
}

#[inline(always)]
fn replaced<A: Addr>(old: &A, new: &A) -> u64 {
    let mut sum = 0;
    for (old, new) in old.words().iter().zip(new.words()) {
        sum += u64::from(!*old) + u64::from(*new);
    }
    sum
}

/// Sum of words as they lie in memory.
#[inline(always)]
pub fn sum_words<const N: usize>(words: &[u32; N]) -> u64 {
    let mut sum = 0;
    for word in words {
        sum += u64::from(*word);
    }
    sum
}

/// Sum of `bytes`, a multiple of four of them that lie in a packet.
#[inline(always)]
pub fn sum_bytes<const N: usize>(bytes: &[u8; N]) -> u32 {
    // `MAX_BPF_STACK`, which the helper compares with.
    const { assert!(N.is_multiple_of(4) && N <= 512) };
    // SAFETY: the reference is valid for the call, and the length is that of the array. It is only read.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, bytes.as_ptr().cast_mut().cast(), N as u32, 0) };
    sum as u32
}

/// The checksum field for data with this sum.
#[inline(always)]
pub const fn complement(sum: u64) -> u16 {
    !fold16(fold32(sum))
}
