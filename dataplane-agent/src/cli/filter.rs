//! Options that narrow a listing.

use std::{net::IpAddr, str::FromStr};

use clap::{Args, ValueEnum};
use dataplane_common::Protocol;
use ipnetwork::IpNetwork;

/// The name of a service port as it stands in the map `service_names`: `namespace/name:port`, `:port` being optional.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceText<'a> {
    /// The namespace; empty when the text has none.
    pub namespace: &'a str,
    /// The Service's name.
    pub name: &'a str,
    /// The port's name, when the text has one.
    pub port: Option<&'a str>,
}

impl<'a> ServiceText<'a> {
    /// Splits `text`.
    pub fn parse(text: &'a str) -> Self {
        let (namespace, rest) = text.split_once('/').unwrap_or(("", text));
        match rest.split_once(':') {
            Some((name, port)) => Self { namespace, name, port: Some(port) },
            None => Self { namespace, name: rest, port: None },
        }
    }

    /// Whether `self`, as a user types it, names `other`: parts left out match everything.
    pub fn names(&self, other: &ServiceText<'_>) -> bool {
        (self.namespace.is_empty() || self.namespace == other.namespace)
            && self.name == other.name
            && self.port.is_none_or(|port| Some(port) == other.port)
    }
}

/// Narrows by service.
#[derive(Args, Clone, Debug, Default)]
pub struct ServiceFilter {
    /// Only services of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Only this service: name, namespace/name or namespace/name:port
    #[arg(short, long, value_name = "SERVICE")]
    pub service: Option<String>,
}

impl ServiceFilter {
    /// Whether the service port with this name passes.
    pub fn admits(&self, service: &str) -> bool {
        let text = ServiceText::parse(service);
        self.namespace.as_deref().is_none_or(|namespace| namespace == text.namespace)
            && self.service.as_deref().is_none_or(|wanted| ServiceText::parse(wanted).names(&text))
    }

    /// Whether everything passes.
    pub fn is_empty(&self) -> bool {
        self.namespace.is_none() && self.service.is_none()
    }
}

/// Narrows by address family.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct FamilyFilter {
    /// Only IPv4
    #[arg(short = '4', long = "ipv4", conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// Only IPv6
    #[arg(short = '6', long = "ipv6")]
    pub ipv6: bool,
}

impl FamilyFilter {
    /// Whether addresses of `addr`'s family pass.
    pub fn admits(&self, addr: IpAddr) -> bool {
        if addr.is_ipv4() { !self.ipv6 } else { !self.ipv4 }
    }

    /// Whether everything passes.
    pub fn is_empty(&self) -> bool {
        !self.ipv4 && !self.ipv6
    }
}

/// A transport protocol as users write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProtocolName {
    /// TCP
    #[value(alias = "TCP")]
    Tcp,
    /// UDP
    #[value(alias = "UDP")]
    Udp,
    /// SCTP
    #[value(alias = "SCTP")]
    Sctp,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::Tcp => Self::Tcp,
            ProtocolName::Udp => Self::Udp,
            ProtocolName::Sctp => Self::Sctp,
        }
    }
}

/// Narrows by address, port and protocol.
#[derive(Args, Clone, Debug, Default)]
pub struct AddressFilter {
    /// Only what involves this address or prefix
    #[arg(short, long, value_name = "ADDRESS[/PREFIX]", value_parser = parse_network)]
    pub address: Option<IpNetwork>,
    /// Only what involves this port
    #[arg(short, long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Only this protocol
    #[arg(long, value_enum, value_name = "PROTOCOL")]
    pub protocol: Option<ProtocolName>,
}

impl AddressFilter {
    /// Whether one of `ends` has the address and one of them the port, and the protocol is the one asked for.
    pub fn admits(&self, ends: &[std::net::SocketAddr], protocol: u8) -> bool {
        self.address.is_none_or(|network| ends.iter().any(|end| network.contains(end.ip())))
            && self.port.is_none_or(|port| ends.iter().any(|end| end.port() == port))
            && self.protocol.is_none_or(|wanted| Protocol::from(wanted) as u8 == protocol)
    }

    /// Whether everything passes.
    pub fn is_empty(&self) -> bool {
        self.address.is_none() && self.port.is_none() && self.protocol.is_none()
    }
}

/// Stops a listing early.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Limit {
    /// Show at most this many
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

impl Limit {
    /// How many to show.
    pub fn count(self) -> usize {
        self.limit.unwrap_or(usize::MAX)
    }

    /// Shortens `records`.
    pub fn cut<T>(self, records: &mut Vec<T>) {
        if let Some(limit) = self.limit {
            records.truncate(limit);
        }
    }
}

/// An address or a prefix; host bits are allowed, as in `--address 10.0.0.7/24`.
fn parse_network(text: &str) -> Result<IpNetwork, String> {
    IpNetwork::from_str(text).map_err(|_error| format!("{text:?} is neither an IP address nor a prefix"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(wanted: &str, service: &str, expected: bool) {
        let filter = ServiceFilter { namespace: None, service: Some(wanted.into()) };
        assert_eq!(filter.admits(service), expected, "{wanted} {service}");
    }

    #[test]
    fn a_service_is_named_by_as_many_parts_as_needed() {
        check("web", "default/web:http", true);
        check("web", "other/web", true);
        check("default/web", "other/web", false);
        check("default/web:http", "default/web:http", true);
        check("default/web:http", "default/web:https", false);
        check("web:http", "default/web:http", true);
        check("web", "default/web-2", false);
    }

    #[test]
    fn an_address_matches_by_prefix_and_family() {
        let filter = AddressFilter { address: Some("10.0.0.0/24".parse().unwrap()), ..AddressFilter::default() };
        assert!(filter.admits(&["10.0.0.7:1".parse().unwrap()], 6));
        assert!(!filter.admits(&["10.0.1.7:1".parse().unwrap()], 6));
        assert!(!filter.admits(&["[fd00::1]:1".parse().unwrap()], 6));
        assert!(FamilyFilter { ipv4: true, ipv6: false }.admits("10.0.0.1".parse().unwrap()));
        assert!(!FamilyFilter { ipv4: true, ipv6: false }.admits("::1".parse().unwrap()));
    }

    #[test]
    fn a_protocol_and_a_port_both_have_to_match() {
        let filter = AddressFilter { address: None, port: Some(80), protocol: Some(ProtocolName::Tcp) };
        assert!(filter.admits(&["10.0.0.7:80".parse().unwrap()], 6));
        assert!(!filter.admits(&["10.0.0.7:80".parse().unwrap()], 17));
        assert!(!filter.admits(&["10.0.0.7:81".parse().unwrap()], 6));
    }
}
