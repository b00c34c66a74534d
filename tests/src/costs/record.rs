//! The checked-in figures, and what counts as a change of them.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Growth of verified instructions, in percent, that needs a new record.
const TOLERANCE: u32 = 10;

/// Everything that is measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Costs {
    /// The kernel's release: verifiers of different releases count differently.
    pub kernel: String,
    /// By program, then by configuration.
    pub programs: BTreeMap<String, BTreeMap<String, Size>>,
    /// What single packets cost.
    pub packets: Vec<PacketCost>,
}

/// A loaded program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Instructions that the verifier has walked; its limit is a million.
    pub verified: u32,
    /// Bytes of machine code.
    pub jitted: u32,
}

/// One packet of a flow at one hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketCost {
    /// Who talks to what, over what.
    pub flow: String,
    /// `new connection`, `established`, `reply`, or `miss` for one that is not translated.
    pub packet: String,
    /// The program.
    pub hook: String,
    /// Map lookups.
    pub lookups: u64,
    /// Map updates.
    pub updates: u64,
    /// Median time of a run over that of an empty program. Never compared: it depends on the machine and its day.
    pub nanoseconds: i64,
}

impl Costs {
    /// Reads the record.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a record of costs", path.display()))
    }

    /// Writes the record in place, so that a checked-in file keeps its owner.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// In which ways `self`, measured now, differs from the record so much that a new record is due.
    pub fn differences(&self, record: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let same_kernel = series(&self.kernel) == series(&record.kernel);
        for (program, configurations) in &self.programs {
            for (configuration, now) in configurations {
                let Some(then) = record.programs.get(program).and_then(|all| all.get(configuration)) else {
                    differences.push(format!("{program} ({configuration}) is not in the record"));
                    continue;
                };
                let most = then.verified + then.verified * TOLERANCE / 100;
                if same_kernel && now.verified > most {
                    let text = format!("{program} ({configuration}) grew from {} to {}", then.verified, now.verified);
                    differences.push(text + " verified instructions");
                }
            }
        }
        for (program, configurations) in &record.programs {
            for configuration in configurations.keys() {
                if !self.programs.get(program).is_some_and(|all| all.contains_key(configuration)) {
                    differences.push(format!("{program} ({configuration}) is in the record only"));
                }
            }
        }
        differences.extend(record.differences_of(&self.packets));
        differences
    }

    /// In which ways map operations of `packets`, measured now, differ from those of this record.
    pub fn differences_of(&self, packets: &[PacketCost]) -> Vec<String> {
        let mut differences = Vec::new();
        let operations = |packets: &[PacketCost]| -> BTreeMap<String, (u64, u64)> {
            let key = |cost: &PacketCost| format!("{}, {}, {}", cost.flow, cost.packet, cost.hook);
            packets.iter().map(|cost| (key(cost), (cost.lookups, cost.updates))).collect()
        };
        let (now, then) = (operations(packets), operations(&self.packets));
        for packet in now.keys().chain(then.keys().filter(|packet| !now.contains_key(*packet))) {
            if now.get(packet) != then.get(packet) {
                let show = |counts: Option<&(u64, u64)>| {
                    counts.map_or_else(|| "none".to_owned(), |(lookups, updates)| format!("{lookups} + {updates}"))
                };
                let (then, now) = (show(then.get(packet)), show(now.get(packet)));
                differences.push(format!("{packet}: {now} map lookups and updates, {then} in the record"));
            }
        }
        differences
    }
}

/// `6.18` of `6.18.5-cloud`.
fn series(release: &str) -> &str {
    release.match_indices('.').nth(1).map_or(release, |(at, _)| &release[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(kernel: &str, verified: u32, lookups: u64) -> Costs {
        let size = Size { verified, jitted: 100 };
        let packet = PacketCost {
            flow: "pod to ClusterIP".into(),
            packet: "established".into(),
            hook: "from_pod".into(),
            lookups,
            updates: 0,
            nanoseconds: 50,
        };
        Costs {
            kernel: kernel.into(),
            programs: BTreeMap::from([("from_pod".into(), BTreeMap::from([("default".into(), size)]))]),
            packets: vec![packet],
        }
    }

    #[track_caller]
    fn check(now: &Costs, expected: &[&str]) {
        assert_eq!(now.differences(&costs("6.18.5", 1000, 2)), expected);
    }

    #[test]
    fn growth_beyond_the_tolerance_needs_a_new_record() {
        check(&costs("6.18.5", 1100, 2), &[]);
        check(&costs("6.18.5", 1101, 2), &["from_pod (default) grew from 1000 to 1101 verified instructions"]);
        check(&costs("6.18.5", 500, 2), &[]);
    }

    #[test]
    fn another_kernels_verifier_is_not_compared_but_map_operations_are() {
        check(&costs("6.12.1", 5000, 2), &[]);
        let expected = "pod to ClusterIP, established, from_pod: 3 + 0 map lookups and updates, 2 + 0 in the record";
        check(&costs("6.12.1", 5000, 3), &[expected]);
    }

    #[test]
    fn a_program_that_came_or_went_makes_the_record_stale() {
        let mut now = costs("6.18.5", 1000, 2);
        let sizes = now.programs.remove("from_pod").unwrap();
        now.programs.insert("to_pod".into(), sizes);
        check(&now, &["to_pod (default) is not in the record", "from_pod (default) is in the record only"]);
    }
}
