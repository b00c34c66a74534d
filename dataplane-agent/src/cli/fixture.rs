//! Maps in memory that the tests of the listings share.

use dataplane_common::{Frontend, FrontendKind, Protocol, Scope, SlotRange};

use crate::tables::{BackendId, BackendRow, FrontendAddr, IpFamily, Tables};

/// A web service with three IPv4 backends (one of them draining) and one of IPv6, and a DNS service without any.
pub(super) fn tables() -> Tables {
    let mut tables = Tables::default();
    tables.service_names.insert(7, "default/web:http".into());
    tables.service_names.insert(9, "kube-system/dns".into());

    let all = SlotRange { first: 8, count: 3 };
    let cluster_ip = frontend(7, FrontendKind::ClusterIp, all, all, 0, 0);
    put(&mut tables, "10.96.0.1", 80, Protocol::Tcp, Scope::Address, cluster_ip);
    let one = SlotRange { first: 16, count: 1 };
    let cluster_ip6 = frontend(7, FrontendKind::ClusterIp, one, one, 0, 0);
    put(&mut tables, "fd00:96::1", 80, Protocol::Tcp, Scope::Address, cluster_ip6);
    let local = SlotRange { first: 8, count: 1 };
    let flags = Frontend::LOCAL_POLICY | Frontend::DROP_OUTSIDE;
    let node_port = frontend(7, FrontendKind::NodePort, all, local, 0, flags);
    put(&mut tables, "0.0.0.0", 30080, Protocol::Tcp, Scope::NodePort, node_port);
    let empty = SlotRange::default();
    let dns = frontend(9, FrontendKind::ClusterIp, empty, empty, 10800, 0);
    put(&mut tables, "10.96.0.10", 53, Protocol::Udp, Scope::Address, dns);

    for (slot, family, number, addr, flags) in [
        (8, IpFamily::V4, 1, "10.0.0.5:8080", BackendRow::LOCAL),
        (9, IpFamily::V4, 2, "10.0.1.5:8080", 0),
        (10, IpFamily::V4, 3, "10.0.1.6:8080", BackendRow::TERMINATING),
        (16, IpFamily::V6, 1, "[fd00::5]:8080", BackendRow::LOCAL),
    ] {
        let id = BackendId { family, number };
        tables.slots.insert(slot, id);
        tables.backends.insert(id, backend(addr, flags));
    }
    // No longer in a slot, kept for its flows.
    tables
        .backends
        .insert(BackendId { family: IpFamily::V4, number: 4 }, backend("10.0.1.7:8080", BackendRow::TERMINATING));
    tables
}

fn frontend(
    service: u32,
    kind: FrontendKind,
    inside: SlotRange,
    outside: SlotRange,
    affinity: u32,
    flags: u8,
) -> Frontend {
    Frontend { service, inside, outside, affinity_seconds: affinity, kind: kind as u8, flags, pad: 0 }
}

fn put(tables: &mut Tables, addr: &str, port: u16, protocol: Protocol, scope: Scope, value: Frontend) {
    tables.frontends.insert(FrontendAddr { addr: addr.parse().unwrap(), port, protocol: Some(protocol), scope }, value);
}

fn backend(addr: &str, flags: u8) -> BackendRow {
    BackendRow { addr: addr.parse().unwrap(), protocol: Protocol::Tcp, flags, service: 7, generation: 1 }
}
