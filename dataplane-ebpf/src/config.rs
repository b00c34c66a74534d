//! Reads the node's load-time constants.

use dataplane_common::{BePort, FlowState, NodeConfig};

/// Set by the loader before the programs are verified, so that the verifier prunes what is switched off.
#[unsafe(no_mangle)]
static NODE_CONFIG: NodeConfig = NodeConfig::DEFAULT;

/// Reads a field as the loader left it; a plain read would be folded to the default at compile time.
#[inline(always)]
fn read<T: Copy>(field: *const T) -> T {
    // SAFETY: every caller passes the address of a field of a static that is never written.
    unsafe { core::ptr::read_volatile(field) }
}

/// Whether any of the bits `flag` (`NodeConfig::*`) is set.
#[inline(always)]
pub fn has(flag: u32) -> bool {
    read(&raw const NODE_CONFIG.flags) & flag != 0
}

/// The timeout of a flow of `protocol` in `state`, in ticks.
#[inline(always)]
pub fn timeout(state: FlowState, protocol: u8) -> u32 {
    read(&raw const NODE_CONFIG.timeouts.0[state.timeout_index(protocol)])
}

/// The same of a flow whose answers are not seen.
#[inline(always)]
pub fn timeout_unanswered(state: FlowState, protocol: u8) -> u32 {
    read(&raw const NODE_CONFIG.timeouts.0[state.timeout_index_unanswered(protocol)])
}

/// A random source port of the SNAT range.
#[inline(always)]
pub fn snat_port(random: u32) -> BePort {
    NodeConfig::snat_port(
        read(&raw const NODE_CONFIG.snat_port_first),
        read(&raw const NODE_CONFIG.snat_port_count),
        random,
    )
}

/// Cookie of the node's network namespace.
#[inline(always)]
pub fn host_netns_cookie() -> u64 {
    read(&raw const NODE_CONFIG.host_netns_cookie)
}

/// Source address of IPv4 hairpins.
#[inline(always)]
pub fn hairpin4() -> [u32; 1] {
    read(&raw const NODE_CONFIG.hairpin4)
}

/// Source address of IPv6 hairpins.
#[inline(always)]
pub fn hairpin6() -> [u32; 4] {
    [
        read(&raw const NODE_CONFIG.hairpin6[0]),
        read(&raw const NODE_CONFIG.hairpin6[1]),
        read(&raw const NODE_CONFIG.hairpin6[2]),
        read(&raw const NODE_CONFIG.hairpin6[3]),
    ]
}
