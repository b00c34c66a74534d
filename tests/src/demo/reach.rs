//! Who reaches what, while nothing changes.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use super::{Demo, PORT};
use crate::{
    cluster::Site,
    expect,
    topology::IpVersion,
    traffic::{Ask, protocol::Transport},
};

/// One connection and what is expected of it.
struct Reach<'s> {
    what: &'s str,
    client: &'s Site,
    to: SocketAddr,
    transports: &'s [Transport],
    server: &'s str,
    /// The client's address as the server must see it, where that matters.
    seen: Option<IpAddr>,
}

const TCP_AND_UDP: &[Transport] = &[Transport::Tcp, Transport::Udp];
const ALL: &[Transport] = &[Transport::Tcp, Transport::Udp, Transport::UdpUnconnected];

/// Connections that show how a service's backends share the work.
const CONNECTIONS: u32 = 200;

impl Demo<'_> {
    /// Every kind of client, every kind of frontend, local and remote backends.
    pub(super) fn reach(&mut self) -> Result<()> {
        for version in IpVersion::BOTH {
            self.report.step(&format!("{version}: who reaches what"));
            self.reach_version(version)?;
            self.nobody_answers(version)?;
            self.spread(version)?;
        }
        Ok(())
    }

    fn reach_version(&mut self, version: IpVersion) -> Result<()> {
        let (near, far) = (self.service("near")?, self.service("far")?);
        let (near_ip, far_ip) = (near.cluster_ip(version), far.cluster_ip(version));
        let (a, b) = (self.cluster.node("node-a"), self.cluster.node("node-b"));
        let (near_a, far_a) = (a.address(version, near.node_port), a.address(version, far.node_port));
        let far_b = b.address(version, far.node_port);
        let loopback = |port| SocketAddr::new(version.loopback(), port);
        let (shop, web_a) = (self.cluster.pod("shop"), self.cluster.pod("web-a"));
        let (host, outside) = (&a.host, &self.cluster.external);
        let reach = |what, client, to, transports, server| Reach { what, client, to, transports, server, seen: None };
        let pod_ip = Some(shop.ip(version));
        let list = [
            Reach { seen: pod_ip, ..reach("ClusterIP from a pod to a local backend", shop, near_ip, ALL, "web-a") },
            Reach { seen: pod_ip, ..reach("ClusterIP from a pod to a remote backend", shop, far_ip, ALL, "web-b") },
            reach("ClusterIP from a host process to a local backend", host, near_ip, ALL, "web-a"),
            reach("ClusterIP from a host process to a remote backend", host, far_ip, ALL, "web-b"),
            Reach {
                seen: Some(outside.ip(version)),
                ..reach("NodePort from outside to a local backend", outside, near_a, TCP_AND_UDP, "web-a")
            },
            Reach {
                seen: Some(host.ip(version)),
                ..reach("NodePort from outside to a remote backend", outside, far_a, TCP_AND_UDP, "web-b")
            },
            reach("NodePort from a pod, own node, local backend", shop, near_a, TCP_AND_UDP, "web-a"),
            reach("NodePort from a pod, own node, remote backend", shop, far_a, TCP_AND_UDP, "web-b"),
            reach("NodePort from a pod, other node", shop, far_b, TCP_AND_UDP, "web-b"),
            reach("NodePort on loopback, local backend", host, loopback(near.node_port), TCP_AND_UDP, "web-a"),
            reach("NodePort on loopback, remote backend", host, loopback(far.node_port), TCP_AND_UDP, "web-b"),
            reach("hairpin: a pod to itself through its service", web_a, near_ip, TCP_AND_UDP, "web-a"),
        ];
        let mut outcomes = Vec::new();
        for reach in list {
            for transport in reach.transports {
                let name = format!("{version}: {} over {transport}", reach.what);
                let outcome = reach.attempt(*transport);
                outcomes.push((reach.client.name().to_owned(), name, outcome));
            }
            self.go_on()?;
        }
        for (client, name, outcome) in outcomes {
            let outcome = outcome.map(|answer| {
                self.report.reached(&client, &name, &answer);
                format!("{client} -> {}: {} in {}", answer.peer, answer.server, super::report::time(answer.took))
            });
            self.check(name, outcome)?;
        }
        Ok(())
    }

    fn nobody_answers(&mut self, version: IpVersion) -> Result<()> {
        let empty = self.service("empty")?;
        let a = self.cluster.node("node-a");
        let clients = [
            ("a pod", self.cluster.pod("shop"), empty.cluster_ip(version)),
            ("a host process", &a.host, empty.cluster_ip(version)),
            ("outside", &self.cluster.external, a.address(version, empty.node_port)),
        ];
        let mut outcomes = Vec::new();
        for (from, client, to) in clients {
            for transport in TCP_AND_UDP {
                let outcome = expect::refused(client, &Ask::new(*transport, to), expect::AT_ONCE);
                let name = format!("{version}: no endpoints, refused within 10 ms from {from} over {transport}");
                outcomes.push((name, outcome.map(|failure| format!("{to}: {}", super::report::time(failure.took)))));
            }
        }
        outcomes.into_iter().try_for_each(|(name, outcome)| self.check(name, outcome))
    }

    fn spread(&mut self, version: IpVersion) -> Result<()> {
        let to = self.service("web")?.cluster_ip(version);
        let shop = self.cluster.pod("shop");
        let outcome = expect::spread(shop, &Ask::new(Transport::Tcp, to), CONNECTIONS, &["web-a", "web-b"]);
        let direct = (self.cluster.pod("web-b").ip(version), PORT).into();
        let direct = expect::spread(shop, &Ask::new(Transport::Tcp, direct), CONNECTIONS, &["web-b"]);
        if let Ok(report) = &direct {
            self.report.latency(&format!("{version}, pod to pod without a service"), report);
        }
        let outcome = outcome.map(|report| {
            self.report.latency(&format!("{version}, pod to ClusterIP"), &report);
            self.report.spread(version, &report);
            report.servers.iter().map(|(server, count)| format!("{server} {count}")).collect::<Vec<_>>().join(", ")
        });
        self.check(format!("{version}: connections spread over both backends"), outcome)
    }
}

impl Reach<'_> {
    fn attempt(&self, transport: Transport) -> Result<crate::traffic::Answer> {
        let payload = if transport == Transport::Tcp { 50_000 } else { 1_000 };
        let ask = Ask::new(transport, self.to).payload(payload);
        match self.seen {
            Some(seen) => expect::answered_seeing(self.client, &ask, &[self.server], seen),
            None => expect::answered(self.client, &ask, &[self.server]),
        }
    }
}
