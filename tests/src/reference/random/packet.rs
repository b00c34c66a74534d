//! Random packets: most of them to what is there.

use std::net::SocketAddr;

use dataplane_common::Protocol;
use fastrand::Rng;

use super::{CLUSTER_IPS, PODS, PORTS, SERVICES, external_ips, ingress_ips, pick};
use crate::{
    reference::{Service, World, rules::Client},
    topology::{self, Addresses, IpVersion},
};

impl World {
    /// Who sends what where.
    pub fn packet(&self, rng: &mut Rng) -> (Client, SocketAddr, Protocol) {
        let known = if rng.u8(0..4) == 0 { None } else { rng.choice(self.services.values()) };
        let known = known.and_then(|service| self.place_of(rng, service));
        let (to, protocol) = known.unwrap_or_else(|| somewhere(rng));
        let version = IpVersion::of(to.ip());
        let client = match rng.u8(0..11) {
            // What is for the node itself does not leave it.
            9.. if !self.addresses.contains(&to.ip()) => Client::Host(topology::node(0).ip(version)),
            0..4 => Client::Pod(topology::pod(0, rng.u8(0..PODS)).ip(version)),
            4 => Client::Outside(topology::pod(1, PODS).ip(version)),
            other => Client::Outside(outside(other % 2).ip(version)),
        };
        (client, to, protocol)
    }

    /// One of the places where `service` is found, or would be if it were of another type.
    fn place_of(&self, rng: &mut Rng, service: &Service) -> Option<(SocketAddr, Protocol)> {
        let port = rng.choice(&service.ports)?;
        let ip = match rng.u8(0..10) {
            0..4 => rng.choice(&service.cluster_ips).copied(),
            4 | 5 => rng.choice(&service.external_ips).copied(),
            6 | 7 => rng.choice(&service.ingress).and_then(|ingress| ingress.ip),
            _ => {
                let ip = rng.choice(self.addresses.iter().copied())?;
                return Some(((ip, port.node_port).into(), port.protocol));
            }
        };
        Some(((ip?, port.port).into(), port.protocol))
    }
}

/// A place where there may be something.
fn somewhere(rng: &mut Rng) -> (SocketAddr, Protocol) {
    let version = IpVersion::BOTH[rng.usize(0..2)];
    let service = rng.u8(0..SERVICES);
    let (_, protocol, port) = pick(rng, &PORTS);
    let to = match rng.u8(0..9) {
        0..4 => (topology::service(rng.u8(1..=CLUSTER_IPS)).ip(version), port),
        4 => (pick(rng, &external_ips(service)), port),
        5 => (pick(rng, &ingress_ips(service)), port),
        6 | 7 => (topology::node(pick(rng, &[0, 20])).ip(version), 30_000 + u16::from(service) * 10),
        _ => (topology::pod(1, 0).ip(version), 8080),
    };
    (to.into(), protocol)
}

/// A client outside the cluster.
fn outside(number: u8) -> Addresses {
    topology::node(190 + number)
}
