//! Truncated, random and mutated packets through every program: nothing crashes and no map of the agent's changes.

use std::{collections::BTreeMap, os::fd::AsRawFd};

use anyhow::{Context, Result};
use dataplane_common::{FrontendKind, NodeConfig, Protocol, TcpFlags, map::local_addr};
use dataplane_tests::{
    expect,
    harness::{Action, Harness, Hook, Target},
    packet::{
        Icmp, IcmpError, Packet, fragment,
        options::{with_extension, with_options},
    },
    scenario::Scenario,
    topology::{IpVersion, Wiring},
    traffic::{Ask, protocol::Transport},
};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, sendto, socket},
};

/// Packets per program.
const PACKETS: u32 = 100_000;

/// Below this the kernel refuses a test run: no Ethernet header.
const SHORTEST: usize = 14;

/// SplitMix64 (Steele, Lea, Flood 2014), with a fixed seed, so that a failure happens again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }
}

/// Good packets of every kind that means something to a program.
fn templates() -> Result<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    for (pod, service, node_port, backend) in [
        ("10.244.0.10:40000", "10.96.0.10:80", "172.20.0.10:30080", "10.244.1.10:8080"),
        ("[fd44::a]:40000", "[fd96::a]:80", "[fd20::a]:30080", "[fd44:0:0:1::a]:8080"),
    ] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for to in [service, node_port, backend] {
                let first = Packet::first(protocol, pod.parse()?, to.parse()?).with_payload(&[0x5a; 64]);
                frames.push(first.answer().frame()?);
                frames.push(first.clone().with_flags(TcpFlags::ACK).frame()?);
                frames.push(first.frame()?);
                // Errors by the destination and by a router, with the shortest quote and with all of the packet.
                for (error, quoted) in [(IcmpError::PortUnreachable, 8), (IcmpError::TooBig(1280), 4096)] {
                    frames.push(Icmp::about(error, first.dst.ip(), &first.frame()?, quoted)?.frame()?);
                    frames.push(Icmp::about(error, first.src.ip(), &first.answer().frame()?, quoted)?.frame()?);
                }
                frames.extend(fragment::cut(&first.clone().with_payload(&[0x5a; 300]).frame()?, 7, 136)?);
                for units in [1, 9] {
                    frames.push(with_options(&first.frame()?, units)?);
                }
                if first.src.is_ipv6() {
                    let chain =
                        [60, 43, 0].iter().try_fold(first.frame()?, |frame, kind| with_extension(&frame, *kind, 2))?;
                    frames.push(chain);
                }
            }
        }
        let sctp = Packet::sctp(pod.parse()?, service.parse()?).with_payload(&[11, 0, 0, 4].repeat(16));
        frames.push(sctp.frame()?);
    }
    Ok(frames)
}

fn frame(random: &mut Random, templates: &[Vec<u8>]) -> Vec<u8> {
    let template = &templates[random.below(templates.len())];
    match random.below(4) {
        // Random bytes behind an Ethernet header that says IP.
        0 => {
            let mut frame: Vec<u8> = (0..SHORTEST + random.below(120)).map(|_| random.byte()).collect();
            let ethertype: [u8; 2] = if random.below(2) == 0 { [0x08, 0x00] } else { [0x86, 0xdd] };
            frame[12..14].copy_from_slice(&ethertype);
            frame
        }
        1 => template[..SHORTEST + random.below(template.len() - SHORTEST)].to_vec(),
        // A few bytes changed, and maybe cut: lengths, versions, options, extension headers, fragments.
        kind => {
            let mut frame = template.clone();
            for _ in 0..=random.below(4) {
                // The headers, those of a quoted packet included.
                let at = 12 + random.below((frame.len() - 12).min(140));
                frame[at] = random.byte();
            }
            if kind == 3 {
                frame.truncate(SHORTEST + random.below(frame.len() - SHORTEST));
            }
            frame
        }
    }
}

#[test]
fn a_hundred_thousand_bad_packets_change_nothing_and_crash_nothing() -> Result<()> {
    let templates = templates()?;
    for hook in Hook::ALL {
        let mut harness = Harness::load(&NodeConfig::DEFAULT)?;
        for (service, node, backend) in [
            ("10.96.0.10:80", "172.20.0.10:30080", "10.244.1.10:8080"),
            ("[fd96::a]:80", "[fd20::a]:30080", "[fd44:0:0:1::a]:8080"),
        ] {
            let target = [Target { addr: backend.parse()?, local: true }];
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                harness.add_frontend(FrontendKind::ClusterIp, protocol, service.parse()?, &target)?;
                harness.add_frontend(FrontendKind::NodePort, protocol, node.parse()?, &target)?;
            }
            harness.put_local_addr(node.parse::<std::net::SocketAddr>()?.ip(), local_addr::NODE_PORT)?;
        }
        let before = harness.desired()?;
        let mut random = Random(0x5eed);
        let mut actions: BTreeMap<Action, u32> = BTreeMap::new();
        let mut refused = 0;
        let mut run = 0;
        while run < PACKETS {
            let frame = frame(&mut random, &templates);
            // The kernel runs no program on a frame that is shorter than the IP header its ethertype promises.
            let Ok(outcome) = harness.run(hook, &frame) else {
                refused += 1;
                continue;
            };
            *actions.entry(outcome.action).or_default() += 1;
            run += 1;
        }
        println!("{hook:?}: {actions:?}, {refused} more not accepted by the kernel");
        assert!(!actions.keys().any(|action| matches!(action, Action::Other(_))), "{hook:?}: {actions:?}");
        assert_eq!(harness.desired()?, before, "{hook:?}");
    }
    Ok(())
}

/// Frames that go over real links; they include those that a test run does not take: cut within the IP header.
const LIVE_FRAMES: u32 = 20_000;

/// Sends bad frames out of `eth0` of the calling thread's network namespace; the number that it took.
fn send_bad_frames(seed: u64) -> Result<u32> {
    let templates = templates()?;
    let mut random = Random(seed);
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None)?;
    let link = |address: &SockaddrStorage| address.as_link_addr().is_some();
    let eth0 = getifaddrs()?.find(|found| found.interface_name == "eth0" && found.address.as_ref().is_some_and(link));
    let eth0 = eth0.and_then(|found| found.address).context("no eth0")?;
    // A full queue refuses a frame now and then.
    let mut send =
        |_: &u32| sendto(socket.as_raw_fd(), &frame(&mut random, &templates), &eth0, MsgFlags::empty()).is_ok();
    Ok(u32::try_from((0..LIVE_FRAMES).filter(|number| send(number)).count())?)
}

#[test]
fn bad_frames_over_real_links_leave_agents_and_services_as_they_were() -> Result<()> {
    for wiring in Wiring::BOTH {
        let scenario = Scenario::new(wiring, &[])?;
        for site in [scenario.client(), &scenario.cluster.external] {
            let sent = site.netns().run(|| send_bad_frames(0x5eed))??;
            assert!(sent > LIVE_FRAMES / 2, "only {sent} frames were sent");
        }
        for node in &scenario.cluster.nodes {
            let status = node.agent.as_ref().context("the agent runs")?.read_status()?;
            assert_eq!((status.failed_operations, status.errors.len()), (0, 0));
        }
        for version in IpVersion::BOTH {
            for transport in [Transport::Tcp, Transport::Udp] {
                let ask = Ask::new(transport, scenario.both.cluster_ip(version));
                expect::spread(scenario.client(), &ask, 40, &["web-a", "web-b"])?;
            }
        }
    }
    Ok(())
}
