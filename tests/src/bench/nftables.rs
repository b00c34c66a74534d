//! The table that kube-proxy 1.36 writes in nftables mode, as input for `nft -f`.
//!
//! The same sets, verdict maps, chains, rules and their order as in `pkg/proxy/nftables/proxier.go` for services of type ClusterIP
//! and NodePort with the cluster traffic policy. Left out: source ranges and affinity, which need services that have them.

use std::{
    fmt::{self, Write},
    net::Ipv4Addr,
};

use super::{
    catalogue::{Catalogue, Port, Service},
    chains,
};
use crate::topology;

/// The whole input for a node whose NodePorts are at `node`.
pub fn rules(catalogue: &Catalogue, node: Ipv4Addr) -> Result<String, fmt::Error> {
    let mut text = BASE.to_owned();
    let services = topology::SERVICE_CIDRS.0;
    let comment = "Drop traffic to unallocated ClusterIPs";
    writeln!(text, "add rule ip kube-proxy cluster-ips-check ip daddr {{ {services} }} drop comment \"{comment}\"")?;
    writeln!(text, "add element ip kube-proxy nodeport-ips {{ {node} }}")?;
    // Chains first: verdicts and maps name them.
    for (service, port) in catalogue.ports() {
        writeln!(text, "add chain ip kube-proxy {}", service_chain(service, port))?;
        if port.node_port.is_some() {
            writeln!(text, "add chain ip kube-proxy {}", external_chain(service, port))?;
        }
        for address in &service.endpoints {
            writeln!(text, "add chain ip kube-proxy {}", endpoint_chain(service, port, *address))?;
        }
    }
    for (service, port) in catalogue.ports() {
        service_port(&mut text, service, port)?;
    }
    Ok(text)
}

/// What is there without any service.
const BASE: &str = include_str!("nftables/base.nft");

fn service_port(text: &mut String, service: &Service, port: &Port) -> fmt::Result {
    let (own, external, protocol) =
        (service_chain(service, port), external_chain(service, port), chains::protocol(port));
    let (pods, _) = topology::POD_CIDRS;
    writeln!(
        text,
        "add element ip kube-proxy cluster-ips {{ {ip} }}\n\
         add element ip kube-proxy service-ips {{ {ip} . {protocol} . {number} : goto {own} }}\n\
         add rule ip kube-proxy {own} ip daddr {ip} ip saddr != {pods} jump mark-for-masquerade",
        ip = service.ip,
        number = port.port
    )?;
    if let Some(node_port) = port.node_port {
        writeln!(
            text,
            "add element ip kube-proxy service-nodeports {{ {protocol} . {node_port} : goto {external} }}\n\
             add rule ip kube-proxy {external} jump mark-for-masquerade\n\
             add rule ip kube-proxy {external} goto {own}"
        )?;
    }
    let count = service.endpoints.len();
    let verdicts: Vec<String> = (service.endpoints.iter().enumerate())
        .map(|(index, address)| format!("{index} : goto {}", endpoint_chain(service, port, *address)))
        .collect();
    writeln!(text, "add rule ip kube-proxy {own} numgen random mod {count} vmap {{ {} }}", verdicts.join(" , "))?;
    for address in &service.endpoints {
        let chain = endpoint_chain(service, port, *address);
        writeln!(
            text,
            "add rule ip kube-proxy {chain} ip saddr {address} jump mark-for-masquerade\n\
             add rule ip kube-proxy {chain} meta l4proto {protocol} dnat to {}",
            chains::endpoint(*address, port)
        )?;
    }
    Ok(())
}

fn service_chain(service: &Service, port: &Port) -> String {
    named("service", &base_name(service, port))
}

fn external_chain(service: &Service, port: &Port) -> String {
    named("external", &base_name(service, port))
}

fn endpoint_chain(service: &Service, port: &Port, address: Ipv4Addr) -> String {
    named("endpoint", &format!("{}__{address}/{}", base_name(service, port), port.target))
}

fn base_name(service: &Service, port: &Port) -> String {
    format!("{}/{}/{}/{}", crate::objects::NAMESPACE, service.name, chains::protocol(port), port.name)
}

fn named(kind: &str, name: &str) -> String {
    // The external chain carries its service's hash.
    format!("{kind}-{}-{name}", chains::hash(name, 8))
}

#[cfg(test)]
mod tests {
    use dataplane_common::Protocol;

    use super::*;

    #[test]
    fn a_node_port_with_two_endpoints_has_kube_proxys_chains() {
        let port = Port { name: "p80", protocol: Protocol::Tcp, port: 80, target: 80, node_port: Some(3003) };
        let service = Service {
            name: "web".to_owned(),
            ip: Ipv4Addr::new(172, 30, 0, 43),
            ports: vec![port],
            endpoints: vec![Ipv4Addr::new(10, 180, 0, 3), Ipv4Addr::new(10, 180, 0, 4)],
        };
        let mut text = String::new();
        service_port(&mut text, &service, &service.ports[0]).unwrap();
        let name = "default/web/tcp/p80";
        let own = chains::hash(name, 8);
        let [three, four] = ["10.180.0.3/80", "10.180.0.4/80"].map(|end| named("endpoint", &format!("{name}__{end}")));
        let expected = format!(
            "add element ip kube-proxy cluster-ips {{ 172.30.0.43 }}
add element ip kube-proxy service-ips {{ 172.30.0.43 . tcp . 80 : goto service-{own}-{name} }}
add rule ip kube-proxy service-{own}-{name} ip daddr 172.30.0.43 ip saddr != 10.244.0.0/16 jump mark-for-masquerade
add element ip kube-proxy service-nodeports {{ tcp . 3003 : goto external-{own}-{name} }}
add rule ip kube-proxy external-{own}-{name} jump mark-for-masquerade
add rule ip kube-proxy external-{own}-{name} goto service-{own}-{name}
add rule ip kube-proxy service-{own}-{name} numgen random mod 2 vmap {{ 0 : goto {three} , 1 : goto {four} }}
add rule ip kube-proxy {three} ip saddr 10.180.0.3 jump mark-for-masquerade
add rule ip kube-proxy {three} meta l4proto tcp dnat to 10.180.0.3:80
add rule ip kube-proxy {four} ip saddr 10.180.0.4 jump mark-for-masquerade
add rule ip kube-proxy {four} meta l4proto tcp dnat to 10.180.0.4:80
"
        );
        assert_eq!(text, expected);
    }
}
