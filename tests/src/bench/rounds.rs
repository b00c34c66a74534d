//! Rounds: every contender of a phase gets one short slice per round, and slices that others disturb are repeated.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{
    Scale, Settings,
    installed::Installed,
    plan::{Entry, Phase},
    slice::{self, Load, Sample},
};

/// How a phase is measured.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How many rounds.
    pub rounds: u32,
    /// How long a slice.
    pub slice: Duration,
}

impl Pace {
    /// That of `load` at a scale.
    ///
    /// The speed of a shared machine changes from second to second, so many short slices tell more than a few long ones of the same
    /// time together.
    pub const fn of(scale: Scale, load: Load) -> Self {
        let (rounds, slice) = match (scale, load.begins_slowly()) {
            (Scale::Quick, true) => (7, 450),
            (Scale::Quick, false) => (27, 200),
            (_, true) => (11, 1000),
            (_, false) => (33, 350),
        };
        Self { rounds, slice: Duration::from_millis(slice) }
    }
}

/// What comes before a slice, unmeasured: a node runs one of the contenders alone, so none should pay for the memory of the others.
const WARM_UP: Duration = Duration::from_millis(80);
/// Foreign processes may use this share of one processor.
const FOREIGN: f64 = 0.10;
/// A slice is repeated so many times at most.
const TRIES: u32 = 3;

/// What has been measured in a phase.
#[derive(Debug)]
pub struct Measured {
    /// What has been done.
    pub phase: Phase,
    /// In which slices.
    pub pace: Pace,
    /// For each entry of the phase, the sample of each round.
    pub samples: Vec<Vec<Sample>>,
    /// Slices that were thrown away and repeated.
    pub repeated: u32,
    /// Slices that were disturbed and kept, since nothing better came.
    pub disturbed: u32,
}

impl Measured {
    /// The samples of `entry`.
    pub fn of(&self, entry: Entry) -> Option<&[Sample]> {
        let index = self.phase.entries.iter().position(|other| *other == entry)?;
        self.samples.get(index).map(Vec::as_slice)
    }
}

/// Measures `phase` over those of its contenders that are `installed`.
pub fn measure(settings: &Settings<'_>, installed: &[Installed], phase: &Phase, pace: Pace) -> Result<Measured> {
    let at = |entry: &Entry| {
        installed.iter().find(|one| one.contender.name == entry.contender && one.services == entry.services)
    };
    let mut phase = phase.clone();
    phase.entries.retain(|entry| at(entry).is_some());
    let count = phase.entries.len();
    let mut measured = Measured { samples: vec![Vec::new(); count], phase, pace, repeated: 0, disturbed: 0 };
    // So many slices may be repeated in the phase.
    let repeats = pace.rounds * u32::try_from(count)? / if settings.scale == Scale::Quick { 4 } else { 2 };
    for round in 0..pace.rounds {
        for turn in 0..count {
            settings.go_on()?;
            // Each round begins with another one, so that nobody always follows the same neighbour.
            let index = (turn + usize::try_from(round)?) % count;
            let entry = measured.phase.entries[index];
            let one = at(&entry).context("installed")?;
            let (load, route) = (measured.phase.load, measured.phase.route);
            settings.progress.set_message(format!("{}, {}: {}", load.name(), route.name(), entry.contender));
            let what =
                || format!("{}, {}: {} at {} services", load.name(), route.name(), entry.contender, entry.services);
            if round == 0 || !load.begins_slowly() {
                // Neighbours are found, caches are its own again after all the others, and whatever does not work fails before
                // anything is measured.
                slice::run(one, load, route, entry.position, WARM_UP).with_context(what)?;
            }
            let sample = undisturbed(&mut measured, repeats, || {
                slice::run(one, load, route, entry.position, pace.slice).with_context(what)
            })?;
            measured.samples[index].push(sample);
            settings.progress.inc(1);
        }
    }
    Ok(measured)
}

/// Repeats a slice that was disturbed, within bounds; the least disturbed one counts.
fn undisturbed(measured: &mut Measured, repeats: u32, run: impl Fn() -> Result<Sample>) -> Result<Sample> {
    let foreign = |sample: &Sample| sample.usage.foreign.as_secs_f64() / sample.usage.wall.as_secs_f64();
    let mut best = run()?;
    for _ in 1..TRIES {
        if foreign(&best) <= FOREIGN || measured.repeated >= repeats {
            break;
        }
        measured.repeated += 1;
        let again = run()?;
        if foreign(&again) < foreign(&best) {
            best = again;
        }
    }
    if foreign(&best) > FOREIGN {
        measured.disturbed += 1;
    }
    Ok(best)
}
