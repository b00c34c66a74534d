//! Tables of interfaces as nodes have them.

use super::*;
use crate::{model::settings::NodePortRange, netlink::netfilter::NetfilterRules};

const POD: Kind = Kind::Veth { peer_elsewhere: true };

/// "name address.. [default] [routed] [l3]"
#[track_caller]
fn device(kind: Kind, text: &str) -> Device {
    let mut words = text.split_whitespace();
    let name = words.next().unwrap().to_owned();
    let mut device = Device {
        index: 7,
        name,
        kind,
        ethernet: true,
        hardware: false,
        addresses: Vec::new(),
        default_route: false,
        routed: false,
        controller: None,
        queued: false,
    };
    for word in words {
        match word {
            "default" => device.default_route = true,
            "routed" => device.routed = true,
            "l3" => device.ethernet = false,
            address => {
                let (preferred, address) = address.strip_prefix('!').map_or((true, address), |rest| (false, rest));
                device.addresses.push(Address { ip: address.parse().unwrap(), preferred });
            }
        }
    }
    device
}

fn patterns(text: &str) -> Vec<Pattern> {
    text.split_whitespace().map(|pattern| Pattern::new(pattern).unwrap()).collect()
}

/// "pods-patterns | uplink-patterns" on a node with the addresses 192.0.2.1 and 2001:db8::1.
fn rules(pods: &str, uplinks: &str) -> Rules {
    Rules {
        pods: patterns(pods),
        uplinks: patterns(uplinks),
        node_port: NodePortAddresses::default(),
        host_bypass: HostBypass::Auto,
        node_addresses: ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into(),
    }
}

#[test]
fn interfaces_are_told_apart_by_what_they_are_and_carry() {
    use Class::{Carries, Neither, NotEthernet};
    const UPLINK: Class = Carries(Role::Uplink);
    const PODS: Class = Carries(Role::Pod);
    for (kind, text, expected) in [
        (POD, "veth1", PODS),
        (POD, "cali1 169.254.1.1", PODS),
        // ptp gives every host side the gateway's address.
        (POD, "ptp1 10.1.0.1 routed", PODS),
        // The node itself may hang on a veth, as in kind.
        (POD, "eth0 192.0.2.1", UPLINK),
        (POD, "eth0 2001:db8::1", UPLINK),
        (POD, "eth0 198.51.100.1 default", UPLINK),
        (Kind::Veth { peer_elsewhere: false }, "veth-tap", Neither),
        (Kind::Other, "eth0 192.0.2.1 default", UPLINK),
        (Kind::Other, "eth1 203.0.113.1", Neither),
        (Kind::Other, "bond0 default", UPLINK),
        // A bridge of pods carries their gateway; a bridge that is the node's way out carries a default route.
        (Kind::Other, "cni0 10.1.0.1", Neither),
        (Kind::Other, "br0 192.0.2.1 default", UPLINK),
        (Kind::Loopback, "lo 127.0.0.1 192.0.2.1", Neither),
        (Kind::Dummy, "dummy0 192.0.2.1 default", Neither),
        (Kind::Tunnel, "flannel.1 10.1.0.0 routed", UPLINK),
        (Kind::Tunnel, "vxlan0", Neither),
        (Kind::Other, "wg0 192.0.2.1 l3", NotEthernet),
        (Kind::Other, "tun0 l3", Neither),
    ] {
        assert_eq!(classify(&device(kind, text), &rules("", "")), expected, "{text}");
    }
}

#[test]
fn patterns_decide_alone_where_they_are_given() {
    use Class::{Carries, Neither, NotEthernet};
    for (pods, uplinks, kind, text, expected) in [
        ("lxc*", "", Kind::Other, "lxc1", Carries(Role::Pod)),
        ("lxc*", "", POD, "veth1", Neither),
        ("lxc*", "", POD, "eth0 default", Carries(Role::Uplink)),
        ("", "eth1", Kind::Other, "eth1", Carries(Role::Uplink)),
        ("", "eth1", Kind::Other, "eth0 192.0.2.1 default", Neither),
        // What looks like an uplink is no pod, only because the operator chose another uplink.
        ("", "eth1", POD, "eth0 192.0.2.1 default", Neither),
        ("", "eth1", POD, "veth1", Carries(Role::Pod)),
        ("", "d*", Kind::Dummy, "dummy0", Carries(Role::Uplink)),
        ("", "wg0", Kind::Other, "wg0 l3", NotEthernet),
        ("", "*", Kind::Loopback, "lo", Neither),
        ("e*", "e*", Kind::Other, "eth0", Carries(Role::Uplink)),
    ] {
        assert_eq!(classify(&device(kind, text), &rules(pods, uplinks)), expected, "{pods} | {uplinks} | {text}");
    }
}

fn shown(set: &BTreeSet<IpAddr>) -> String {
    set.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn p30_node_ports_are_taken_on_every_address_but_loopback_and_link_local_ones() {
    let devices = [
        device(Kind::Loopback, "lo 127.0.0.1 127.0.0.53 ::1 10.0.0.9"),
        device(Kind::Other, "eth0 192.0.2.1 fe80::1 2001:db8::1 default"),
        device(Kind::Other, "cni0 10.1.0.1 fd00::1"),
        device(POD, "cali1 169.254.1.1"),
    ];
    let local = local_addresses(&devices, &rules("", ""));
    assert_eq!(shown(&local.node_port), "10.0.0.9 10.1.0.1 192.0.2.1 2001:db8::1 fd00::1");
    assert_eq!(shown(&local.loopback), "127.0.0.1 127.0.0.53 ::1");
}

#[test]
fn snat_prefers_the_nodes_own_address_then_the_first_preferred_one_then_the_nodes_elsewhere() {
    for (text, expected) in [
        ("eth0 203.0.113.1 192.0.2.1 default", "192.0.2.1 2001:db8::1"),
        ("eth0 203.0.113.1 203.0.113.2 2001:db8::9 default", "203.0.113.1 2001:db8::9"),
        ("eth0 !203.0.113.1 203.0.113.2 !2001:db8::9 default", "203.0.113.2 2001:db8::1"),
        ("eth0 fe80::1 169.254.0.1 default", "192.0.2.1 2001:db8::1"),
    ] {
        let local = local_addresses(&[device(Kind::Other, text)], &rules("", ""));
        let shown = local.snat[&7].iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(shown, expected, "{text}");
    }
    let local = local_addresses(&[device(POD, "veth1 10.1.0.1")], &rules("", ""));
    assert!(local.snat.is_empty());
}

#[test]
fn p38_node_ports_follow_addresses_that_come_and_go() {
    let range = |text: &str| NodePortRange::Cidr(text.parse().unwrap());
    let [v4, v6] = ["127.0.0.0/8", "::1/128"].map(range);
    for (node_port, devices, expected, loopback) in [
        (vec![range("198.51.100.0/24")], "eth0 192.0.2.1", "2001:db8::1", "::1"),
        (vec![range("198.51.100.0/24")], "eth0 192.0.2.1 198.51.100.7", "198.51.100.7 2001:db8::1", "::1"),
        (vec![NodePortRange::Primary], "eth0 192.0.2.1 198.51.100.7", "192.0.2.1 2001:db8::1", ""),
        (vec![NodePortRange::Primary], "eth0 198.51.100.7", "2001:db8::1", ""),
        (
            vec![NodePortRange::Primary, v4.clone(), v6.clone()],
            "eth0 192.0.2.1",
            "192.0.2.1 2001:db8::1",
            "127.0.0.1 ::1",
        ),
        (vec![v4, v6], "eth0 192.0.2.1", "", "127.0.0.1 ::1"),
    ] {
        let rules = Rules { node_port: NodePortAddresses(node_port), ..rules("", "") };
        let devices = [device(Kind::Other, devices), device(Kind::Other, "eth1 2001:db8::1")];
        let local = local_addresses(&devices, &rules);
        assert_eq!((shown(&local.node_port), shown(&local.loopback)), (expected.into(), loopback.into()), "{rules:?}");
        assert_eq!(local.snat[&7].len(), 2, "SNAT does not follow NodePorts");
    }
}

#[test]
fn packets_go_around_the_stack_only_where_nobody_would_miss_them() {
    let numbered = |index, kind, text, controller, queued| Device { index, controller, queued, ..device(kind, text) };
    let devices = [
        numbered(1, Kind::Loopback, "lo", None, false),
        numbered(2, Kind::Other, "eth0 192.0.2.1 default", None, true),
        numbered(3, POD, "veth1", None, false),
        numbered(4, POD, "veth2", None, true),
        numbered(5, Kind::Bridge, "cni0 10.1.0.1", None, false),
        numbered(6, POD, "veth3", Some(5), false),
        numbered(7, Kind::Other, "eth1 203.0.113.1", None, false),
    ];
    let pods = [
        (3, Passage::Peer),
        // Its queue holds packets back to a rate.
        (4, Passage::Out),
        (5, Passage::Bridge),
        (6, Passage::Port(5)),
    ];
    let all = [[(2, Passage::Out)].as_slice(), &pods].concat();
    let none = Obstacles::default;
    let rules_at = |before, after| Obstacles { netfilter: NetfilterRules { before, after }, ..none() };
    for (host_bypass, obstacles, expected) in [
        (HostBypass::Auto, none(), all.as_slice()),
        (HostBypass::Auto, rules_at(false, true), &pods),
        (HostBypass::Auto, rules_at(true, false), &[]),
        (HostBypass::Auto, Obstacles { ipsec: true, ..none() }, &[]),
        (HostBypass::Auto, Obstacles { programs: [2, 6].into(), ..none() }, &pods[..2]),
        (HostBypass::On, Obstacles { ipsec: true, programs: [2, 3].into(), ..rules_at(true, true) }, &all),
        (HostBypass::Off, none(), &[]),
    ] {
        let rules = Rules { host_bypass, ..rules("", "") };
        let found = passages(&devices, &rules, &obstacles);
        assert_eq!(found, expected.iter().copied().collect(), "{host_bypass:?} {obstacles:?}");
    }
}
