//! The packet at a tc hook: bounds-checked reads and writes, and the checksum helpers.

use core::{marker::PhantomData, mem::offset_of};

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data},
    programs::TcContext,
};
use dataplane_common::DropReason;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::verdict::Step;

/// Length of an Ethernet header; the loader attaches to Ethernet devices only, and VLAN tags are not part of the data.
pub const ETH_LEN: usize = 14;

/// Enough for every header that is read before a packet is known to be ours: Ethernet, IPv6 and TCP without options.
const LINEAR: u32 = 14 + 40 + 20;

/// Types that may be read from any place in a packet.
///
/// # Safety
///
/// The type has an alignment of one and every bit pattern is valid.
pub unsafe trait Plain {}

// SAFETY: bytes.
unsafe impl<const N: usize> Plain for [u8; N] {}
// SAFETY: bytes.
unsafe impl<const N: usize> Plain for [[u8; 4]; N] {}
// SAFETY: made of bytes and byte arrays.
unsafe impl Plain for Ipv4Hdr {}
// SAFETY: made of bytes and byte arrays.
unsafe impl Plain for Ipv6Hdr {}

/// A packet at a tc hook.
///
/// Reads take `&self` and rewrites `&mut self`, so a reference into the packet cannot outlive a helper that moves it: what
/// the verifier would refuse does not compile.
pub struct Packet<'a> {
    skb: *mut __sk_buff,
    context: PhantomData<&'a TcContext>,
}

impl Packet<'_> {
    /// Makes the headers readable in place.
    ///
    /// # Safety
    ///
    /// `skb` is the context of the running program.
    #[inline(always)]
    pub unsafe fn new(skb: *mut __sk_buff) -> Self {
        let mut packet = Self { skb, context: PhantomData };
        packet.pull(LINEAR);
        packet
    }

    /// The same for a packet whose headers have been made readable before.
    ///
    /// # Safety
    ///
    /// As for [`Packet::new`].
    #[inline(always)]
    pub unsafe fn pulled(skb: *mut __sk_buff) -> Self {
        Self { skb, context: PhantomData }
    }

    /// Makes the first `len` bytes, or as many as there are, readable in place.
    #[inline(always)]
    pub fn pull(&mut self, len: u32) {
        let want = if self.len() < len { self.len() } else { len };
        if self.data() + want as usize > self.data_end() {
            // SAFETY: the context is valid while the program runs. A failure leaves the packet as it is: the reads that
            // follow find too little and the packet passes.
            let _unread = unsafe { bpf_skb_pull_data(self.skb, want) };
        }
    }

    /// A field of the context.
    ///
    /// The verifier wants context fields read at a constant offset from the context itself. Left to itself LLVM keeps the
    /// sum of both in a register, which is refused; an instruction written out is left alone.
    #[inline(always)]
    fn field<const OFFSET: usize>(&self) -> u32 {
        let value: u64;
        // SAFETY: reads four bytes of the context, all of which every tc program may read.
        unsafe {
            core::arch::asm!(
                "{0} = *(u32 *)({1} + {2})",
                out(reg) value, in(reg) self.skb, const OFFSET,
                options(nostack, readonly, preserves_flags),
            );
        }
        value as u32
    }

    /// Start of the packet.
    #[inline(always)]
    fn data(&self) -> usize {
        let data: u64;
        // Not through `field`: for the verifier this is a pointer, which must not be cut to 32 bits.
        // SAFETY: as in `field`.
        unsafe {
            core::arch::asm!(
                "{0} = *(u32 *)({1} + {2})",
                out(reg) data, in(reg) self.skb, const offset_of!(__sk_buff, data),
                options(nostack, readonly, preserves_flags),
            );
        }
        data as usize
    }

    /// Its end.
    #[inline(always)]
    fn data_end(&self) -> usize {
        let data_end: u64;
        // SAFETY: as in `data`.
        unsafe {
            core::arch::asm!(
                "{0} = *(u32 *)({1} + {2})",
                out(reg) data_end, in(reg) self.skb, const offset_of!(__sk_buff, data_end),
                options(nostack, readonly, preserves_flags),
            );
        }
        data_end as usize
    }

    /// Length in bytes from the Ethernet header on.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.field::<{ offset_of!(__sk_buff, len) }>()
    }

    /// The interface whose hook this is.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        self.field::<{ offset_of!(__sk_buff, ifindex) }>()
    }

    /// Whether the packet was sent by a socket of this node rather than received.
    #[inline(always)]
    pub fn is_locally_sent(&self) -> bool {
        self.field::<{ offset_of!(__sk_buff, ingress_ifindex) }>() == 0
    }

    /// The context for helpers that want it.
    #[inline(always)]
    pub fn raw(&self) -> *mut __sk_buff {
        self.skb
    }

    /// A header at `offset`, when the packet is long enough.
    #[inline(always)]
    pub fn at<T: Plain>(&self, offset: usize) -> Option<&T> {
        let start = self.data() + offset;
        if start + size_of::<T>() > self.data_end() {
            return None;
        }
        // SAFETY: the range lies within the packet, and `Plain` types are valid at any address with any content.
        Some(unsafe { &*(start as *const T) })
    }

    /// A header at `offset` for writing.
    #[inline(always)]
    pub fn at_mut<T: Plain>(&mut self, offset: usize) -> Step<&mut T> {
        let start = self.data() + offset;
        if start + size_of::<T>() > self.data_end() {
            return Err(DropReason::Rewrite);
        }
        // SAFETY: as in `at`; the exclusive borrow keeps other references away.
        Ok(unsafe { &mut *(start as *mut T) })
    }

    /// `N` words at `offset`, as they lie in memory, for packets that are known to have them.
    ///
    /// Words rather than bytes: what spills to the stack stays aligned, which the verifier insists on.
    #[inline(always)]
    pub fn words<const N: usize>(&self, offset: usize) -> Step<[u32; N]> {
        let bytes = self.at::<[[u8; 4]; N]>(offset).ok_or(DropReason::Rewrite)?;
        Ok(core::array::from_fn(|index| u32::from_ne_bytes(bytes[index])))
    }

    /// Writes `words` at `offset`.
    #[inline(always)]
    pub fn set_words<const N: usize>(&mut self, offset: usize, words: [u32; N]) -> Step<()> {
        let bytes = self.at_mut::<[[u8; 4]; N]>(offset)?;
        for (bytes, word) in bytes.iter_mut().zip(words) {
            *bytes = opaque(word).to_ne_bytes();
        }
        Ok(())
    }

    /// The 16-bit field at `offset`, as it lies in memory.
    #[inline(always)]
    pub fn half(&self, offset: usize) -> Step<u16> {
        self.at::<[u8; 2]>(offset).map(|bytes| u16::from_ne_bytes(*bytes)).ok_or(DropReason::Rewrite)
    }

    /// Adds the checksum difference `difference` to the transport checksum at `offset`; `flags` are those of
    /// `bpf_l4_csum_replace`.
    ///
    /// The helper knows whether the device will complete the checksum, and fixes what it computed on receive.
    #[inline(always)]
    pub fn fix_transport_checksum(&mut self, offset: usize, difference: u32, flags: u32) -> Step<()> {
        // SAFETY: the helper checks the offset.
        let result =
            unsafe { bpf_l4_csum_replace(self.raw(), offset as u32, 0, u64::from(difference), u64::from(flags)) };
        if result == 0 { Ok(()) } else { Err(DropReason::Rewrite) }
    }

    /// Whether the transport checksum at `offset` is left for the device to complete (`CHECKSUM_PARTIAL`).
    ///
    /// The kernel does not show this to programs, but a change outside the pseudo header is ignored exactly then. Leaves
    /// the checksum changed: for packets whose transport header is replaced.
    #[inline(always)]
    pub fn probe_partial_checksum(&mut self, offset: usize) -> Step<bool> {
        let before = self.half(offset)?;
        self.fix_transport_checksum(offset, 1, 0)?;
        Ok(self.half(offset)? == before)
    }

    /// Cuts the packet to `len` bytes.
    #[inline(always)]
    pub fn truncate(&mut self, len: usize) -> Step<()> {
        // SAFETY: the helper checks the length.
        let result = unsafe { bpf_skb_change_tail(self.raw(), len as u32, 0) };
        if result == 0 { Ok(()) } else { Err(DropReason::RejectFailed) }
    }

    /// Inserts `len` bytes between the Ethernet header and the network header.
    #[inline(always)]
    pub fn insert_after_ethernet(&mut self, len: usize) -> Step<()> {
        const BPF_ADJ_ROOM_MAC: u32 = 1;
        // SAFETY: the helper checks the length.
        let result = unsafe { bpf_skb_adjust_room(self.raw(), len as i32, BPF_ADJ_ROOM_MAC, 0) };
        if result == 0 { Ok(()) } else { Err(DropReason::RejectFailed) }
    }

    /// Sends the frame back to where it came from, on the link layer.
    #[inline(always)]
    pub fn swap_ethernet_addresses(&mut self) -> Step<()> {
        let [a, b, c] = self.words::<3>(0)?;
        self.set_words(0, swapped_halves([a, b, c]))
    }

    /// Sets both link-layer addresses: destination, then source.
    #[inline(always)]
    pub fn set_ethernet_addresses(&mut self, addresses: [u32; 3]) -> Step<()> {
        self.set_words(0, addresses)
    }
}

/// Keeps the compiler from joining the loads of neighbouring words: the packet may be read and written at any alignment,
/// the stack they may come from may not.
#[inline(always)]
fn opaque(mut word: u32) -> u32 {
    // Not an empty template: it would have a source line but no instruction, which the kernel refuses in the line table.
    // SAFETY: copies a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) word, options(nomem, nostack, preserves_flags)) };
    word
}

/// Exchanges the first and the last six of twelve bytes.
#[inline(always)]
pub const fn swapped_halves([a, b, c]: [u32; 3]) -> [u32; 3] {
    // On this little-endian target the first byte of a word is its lowest.
    [b >> 16 | c << 16, c >> 16 | a << 16, a >> 16 | b << 16]
}
