//! What the programs cost at most, whatever the machine.

use anyhow::Result;
use dataplane_tests::costs::{paths, programs};

/// The kernel's own limit.
const MOST_INSTRUCTIONS: u32 = 1_000_000;

#[test]
fn every_program_loads_in_every_configuration() -> Result<()> {
    for (program, configurations) in programs::measure()? {
        for (configuration, size) in configurations {
            // Half of it leaves room for verifiers of other kernels, which walk more of the same program.
            assert!(size.verified < MOST_INSTRUCTIONS / 2, "{program} ({configuration}): {}", size.verified);
        }
    }
    Ok(())
}

#[test]
fn an_established_packet_costs_one_conntrack_and_at_most_one_array_lookup_each_way() -> Result<()> {
    for cost in paths::measure(1)? {
        if cost.packet != "new connection" {
            assert!(cost.lookups <= 2 && cost.updates == 0, "{cost:?}");
        }
    }
    Ok(())
}
