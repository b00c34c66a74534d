//! Flows: finding a packet's entry, keeping its state, and opening both entries of a new flow.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::bpf_get_prandom_u32,
};
use dataplane_common::{
    Addr, BePort, Direction, DropReason, Flow, FlowKey, FlowState, NO_SERVICE, Next, Protocol, Side, TcpFlags, Ticks,
    Way,
};

use crate::{
    clock, config, direct,
    family::{Datapath, Headers, Part},
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

/// A flow that is not begun here: another node has begun it and its answers get their frontend here, or nobody has tracked it.
pub struct Adoption<A> {
    /// The address that answers get: the frontend's.
    pub addr: A,
    /// The port that they get.
    pub port: BePort,
    /// Id of the service port.
    pub service: u32,
    /// What the backend sees as the source's address; the port stays.
    pub src: A,
    /// Where requests go.
    pub next: Next,
    /// Where answers are translated and go.
    pub reply: (Side, Next),
}

/// A side where nothing is translated.
const NO_SIDE: u8 = u8::MAX;

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

/// Whether a packet with the tuple of `flow`'s answers is of a connection that nobody has tracked, which the client has to the backend
/// itself, from the same port: what is first heard of a backend accepts or refuses.
#[inline(always)]
pub fn is_of_untracked<F: Datapath>(headers: &Headers<F::Addr>, flow: &Flow<F::Addr>) -> bool {
    flow.direction == Direction::Reply as u8
        && flow.state.is_unanswered()
        && flow.keeps_destination(&headers.key)
        && !headers.tcp.accepts()
        && headers.tcp.0 & TcpFlags::RST.0 == 0
}

/// Gives the tuple `answer` back to that connection for as long as it lives. The client's next attempt gets another port.
#[inline(always)]
pub fn give_back<F: Datapath>(answer: &FlowKey<F::Addr>) -> Step<()> {
    let Some(taken) = F::conntrack().find(answer) else { return Ok(()) };
    // SAFETY: a byte of an entry that the map keeps readable.
    let side = Side::of(unsafe { (*taken).side });
    let request = placed(answer).reversed();
    let adoption = Adoption {
        addr: answer.src.by_words(),
        port: answer.src_port,
        service: opaque(NO_SERVICE),
        src: answer.dst.by_words(),
        next: Next::StackOnly,
        reply: (side, Next::StackOnly),
    };
    adopt::<F>(&request, &adoption)
}

/// Whether answers to a packet of no flow would be taken for those of one: its sender has one to the same destination by way of a
/// frontend, and from the same port.
#[inline(always)]
pub fn is_claimed<F: Datapath>(headers: &Headers<F::Addr>) -> bool {
    let key = &headers.key;
    let begins = headers.tcp.opens() || key.protocol == Protocol::Udp as u8;
    if !begins || headers.part == Part::Later || !pairs::may_have_flows::<F>(&key.dst, &key.src) {
        return false;
    }
    let answer = placed(key).reversed();
    let Some(flow) = F::conntrack().find(&answer) else { return false };
    // SAFETY: words are read from an entry that the map keeps readable.
    let flow = unsafe { &*flow };
    let is_itself = flow.src == key.dst && flow.src_port == key.dst_port;
    flow.direction == Direction::Reply as u8
        && !is_itself
        && !flow.state.is_closed()
        && !is_silent::<F>(flow, &answer, clock::now())
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
        let is_kept = returns && !opening.allocate_port && retake::<F>(to, &flow, now);
        if !is_kept {
            reserve::<F>(to, &flow, opening.allocate_port, now)?;
        }
    }
    flow.src = to.src;
    flow.dst = to.dst;
    // Not joined with the address before them, which would make a misaligned word of the stack.
    let ports = opaque(u32::from(to.src_port.0) | u32::from(to.dst_port.0) << 16);
    flow.src_port = BePort(ports as u16);
    flow.dst_port = BePort((ports >> 16) as u16);
    flow.direction = Direction::Original as u8;
    flow.side = opening.original.0 as u8;
    flow.next = next;
    pairs::note_flow::<F>(&key.src, &key.dst);
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

/// Writes both entries of a flow that has begun elsewhere with requests of `key`, whatever flow had them before.
#[inline(always)]
pub fn adopt<F: Datapath>(key: &FlowKey<F::Addr>, adoption: &Adoption<F::Addr>) -> Step<()> {
    let state = FlowState::default();
    // As in `Opening::evading`.
    let (backend, generation) = (opaque(NO_BACKEND.0), opaque(NO_BACKEND.1));
    let mut flow = Flow {
        packets: u64::from(opaque(0)),
        bytes: u64::from(opaque(0)),
        way: Way::UNKNOWN,
        src: adoption.addr,
        dst: key.src,
        src_port: adoption.port,
        dst_port: key.src_port,
        backend,
        generation,
        service: adoption.service,
        deadline: clock::now().0 + config::timeout(state, key.protocol),
        direction: Direction::Reply as u8,
        side: adoption.reply.0 as u8,
        next: adoption.reply.1 as u8,
        state,
    };
    let put = |key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>| {
        pairs::note_flow::<F>(&key.src, &key.dst);
        F::conntrack().put(key, flow, u64::from(BPF_ANY)).map_err(|_errno| DropReason::ConntrackInsert)
    };
    let answer = FlowKey::new(key.dst, adoption.src, key.dst_port, key.src_port, key.protocol);
    put(&answer, &flow)?;
    flow.src = adoption.src;
    flow.dst = key.dst;
    // As in `open`.
    let ports = opaque(u32::from(key.src_port.0) | u32::from(key.dst_port.0) << 16);
    flow.src_port = BePort(ports as u16);
    flow.dst_port = BePort((ports >> 16) as u16);
    flow.direction = Direction::Original as u8;
    flow.side = Side::Ingress as u8;
    flow.next = adoption.next as u8;
    put(key, &flow)
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

/// Has the rest of `flow`'s translation done behind the stack to packets that come there with the tuple `half`, whose destination has been
/// translated. False when another flow has that tuple.
#[inline(always)]
pub fn finish_behind_stack<F: Datapath>(half: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> Step<bool> {
    // Known neighbours would be joined to a misaligned word of the stack.
    let side = opaque(Side::Egress as u32) as u8;
    let mut rest = Flow { packets: 0, bytes: 0, side, next: Next::StackOnly as u8, ..*flow };
    let now = clock::now();
    rest.deadline = now.0 + timeout::<F>(&rest, rest.state, half.protocol);
    if is_taken::<F>(half, &rest, now) {
        return Ok(false);
    }
    pairs::note_flow::<F>(&half.src, &half.dst);
    F::conntrack().put(half, &rest, u64::from(BPF_ANY)).map_err(|_errno| DropReason::ConntrackInsert)?;
    Ok(true)
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
    pairs::note_flow::<F>(&answer.src, &answer.dst);
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
    pairs::note_flow::<F>(&to.dst, &to.src);
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
