//! ICMP errors about packets of flows: who sent the packet recognises it, and learns the rest as it knows the flow (P44).

use std::net::IpAddr;

use anyhow::{Result, bail, ensure};
use dataplane_tests::{
    harness::{Action, Hook},
    packet::{Icmp, Packet, Parsed},
    topology::{self, IpVersion},
};

use crate::{run::Run, step::Complaint, tally::Event};

/// The way that an error takes.
pub(crate) struct Way<'a> {
    /// The hooks it passes, of which the last one translates it.
    pub(crate) hooks: &'a [Hook],
    /// What becomes of it there.
    pub(crate) action: Action,
    /// Whether the node itself sends it.
    pub(crate) is_from_socket: bool,
}

impl Run<'_> {
    /// Whoever gets a packet, or a router before, sends the complaint, if there is one, about it to its sender.
    pub(crate) fn complain(
        &mut self,
        complaint: Option<Complaint>,
        (sent, arrived): (&Packet, &Packet),
        way: &Way<'_>,
    ) -> Result<()> {
        let Some(Complaint { by_router, error, quoted }) = complaint else { return Ok(()) };
        let receiver = arrived.dst.ip();
        let router = by_router && way.hooks.first() == Some(&Hook::FromUplink);
        let by = if router { topology::ROUTER.ip(IpVersion::of(receiver)) } else { receiver };
        let told = Icmp::about(error, by, &arrived.frame()?, quoted)?;
        let got = self.tell_of(&told, way)?;

        // The hops that the packet has made do not come back.
        let original = Packet { hop_limit: arrived.hop_limit, ..sent.clone() }.frame()?;
        let about = original[14..][..told.about.len()].to_vec();
        let src = if router { by } else { sent.dst.ip() };
        let expected = Icmp { src, dst: sent.src.ip(), about, ..told };
        ensure!(got == expected, "{error:?} by {by} about {arrived:?} is\n{got:x?}, not\n{expected:x?}");
        self.tally.count(Event::Told);
        Ok(())
    }

    /// What becomes of an error on its way.
    fn tell_of(&self, told: &Icmp, way: &Way<'_>) -> Result<Icmp> {
        let mut frame = told.frame()?;
        let by: IpAddr = told.src;
        for (index, hook) in way.hooks.iter().enumerate() {
            let outcome = self.run(*hook, &frame, way.is_from_socket)?;
            let is_last = index + 1 == way.hooks.len();
            let expected = if is_last { way.action } else { Action::Pass };
            let action = outcome.action;
            ensure!(action == expected, "an error by {by} at {hook:?}: {action:?}, drops {:?}", self.harness.drops()?);
            ensure!(is_last || outcome.frame == frame, "an error by {by} is translated at {hook:?}");
            frame = outcome.frame;
        }
        let Parsed::Icmp(got) = Parsed::from_frame(&frame)? else { bail!("an error by {by} is none any more") };
        Ok(got)
    }
}
