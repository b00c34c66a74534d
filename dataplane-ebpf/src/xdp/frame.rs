//! The packet at the XDP hook: one linear piece of memory with complete checksums.

use core::{ffi::c_void, marker::PhantomData, mem::offset_of};

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, xdp_md},
    programs::XdpContext,
};

use crate::{
    checksum,
    packet::{Frame, context_field},
    verdict::Step,
};

/// A packet at the XDP hook.
pub struct XdpFrame<'a> {
    ctx: *mut xdp_md,
    context: PhantomData<&'a XdpContext>,
}

impl XdpFrame<'_> {
    /// The packet of a program.
    ///
    /// # Safety
    ///
    /// `ctx` is the context of the running program.
    #[inline(always)]
    pub unsafe fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx, context: PhantomData }
    }
}

impl Frame for XdpFrame<'_> {
    #[inline(always)]
    fn data(&self) -> usize {
        // SAFETY: every XDP program may read this field.
        unsafe { context_field::<{ offset_of!(xdp_md, data) }>(self.ctx.cast()) as usize }
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: as in `data`.
        unsafe { context_field::<{ offset_of!(xdp_md, data_end) }>(self.ctx.cast()) as usize }
    }

    /// Of a frame in several buffers this is the first one: its network header says that there is more.
    #[inline(always)]
    fn len(&self) -> u32 {
        (self.data_end() - self.data()) as u32
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: as in `data`.
        unsafe { context_field::<{ offset_of!(xdp_md, ingress_ifindex) }>(self.ctx.cast()) as u32 }
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.ctx.cast()
    }

    #[inline(always)]
    fn segment_len(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn fix_transport_checksum(&mut self, offset: usize, difference: u32, flags: u32) -> Step<()> {
        let field = self.at_mut::<[u8; 2]>(offset)?;
        let optional = flags & BPF_F_MARK_MANGLED_0 != 0;
        // Zero means that there is none (RFC 768, RFC 6935).
        if optional && *field == [0, 0] {
            return Ok(());
        }
        let updated = checksum::updated(*field, difference);
        *field = if optional && updated == [0, 0] { [0xff, 0xff] } else { updated };
        Ok(())
    }

    // The driver has not told the kernel yet what the device computed.
    #[inline(always)]
    fn change_device_sum(&mut self, _difference: u32) {}
}
