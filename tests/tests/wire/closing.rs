//! TCP connections that both sides close at once.

use anyhow::Result;
use dataplane_common::{FrontendKind, Protocol, TcpFlags};
use dataplane_tests::{
    harness::{Hook, Target},
    packet::Packet,
};

use crate::cast::{each_version, passes};

const FIN_ACK: TcpFlags = TcpFlags(TcpFlags::FIN.0 | TcpFlags::ACK.0);
const SYN_ACK: TcpFlags = TcpFlags(TcpFlags::SYN.0 | TcpFlags::ACK.0);

#[test]
fn p52_both_sides_close_at_once_and_the_port_may_be_used_again() -> Result<()> {
    each_version(|harness, cast| {
        let another = Target { addr: (cast.local.addr.ip(), 8081).into(), local: true };
        harness.add_frontend(FrontendKind::ClusterIp, Protocol::Tcp, cast.service, &[cast.local])?;
        let syn = Packet::tcp(cast.client, cast.service, TcpFlags::SYN);
        let arrived = passes(harness, Hook::FromUplink, &syn)?;
        let there = |flags| syn.clone().with_flags(flags);
        let back = |flags| arrived.answer().with_flags(flags);
        passes(harness, Hook::ToUplink, &arrived.answer())?;
        passes(harness, Hook::FromUplink, &there(TcpFlags::ACK))?;
        // The two FINs cross each other, and so do their acknowledgements (RFC 9293, figure 13).
        let fin = passes(harness, Hook::FromUplink, &there(FIN_ACK))?;
        assert_eq!(fin.dst, cast.local.addr);
        let fin = passes(harness, Hook::ToUplink, &back(FIN_ACK))?;
        assert_eq!((fin.src, fin.dst), (cast.service, cast.client));
        let last = passes(harness, Hook::FromUplink, &there(TcpFlags::ACK))?;
        assert_eq!((last.src, last.dst), (cast.client, cast.local.addr));
        let last = passes(harness, Hook::ToUplink, &back(TcpFlags::ACK))?;
        assert_eq!((last.src, last.dst), (cast.service, cast.client));
        // A retransmitted FIN of either side still finds its way.
        assert_eq!(passes(harness, Hook::FromUplink, &there(FIN_ACK))?.dst, cast.local.addr);
        assert_eq!(passes(harness, Hook::ToUplink, &back(FIN_ACK))?.src, cast.service);
        // The next connection from the same port is a new flow: it goes where new ones go by now.
        harness.put_backend(2, 1, Protocol::Tcp, another, 1)?;
        harness.put_slot(1, 2)?;
        let again = passes(harness, Hook::FromUplink, &syn)?;
        assert_eq!((again.src, again.dst), (cast.client, another.addr));
        assert_eq!(passes(harness, Hook::ToUplink, &again.answer())?.src, cast.service);
        Ok(())
    })
}

/// A client that has used its port for a NodePort of this node may use it for the backend itself, without a translation here.
#[test]
fn a_connection_of_its_own_may_have_the_tuple_of_a_closed_one() -> Result<()> {
    each_version(|harness, cast| {
        harness.add_frontend(FrontendKind::ClusterIp, Protocol::Tcp, cast.service, &[cast.local])?;
        let syn = Packet::tcp(cast.client, cast.service, TcpFlags::SYN);
        let arrived = passes(harness, Hook::FromUplink, &syn)?;
        let back = |flags| arrived.answer().with_flags(flags);
        passes(harness, Hook::ToUplink, &back(SYN_ACK))?;
        passes(harness, Hook::FromUplink, &syn.clone().with_flags(FIN_ACK))?;
        assert_eq!(passes(harness, Hook::ToUplink, &back(FIN_ACK))?.src, cast.service);

        let direct = Packet::tcp(cast.client, cast.local.addr, TcpFlags::SYN);
        assert_eq!(passes(harness, Hook::FromUplink, &direct)?.dst, cast.local.addr);
        for flags in [SYN_ACK, TcpFlags::ACK, FIN_ACK] {
            assert_eq!(passes(harness, Hook::ToUplink, &back(flags))?.src, cast.local.addr, "{flags:?}");
        }
        // And the port is free for the service again.
        assert_eq!(passes(harness, Hook::FromUplink, &syn)?.dst, cast.local.addr);
        assert_eq!(passes(harness, Hook::ToUplink, &back(SYN_ACK))?.src, cast.service);
        Ok(())
    })
}
