//! How long a start takes, and what the agent needs then.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dataplane_agent::datapath::{Pins, hook::Hook};

use super::{
    installed::{self, Installed},
    node::{Bed, Time},
    objects::{Endpoints, Service},
};

/// A start with empty maps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    /// Until everything was in the maps.
    pub(super) took: Duration,
    /// Processor time until then.
    pub(super) time: Time,
    /// Bytes of resident memory a moment later.
    pub(super) resident: u64,
    /// And at most.
    pub(super) most: u64,
    /// Map operations.
    pub(super) operations: u64,
    /// System calls for them.
    pub(super) calls: u64,
}

/// A start with the maps of an earlier agent, of which one service has changed meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Again {
    /// Until the change was in the maps.
    pub(super) took: Duration,
    /// Processor time until then.
    pub(super) time: Time,
    /// System calls that changed a map.
    pub(super) calls: u64,
}

/// How long the agent may do what is left to do before its memory is looked at.
const SETTLE: Duration = Duration::from_secs(2);

/// Starts the agent and waits until its maps hold all of `services` and the node's interfaces run its programs.
pub(super) fn measure(bed: &mut Bed, services: &[Service]) -> Result<Start> {
    let last = services.last().context("no services")?;
    let bpffs = bed.node().bpffs.path().to_owned();
    let (pins, uplink) = (Pins::new(&bpffs), bed.node().uplink()?);
    let is_attached =
        || [Hook::FromUplink, Hook::ToUplink].iter().all(|hook| pins.interface_link(*hook, uplink).exists());
    let earlier = bed.time()?;
    let begun = Instant::now();
    bed.start()?;
    let mut installed = None;
    let took = loop {
        // The last one in the order of names is written last; that the others are there, too, is seen to afterwards.
        bed.wait(&mut installed, |installed| Ok(is_attached() && installed.knows(last)?))?;
        let took = begun.elapsed();
        match installed::ensure_complete(&bpffs, services) {
            Ok(()) => break took,
            Err(error) if begun.elapsed() > super::node::PATIENCE => return Err(error),
            Err(_) => {}
        }
    };
    let time = bed.time()?.since(earlier);
    std::thread::sleep(SETTLE);
    let (resident, most) = bed.memory()?;
    let counted = bed.counted()?;
    Ok(Start { took, time, resident, most, operations: counted.operations, calls: counted.calls })
}

/// Ends the agent, changes one service and starts it again.
pub(super) fn again(bed: &mut Bed, services: &mut [Service], endpoints: &mut Endpoints) -> Result<Again> {
    bed.stop()?;
    let service = services.last_mut().context("no services")?;
    if let Some(first) = service.endpoints.first_mut() {
        *first = endpoints.next();
    }
    bed.apply(service)?;
    bed.server.prepare();
    let earlier = bed.time()?;
    let begun = Instant::now();
    bed.start()?;
    let mut installed: Option<Installed> = None;
    bed.wait(&mut installed, |installed| installed.has(service))?;
    let (took, time) = (begun.elapsed(), bed.time()?.since(earlier));
    std::thread::sleep(SETTLE);
    Ok(Again { took, time, calls: bed.counted()?.calls })
}
