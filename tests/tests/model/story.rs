//! Random steps, each chosen by the world that those before have made.

use anyhow::Result;
use dataplane_tests::{
    packet::IcmpError,
    reference::{random::SPANS, rules::Fate},
};
use fastrand::Rng;

use crate::{
    run::Run,
    step::{Aim, Complaint, Complaints, Step},
};

/// A history that is made up as it happens. What its seed makes of it does not depend on what becomes of packets.
pub(crate) struct Story<'a> {
    /// Where it happens.
    run: Run<'a>,
    /// What has happened.
    pub(crate) steps: Vec<Step>,
    /// How many cases there have been, with the one that failed.
    pub(crate) cases: u64,
    rng: Rng,
    /// Flows to go on with.
    begun: Vec<u32>,
    flows: u32,
}

impl<'a> Story<'a> {
    /// One where nothing has happened yet.
    pub(crate) fn new(run: Run<'a>, rng: Rng) -> Self {
        Self { run, steps: Vec::new(), cases: 0, rng, begun: Vec::new(), flows: 0 }
    }

    /// A small world, so many cases, and what has to hold at last.
    pub(crate) fn tell(&mut self, cases: u64) -> Result<()> {
        self.edits(20)?;
        self.take(Step::Sync)?;
        for _ in 0..cases {
            self.cases += 1;
            self.case()?;
        }
        self.everyone_is_chosen()
    }

    /// Often some changes at once, then some packets.
    fn case(&mut self) -> Result<()> {
        if self.rng.bool() {
            let count = self.rng.u8(1..6);
            self.edits(count)?;
            self.take(Step::Sync)?;
        }
        if self.rng.u8(0..8) == 0 {
            let span = SPANS[self.rng.usize(0..SPANS.len())];
            self.take(Step::Wait(span))?;
        }
        for _ in 0..self.rng.u8(1..6) {
            let aim = self.aim();
            let step = Step::Begin(self.flows, aim, self.complaints());
            if matches!(self.run.world.fate(aim.client, aim.to, aim.protocol), (Fate::Sent(_), Some(_))) {
                self.begun.push(self.flows);
            }
            self.flows += 1;
            self.take(step)?;
        }
        if !self.begun.is_empty() {
            let flow = self.begun.swap_remove(self.rng.usize(0..self.begun.len()));
            let step = Step::GoOn(flow, self.complaints());
            self.take(step)?;
        }
        Ok(())
    }

    /// In a world that stands still, each backend of a service gets something sooner or later.
    fn everyone_is_chosen(&mut self) -> Result<()> {
        for _ in 0..20 {
            let aim = self.aim();
            if matches!(self.run.world.fate(aim.client, aim.to, aim.protocol), (Fate::Sent(_), Some(_))) {
                return self.take(Step::Everyone(aim));
            }
        }
        Ok(())
    }

    fn edits(&mut self, count: u8) -> Result<()> {
        for _ in 0..count {
            let touched = self.run.world.touch(&mut self.rng);
            let edit = self.run.world.edit(&touched);
            self.take(Step::Edit(edit))?;
        }
        Ok(())
    }

    fn aim(&mut self) -> Aim {
        let (client, to, protocol) = self.run.world.packet(&mut self.rng);
        Aim { client, to, protocol }
    }

    /// Now and then: whoever gets a packet, or a router before, complains about it to its sender.
    fn complaints(&mut self) -> Complaints {
        let rng = &mut self.rng;
        [(); 2].map(|()| {
            (rng.u8(0..4) == 0).then(|| Complaint {
                by_router: rng.bool(),
                error: IcmpError::ALL[rng.usize(0..IcmpError::ALL.len())],
                // As little as allowed (RFC 792), TCP without its checksum, and everything.
                quoted: [8, 12, 4096][rng.usize(0..3)],
            })
        })
    }

    fn take(&mut self, step: Step) -> Result<()> {
        let taken = self.run.take(&step);
        self.steps.push(step);
        taken
    }
}
