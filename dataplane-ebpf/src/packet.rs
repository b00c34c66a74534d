//! Packets: bounds-checked reads and writes at any hook, and what only a tc hook can do.

use core::{ffi::c_void, marker::PhantomData, mem::offset_of};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_ADJ_ROOM_NO_CSUM_RESET},
    helpers::{bpf_csum_update, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data},
    programs::TcContext,
};
use dataplane_common::DropReason;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{family::Datapath, verdict::Step};

/// Length of an Ethernet header; the loader attaches to Ethernet devices only, and VLAN tags are not part of the data.
pub const ETH_LEN: usize = 14;

/// Length of a TCP header without options.
pub const TCP_LEN: u32 = 20;

/// What the kernel says in place of a segment's length of SCTP, whose chunks were cut by the sender (`GSO_BY_FRAGS`).
pub const CUT_BY_SENDER: u32 = 0xffff;

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

/// What the stages need of a packet, at whatever hook it is.
///
/// Reads take `&self` and rewrites `&mut self`, so a reference into the packet cannot outlive a helper that moves it: what
/// the verifier would refuse does not compile.
pub trait Frame {
    /// Start of the packet.
    fn data(&self) -> usize;

    /// End of what can be read in place.
    fn data_end(&self) -> usize;

    /// Length in bytes from the Ethernet header on.
    fn len(&self) -> u32;

    /// The interface whose hook this is.
    fn interface(&self) -> u32;

    /// The context for helpers that take one of any program.
    fn context(&self) -> *mut c_void;

    /// Payload bytes of each segment that the packet will be cut into; zero when it stays whole.
    fn segment_len(&self) -> u32;

    /// Adds the checksum difference `difference` to the transport checksum at `offset`; `flags` are those of
    /// `bpf_l4_csum_replace`.
    fn fix_transport_checksum(&mut self, offset: usize, difference: u32, flags: u32) -> Step<()>;

    /// Adds `difference` to the sum over the whole packet that a device may have computed (`CHECKSUM_COMPLETE`).
    fn change_device_sum(&mut self, difference: u32);

    /// A header at `offset`, when the packet is long enough.
    #[inline(always)]
    fn at<T: Plain>(&self, offset: usize) -> Option<&T> {
        let start = self.data() + offset;
        if start + size_of::<T>() > self.data_end() {
            return None;
        }
        // SAFETY: the range lies within the packet, and `Plain` types are valid at any address with any content.
        Some(unsafe { &*(start as *const T) })
    }

    /// A header at `offset` for writing.
    #[inline(always)]
    fn at_mut<T: Plain>(&mut self, offset: usize) -> Step<&mut T> {
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
    fn words<const N: usize>(&self, offset: usize) -> Step<[u32; N]> {
        let bytes = self.at::<[[u8; 4]; N]>(offset).ok_or(DropReason::Rewrite)?;
        Ok(core::array::from_fn(|index| u32::from_ne_bytes(bytes[index])))
    }

    /// Writes `words` at `offset`.
    #[inline(always)]
    fn set_words<const N: usize>(&mut self, offset: usize, words: [u32; N]) -> Step<()> {
        let bytes = self.at_mut::<[[u8; 4]; N]>(offset)?;
        for (bytes, word) in bytes.iter_mut().zip(words) {
            *bytes = opaque(word).to_ne_bytes();
        }
        Ok(())
    }

    /// The 16-bit field at `offset`, as it lies in memory.
    #[inline(always)]
    fn half(&self, offset: usize) -> Step<u16> {
        self.at::<[u8; 2]>(offset).map(|bytes| u16::from_ne_bytes(*bytes)).ok_or(DropReason::Rewrite)
    }

    /// Sends the frame back to where it came from, on the link layer.
    #[inline(always)]
    fn swap_ethernet_addresses(&mut self) -> Step<()> {
        let [a, b, c] = self.words::<3>(0)?;
        self.set_words(0, swapped_halves([a, b, c]))
    }

    /// Sets both link-layer addresses: destination, then source.
    #[inline(always)]
    fn set_ethernet_addresses(&mut self, addresses: [u32; 3]) -> Step<()> {
        self.set_words(0, addresses)
    }
}

/// A packet at a tc hook.
pub struct Packet<'a> {
    skb: *mut __sk_buff,
    context: PhantomData<&'a TcContext>,
}

impl Packet<'_> {
    /// Makes the headers of a packet of the family `F` readable in place: Ethernet, network and TCP, all without options.
    ///
    /// No more than that: of a packet that a socket of this machine has sent just the headers are in place, and pulling a single byte
    /// of its payload costs an allocation and a copy.
    ///
    /// # Safety
    ///
    /// `skb` is the context of the running program.
    #[inline(always)]
    pub unsafe fn new<F: Datapath>(skb: *mut __sk_buff) -> Self {
        let mut packet = Self { skb, context: PhantomData };
        packet.pull((ETH_LEN + F::HEADER_LEN) as u32 + TCP_LEN);
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
    ///
    /// What a sender has cut stays as it is: behind the headers follow packets of their own, each with whole chunks (`sctp_packet_pack`),
    /// and what is pulled out of the first one would be missing there.
    #[inline(always)]
    pub fn pull(&mut self, len: u32) {
        let want = if self.len() < len { self.len() } else { len };
        if self.data() + want as usize > self.data_end() && self.segment_len() != CUT_BY_SENDER {
            // SAFETY: the context is valid while the program runs. A failure leaves the packet as it is: the reads that
            // follow find too little and the packet passes.
            let _unread = unsafe { bpf_skb_pull_data(self.skb, want) };
        }
    }

    /// A field of the context.
    #[inline(always)]
    fn field<const OFFSET: usize>(&self) -> u32 {
        // SAFETY: every tc program may read all of its context.
        unsafe { context_field::<OFFSET>(self.skb.cast()) as u32 }
    }

    /// Whether the frame was addressed to the interface that it came in by: neither multicast nor on its way through a bridge.
    #[inline(always)]
    pub fn is_for_this_host(&self) -> bool {
        /// `linux/if_packet.h`.
        const PACKET_HOST: u32 = 0;
        self.field::<{ offset_of!(__sk_buff, pkt_type) }>() == PACKET_HOST
    }

    /// See [`is_locally_sent`].
    #[inline(always)]
    pub fn is_locally_sent(&self) -> bool {
        is_locally_sent(self.skb)
    }

    /// The context for helpers that want it.
    #[inline(always)]
    pub fn raw(&self) -> *mut __sk_buff {
        self.skb
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

    /// Cuts the packet to `len` bytes, or makes it as long with zeroes. It is in one piece then, and no longer one of several segments.
    #[inline(always)]
    pub fn resize(&mut self, len: usize) -> Step<()> {
        // SAFETY: the helper checks the length.
        let result = unsafe { bpf_skb_change_tail(self.raw(), len as u32, 0) };
        if result == 0 { Ok(()) } else { Err(DropReason::RejectFailed) }
    }

    /// Inserts `len` zero bytes behind the plain network header, or removes as many where it is negative. A packet that will be cut
    /// into segments is refused unless it is of TCP.
    #[inline(always)]
    pub fn resize_network_header(&mut self, len: i32) -> Step<()> {
        const BPF_ADJ_ROOM_NET: u32 = 0;
        // The transport checksum that a device has verified stays so.
        // SAFETY: the helper checks the length.
        let result =
            unsafe { bpf_skb_adjust_room(self.raw(), len, BPF_ADJ_ROOM_NET, u64::from(BPF_F_ADJ_ROOM_NO_CSUM_RESET)) };
        if result == 0 { Ok(()) } else { Err(DropReason::Rewrite) }
    }

    /// Inserts `len` bytes between the Ethernet header and the network header.
    #[inline(always)]
    pub fn insert_after_ethernet(&mut self, len: usize) -> Step<()> {
        const BPF_ADJ_ROOM_MAC: u32 = 1;
        // SAFETY: the helper checks the length.
        let result = unsafe { bpf_skb_adjust_room(self.raw(), len as i32, BPF_ADJ_ROOM_MAC, 0) };
        if result == 0 { Ok(()) } else { Err(DropReason::RejectFailed) }
    }
}

impl Frame for Packet<'_> {
    #[inline(always)]
    fn data(&self) -> usize {
        // Not through `field`: for the verifier this is a pointer, which must not be cut to 32 bits.
        // SAFETY: as in `field`.
        unsafe { context_field::<{ offset_of!(__sk_buff, data) }>(self.skb.cast()) as usize }
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: as in `field`.
        unsafe { context_field::<{ offset_of!(__sk_buff, data_end) }>(self.skb.cast()) as usize }
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.field::<{ offset_of!(__sk_buff, len) }>()
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.field::<{ offset_of!(__sk_buff, ifindex) }>()
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.skb.cast()
    }

    #[inline(always)]
    fn segment_len(&self) -> u32 {
        self.field::<{ offset_of!(__sk_buff, gso_size) }>()
    }

    // The helper knows whether the device will complete the checksum, and fixes what it computed on receive.
    #[inline(always)]
    fn fix_transport_checksum(&mut self, offset: usize, difference: u32, flags: u32) -> Step<()> {
        // SAFETY: the helper checks the offset.
        let result =
            unsafe { bpf_l4_csum_replace(self.raw(), offset as u32, 0, u64::from(difference), u64::from(flags)) };
        if result == 0 { Ok(()) } else { Err(DropReason::Rewrite) }
    }

    #[inline(always)]
    fn change_device_sum(&mut self, difference: u32) {
        // SAFETY: the context is valid while the program runs. It fails where there is no such sum.
        let _no_sum = unsafe { bpf_csum_update(self.skb, difference) };
    }
}

/// Whether the packet of the running program was sent by a socket of this node rather than received.
#[inline(always)]
pub fn is_locally_sent(skb: *mut __sk_buff) -> bool {
    // SAFETY: every tc program may read all of its context.
    unsafe { context_field::<{ offset_of!(__sk_buff, ingress_ifindex) }>(skb.cast()) == 0 }
}

/// A 32-bit field of a program's context.
///
/// The verifier wants context fields read at a constant offset from the context itself. Left to itself LLVM keeps the sum
/// of both in a register, which is refused; an instruction written out is left alone.
///
/// # Safety
///
/// `context` is the context of the running program, which may read the four bytes at `OFFSET`.
#[inline(always)]
pub unsafe fn context_field<const OFFSET: usize>(context: *const c_void) -> u64 {
    let value: u64;
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!(
            "{0} = *(u32 *)({1} + {2})",
            out(reg) value, in(reg) context, const OFFSET,
            options(nostack, readonly, preserves_flags),
        );
    }
    value
}

/// Keeps the compiler from joining the loads of neighbouring words: the packet may be read and written at any alignment,
/// the stack they may come from may not.
#[inline(always)]
pub fn opaque(mut word: u32) -> u32 {
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
