//! Readers of single fields, which name what is wrong instead of failing.

use std::{fmt::Display, net::IpAddr, num::NonZeroU16};

use dataplane_common::Protocol;
use ipnetwork::IpNetwork;

/// A field that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Fault {
    /// The path of the field within its object, as `kubectl explain` writes it.
    pub field: String,
    /// What is wrong with it.
    pub reason: Reason,
}

/// Why a field could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Not an IP address.
    #[error("`{0}` is not an IP address")]
    NotAnAddress(String),
    /// Not a range of IP addresses.
    #[error("`{0}` is not a range of IP addresses such as 10.0.0.0/8")]
    NotARange(String),
    /// Outside of 1-65535.
    #[error("{0} is not a port number")]
    NotAPort(i32),
    /// Not one of the values that the field may have.
    #[error("`{value}` is not {expected}; {instead}")]
    Unknown {
        /// The value found.
        value: String,
        /// What the field may hold.
        expected: &'static str,
        /// What happens now.
        instead: &'static str,
    },
    /// Not set, and nothing can take its place.
    #[error("missing; {0}")]
    Missing(&'static str),
    /// The same as another element of the same list.
    #[error("the same {what} as in {first}; ignored")]
    Duplicate {
        /// What must be unique.
        what: &'static str,
        /// The field that came first.
        first: String,
    },
    /// An address of the other family.
    #[error("{addr} does not belong in a slice with addressType {address_type}; ignored")]
    WrongFamily {
        /// The address.
        addr: IpAddr,
        /// The slice's type.
        address_type: String,
    },
    /// The object does not have the shape that its kind has.
    #[error("{0}; the last good version stays")]
    Malformed(String),
}

/// Collects the faults of one object while its fields are read.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    /// Notes that `field` is broken.
    pub(super) fn note(&mut self, field: impl Display, reason: Reason) {
        self.0.push(Fault { field: field.to_string(), reason });
    }

    /// The value that was read, or `None` with a fault noted; `field` is formatted only in that case.
    pub(super) fn keep<T>(&mut self, field: impl Display, read: Result<T, Reason>) -> Option<T> {
        read.map_err(|reason| self.note(field, reason)).ok()
    }

    /// The elements of a list that can be read; the others are noted by their index in `field`.
    pub(super) fn keep_each<S: AsRef<str>, T>(
        &mut self,
        field: &str,
        texts: Option<&Vec<S>>,
        read: impl Fn(&str) -> Result<T, Reason>,
    ) -> Vec<T> {
        let texts = texts.map(Vec::as_slice).unwrap_or_default();
        let each = texts.iter().enumerate();
        each.filter_map(|(i, text)| self.keep(format_args!("{field}[{i}]"), read(text.as_ref()))).collect()
    }

    /// Everything noted.
    pub(super) fn into_vec(self) -> Vec<Fault> {
        self.0
    }
}

/// Reads an address as Kubernetes does: leading zeros in IPv4 are decimal, IPv4-mapped IPv6 is IPv4.
///
/// Objects with leading zeros were valid once and are still stored in old clusters.
pub(super) fn address(text: &str) -> Result<IpAddr, Reason> {
    let parsed = text.parse().or_else(|_| without_leading_zeros(text).parse::<IpAddr>());
    parsed.map(|addr| addr.to_canonical()).map_err(|_| Reason::NotAnAddress(text.to_owned()))
}

/// Reads a range and clears its host bits; blanks around it are trimmed, since validation lets them through.
pub(super) fn range(text: &str) -> Result<IpNetwork, Reason> {
    let broken = || Reason::NotARange(text.to_owned());
    let (addr, prefix) = text.trim().split_once('/').ok_or_else(broken)?;
    let addr: IpAddr = addr.parse().or_else(|_| without_leading_zeros(addr).parse()).map_err(|_| broken())?;
    let range = IpNetwork::new(addr, prefix.parse().map_err(|_| broken())?).map_err(|_| broken())?;
    IpNetwork::new(range.network(), range.prefix()).map_err(|_| broken())
}

/// Reads a port number.
pub(super) fn port(number: i32) -> Result<NonZeroU16, Reason> {
    u16::try_from(number).ok().and_then(NonZeroU16::new).ok_or(Reason::NotAPort(number))
}

/// Reads a protocol; nil means TCP.
pub(super) fn protocol(name: Option<&str>) -> Result<Protocol, Reason> {
    let Some(name) = name else { return Ok(Protocol::Tcp) };
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.name() == name).ok_or_else(
        || Reason::Unknown { value: name.to_owned(), expected: "TCP, UDP or SCTP", instead: "the port is ignored" },
    )
}

/// Rewrites `010.001.0.1` to `10.1.0.1`.
fn without_leading_zeros(text: &str) -> String {
    let plain = text.split('.').map(|octet| match octet.trim_start_matches('0') {
        "" if !octet.is_empty() => "0",
        digits => digits,
    });
    plain.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("10.96.0.1", Some("10.96.0.1")),
            ("010.096.000.001", Some("10.96.0.1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("10.0.0.300", None),
            ("10.0.0", None),
            ("", None),
            ("10.0.0.1 ", None),
            ("None", None),
        ] {
            assert_eq!(address(text).ok(), expected.map(|e| e.parse().unwrap()), "{text:?}");
        }
    }

    #[test]
    fn p02_ranges_are_trimmed_and_lose_their_host_bits() {
        for (text, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            (" 10.1.2.3/8\t", Some("10.0.0.0/8")),
            ("fd00::1/64", Some("fd00::/64")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("10.0.0.0", None),
            ("10.0.0.0/33", None),
            ("fd00::/129", None),
            ("10.0.0.0/-1", None),
            ("", None),
        ] {
            assert_eq!(range(text).ok(), expected.map(|e| e.parse().unwrap()), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_a_field_holds_is_read_or_refused_and_never_a_surprise(text in r"[0-9a-fA-F.:/ \PC]{0,40}") {
            let (_, _) = (address(&text), range(&text));
            prop_assert!(protocol(Some(&text)).is_err());
        }

        #[test]
        fn addresses_and_ranges_are_read_as_they_are_written(addr: IpAddr, bits in 0u8..=128) {
            prop_assert_eq!(address(&addr.to_string()), Ok(addr.to_canonical()));
            let bits = bits.min(if addr.is_ipv4() { 32 } else { 128 });
            let read = range(&format!(" {addr}/{bits}")).map(|range| (range.contains(addr), range.prefix()));
            prop_assert_eq!(read, Ok((true, bits)));
        }
    }

    #[test]
    fn ports_are_1_to_65535() {
        assert_eq!(
            [-1, 0, 1, 65535, 65536, i32::MAX].map(|n| port(n).is_ok()),
            [false, false, true, true, false, false]
        );
    }
}
