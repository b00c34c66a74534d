//! ICMP errors about flows' packets.

use aya_ebpf::bindings::__sk_buff;
use dataplane_common::{DropReason, Next};

use crate::{
    conntrack, direct,
    family::{self, Datapath, Quote},
    forward,
    hook::Hook,
    nat,
    packet::{Frame as _, Packet},
    verdict::{Outcome, Step, Verdict},
};

/// Translates an ICMP error about a flow's packet, inside and out, and sends it where the flow's packets go.
#[inline(never)]
pub fn translate<H: Hook, F: Datapath>(skb: *mut __sk_buff) -> Outcome {
    // SAFETY: `run` passes the context of the running program.
    let mut packet = unsafe { Packet::new::<F>(skb) };
    let Some(quote) = family::parse_error::<F>(&mut packet) else { return Outcome::NO_FLOW };
    Outcome::of(translate_error::<H, F>(&mut packet, &quote).map(Verdict::act))
}

#[inline(always)]
fn translate_error<H: Hook, F: Datapath>(packet: &mut Packet<'_>, quote: &Quote<F::Addr>) -> Step<Verdict> {
    let mut to = quote.key;
    let Some(next) = conntrack::track_error::<F>(&quote.key, H::SIDE, &mut to) else { return Ok(Verdict::Pass) };
    // Where no flow begins, none leaves the way through the stack.
    let next = if H::BEGINS_FLOWS { next } else { Next::Stack as u8 };
    if next != Next::Route as u8 && !direct::is_direct::<F>(next) {
        nat::rewrite_error::<F>(packet, quote, &to)?;
        if next == Next::Bounce as u8 {
            return forward::bounce(packet);
        }
        if H::FROM_PODS && next == Next::Receive as u8 {
            return forward::receive::<F>(packet, &mut to);
        }
        return Ok(Verdict::Pass);
    }
    if quote.hop_limit <= 1 {
        // No error is sent about an error (RFC 1122, 3.2.2).
        return Err(DropReason::HopLimit);
    }
    let hop = forward::resolve::<F>(packet, packet.interface(), &to)?;
    nat::rewrite_error::<F>(packet, quote, &to)?;
    F::decrement_hop_limit(packet)?;
    forward::transmit(packet, &hop)
}
