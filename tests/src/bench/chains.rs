//! Names of chains as kube-proxy makes them: hashes that tell nothing, but take as long to look at as the real ones.

use std::net::Ipv4Addr;

use super::catalogue::{Port, Service};

/// The letters of base 32 (RFC 4648).
const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The first `length` letters of the SHA-256 of `text` in base 32.
pub(super) fn hash(text: &str, length: usize) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let bits = |position: usize| {
        let value = (0..5).fold(0_u8, |value, bit| {
            let at = position * 5 + bit;
            let byte = digest.as_ref().get(at / 8).copied().unwrap_or_default();
            (value << 1) | ((byte >> (7 - at % 8)) & 1)
        });
        char::from(LETTERS[usize::from(value)])
    };
    (0..length).map(bits).collect()
}

/// `namespace/service:port`.
pub(super) fn port_name(service: &Service, port: &Port) -> String {
    format!("{}/{}:{}", crate::objects::NAMESPACE, service.name, port.name)
}

/// `address:port` of an endpoint.
pub(super) fn endpoint(address: Ipv4Addr, port: &Port) -> String {
    format!("{address}:{}", port.target)
}

/// `tcp` and the like.
pub(super) fn protocol(port: &Port) -> String {
    port.protocol.name().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_that_kube_proxy_is_known_for() {
        assert_eq!(hash("ns1/svc1:p80tcp", 16), "XPGD46QRK7WJZT7O");
        assert_eq!(hash("ns1/svc1:p80tcp10.180.0.1:80", 16), "SXIVWICOYRO3J4NJ");
        assert_eq!(hash("ns1/svc1/tcp/p80", 8), "ULMVA6XW");
    }
}
