//! Flows that are not begun here, and connections that nobody tracks and whose tuple a flow would take.

use aya_ebpf::bindings::BPF_ANY;
use dataplane_common::{
    Addr as _, BePort, Direction, DropReason, Flow, FlowKey, FlowState, NO_SERVICE, Next, Protocol, Side, TcpFlags, Way,
};

use super::{NO_BACKEND, is_silent, is_taken, placed, timeout, turn};
use crate::{
    clock, config,
    family::{Datapath, Headers, Part},
    maps::{Table as _, Writable as _},
    packet::opaque,
    pairs::{self, Sides},
    verdict::Step,
};

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
        pairs::note_flow::<F>(&key.src, &key.dst, flow.side);
        F::conntrack().put(key, flow, u64::from(BPF_ANY)).map_err(|_errno| DropReason::ConntrackInsert)
    };
    let answer = FlowKey::new(key.dst, adoption.src, key.dst_port, key.src_port, key.protocol);
    put(&answer, &flow)?;
    turn(&mut flow, &answer.reversed(), Side::Ingress, adoption.next as u8);
    put(key, &flow)
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
    if !begins || headers.part == Part::Later || !pairs::may_have_flows::<F>(&key.dst, &key.src, Sides::BOTH) {
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
    pairs::note_flow::<F>(&half.src, &half.dst, rest.side);
    F::conntrack().put(half, &rest, u64::from(BPF_ANY)).map_err(|_errno| DropReason::ConntrackInsert)?;
    Ok(true)
}
