//! The rules that kube-proxy 1.36 writes in iptables mode, as input for `iptables-restore`.
//!
//! The same chains, jumps, matches, marks and their order as in `pkg/proxy/iptables/proxier.go` for services of type ClusterIP
//! and NodePort with the cluster traffic policy. Left out: health check ports and source ranges, which need services that have them.

use std::fmt::{self, Write};

use super::{
    catalogue::{Catalogue, Port, Service},
    chains,
};
use crate::topology;

/// Packets with this bit get the node's address as their source.
const MASQUERADE: &str = "0x4000";

/// The whole input: both tables, and the jumps from the built-in chains.
pub fn rules(catalogue: &Catalogue) -> Result<String, fmt::Error> {
    let mut text = String::new();
    filter(&mut text)?;
    nat(&mut text, catalogue)?;
    Ok(text)
}

fn filter(text: &mut String) -> fmt::Result {
    text.push_str("*filter\n");
    for chain in [
        "KUBE-NODEPORTS",
        "KUBE-SERVICES",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-FIREWALL",
        "KUBE-FORWARD",
        "KUBE-PROXY-FIREWALL",
    ] {
        writeln!(text, ":{chain} - [0:0]")?;
    }
    // kube-proxy puts each of its jumps before the others: here they stand as they come to stand.
    for (chain, comment, new, target) in [
        ("INPUT", "kubernetes load balancer firewall", true, "KUBE-PROXY-FIREWALL"),
        ("INPUT", "kubernetes health check service ports", false, "KUBE-NODEPORTS"),
        ("INPUT", "kubernetes externally-visible service portals", true, "KUBE-EXTERNAL-SERVICES"),
        ("INPUT", "", false, "KUBE-FIREWALL"),
        ("FORWARD", "kubernetes load balancer firewall", true, "KUBE-PROXY-FIREWALL"),
        ("FORWARD", "kubernetes forwarding rules", false, "KUBE-FORWARD"),
        ("FORWARD", "kubernetes service portals", true, "KUBE-SERVICES"),
        ("FORWARD", "kubernetes externally-visible service portals", true, "KUBE-EXTERNAL-SERVICES"),
        ("OUTPUT", "kubernetes load balancer firewall", true, "KUBE-PROXY-FIREWALL"),
        ("OUTPUT", "kubernetes service portals", true, "KUBE-SERVICES"),
        ("OUTPUT", "", false, "KUBE-FIREWALL"),
    ] {
        jump(text, chain, comment, new, target)?;
    }
    writeln!(
        text,
        "-A KUBE-FIREWALL -m comment --comment \"block incoming localnet connections\" -d 127.0.0.0/8 ! -s 127.0.0.0/8 \
         -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark {MASQUERADE}/{MASQUERADE} -j ACCEPT\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack \
         --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT"
    )
}

fn nat(text: &mut String, catalogue: &Catalogue) -> fmt::Result {
    text.push_str("*nat\n");
    for chain in ["KUBE-NODEPORTS", "KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"] {
        writeln!(text, ":{chain} - [0:0]")?;
    }
    for (service, port) in catalogue.ports() {
        writeln!(text, ":{} - [0:0]", service_chain(service, port))?;
        if port.node_port.is_some() {
            writeln!(text, ":{} - [0:0]", external_chain(service, port))?;
        }
        for address in &service.endpoints {
            writeln!(text, ":{} - [0:0]", endpoint_chain(service, port, &chains::endpoint(*address, port)))?;
        }
    }
    for (chain, comment, target) in [
        ("PREROUTING", "kubernetes service portals", "KUBE-SERVICES"),
        ("OUTPUT", "kubernetes service portals", "KUBE-SERVICES"),
        ("POSTROUTING", "kubernetes postrouting rules", "KUBE-POSTROUTING"),
    ] {
        jump(text, chain, comment, false, target)?;
    }
    writeln!(
        text,
        "-A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE}/{MASQUERADE} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE}\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE}"
    )?;
    for (service, port) in catalogue.ports() {
        service_port(text, service, port)?;
    }
    text.push_str(
        "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" \
         -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n",
    );
    Ok(())
}

fn service_port(text: &mut String, service: &Service, port: &Port) -> fmt::Result {
    let (name, protocol) = (chains::port_name(service, port), chains::protocol(port));
    let (own, external) = (service_chain(service, port), external_chain(service, port));
    let to = format!("-m {protocol} -p {protocol} -d {} --dport {}", service.ip, port.port);
    writeln!(text, "-A KUBE-SERVICES -m comment --comment \"{name} cluster IP\" {to} -j {own}")?;
    if let Some(node_port) = port.node_port {
        writeln!(
            text,
            "-A KUBE-NODEPORTS -m comment --comment {name} -m {protocol} -p {protocol} --dport {node_port} -j {external}\n\
             -A {external} -m comment --comment \"masquerade traffic for {name} external destinations\" -j KUBE-MARK-MASQ\n\
             -A {external} -j {own}"
        )?;
    }
    let (pods, _) = topology::POD_CIDRS;
    writeln!(text, "-A {own} -m comment --comment \"{name} cluster IP\" {to} ! -s {pods} -j KUBE-MARK-MASQ")?;
    let count = service.endpoints.len();
    for (index, address) in service.endpoints.iter().enumerate() {
        let endpoint = chains::endpoint(*address, port);
        let chain = endpoint_chain(service, port, &endpoint);
        let chance = match count - index {
            1 => String::new(),
            #[expect(clippy::cast_precision_loss, reason = "a handful of endpoints")]
            left => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
        };
        writeln!(
            text,
            "-A {own} -m comment --comment \"{name} -> {endpoint}\" {chance}-j {chain}\n\
             -A {chain} -m comment --comment {name} -s {address} -j KUBE-MARK-MASQ\n\
             -A {chain} -m comment --comment {name} -m {protocol} -p {protocol} -j DNAT --to-destination {endpoint}"
        )?;
    }
    Ok(())
}

fn jump(text: &mut String, chain: &str, comment: &str, new: bool, target: &str) -> fmt::Result {
    write!(text, "-A {chain}")?;
    if new {
        text.push_str(" -m conntrack --ctstate NEW");
    }
    if !comment.is_empty() {
        write!(text, " -m comment --comment \"{comment}\"")?;
    }
    writeln!(text, " -j {target}")
}

fn service_chain(service: &Service, port: &Port) -> String {
    named("KUBE-SVC-", service, port, "")
}

fn external_chain(service: &Service, port: &Port) -> String {
    named("KUBE-EXT-", service, port, "")
}

fn endpoint_chain(service: &Service, port: &Port, endpoint: &str) -> String {
    named("KUBE-SEP-", service, port, endpoint)
}

fn named(prefix: &str, service: &Service, port: &Port, endpoint: &str) -> String {
    let text = format!("{}{}{endpoint}", chains::port_name(service, port), chains::protocol(port));
    format!("{prefix}{}", chains::hash(&text, 16))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use dataplane_common::Protocol;

    use super::*;

    #[test]
    fn a_node_port_with_two_endpoints_has_kube_proxys_rules() {
        let port = Port { name: "p80", protocol: Protocol::Tcp, port: 80, target: 80, node_port: Some(3001) };
        let service = Service {
            name: "web".to_owned(),
            ip: Ipv4Addr::new(172, 30, 0, 41),
            ports: vec![port],
            endpoints: vec![Ipv4Addr::new(10, 180, 0, 1), Ipv4Addr::new(10, 180, 0, 2)],
        };
        let mut text = String::new();
        service_port(&mut text, &service, &service.ports[0]).unwrap();
        let hash = chains::hash("default/web:p80tcp", 16);
        let [one, two] = ["10.180.0.1", "10.180.0.2"].map(|ip| chains::hash(&format!("default/web:p80tcp{ip}:80"), 16));
        let expected = format!(
            "-A KUBE-SERVICES -m comment --comment \"default/web:p80 cluster IP\" -m tcp -p tcp -d 172.30.0.41 --dport 80 -j KUBE-SVC-{hash}
-A KUBE-NODEPORTS -m comment --comment default/web:p80 -m tcp -p tcp --dport 3001 -j KUBE-EXT-{hash}
-A KUBE-EXT-{hash} -m comment --comment \"masquerade traffic for default/web:p80 external destinations\" -j KUBE-MARK-MASQ
-A KUBE-EXT-{hash} -j KUBE-SVC-{hash}
-A KUBE-SVC-{hash} -m comment --comment \"default/web:p80 cluster IP\" -m tcp -p tcp -d 172.30.0.41 --dport 80 ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ
-A KUBE-SVC-{hash} -m comment --comment \"default/web:p80 -> 10.180.0.1:80\" -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-{one}
-A KUBE-SEP-{one} -m comment --comment default/web:p80 -s 10.180.0.1 -j KUBE-MARK-MASQ
-A KUBE-SEP-{one} -m comment --comment default/web:p80 -m tcp -p tcp -j DNAT --to-destination 10.180.0.1:80
-A KUBE-SVC-{hash} -m comment --comment \"default/web:p80 -> 10.180.0.2:80\" -j KUBE-SEP-{two}
-A KUBE-SEP-{two} -m comment --comment default/web:p80 -s 10.180.0.2 -j KUBE-MARK-MASQ
-A KUBE-SEP-{two} -m comment --comment default/web:p80 -m tcp -p tcp -j DNAT --to-destination 10.180.0.2:80
"
        );
        assert_eq!(text, expected);
    }
}
