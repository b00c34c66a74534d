//! A packet's way through the programs, and its answer's.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use dataplane_common::{DropReason, NodeConfig, Protocol, TcpFlags, addr::Addr as _};
use dataplane_tests::{
    harness::{Action, Hook, Outcome},
    packet::{Packet, Parsed},
    reference::{
        rules::{Arrival, Client, Fate},
        source::Source,
    },
    topology::{self, IpVersion},
};

use crate::{errors::Way, run::Run, tally::Event};

impl Run<'_> {
    /// Sends a packet, compares what becomes of it with `fate`, and takes the answer back; the backend that got it.
    pub(crate) fn send(
        &mut self,
        client: Client,
        packet: &Packet,
        fate: &Fate,
    ) -> Result<Option<(SocketAddr, Arrival)>> {
        let hook = match client {
            Client::Pod(_) => Hook::FromPod,
            Client::Outside(_) => Hook::FromUplink,
            Client::Host(_) => Hook::ToUplink,
        };
        let before = self.drops(fate)?;
        let (action, parsed) = self.pass(hook, packet, matches!(client, Client::Host(_)))?;
        match fate {
            Fate::Dropped(reason) => {
                ensure!(action == Action::Drop, "{action:?} {parsed:?}");
                ensure!(self.drops(fate)? == before + 1, "not counted as {reason}: {:?}", self.harness.drops()?);
                self.tally.count(match reason {
                    DropReason::NoLocalEndpoints => Event::NotHere,
                    DropReason::SourceRange => Event::NotAdmitted,
                    DropReason::UnownedServiceAddress => Event::Unowned,
                    other => bail!("{other} is no reason of the reference"),
                });
            }
            Fate::Untouched => {
                self.tally.count(Event::Untouched);
                ensure!(action == Action::Pass && parsed == Parsed::Transport(packet.clone()), "{action:?} {parsed:?}");
            }
            Fate::Refused => {
                ensure!(action == Action::Redirect, "{action:?} {parsed:?}");
                is_refusal(packet, &parsed)?;
                self.tally.count(Event::Refused);
            }
            Fate::Sent(_) if action == Action::Drop && self.drops(fate)? == before + 1 => {
                let is_sctp = packet.protocol == Protocol::Sctp;
                self.tally.count(if is_sctp { Event::SctpPort } else { Event::HostToItself });
            }
            Fate::Sent(backends) => {
                ensure!(action != Action::Drop, "dropped: {:?}", self.harness.drops()?);
                let Parsed::Transport(arrived) = parsed else { bail!("{action:?} {parsed:?}") };
                let backend = arrived.dst;
                let arrival = *backends.get(&backend).with_context(|| format!("sent to {backend}: {arrived:?}"))?;
                self.arrives(client, packet, (action, arrived), arrival)?;
                return Ok(Some((backend, arrival)));
            }
        }
        Ok(None)
    }

    /// Packets dropped so far for the reasons that `fate` names.
    fn drops(&self, fate: &Fate) -> Result<u64> {
        fate.drop_reasons().into_iter().map(|reason| self.harness.dropped(reason)).sum()
    }

    /// Runs the program at `hook` on a frame, which a socket of the node has sent or not.
    pub(crate) fn run(&self, hook: Hook, frame: &[u8], is_from_socket: bool) -> Result<Outcome> {
        // An answer that came in by the uplink itself would not have to be brought there.
        let interface = if matches!(hook, Hook::FromPod | Hook::ToPod) { self.pods } else { self.uplink };
        if is_from_socket {
            self.harness.run_from_socket(interface, hook, frame)
        } else {
            self.harness.run_on(interface, hook, frame)
        }
    }

    /// Runs the program at `hook` on a packet, which a socket of the node has sent or not.
    fn pass(&self, hook: Hook, packet: &Packet, is_from_socket: bool) -> Result<(Action, Parsed)> {
        let outcome = self.run(hook, &packet.frame()?, is_from_socket)?;
        // What is dropped may have been half rewritten.
        if outcome.action == Action::Drop {
            return Ok((outcome.action, Parsed::Transport(packet.clone())));
        }
        Ok((outcome.action, outcome.parsed().with_context(|| format!("{hook:?}: {:?}", outcome.action))?))
    }

    /// The backend sees the packet come from whom it should, and its answer seems to come from the frontend.
    fn arrives(
        &mut self,
        client: Client,
        sent: &Packet,
        (action, arrived): (Action, Packet),
        arrival: Arrival,
    ) -> Result<()> {
        let version = IpVersion::of(client.ip());
        let own = topology::node(0).ip(version);
        let is_outside = matches!(client, Client::Outside(_));
        // By which the answer comes into the node, unless a process of the node itself gives it.
        let entry = match arrival.is_local {
            true if arrived.dst.ip() == own => None,
            true => Some(Hook::FromPod),
            false => Some(Hook::FromUplink),
        };
        let exit = match client {
            Client::Pod(_) => Some(Hook::ToPod),
            Client::Outside(_) => Some(Hook::ToUplink),
            Client::Host(_) => None,
        };
        let (event, hooks, action_there, action_back) = match (arrival.source, is_outside) {
            (Source::Hairpin, _) => {
                let hairpin = match version {
                    IpVersion::V4 => NodeConfig::DEFAULT_HAIRPIN4.to_ip(),
                    IpVersion::V6 => NodeConfig::DEFAULT_HAIRPIN6.to_ip(),
                };
                ensure!(arrived.src.ip() == hairpin, "{arrived:?}");
                (Event::Hairpin, vec![Hook::FromPod], Action::Redirect, Action::Redirect)
            }
            (Source::Node, _) => {
                ensure!(arrived.src.ip() == own, "{arrived:?}");
                ensure!(arrived.hop_limit + 1 == sent.hop_limit, "hop limit {}", arrived.hop_limit);
                let event = match (is_outside, arrival.is_local) {
                    (false, _) => Event::InsideMasqueraded,
                    (true, true) => Event::OutsideMasqueraded,
                    (true, false) => Event::OutsideRemote,
                };
                (event, entry.into_iter().collect(), Action::Redirect, Action::Redirect)
            }
            (Source::Client, _) => {
                ensure!(arrived.src == sent.src, "{arrived:?}");
                let hooks = entry.into_iter().chain(exit).collect();
                match client {
                    Client::Pod(_) => (Event::Inside, hooks, Action::Pass, Action::Pass),
                    Client::Outside(_) => (Event::OutsideLocal, hooks, Action::Pass, Action::Pass),
                    // Routed once more, towards the backend. An answer from a pod is handed in where the request went out.
                    Client::Host(_) if arrival.is_local => (Event::Host, hooks, Action::Redirect, Action::Redirect),
                    Client::Host(_) => (Event::Host, hooks, Action::Redirect, Action::Pass),
                }
            }
        };
        ensure!(action == action_there, "{action:?} {arrived:?}");
        ensure!(arrival.lost.is_none(), "this should be lost: {arrived:?}");
        self.tally.count(event);
        if sent.protocol == Protocol::Sctp {
            self.tally.count(Event::Sctp);
            ensure!(arrived.src.port() == sent.src.port(), "{arrived:?}");
        }
        let way = Way { hooks: &hooks, action: action_back, is_from_socket: entry.is_none() };
        let answer = arrived.answer();
        let back = self.returns(sent, &answer, &way)?;
        let [about_request, about_answer] = self.complaints;
        self.complain(about_request, (sent, &arrived), &way)?;
        let (there, is_from_socket) = match client {
            Client::Pod(_) => (Hook::FromPod, false),
            Client::Outside(_) => (Hook::FromUplink, false),
            Client::Host(_) => (Hook::ToUplink, true),
        };
        self.complain(about_answer, (&answer, &back), &Way { hooks: &[there], action: action_there, is_from_socket })
    }

    /// The answer passes its way's hooks, and then seems to come from where `sent` was sent to.
    fn returns(&self, sent: &Packet, answer: &Packet, way: &Way<'_>) -> Result<Packet> {
        let mut packet = answer.clone();
        for (index, hook) in way.hooks.iter().enumerate() {
            let (action, parsed) = self.pass(*hook, &packet, way.is_from_socket)?;
            let is_last = index + 1 == way.hooks.len();
            let expected = if is_last { way.action } else { Action::Pass };
            ensure!(action == expected, "the answer at {hook:?}: {action:?}");
            let before = std::mem::replace(&mut packet, parsed.transport()?);
            ensure!(is_last || packet == before, "the answer is translated at {hook:?}: {packet:?}");
        }
        ensure!((packet.src, packet.dst) == (sent.dst, sent.src), "the answer is {packet:?}");
        Ok(packet)
    }
}

/// A RST, or an ICMP port unreachable about the packet, in the name of the destination.
fn is_refusal(packet: &Packet, answer: &Parsed) -> Result<()> {
    match answer {
        Parsed::Transport(answer) if packet.protocol == Protocol::Tcp => {
            ensure!((answer.src, answer.dst) == (packet.dst, packet.src), "{answer:?}");
            ensure!(answer.flags.0 & TcpFlags::RST.0 != 0, "{answer:?}");
        }
        Parsed::Icmp(icmp) if packet.protocol != Protocol::Tcp => {
            ensure!(icmp.refuses(packet.protocol), "{icmp:?}");
            ensure!((icmp.src, icmp.dst) == (packet.dst.ip(), packet.src.ip()), "{icmp:?}");
            // Behind the Ethernet header, apart from what may be cut off.
            let frame = packet.frame()?;
            ensure!(frame[14..].starts_with(&icmp.about) && icmp.about.len() >= 28, "about {:?}", icmp.about);
        }
        other => bail!("refused by {other:?}"),
    }
    Ok(())
}
