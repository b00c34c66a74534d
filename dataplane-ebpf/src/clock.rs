//! The present tick.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use dataplane_common::Ticks;

/// The present tick.
#[inline(always)]
pub fn now() -> Ticks {
    // SAFETY: the helper has no preconditions. Coarse: one load, and ticks are far coarser.
    Ticks::from_nanos(unsafe { bpf_ktime_get_coarse_ns() })
}
