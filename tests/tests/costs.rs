//! What the programs cost at most, whatever the machine.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::Result;
use dataplane_tests::{
    bench::control,
    costs::{
        paths, programs,
        record::{Costs, PacketCost},
        stack,
    },
};

/// System calls on maps for one changed endpoint: a backend, a slot or a frontend, and a backend that goes, and room for as many
/// more.
const MOST_CALLS: u64 = 6;

/// The kernel's own limit.
const MOST_INSTRUCTIONS: u32 = 1_000_000;

/// What each packet costs, measured once.
fn packets() -> Result<Vec<PacketCost>> {
    static MEASURED: Mutex<Vec<PacketCost>> = Mutex::new(Vec::new());
    let mut measured = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
    if measured.is_empty() {
        *measured = paths::measure(1)?;
    }
    Ok(measured.clone())
}

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
fn the_stack_of_every_program_suffices_on_older_kernels() -> Result<()> {
    for (program, bytes) in stack::deepest()? {
        assert!(bytes <= stack::MOST, "{program}: {bytes} bytes");
        assert!(bytes >= 32, "{program} has no function");
    }
    Ok(())
}

#[test]
fn an_established_packet_costs_one_conntrack_and_at_most_one_array_lookup_each_way() -> Result<()> {
    for cost in packets()? {
        if ["established", "reply"].contains(&&*cost.packet) {
            assert!(cost.lookups <= 2 && cost.updates == 0, "{cost:?}");
        }
    }
    Ok(())
}

#[test]
fn no_packet_costs_more_map_operations_than_the_record_says() -> Result<()> {
    // Packets that it does not know yet are `cargo xtask verify`'s to name.
    let record = Costs::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/costs.json"))?;
    for now in packets()? {
        let same = |then: &&PacketCost| (&then.flow, &then.packet, &then.hook) == (&now.flow, &now.packet, &now.hook);
        if let Some(then) = record.packets.iter().find(same) {
            assert!(now.lookups <= then.lookups && now.updates <= then.updates, "{now:?}\n{then:?}");
        }
    }
    Ok(())
}

#[test]
fn a_changed_endpoint_costs_a_handful_of_system_calls_whatever_the_number_of_services() -> Result<()> {
    let calls = control::calls_per_change(100)?;
    assert!((1..=MOST_CALLS).contains(&calls), "{calls}");
    Ok(())
}
