//! New flows: both entries written, a source port chosen where it must be, and what an earlier flow has left used again.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::bpf_get_prandom_u32,
};
use dataplane_common::{Direction, DropReason, Flow, FlowKey, FlowState, NO_SERVICE, Next, Protocol, Side, Ticks, Way};

use super::{NO_BACKEND, is_taken, placed, turn};
use crate::{
    clock, config, direct,
    family::{Datapath, Headers},
    maps::{Table as _, Writable as _},
    packet::opaque,
    pairs,
    verdict::Step,
};

/// How many source ports are tried for a flow before it is given up. Each attempt is unrolled by the verifier; with half of
/// the range taken, eight random tries fail for one flow in 256.
const PORT_ATTEMPTS: u32 = 8;

/// A flow about to be opened.
pub struct Opening {
    pub backend: u32,
    pub generation: u32,
    pub service: u32,
    /// Where packets of the original direction are translated and go.
    pub original: (Side, Next),
    /// The same for replies.
    pub reply: (Side, Next),
    /// The source port is chosen here, because the source address is shared with others. Not of a flow that is answered directly:
    /// it keeps its source unless that is taken.
    pub allocate_port: bool,
}

impl Opening {
    /// That of a flow whose packets get another source port before the stack and stay as they are otherwise.
    #[inline(always)]
    pub fn evading() -> Self {
        // Known zeroes would be joined: to a misaligned word of the stack, or for a call that clears them.
        let (backend, generation, service) = (opaque(NO_BACKEND.0), opaque(NO_BACKEND.1), opaque(NO_SERVICE));
        let (original, reply) = ((Side::Ingress, Next::StackOnly), (Side::Egress, Next::StackOnly));
        Self { backend, generation, service, original, reply, allocate_port: true }
    }
}

/// A side where nothing is translated.
const NO_SIDE: u8 = u8::MAX;

/// Writes both entries of a new flow from `key` to `to`; chooses `to`'s source port where it must. Returns the [`Next`] of its
/// packets.
///
/// The reply entry comes first and only where none is: it reserves the tuple that the backend will answer.
#[inline(always)]
pub fn open<F: Datapath>(headers: &Headers<F::Addr>, to: &mut FlowKey<F::Addr>, opening: &Opening) -> Step<u8> {
    let now = clock::now();
    let key = &headers.key;
    let state = FlowState::of_first(headers.tcp);
    let mut flow = Flow {
        packets: 0,
        bytes: 0,
        way: Way::UNKNOWN,
        src: key.dst,
        dst: key.src,
        src_port: key.dst_port,
        dst_port: key.src_port,
        backend: opening.backend,
        generation: opening.generation,
        service: opening.service,
        deadline: now.0 + config::timeout(state, key.protocol),
        direction: Direction::Reply as u8,
        side: opening.reply.0 as u8,
        next: opening.reply.1 as u8,
        state,
    };
    // What is there is over, or the packet would have been its own.
    let returns = F::conntrack().find(key).is_some();
    let mut next = opening.original.1 as u8;
    let direct = direct::is_direct::<F>(next);
    if !direct || !reserve_direct::<F>(key, to, &flow, now)? {
        if direct {
            // Another source port would not be the client's to the backend's node, which answers in its place.
            next = Next::Route as u8;
            flow.next = next;
        }
        pairs::note_flow::<F>(&to.dst, &to.src, flow.side);
        let is_kept = returns && !opening.allocate_port && retake::<F>(to, &flow, now);
        if !is_kept {
            reserve::<F>(to, &flow, opening.allocate_port, now)?;
        }
    }
    turn(&mut flow, to, opening.original.0, next);
    pairs::note_flow::<F>(&key.src, &key.dst, flow.side);
    if !returns || !take_over::<F>(key, &flow) {
        F::conntrack().put(key, &flow, u64::from(BPF_ANY)).map_err(|_errno| DropReason::ConntrackInsert)?;
    }
    Ok(next)
}

/// Gives the entry that a flow which is over has left under `key` to `flow`. False when there is none.
///
/// Clients that come often come back from the same port within seconds. To replace the entry would mean another one, in memory that no
/// cache holds, and to touch the neighbours of both in the lists of what was used least recently.
///
/// A function of its own for the kernel, as it is called from two places.
#[inline(never)]
fn take_over<F: Datapath>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
    let Some(entry) = F::conntrack().find(key) else { return false };
    // SAFETY: the map keeps the entry writable. Packets that are late for the flow before may read a mixture of both, as they might
    // have come later.
    unsafe { entry.write(*flow) };
    if F::conntrack().find(key) == Some(entry) {
        return true;
    }
    // Between finding and writing, a full map has given the entry to another flow, although it was used just now. Nothing is translated
    // by it until the next sweep removes it, and that flow goes on as if it had been the one to be given up.
    // SAFETY: single words of an entry that the map keeps writable.
    let entry = unsafe { &mut *entry };
    (entry.side, entry.next, entry.deadline) = (NO_SIDE, Next::Route as u8, 0);
    false
}

/// Inserts the reply entry `reply` of a flow from `key` to `to` whose source stays. False when another flow has its tuple.
#[inline(always)]
fn reserve_direct<F: Datapath>(
    key: &FlowKey<F::Addr>,
    to: &mut FlowKey<F::Addr>,
    reply: &Flow<F::Addr>,
    now: Ticks,
) -> Step<bool> {
    let answer = FlowKey::new(to.dst, key.src, to.dst_port, key.src_port, key.protocol);
    pairs::note_flow::<F>(&answer.src, &answer.dst, reply.side);
    if F::conntrack().put(&answer, reply, u64::from(BPF_NOEXIST)).is_err() {
        if is_taken::<F>(&answer, reply, now) {
            return Ok(false);
        }
        F::conntrack().put(&answer, reply, u64::from(BPF_ANY)).map_err(|_errno| DropReason::ConntrackInsert)?;
    }
    to.src = key.src;
    Ok(true)
}

/// Gives the reply entry that a client's flow which is over has left to the one from the same port `to` the same backend. False when
/// there is none, or when it belongs to another flow.
#[inline(always)]
fn retake<F: Datapath>(to: &FlowKey<F::Addr>, reply: &Flow<F::Addr>, now: Ticks) -> bool {
    let answer = placed(to).reversed();
    !is_taken::<F>(&answer, reply, now) && take_over::<F>(&answer, reply)
}

/// Inserts the reply entry `reply`, trying other source ports for `to` while its tuple belongs to another flow.
#[inline(always)]
fn reserve<F: Datapath>(to: &mut FlowKey<F::Addr>, reply: &Flow<F::Addr>, allocate_port: bool, now: Ticks) -> Step<()> {
    let sctp = to.protocol == Protocol::Sctp as u8;
    for attempt in 0..PORT_ATTEMPTS {
        if sctp && attempt > 0 {
            return Err(DropReason::SctpPort);
        }
        if !sctp && (allocate_port || attempt > 0) {
            // SAFETY: the helper has no preconditions.
            to.src_port = config::snat_port(unsafe { bpf_get_prandom_u32() });
        }
        let answer = placed(to).reversed();
        if F::conntrack().put(&answer, reply, u64::from(BPF_NOEXIST)).is_ok() {
            return Ok(());
        }
        if !is_taken::<F>(&answer, reply, now) {
            return F::conntrack()
                .put(&answer, reply, u64::from(BPF_ANY))
                .map_err(|_errno| DropReason::ConntrackInsert);
        }
    }
    Err(DropReason::SnatExhausted)
}
