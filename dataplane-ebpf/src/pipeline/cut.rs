//! Packets that are too large for their way and that routers may cut.

use aya_ebpf::bindings::__sk_buff;
use dataplane_common::DropReason;

use crate::{
    conntrack,
    family::{self, Datapath, Parsed},
    fragments,
    maps::count_drop,
    nat,
    packet::Packet,
    verdict::{Outcome, Step},
};

/// Sends a packet that is too large for its way, and may be cut, through the stack, which cuts. Here only its destination is translated:
/// with the source it gets behind the stack, the stack would take it for one of its own and for a martian.
///
/// Answered as too large, for it is larger than `mtu`, when another flow has the tuple between both.
#[inline(never)]
pub fn pass<F: Datapath>(skb: *mut __sk_buff, mtu: u16) -> Outcome {
    // SAFETY: `run` passes the context of the running program.
    let mut packet = unsafe { Packet::new::<F>(skb) };
    match translate_half::<F>(&mut packet) {
        Ok(true) => Outcome::PASS,
        Ok(false) => {
            count_drop(DropReason::TooBig);
            Outcome::too_big(mtu)
        }
        Err(reason) => Outcome::of(Err(reason)),
    }
}

#[inline(always)]
fn translate_half<F: Datapath>(packet: &mut Packet<'_>) -> Step<bool> {
    let Some(Parsed::Flow(mut headers)) = family::parse::<F>(packet) else { return Ok(false) };
    if !fragments::follow::<F>(&mut headers)? {
        return Ok(false);
    }
    let Some(flow) = conntrack::find::<F>(&headers.key) else { return Ok(false) };
    let mut half = headers.key;
    half.dst = flow.dst;
    half.dst_port = flow.dst_port;
    let is_whole = half.src == flow.src && half.src_port == flow.src_port;
    if !is_whole && !conntrack::finish_behind_stack::<F>(&half, flow)? {
        return Ok(false);
    }
    nat::rewrite::<F>(packet, &headers, &half)?;
    Ok(true)
}
