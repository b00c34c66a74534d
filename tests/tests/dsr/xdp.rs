//! Direct flows at XDP: what need not tell of its frontend is sent on from there.

use anyhow::Result;
use dataplane_common::{FrontendKind, Next, NodeConfig, Protocol, TcpFlags, V4};
use dataplane_tests::{
    harness::{Action, Harness, Hook},
    packet::Packet,
    router::Router,
};

use crate::cast::{Cast, PROTOCOLS, tells};

#[test]
fn what_tells_is_left_to_tc_and_the_rest_is_sent() -> Result<()> {
    let (router, cast) = (Router::new()?, Cast::new()?);
    let mut link = None;
    for protocol in PROTOCOLS {
        Harness::with_flags(NodeConfig::DIRECT_RETURN, |harness| {
            if link.is_none() {
                link = Some(router.attach_xdp(harness)?);
            }
            router.declare(harness, cast.node_port.ip())?;
            harness.add_frontend(FrontendKind::NodePort, protocol, cast.node_port, &[cast.remote])?;
            let first = Packet::first(protocol, cast.client, cast.node_port);
            for _ in 0..2 {
                let outcome = router.run(harness, Hook::XdpFromUplink, &first.frame()?)?;
                assert_eq!((outcome.action, outcome.frame), (Action::Pass, first.frame()?));
                // XDP has begun the flow, and it is a direct one.
                let flows = harness.flows::<V4>()?;
                assert!(flows.len() == 2 && flows.iter().all(|(_, flow)| flow.next == Next::Direct as u8));
                tells(harness, &router, &first, cast.remote)?;
            }
            if protocol == Protocol::Udp {
                return Ok(());
            }
            let more = first.with_flags(TcpFlags::ACK).with_payload(b"data");
            let mut outcome = router.run(harness, Hook::XdpFromUplink, &more.frame()?)?;
            if outcome.action == Action::Pass {
                // The first packet of a tick is for tc.
                router.meets(harness, Hook::FromUplink, &more.frame()?, Action::Redirect)?;
                outcome = router.run(harness, Hook::XdpFromUplink, &more.frame()?)?;
            }
            assert_eq!(outcome.action, Action::Transmit);
            assert_eq!(outcome.packet()?, Packet { dst: cast.remote.addr, hop_limit: more.hop_limit - 1, ..more });
            let flows = harness.flows::<V4>()?;
            assert!(flows.iter().all(|(_, flow)| flow.state.name(6) == "established"), "{flows:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn what_cannot_tell_is_not_begun_as_a_direct_flow() -> Result<()> {
    let (router, cast) = (Router::new()?, Cast::new()?);
    Harness::with_flags(NodeConfig::DIRECT_RETURN, |harness| {
        let _link = router.attach_xdp(harness)?;
        router.declare(harness, cast.node_port.ip())?;
        harness.add_frontend(FrontendKind::NodePort, Protocol::Udp, cast.node_port, &[cast.remote])?;
        let long = Packet::udp(cast.client, cast.node_port).with_payload(&[0x5a; 1270]);
        let outcome = router.run(harness, Hook::XdpFromUplink, &long.frame()?)?;
        assert_eq!(outcome.action, Action::Transmit);
        assert_eq!(outcome.packet()?.src.ip(), cast.node_port.ip());
        Ok(())
    })
}
