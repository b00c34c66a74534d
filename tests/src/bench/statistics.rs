//! Medians and quartiles, and ratios of what was measured in the same round.

/// The middle of some values, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// A quarter of the values is below.
    pub lower: f64,
    /// Half of the values is below.
    pub median: f64,
    /// A quarter of the values is above.
    pub upper: f64,
}

impl Spread {
    /// Of `values`, in any order; `None` when there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_unstable_by(f64::total_cmp);
        let at = |share| quantile(&values, share);
        Some(Self { lower: at(0.25)?, median: at(0.5)?, upper: at(0.75)? })
    }

    /// Of the quotients of values of the same round; a round that one side lacks is left out.
    pub fn of_ratios(values: &[Option<f64>], bases: &[Option<f64>]) -> Option<Self> {
        let pairs = values.iter().zip(bases);
        Self::of(pairs.filter_map(|(value, base)| Some((*value)? / (*base)?)))
    }
}

/// The value that the given share of the sorted `values` lies below, interpolated.
fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    #[expect(clippy::cast_precision_loss, reason = "a number of rounds")]
    let position = last as f64 * share;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let below = position as usize;
    let (low, high) = (values[below], values[(below + 1).min(last)]);
    Some(low + (high - low) * position.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_interpolated_and_order_does_not_matter() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { lower: 1.75, median: 2.5, upper: 3.25 });
        assert_eq!(Spread::of([7.0]).unwrap().median, 7.0);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn ratios_are_of_the_same_round_and_rounds_without_a_partner_are_left_out() {
        // The machine is twice as fast in the second round: the ratios do not see it.
        let (values, bases) = ([Some(50.0), Some(100.0), None, Some(1.0)], [Some(100.0), Some(200.0), Some(1.0), None]);
        assert_eq!(Spread::of_ratios(&values, &bases).unwrap(), Spread { lower: 0.5, median: 0.5, upper: 0.5 });
    }
}
