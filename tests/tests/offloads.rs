//! Streams whose segments devices join and cut, or leave to others, on every interface that they pass.

use std::{
    net::{SocketAddr, SocketAddrV6},
    os::fd::AsRawFd as _,
};

use anyhow::{Context, Result, bail, ensure};
use dataplane_tests::{
    cluster::Cluster,
    netns::Netns,
    offload::{Feature, set},
    scenario::Scenario,
    topology::{IpVersion, Wiring},
    traffic::protocol::Transport,
};
use nix::{
    errno::Errno,
    sys::{
        socket::{AddressFamily, SockFlag, SockType, SockaddrIn6, connect, setsockopt, socket, sockopt::SendTimeout},
        time::TimeVal,
    },
};

/// Some hundred segments, and many times what one packet with GSO holds.
const SIZE: usize = 2_000_000;

/// Both ends of every pod's cable and of every uplink, and the client outside.
fn interfaces(cluster: &Cluster) -> Vec<(&Netns, String)> {
    let mut interfaces = vec![(cluster.external.netns(), "eth0".to_owned())];
    for node in &cluster.nodes {
        interfaces.push((node.host.netns(), "eth0".to_owned()));
        interfaces.push((&cluster.fabric, format!("up-{}", node.name())));
        for pod in &node.pods {
            interfaces.push((pod.netns(), "eth0".to_owned()));
            interfaces.push((node.host.netns(), format!("veth-{}", pod.name())));
        }
    }
    interfaces
}

/// Sends streams every way with each set of features.
fn check(arguments: &[&str]) -> Result<()> {
    use Feature::{Gro, Gso, TransmitChecksum, Tso};
    let scenario = Scenario::new(Wiring::Routed, arguments)?;
    let sets: [(&str, &[(Feature, bool)]); 4] = [
        ("segments are cut by the device and joined again", &[(Gro, true), (Gso, true), (Tso, true)]),
        ("cut by the stack", &[(Tso, false)]),
        ("neither cut nor joined", &[(Gso, false), (Gro, false)]),
        ("checksums are complete, too", &[(TransmitChecksum, false)]),
    ];
    for (what, features) in sets {
        for (netns, device) in interfaces(&scenario.cluster) {
            features.iter().try_for_each(|(feature, on)| set(netns, &device, *feature, *on))?;
        }
        scenario.echo(&[Transport::Tcp], SIZE).context(what)?;
    }
    Ok(())
}

#[test]
fn p30_streams_arrive_whole_whatever_devices_do_to_segments() -> Result<()> {
    check(&[])
}

#[test]
fn p30_streams_arrive_whole_whatever_devices_do_to_segments_through_the_stack() -> Result<()> {
    check(&["--host-bypass=off"])
}

/// Connects with destination options in front of every segment.
fn connect_with_options(netns: &Netns, to: SocketAddrV6) -> Result<nix::Result<()>> {
    // `linux/in6.h`.
    const IPV6_DSTOPTS: i32 = 59;
    // The kernel writes the first two bytes; PadN (RFC 8200, 4.2) fills the rest.
    let options = [0_u8, 0, 1, 4, 0, 0, 0, 0];
    netns.run(|| -> Result<nix::Result<()>> {
        let socket = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // For as long as nobody answers a SYN.
        setsockopt(&socket, SendTimeout, &TimeVal::new(5, 0))?;
        let (fd, length) = (socket.as_raw_fd(), libc::socklen_t::try_from(options.len())?);
        // SAFETY: the descriptor is open, and pointer and length are those of the array.
        let result = unsafe { libc::setsockopt(fd, libc::IPPROTO_IPV6, IPV6_DSTOPTS, options.as_ptr().cast(), length) };
        Errno::result(result).context("destination options")?;
        Ok(connect(fd, &SockaddrIn6::from(to)))
    })?
}

#[test]
fn p31_a_connection_with_extension_headers_is_refused_whoever_completes_its_checksum() -> Result<()> {
    let scenario = Scenario::new(Wiring::Routed, &[])?;
    let pod = scenario.client().netns();
    for on in [true, false] {
        set(pod, "eth0", Feature::TransmitChecksum, on)?;
        for (service, expected) in [(&scenario.far, Ok(())), (&scenario.empty, Err(Errno::ECONNREFUSED))] {
            let SocketAddr::V6(to) = service.cluster_ip(IpVersion::V6) else { bail!("an IPv4 address") };
            let outcome = connect_with_options(pod, to)?;
            ensure!(outcome == expected, "{to}, checksums by the device: {on}: {outcome:?}");
        }
    }
    Ok(())
}
