//! Flows: finding a packet's entry, keeping its state, and telling when it is over.

mod adopt;
mod open;

use core::{arch::asm, mem::offset_of};

use dataplane_common::{Addr, BePort, Direction, Flow, FlowKey, FlowState, Protocol, Side, Ticks};

pub use self::{
    adopt::{Adoption, adopt, finish_behind_stack, give_back, is_claimed, is_of_untracked},
    open::{Opening, open},
};
use crate::{
    config, direct,
    family::{Datapath, Headers},
    maps::{Table as _, Writable as _},
    packet::opaque,
};

/// Id and generation of the backend of a flow whose backend is none of this node's choice, and so none that is taken back here.
const NO_BACKEND: (u32, u32) = (0, 0);

/// The entry of packets with the tuple `key`.
///
/// With [`is_over`] and [`account`] this is the established path: one conntrack lookup, and for datagrams one array lookup for
/// the backend's generation.
#[inline(always)]
pub fn find<F: Datapath>(key: &FlowKey<F::Addr>) -> Option<&'static mut Flow<F::Addr>> {
    // SAFETY: the map keeps the entry readable and writable. Another processor may use it at the same time or the LRU list
    // may give it away: single words are read and written, which at worst miscounts a packet.
    F::conntrack().find(key).map(|flow| unsafe { &mut *flow })
}

/// Counts a packet of `flow` that is translated now, and moves the flow's state.
#[inline(always)]
pub fn account<F: Datapath>(headers: &Headers<F::Addr>, flow: &mut Flow<F::Addr>, len: u32, now: Ticks) {
    let seen = flow.state;
    let direction = Direction::of(flow.direction);
    let mut state = seen.after(direction, headers.tcp);
    if direct::is_direct::<F>(flow.next) && direction == Direction::Original {
        // Answers do not pass here. An acknowledgement tells of one, and whoever sends more datagrams is likely to have one, too.
        let more = headers.key.protocol == Protocol::Udp as u8 && flow.packets > 0;
        if headers.tcp.continues() || more {
            state = FlowState(state.0 | FlowState::REPLIED.0);
        }
    }
    let deadline = now.0 + timeout::<F>(flow, state, headers.key.protocol);
    if flow.deadline != deadline {
        flow.deadline = deadline;
    }
    flow.packets += 1;
    flow.bytes += u64::from(len);
    if state != seen {
        share_state::<F>(headers, flow, state, now);
    }
}

/// The ticks after which a direction of `flow` in `state` has been silent for too long.
#[inline(always)]
fn timeout<F: Datapath>(flow: &Flow<F::Addr>, state: FlowState, protocol: u8) -> u32 {
    if direct::is_direct::<F>(flow.next) {
        config::timeout_unanswered(state, protocol)
    } else {
        config::timeout(state, protocol)
    }
}

/// Finds the flow that an ICMP error's quoted packet belongs to, when errors of its direction are translated at this
/// `side`: the tuple that a packet in the error's direction becomes is written to `to`, and its way is returned.
#[inline(always)]
pub fn track_error<F: Datapath>(quoted: &FlowKey<F::Addr>, side: Side, to: &mut FlowKey<F::Addr>) -> Option<u8> {
    // The error travels against the packet it quotes.
    let flow = F::conntrack().find(&quoted.reversed())?;
    // SAFETY: words are read from an entry that the map keeps readable.
    let flow = unsafe { &*flow };
    if flow.side != side as u8 {
        return None;
    }
    to.src = flow.src;
    to.dst = flow.dst;
    to.src_port = flow.src_port;
    to.dst_port = flow.dst_port;
    Some(flow.next)
}

/// Whether a packet of `flow` belongs to something else although its tuple has an entry.
#[inline(always)]
pub fn is_over<F: Datapath>(headers: &Headers<F::Addr>, flow: &Flow<F::Addr>, now: Ticks) -> bool {
    if flow.direction != Direction::Original as u8 {
        return answers_another::<F>(headers, flow, now);
    }
    let key = &headers.key;
    if key.protocol == Protocol::Tcp as u8 {
        // An open connection stays with its backend whatever becomes of it, until it closes. A SYN keeps its entry only if
        // that is still opening or open, and if answers still have theirs: the same client may since have reached the same
        // backend from the same port through another frontend.
        return headers.tcp.opens()
            && (flow.state.is_closing() || !backend_exists::<F>(flow) || is_orphaned_or_silent::<F>(flow, key, now));
    }
    // A datagram never goes to an endpoint that is gone.
    !backend_exists::<F>(flow) || is_silent::<F>(flow, key, now)
}

/// Whether a packet with a reply's tuple answers something else than `flow`: its client may since have reached the backend from
/// the same port without this node translating it.
#[inline(always)]
fn answers_another<F: Datapath>(headers: &Headers<F::Addr>, flow: &Flow<F::Addr>, now: Ticks) -> bool {
    let key = &headers.key;
    if key.protocol != Protocol::Tcp as u8 {
        return is_silent::<F>(flow, key, now);
    }
    if !headers.tcp.accepts() || !flow.state.is_closed() {
        return false;
    }
    // Later packets of that connection do not tell that they are its own. Should the entry be gone already, so much the better.
    let _gone = F::conntrack().delete(key);
    true
}

#[inline(always)]
fn backend_exists<F: Datapath>(flow: &Flow<F::Addr>) -> bool {
    let Some(backend) = F::backends().find(&flow.backend) else { return false };
    // SAFETY: array elements never move, and a word is read.
    unsafe { (*backend).generation == flow.generation }
}

/// Whether both directions of `flow`, whose own key is `key`, have been silent for longer than its state allows.
#[inline(always)]
fn is_silent<F: Datapath>(flow: &Flow<F::Addr>, key: &FlowKey<F::Addr>, now: Ticks) -> bool {
    now.0 > flow.deadline && is_orphaned_or_silent::<F>(flow, key, now)
}

/// Whether `flow` has no entry for its other direction any more, or has been silent in both.
///
/// A function of its own for the kernel, which would otherwise verify it once for each kind of packet that asks.
#[inline(never)]
fn is_orphaned_or_silent<F: Datapath>(flow: &Flow<F::Addr>, key: &FlowKey<F::Addr>, now: Ticks) -> bool {
    let Some(peer) = peer::<F>(flow, key) else { return true };
    // SAFETY: a word is read from an entry that the map keeps readable.
    now.0 > flow.deadline && now.0 > unsafe { (*peer).deadline }
}

/// The flow's entry for the other direction, unless that tuple belongs to another flow by now.
#[inline(always)]
pub fn peer<F: Datapath>(flow: &Flow<F::Addr>, key: &FlowKey<F::Addr>) -> Option<*mut Flow<F::Addr>> {
    let mut answer = *key;
    answer.src = flow.dst.by_words();
    answer.dst = flow.src.by_words();
    answer.src_port = flow.dst_port;
    answer.dst_port = flow.src_port;
    if !direct::is_on::<F>() {
        let peer = F::conntrack().find(&answer)?;
        // SAFETY: words are read from an entry that the map keeps readable.
        return unsafe { (*peer).answers(key) }.then_some(peer);
    }
    if let Some(peer) = F::conntrack().find(&answer)
        // SAFETY: as above.
        && unsafe { (*peer).is_peer_of(flow, key) }
    {
        return Some(peer);
    }
    let peer = F::conntrack().find(&flow.announced_request(key))?;
    // SAFETY: as above.
    unsafe { (*peer).is_peer_of(flow, key) }.then_some(peer)
}

/// Tells both of the flow's entries of a new state: only a handful of packets of a connection change it.
///
/// The two directions may do so at once on two processors, so bits are set atomically: one that got lost would leave a closed
/// connection open for its client's next one from the same port.
#[inline(always)]
fn share_state<F: Datapath>(headers: &Headers<F::Addr>, flow: &mut Flow<F::Addr>, state: FlowState, now: Ticks) {
    add_state(flow, state);
    if let Some(peer) = peer::<F>(flow, &headers.key) {
        // SAFETY: single words of an entry that the map keeps writable.
        let peer = unsafe { &mut *peer };
        add_state(peer, state);
        peer.deadline = now.0 + timeout::<F>(peer, state, headers.key.protocol);
    }
}

/// Sets the bits of `state` in an entry.
#[inline(always)]
fn add_state<A: Addr>(flow: &mut Flow<A>, state: FlowState) {
    const _: () = assert!(offset_of!(Flow<[u32; 1]>, state) % 4 == 3 && offset_of!(Flow<[u32; 4]>, state) % 4 == 3);
    // The processor knows atomic operations on words only: the state is the highest byte of the entry's last word.
    let word = (&raw mut flow.direction).cast::<u32>();
    let bits = u32::from(state.0) << 24;
    // SAFETY: the word is aligned (asserted above: three bytes before it end at the state) and part of the entry.
    unsafe { asm!("lock *(u32 *)({0} + 0) |= {1}", in(reg) word, in(wreg) bits, options(nostack)) };
}

/// Makes the entry of a flow's answers that of its requests, which become packets with the tuple `to`.
#[inline(always)]
fn turn<A: Addr>(flow: &mut Flow<A>, to: &FlowKey<A>, side: Side, next: u8) {
    flow.src = to.src;
    flow.dst = to.dst;
    // Not joined with the address before them, which would make a misaligned word of the stack.
    let ports = opaque(u32::from(to.src_port.0) | u32::from(to.dst_port.0) << 16);
    flow.src_port = BePort(ports as u16);
    flow.dst_port = BePort((ports >> 16) as u16);
    flow.direction = Direction::Original as u8;
    flow.side = side as u8;
    flow.next = next;
}

/// Whether the reply tuple `answer` belongs to a living flow other than the one `reply` is for.
///
/// A function of its own for the kernel: it is rarely called, and in the loop above it would be verified eight times over.
#[inline(never)]
fn is_taken<F: Datapath>(answer: &FlowKey<F::Addr>, reply: &Flow<F::Addr>, now: Ticks) -> bool {
    let Some(present) = F::conntrack().find(answer) else { return false };
    // SAFETY: words are read from an entry that the map keeps readable.
    let present = unsafe { &*present };
    let same = present.dst == reply.dst
        && present.src == reply.src
        && present.dst_port == reply.dst_port
        && present.src_port == reply.src_port;
    !same && !present.state.is_closed() && !is_silent::<F>(present, answer, now)
}

/// The same key, of which the compiler no longer knows that it may lie at a multiple of 16: LLVM 22 fails on a copy between two
/// such places.
#[inline(always)]
pub fn placed<A>(key: &FlowKey<A>) -> &FlowKey<A> {
    let mut place = core::ptr::from_ref(key);
    // SAFETY: copies a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) place, options(nomem, nostack, preserves_flags)) };
    // SAFETY: it is the same reference.
    unsafe { &*place }
}
