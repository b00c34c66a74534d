//! The order of stages at each hook.
//!
//! Translation is symmetric around the host's stack: what is translated before it on the way in is put back after it on
//! the way out, so that netfilter, routing rules and other tools on the node see one consistent flow.
//!
//! Each stage reads the packet anew and is a function of its own for the kernel: the stages together need more than the
//! 512 bytes of a BPF stack, and only the first one is on the path of an established flow.

mod cut;
mod icmp;

use aya_ebpf::bindings::__sk_buff;
use dataplane_common::{Direction, DropReason, Exit, FlowKey, Frontend, Next, NodeConfig, Protocol, TcpFlags};

use crate::{
    answer,
    arrangement::Arrangement,
    clock, config,
    conntrack::{self, Opening},
    direct,
    family::{self, Datapath, Headers, IcmpError, Parsed, Part, Segment},
    forward::{self, Hop, Reach},
    fragments,
    hook::Hook,
    maps::count_drop,
    nat,
    packet::{Frame, Packet},
    pairs::{self, Sides},
    service,
    verdict::{Outcome, Step, Verdict},
    way,
};

/// Runs the stages for a packet of the family `F`; the result is for the kernel.
#[inline(always)]
pub fn run<H: Hook, F: Datapath>(skb: *mut __sk_buff) -> i32 {
    let bypasses = bypasses::<H>();
    let direct = H::BETWEEN_NODES && direct::is_on::<F>();
    if direct && direct::may_tell::<F>(skb) && direct::listen::<F>(skb) == Outcome::DROP {
        return Outcome::DROP.into_tc();
    }
    let mut outcome = match segment_of_strangers::<H, F>(skb) {
        Some(outcome) => outcome,
        None => known_flow::<H, F, false>(skb, false),
    };
    if outcome == Outcome::UNTRACKED {
        outcome = give_back::<H, F>(skb);
    }
    if H::BYPASSES && outcome == Outcome::UNKNOWN_CONNECTION {
        // Most segments open no connection: where others went between the same addresses, no frontend has to be looked for.
        outcome = way::follow::<F>(skb, false);
    }
    if outcome == Outcome::UNKNOWN_FLOW {
        outcome = if H::BEGINS_FLOWS && H::may_begin(skb) { new_flow::<H, F>(skb) } else { Outcome::PASS };
    }
    let tells = direct && outcome == Outcome::TELLING;
    if tells {
        outcome = direct::tell::<F>(skb);
    }
    // Each stage is called from one place: the verifier walks it once per call.
    if outcome == Outcome::BEGUN || outcome == Outcome::STALE_WAY {
        // What tells is routed from here in any case.
        let confirm = bypasses && !tells && way::refresh::<F>(skb);
        outcome = known_flow::<H, F, true>(skb, confirm);
    } else if bypasses && outcome == Outcome::UNTRANSLATED {
        outcome = way::follow::<F>(skb, true);
    } else if outcome == Outcome::ICMP_ERROR {
        outcome = icmp::translate::<H, F>(skb);
    }
    if H::BEFORE_STACK
        && let Some(mtu) = outcome.cut_to()
    {
        outcome = cut::pass::<F>(skb, mtu);
    }
    if H::BEGINS_FLOWS && outcome.error().is_some() {
        outcome = answer::<H, F>(skb, outcome);
    }
    if outcome == Outcome::NO_FLOW {
        outcome = if H::BEGINS_FLOWS && H::may_begin(skb) { no_flow::<F>(skb) } else { Outcome::PASS };
    }
    outcome.into_tc()
}

/// Whether packets may go around the stack from here.
#[inline(always)]
fn bypasses<H: Hook>() -> bool {
    H::BYPASSES && config::has(NodeConfig::HOST_BYPASS)
}

/// What becomes of a TCP segment between addresses that have had no flows for this side of the stack, with nothing between its headers:
/// most packets on their way through a cluster, at most hooks that they pass.
///
/// Not of datagrams: those of a flow look for their backend in an array, and would pay for another one.
#[inline(always)]
fn segment_of_strangers<H: Hook, F: Datapath>(skb: *mut __sk_buff) -> Option<Outcome> {
    // SAFETY: `run` passes the context of the running program. What is not readable in place goes the usual way.
    let packet = unsafe { Packet::pulled(skb) };
    let Segment { src, dst, flags } = family::plain_segment::<F>(&packet)?;
    // What is for the other side passes here, unless it may leave from here with both sides' work done.
    let sides = if bypasses::<H>() { Sides::BOTH } else { Sides::of(H::SIDE as u8) };
    if pairs::may_have_flows::<F>(&src, &dst, sides) {
        return None;
    }
    // `way::follow` would say the same, having read the headers again.
    let passes = H::BYPASSES && !bypasses::<H>() && flags.continues() && way::is_noted::<F>(skb);
    Some(if passes { Outcome::PASS } else { unknown::<H>(flags) })
}

/// What becomes of a packet without an entry, by its TCP flags.
#[inline(always)]
fn unknown<H: Hook>(flags: TcpFlags) -> Outcome {
    if H::BYPASSES && flags.continues() { Outcome::UNKNOWN_CONNECTION } else { Outcome::UNKNOWN_FLOW }
}

/// Translates a packet of a known flow: all that most packets of flows need. `FRESH` flows have been looked at just now; with `confirm`
/// the kernel is to use the neighbour itself.
#[inline(never)]
fn known_flow<H: Hook, F: Datapath, const FRESH: bool>(skb: *mut __sk_buff, confirm: bool) -> Outcome {
    // SAFETY: `run` passes the context of the running program.
    let mut packet = unsafe { Packet::new::<F>(skb) };
    Outcome::of(translate_known::<H, F>(&mut packet, FRESH, confirm))
}

#[inline(always)]
fn translate_known<H: Hook, F: Datapath>(packet: &mut Packet<'_>, fresh: bool, confirm: bool) -> Step<Outcome> {
    let mut headers = match family::parse::<F>(packet) {
        Some(Parsed::Flow(headers)) => headers,
        Some(Parsed::Icmp) => return Ok(Outcome::ICMP_ERROR),
        Some(Parsed::Other) => return Ok(Outcome::NO_FLOW),
        None => return Ok(Outcome::PASS),
    };
    if !fragments::follow::<F>(&mut headers)? {
        return Ok(Outcome::NO_FLOW);
    }
    let Some(flow) = conntrack::find::<F>(&headers.key) else { return Ok(unknown::<H>(headers.tcp)) };
    let now = clock::now();
    let here = flow.side == H::SIDE as u8;
    let bypasses = bypasses::<H>() && flow.next == Next::Stack as u8;
    if !here && !bypasses {
        return Ok(Outcome::PASS);
    }
    if !fresh && conntrack::is_of_untracked::<F>(&headers, flow) {
        return Ok(Outcome::UNTRACKED);
    }
    if !fresh && conntrack::is_over::<F>(&headers, flow, now) {
        return Ok(Outcome::UNKNOWN_FLOW);
    }
    // Copied before the packet is: the entry may be given to another flow at any moment. Filled in place: moving it through
    // return values would cost copies.
    let mut to = headers.key;
    to.src = flow.src;
    to.dst = flow.dst;
    to.src_port = flow.src_port;
    to.dst_port = flow.dst_port;
    // Where no flow begins, none leaves the way through the stack.
    let next = if H::BEGINS_FLOWS { flow.next } else { Next::Stack as u8 };
    // Requests that another node has sent here, rather than answers to this node's own sockets.
    let is_adopted = H::BETWEEN_NODES && direct::is_on::<F>() && flow.direction == Direction::Original as u8;
    let current = way::is_current(&flow.way, packet.interface(), now);
    if bypasses {
        if !current && !fresh {
            return Ok(Outcome::STALE_WAY);
        }
        // What the way does not suit, the stack cuts, answers or drops. Policy of the destination belongs before this
        // decision: the programs of its interface do not see what is handed to its peer.
        let suits = current && headers.hop_limit > 1 && forward::network_len(packet, &headers)? <= flow.way.mtu;
        if suits && flow.way.exit != Exit::Stack as u32 {
            let peer = flow.way.exit == Exit::Peer as u32;
            let mut hop = Hop::remembered(&flow.way);
            if confirm {
                hop.reach = Reach::Unresolved;
            }
            conntrack::account::<F>(&headers, flow, packet.len(), now);
            nat::rewrite::<F>(packet, &headers, &to)?;
            F::decrement_hop_limit(packet)?;
            let verdict = if peer { forward::hand_to_peer(packet, &hop) } else { forward::transmit(packet, &hop) };
            return verdict.map(Verdict::act);
        }
        if !here {
            return Ok(Outcome::PASS);
        }
    } else if next == Next::Route as u8 || direct::is_direct::<F>(next) {
        if H::BETWEEN_NODES && !fresh && direct::is_direct::<F>(next) {
            // Its entry has not been touched yet, so the packet is counted once.
            if flow.direction == Direction::Original as u8 && direct::can_tell::<F>(packet, &headers) {
                return Ok(Outcome::TELLING);
            }
        }
        let mut hop = Hop::remembered(&flow.way);
        if !current {
            hop = forward::resolve::<F>(packet, packet.interface(), &to)?;
            if hop.reach == Reach::Known {
                way::remember(&mut flow.way, &hop, packet.interface(), Exit::Transmit, now);
            }
            hop.reach = Reach::Unresolved;
        }
        conntrack::account::<F>(&headers, flow, packet.len(), now);
        return route::<H, F>(packet, &headers, &to, &hop);
    }
    conntrack::account::<F>(&headers, flow, packet.len(), now);
    nat::rewrite::<F>(packet, &headers, &to)?;
    let verdict = if next == Next::Bounce as u8 {
        forward::bounce(packet)
    } else if next == Next::Receive as u8 && (H::FROM_PODS || is_adopted) {
        forward::receive::<F>(packet, &mut to)
    } else {
        Ok(Verdict::Pass)
    };
    verdict.map(Verdict::act)
}

/// Has the tuple of the packet, an answer, belong to the connection that it had before a flow took it.
#[inline(never)]
fn give_back<H: Hook, F: Datapath>(skb: *mut __sk_buff) -> Outcome {
    // SAFETY: `run` passes the context of the running program.
    let mut packet = unsafe { Packet::new::<F>(skb) };
    let Some(Parsed::Flow(headers)) = family::parse::<F>(&mut packet) else { return Outcome::PASS };
    match conntrack::give_back::<F>(&headers.key) {
        Ok(()) => unknown::<H>(headers.tcp),
        Err(reason) => Outcome::of(Err(reason)),
    }
}

/// Begins a flow if the packet is for a frontend. The packet stays as it is.
#[inline(never)]
fn new_flow<H: Hook, F: Datapath>(skb: *mut __sk_buff) -> Outcome {
    // SAFETY: `run` passes the context of the running program.
    let mut packet = unsafe { Packet::new::<F>(skb) };
    match begin::<H, F>(&mut packet) {
        Ok(Some(next)) if H::BETWEEN_NODES && direct::is_direct::<F>(next) => Outcome::TELLING,
        Ok(Some(_)) => Outcome::BEGUN,
        Ok(None) if bypasses::<H>() => Outcome::UNTRANSLATED,
        Ok(None) => Outcome::PASS,
        Err(reason) if reason.is_answered() => {
            count_drop(reason);
            Outcome::REFUSED
        }
        Err(reason) => Outcome::of(Err(reason)),
    }
}

#[inline(always)]
fn begin<H: Hook, F: Datapath>(packet: &mut Packet<'_>) -> Step<Option<u8>> {
    let Some(Parsed::Flow(mut headers)) = family::parse::<F>(packet) else { return Ok(None) };
    if !fragments::follow::<F>(&mut headers)? {
        return Ok(None);
    }
    let key = &headers.key;
    let mut to = headers.key;
    let opening = if let Some(frontend) = service::find::<F>(&key.dst, key.dst_port, key.protocol, H::NODE_PORT_ON)? {
        if headers.part == Part::Later {
            // Its datagram's first fragment would have begun the flow.
            return Err(DropReason::UnknownFragment);
        }
        direct_to::<H, F>(packet, &headers, frontend, &mut to)?
    } else if H::BEFORE_STACK && conntrack::is_claimed::<F>(&headers) {
        // Behind it, the packet of a flow may come again: sent out by another interface, where its own answers are still to be told.
        Opening::evading()
    } else {
        if H::BYPASSES && !bypasses::<H>() && headers.tcp.continues() {
            way::note_stack::<F>(key, packet.interface());
        }
        return Ok(None);
    };
    conntrack::open::<F>(&headers, &mut to, &opening).map(Some)
}

/// Chooses the backend of a new flow to `frontend`, and writes the tuple that the packet is to have into `to`.
#[inline(always)]
pub fn direct_to<H: Hook, F: Datapath>(
    packet: &impl Frame,
    headers: &Headers<F::Addr>,
    frontend: &Frontend,
    to: &mut FlowKey<F::Addr>,
) -> Step<Opening> {
    let key = &headers.key;
    let selected = service::select::<F>(frontend, H::CLIENT, &key.src)?;
    to.dst = selected.backend.addr;
    to.dst_port = selected.backend.port;
    if key.protocol == Protocol::Sctp as u8 && to.dst_port != key.dst_port {
        return Err(DropReason::SctpPort);
    }
    let Arrangement { original, reply, allocate_port } = H::arrange::<F>(packet, headers, frontend, &selected, to)?;
    Ok(Opening {
        backend: selected.id,
        generation: selected.backend.generation,
        service: frontend.service,
        original,
        reply,
        allocate_port,
    })
}

/// Answers a packet that goes no further, as its `outcome` says, which has been counted.
#[inline(never)]
fn answer<H: Hook, F: Datapath>(skb: *mut __sk_buff, outcome: Outcome) -> Outcome {
    // SAFETY: `run` passes the context of the running program.
    let mut packet = unsafe { Packet::new::<F>(skb) };
    let Some(Parsed::Flow(headers)) = family::parse::<F>(&mut packet) else { return Outcome::DROP };
    let answered = match outcome.error() {
        Some(IcmpError::PortUnreachable) => answer::refuse::<F>(&mut packet, &headers),
        Some(error) => answer::complain::<F>(&mut packet, &headers, error),
        None => Ok(false),
    };
    match answered {
        Ok(true) => Outcome::of(H::reply(&mut packet).map(Verdict::act)),
        // What must not be answered.
        Ok(false) => Outcome::DROP,
        Err(reason) => Outcome::of(Err(reason)),
    }
}

/// Judges a packet that is part of no flow, such as an echo request: services have none, so only where it would end up matters.
#[inline(never)]
fn no_flow<F: Datapath>(skb: *mut __sk_buff) -> Outcome {
    // SAFETY: `run` passes the context of the running program.
    let packet = unsafe { Packet::pulled(skb) };
    let Some((_, dst)) = family::addresses::<F>(&packet) else { return Outcome::PASS };
    if service::is_nobodys::<F>(&dst) { Outcome::of(Err(DropReason::UnownedServiceAddress)) } else { Outcome::PASS }
}

/// Does for a redirected packet what the stack's forwarding would have done.
#[inline(always)]
fn route<H: Hook, F: Datapath>(
    packet: &mut Packet<'_>,
    headers: &Headers<F::Addr>,
    to: &FlowKey<F::Addr>,
    hop: &Hop,
) -> Step<Outcome> {
    let forwarded = !packet.is_locally_sent();
    if forwarded && headers.hop_limit <= 1 {
        count_drop(DropReason::HopLimit);
        return Ok(Outcome::OUT_OF_HOPS);
    }
    if forward::network_len(packet, headers)? > hop.mtu {
        if H::BEFORE_STACK && F::may_be_cut(packet) {
            return Ok(Outcome::to_be_cut(hop.mtu as u16));
        }
        count_drop(DropReason::TooBig);
        return Ok(Outcome::too_big(hop.mtu as u16));
    }
    nat::rewrite::<F>(packet, headers, to)?;
    if forwarded {
        F::decrement_hop_limit(packet)?;
    }
    forward::transmit(packet, hop).map(Verdict::act)
}
