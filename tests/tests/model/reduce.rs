//! Makes a failing list of steps small: what it fails without is left out, and what is left is made simpler.
//!
//! proptest's shrinking is not for these: what comes next is chosen by what there is, and hundreds of steps that it would leave out
//! one by one go by halves here (delta debugging, Zeller and Hildebrandt 2002).

use std::time::{Duration, Instant};

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For how long.
    pub(crate) time: Duration,
    /// How many lists.
    pub(crate) tries: usize,
}

/// The smallest list found.
#[derive(Debug)]
pub(crate) struct Reduced<T> {
    /// Its steps.
    pub(crate) steps: Vec<T>,
    /// Lists tried on the way.
    pub(crate) tries: usize,
}

/// The shortest and simplest of the lists that `steps`, which fail, can be reduced to within `limits`; `simpler` makes one step
/// simpler in every possible way, best first, and never comes back to a step that it began with.
pub(crate) fn reduce<T: Clone>(
    steps: Vec<T>,
    limits: Limits,
    simpler: impl Fn(&T) -> Vec<T>,
    fails: impl FnMut(&[T]) -> bool,
) -> Reduced<T> {
    let mut search = Search { steps, fails, tries: 0, limits, begun: Instant::now() };
    loop {
        let left_out = search.leave_out();
        if !search.simplify(&simpler) && !left_out || search.is_over() {
            return Reduced { steps: search.steps, tries: search.tries };
        }
    }
}

/// What is known to fail so far.
struct Search<T, F> {
    steps: Vec<T>,
    fails: F,
    tries: usize,
    limits: Limits,
    begun: Instant,
}

impl<T: Clone, F: FnMut(&[T]) -> bool> Search<T, F> {
    fn is_over(&self) -> bool {
        self.tries >= self.limits.tries || self.begun.elapsed() >= self.limits.time
    }

    /// Takes `steps` instead if they fail too.
    fn try_instead(&mut self, steps: Vec<T>) -> bool {
        if self.is_over() {
            return false;
        }
        self.tries += 1;
        let fails = (self.fails)(&steps);
        if fails {
            self.steps = steps;
        }
        fails
    }

    /// Leaves out ever smaller parts, from the end: what comes last fails, and what is shortly before has the least to do with it.
    /// Whether something could be left out.
    fn leave_out(&mut self) -> bool {
        let before = self.steps.len();
        let mut size = before.div_ceil(2);
        while size > 0 && !self.is_over() {
            let mut any = false;
            let mut end = self.steps.len();
            while end > 0 {
                let start = end.saturating_sub(size);
                let rest = [&self.steps[..start], &self.steps[end..]].concat();
                any |= self.try_instead(rest);
                end = start;
            }
            // Without one step, another may not be needed any more.
            if !any || size > 1 {
                size /= 2;
            }
        }
        self.steps.len() < before
    }

    /// Makes single steps simpler; whether one could be.
    fn simplify(&mut self, simpler: impl Fn(&T) -> Vec<T>) -> bool {
        let mut any = false;
        for position in 0..self.steps.len() {
            while !self.is_over() {
                let instead = simpler(&self.steps[position]);
                let is_simpler = instead.into_iter().any(|step| {
                    let mut steps = self.steps.clone();
                    steps[position] = step;
                    self.try_instead(steps)
                });
                if !is_simpler {
                    break;
                }
                any = true;
            }
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENOUGH: Limits = Limits { time: Duration::MAX, tries: usize::MAX };

    #[track_caller]
    fn check(fails: impl Fn(&[u32]) -> bool, expected: &[u32]) -> usize {
        let steps: Vec<u32> = (1..=500).collect();
        assert!(fails(&steps));
        let reduced = reduce(steps, ENOUGH, |_| Vec::new(), &fails);
        assert_eq!(reduced.steps, expected);
        reduced.tries
    }

    #[test]
    fn of_many_steps_the_two_that_fail_together_remain() {
        for (one, other) in [(1, 2), (1, 500), (249, 250), (250, 251), (77, 430), (499, 500)] {
            let tries = check(|steps| steps.contains(&one) && steps.contains(&other), &[one, other]);
            assert!(tries < 60, "{tries}");
        }
    }

    #[test]
    fn a_step_that_another_needs_goes_after_it() {
        // 300 makes no sense without 100, which therefore has to stay until 300 has gone.
        let fails = |steps: &[u32]| {
            let has = |step| steps.contains(&step);
            has(400) && (has(100) || !has(300))
        };
        check(fails, &[400]);
        check(|_| true, &[]);
    }

    #[test]
    fn steps_that_remain_become_simpler_and_then_others_go() {
        // Each step is worth its number; 12 and 40 fail together, and so does a simpler 30 alone.
        let simpler = |step: &u32| if *step > 30 { vec![step - 2, step - 1] } else { Vec::new() };
        let fails = |steps: &[u32]| steps.contains(&30) || (steps.contains(&12) && steps.iter().any(|step| *step > 30));
        let reduced = reduce(vec![7, 12, 20, 40, 50], ENOUGH, simpler, fails);
        assert_eq!(reduced.steps, [30]);
    }

    #[test]
    fn the_search_ends_at_its_limits() {
        let fails = |steps: &[u32]| steps.contains(&3);
        let steps: Vec<u32> = (0..100).collect();
        let reduced = reduce(steps.clone(), Limits { tries: 3, ..ENOUGH }, |_| Vec::new(), fails);
        assert_eq!(reduced.tries, 3);
        assert!(fails(&reduced.steps) && reduced.steps.len() < steps.len());
        let reduced = reduce(steps.clone(), Limits { time: Duration::ZERO, ..ENOUGH }, |_| Vec::new(), fails);
        assert_eq!((reduced.steps, reduced.tries), (steps, 0));
    }
}
