//! One client port for several connections: one after the other, and to the same backend by two ways.

use std::net::SocketAddr;

use anyhow::Result;
use dataplane_common::{FrontendKind, Protocol, TcpFlags};
use dataplane_tests::{harness::Hook, packet::Packet};

use super::{each, each_of, passes};

#[test]
fn a_new_connection_from_a_port_that_is_used_again_chooses_anew() -> Result<()> {
    each_of(&[Protocol::Tcp], |harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let syn = Packet::first(protocol, cast.pod, cast.service);
        let translated = passes(harness, Hook::FromPod, &syn)?;
        passes(harness, Hook::ToPod, &translated.answer())?;
        let fin = TcpFlags(TcpFlags::FIN.0 | TcpFlags::ACK.0);
        let end = passes(harness, Hook::FromPod, &syn.clone().with_flags(fin))?;
        passes(harness, Hook::ToPod, &end.answer().with_flags(fin))?;
        harness.put_backend(1, 1, protocol, cast.local, 3)?;
        assert_eq!(passes(harness, Hook::FromPod, &syn)?.dst, cast.local.addr);
        Ok(())
    })
}

#[test]
fn a_connection_to_the_backend_itself_keeps_its_port_and_a_later_one_by_the_service_gets_another() -> Result<()> {
    each_of(&[Protocol::Tcp], |harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let direct = Packet::first(protocol, cast.pod, cast.remote.addr);
        assert_eq!(passes(harness, Hook::FromPod, &direct)?, direct);
        assert_eq!(passes(harness, Hook::ToPod, &direct.answer())?, direct.answer());

        let syn = Packet::first(protocol, cast.pod, cast.service);
        assert_eq!(passes(harness, Hook::FromPod, &syn)?.src, cast.pod);
        // To the backend this is a packet of the connection that it has, and it says so.
        let open = direct.answer().with_flags(TcpFlags::ACK);
        assert_eq!(passes(harness, Hook::ToPod, &open)?, open);
        let again = passes(harness, Hook::FromPod, &syn)?;
        assert_eq!((again.src.ip(), again.dst), (cast.pod.ip(), cast.remote.addr));
        assert_ne!(again.src.port(), cast.pod.port());
        let accepted = passes(harness, Hook::ToPod, &again.answer())?;
        assert_eq!((accepted.src, accepted.dst), (cast.service, cast.pod));

        for (hook, packet) in [(Hook::FromPod, direct.with_flags(TcpFlags::ACK)), (Hook::ToPod, open)] {
            assert_eq!(passes(harness, hook, &packet)?, packet, "{hook:?}");
        }
        assert_eq!(passes(harness, Hook::FromPod, &syn.with_flags(TcpFlags::ACK))?.src, again.src);
        Ok(())
    })
}

#[test]
fn a_flow_to_the_backend_itself_gets_another_port_where_one_by_the_service_has_it() -> Result<()> {
    each(|harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let by_service = passes(harness, Hook::FromPod, &Packet::first(protocol, cast.pod, cast.service))?;
        assert_eq!(passes(harness, Hook::ToPod, &by_service.answer())?.src, cast.service);

        let direct = Packet::first(protocol, cast.pod, cast.remote.addr);
        let out = passes(harness, Hook::FromPod, &direct)?;
        assert_eq!((out.src.ip(), out.dst), (cast.pod.ip(), cast.remote.addr));
        assert_ne!(out.src.port(), cast.pod.port());
        let back = passes(harness, Hook::ToPod, &out.answer())?;
        assert_eq!((back.src, back.dst), (cast.remote.addr, cast.pod));
        assert_eq!(passes(harness, Hook::FromPod, &direct.with_flags(TcpFlags::ACK))?.src, out.src);
        assert_eq!(passes(harness, Hook::ToPod, &by_service.answer())?.src, cast.service);
        // Another port, and other backends, are in nobody's way.
        let others = [
            Packet::first(protocol, (cast.pod.ip(), 41_000).into(), cast.remote.addr),
            Packet::first(protocol, cast.pod, cast.local.addr),
        ];
        for packet in others {
            assert_eq!(passes(harness, Hook::FromPod, &packet)?, packet);
        }
        Ok(())
    })
}

#[test]
fn a_connection_that_is_refused_has_been_answered() -> Result<()> {
    each_of(&[Protocol::Tcp], |harness, cast, protocol| {
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        let sent = passes(harness, Hook::FromPod, &Packet::first(protocol, cast.pod, cast.service))?;
        for flags in [TcpFlags::RST.0, TcpFlags::RST.0 | TcpFlags::ACK.0] {
            assert_eq!(passes(harness, Hook::ToPod, &sent.answer().with_flags(TcpFlags(flags)))?.src, cast.service);
        }
        Ok(())
    })
}

#[test]
fn one_port_reaches_one_backend_by_two_frontends_in_turn() -> Result<()> {
    each(|harness, cast, protocol| {
        let other = SocketAddr::new(cast.service.ip(), 81);
        harness.add_frontend(FrontendKind::ClusterIp, protocol, cast.service, &[cast.remote])?;
        harness.add_frontend(FrontendKind::ClusterIp, protocol, other, &[cast.remote])?;
        let fin = TcpFlags(TcpFlags::FIN.0 | TcpFlags::ACK.0);
        // The backend would answer both frontends' clients from and to the same ports, so a flow that lives keeps them and
        // the other one gets a source port of its own.
        for (frontend, ends) in
            [(cast.service, false), (other, true), (cast.service, true), (other, true), (cast.service, true)]
        {
            let first = Packet::first(protocol, cast.pod, frontend);
            let translated = passes(harness, Hook::FromPod, &first)?;
            assert_eq!(translated.dst, cast.remote.addr);
            let answer = passes(harness, Hook::ToPod, &translated.answer())?;
            assert_eq!((answer.src, answer.dst), (frontend, cast.pod));
            if ends && protocol == Protocol::Tcp {
                let end = passes(harness, Hook::FromPod, &first.with_flags(fin))?;
                passes(harness, Hook::ToPod, &end.answer().with_flags(fin))?;
            }
        }
        Ok(())
    })
}
