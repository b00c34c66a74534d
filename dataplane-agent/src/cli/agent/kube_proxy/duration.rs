//! Durations as Go writes them: `1h0m0s`, `1.5s`, `250ms`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer};

/// A duration that is not negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

/// The text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration such as 1h30m, 90s or 250ms")]
pub struct NotADuration(String);

/// Units and their length in nanoseconds; `m` stands after `ms`, so that the longer name is tried first.
const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)];

impl FromStr for GoDuration {
    type Err = NotADuration;

    fn from_str(text: &str) -> Result<Self, NotADuration> {
        let broken = || NotADuration(text.to_owned());
        // Zero alone needs no unit.
        if text == "0" {
            return Ok(Self::default());
        }
        let mut rest = text;
        let mut nanoseconds = 0.0_f64;
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(broken)?;
            let (number, after) = rest.split_at(end);
            let (unit, length) = UNITS.into_iter().find(|(unit, _)| after.starts_with(unit)).ok_or_else(broken)?;
            nanoseconds += number.parse::<f64>().map_err(|_| broken())? * length;
            rest = &after[unit.len()..];
        }
        if text.is_empty() {
            return Err(broken());
        }
        Duration::try_from_secs_f64(nanoseconds / 1e9).map(Self).map_err(|_| broken())
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p59_durations_are_read_as_go_writes_them() {
        for (text, expected) in [
            ("0", Some(0.0)),
            ("0s", Some(0.0)),
            ("1h0m0s", Some(3600.0)),
            ("24h0m0s", Some(86_400.0)),
            ("1.5s", Some(1.5)),
            ("250ms", Some(0.25)),
            ("1m30s", Some(90.0)),
            ("2us", Some(2e-6)),
            ("", None),
            ("5", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("1s ", None),
            ("1.2.3s", None),
        ] {
            assert_eq!(text.parse().ok(), expected.map(|s| GoDuration(Duration::from_secs_f64(s))), "{text:?}");
        }
    }
}
