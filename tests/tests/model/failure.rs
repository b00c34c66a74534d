//! What a developer gets to read of a history that fails.

use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};

use crate::{
    reduce::{Limits, Reduced, reduce},
    run::{Place, Run},
    step::Step,
    tally::Tally,
};

/// A history is long, and a failure is no moment to wait.
const LIMITS: Limits = Limits { time: Duration::from_secs(30), tries: 5000 };
/// How often steps are repeated before they count as harmless: the programs choose among backends at random.
const ATTEMPTS: usize = 4;

/// A history that fails at its last step.
pub(crate) struct Failure {
    /// What has chosen its steps.
    pub(crate) seed: u64,
    /// How many cases it has.
    pub(crate) cases: u64,
    /// What it consists of.
    pub(crate) steps: Vec<Step>,
    /// What went wrong.
    pub(crate) error: Error,
}

impl Failure {
    /// Repeats ever smaller parts of it in `place`, and reports the smallest that fails.
    pub(crate) fn report(self, mut place: Place<'_>) -> Error {
        let Self { seed, cases, steps, mut error } = self;
        let (all, masquerade) = (steps.len(), place.masquerade);
        let begun = Instant::now();
        let mut fails = |steps: &[Step]| {
            (0..ATTEMPTS).any(|_| match repeat(&mut place, steps) {
                Ok(Err(other)) => {
                    error = other;
                    true
                }
                Ok(Ok(())) | Err(_) => false,
            })
        };
        let (heading, steps) = if fails(&steps) {
            let Reduced { steps, tries } = reduce(steps, LIMITS, Step::simpler, fails);
            let took = begun.elapsed().as_secs_f64();
            let count = steps.len();
            (format!("{count} of {all} steps suffice ({masquerade:?}; {tries} parts tried in {took:.1} s)"), steps)
        } else {
            (format!("these {all} steps failed, but not when repeated ({masquerade:?})"), steps)
        };
        let mut text = format!("{heading}:\n");
        for (index, step) in steps.iter().enumerate() {
            text.push_str(&format!("{:>4}. {step}\n", index + 1));
        }
        // Even without a case, a world has been made.
        let cases = cases.max(1);
        text.push_str(&format!(
            "the whole history: SLUICE_MODEL_SEED={seed} SLUICE_MODEL_CASES={cases} cargo xtask test where_the_reference_says"
        ));
        error.context(text)
    }
}

/// Repeats `steps` on maps without services, and says how they fail; an error if they make no sense.
fn repeat(place: &mut Place<'_>, steps: &[Step]) -> Result<Result<()>> {
    // Not of the run's.
    let mut tally = Tally::default();
    Run::start(place.again(), &mut tally)?.take(&Step::Sync)?;
    let mut run = Run::start(place.again(), &mut tally)?;
    for step in steps {
        ensure!(run.allows(step), "{step} cannot be");
        if let Err(error) = run.take(step) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}
