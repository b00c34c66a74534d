//! Programs of others at the hooks that the datapath uses.

use std::{collections::BTreeMap, path::Path};

use aya::programs::{SchedClassifier, TcAttachType};

use super::{Finding, cgroup};
use crate::{
    cli::programs::{self, Program},
    netlink::{
        Netlink,
        filters::{self, Device, Direction, Filter},
    },
};

/// The name of the check.
const TC: &str = "tc hooks";
/// The name of the check.
const XDP: &str = "XDP hooks";
/// The name of the check.
const CGROUP: &str = "cgroup hooks";

/// TCX programs, clsact filters and XDP programs that are not ours.
pub(super) fn findings(bpffs: &Path) -> Vec<Finding> {
    let none = "no program of others on any interface";
    let judge = |check, foreign: anyhow::Result<Vec<Finding>>| match foreign {
        Ok(findings) if findings.is_empty() => vec![Finding::ok(check, none)],
        Ok(findings) => findings,
        Err(error) => vec![unreadable(check, &error)],
    };
    let mut findings = judge(TC, foreign(bpffs));
    findings.extend(judge(XDP, foreign_xdp(bpffs)));
    findings
}

fn foreign_xdp(bpffs: &Path) -> anyhow::Result<Vec<Finding>> {
    let (ours, loaded) = (programs::pinned(bpffs)?, programs::loaded()?);
    let mut netlink = Netlink::open()?;
    Ok(filters::devices(&mut netlink)?.iter().flat_map(|device| xdp(device, &ours, &loaded)).collect())
}

/// The findings for a device's XDP programs that are not ours.
fn xdp(device: &Device, ours: &BTreeMap<u32, Program>, loaded: &BTreeMap<u32, Program>) -> Vec<Finding> {
    let foreign = device.xdp.iter().filter(|id| !ours.contains_key(id));
    foreign
        .map(|id| {
            let name = loaded.get(id).map_or("unknown", |program| program.name.as_str());
            Finding::warning(
                XDP,
                format!("{}: program {id} ({name}) sees packets first", device.name),
                "make sure that it passes on what it does not end; an interface takes one XDP program in each mode, so leave --xdp=off there",
            )
        })
        .collect()
}

fn foreign(bpffs: &Path) -> anyhow::Result<Vec<Finding>> {
    let ours = programs::pinned(bpffs)?;
    let mut netlink = Netlink::open()?;
    let mut findings = Vec::new();
    for device in filters::devices(&mut netlink)? {
        for direction in Direction::ALL {
            // Without TCX there is nothing to ask for, and an interface may be gone by now.
            let Ok((_, found)) = SchedClassifier::query_tcx(&device.name, attach_type(direction)) else { continue };
            let names: Vec<_> = found
                .iter()
                .map(|program| (program.id(), String::from_utf8_lossy(program.name()).into_owned()))
                .collect();
            findings.extend(tcx(&device, direction, &names, &ours));
        }
    }
    findings.extend(filters::filters(&mut netlink)?.iter().filter_map(|each| filter(each, &ours)));
    Ok(findings)
}

const fn attach_type(direction: Direction) -> TcAttachType {
    match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

/// The programs at a TCX hook that are not ours, in the order in which they run.
fn tcx(
    device: &Device,
    direction: Direction,
    programs: &[(u32, String)],
    ours: &BTreeMap<u32, Program>,
) -> Vec<Finding> {
    let place = programs.iter().position(|(id, _)| ours.contains_key(id));
    programs
        .iter()
        .enumerate()
        .filter(|(_, (id, _))| !ours.contains_key(id))
        .map(|(index, (id, name))| {
            let order = match place {
                Some(ours) if index < ours => " before sluice",
                Some(_) => " after sluice",
                None => "",
            };
            Finding::warning(
                TC,
                format!("{} {}: program {id} ({name}) runs{order}", device.name, direction.name()),
                "make sure that it passes on what it does not end (TCX_NEXT), or remove its link",
            )
        })
        .collect()
}

/// The finding for a filter that is not ours.
fn filter(filter: &Filter, ours: &BTreeMap<u32, Program>) -> Option<Finding> {
    if filter.program.is_some_and(|id| ours.contains_key(&id)) {
        return None;
    }
    let Filter { device, direction, priority, kind, name, .. } = filter;
    let name = name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    Some(Finding::warning(
        TC,
        format!("{} {}: {kind} filter{name} of priority {priority}", device.name, direction.name()),
        format!(
            "make sure that it passes on what it does not end, or remove it with `tc filter del dev {} {}`",
            device.name,
            direction.name()
        ),
    ))
}

/// Programs at the cgroup's hooks that are not ours.
pub(super) fn cgroup_findings(bpffs: &Path, root: &Path) -> Vec<Finding> {
    let queried = || -> anyhow::Result<Vec<Finding>> {
        let (ours, loaded) = (programs::pinned(bpffs)?, programs::loaded()?);
        let mut findings = Vec::new();
        for (hook, attach_type) in cgroup::HOOKS {
            for id in cgroup::programs(root, attach_type)?.into_iter().filter(|id| !ours.contains_key(id)) {
                let name = loaded.get(&id).map_or("unknown", |program| program.name.as_str());
                findings.push(Finding::warning(
                    CGROUP,
                    format!(
                        "{} {hook}: program {id} ({name}) of another tool translates or judges sockets",
                        root.display()
                    ),
                    "switch off that tool's socket load balancing, or start the agent with --socket-lb=off",
                ));
            }
        }
        Ok(findings)
    };
    match queried() {
        Ok(findings) if findings.is_empty() => {
            vec![Finding::ok(CGROUP, format!("no program of others at {}", root.display()))]
        }
        Ok(findings) => findings,
        Err(error) => vec![unreadable(CGROUP, &error)],
    }
}

fn unreadable(check: &'static str, error: &anyhow::Error) -> Finding {
    Finding::error(check, format!("cannot be read ({error:#})"), "run as root")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn ours() -> BTreeMap<u32, Program> {
        [(7, Program { name: "from_pod".into(), tag: String::new() })].into()
    }

    fn device() -> Device {
        Device { index: 2, name: "eth0".into(), xdp: BTreeSet::from([7, 9]) }
    }

    #[test]
    fn programs_of_others_are_named_with_their_place() {
        let programs = [(5, "early".to_owned()), (7, "from_pod".to_owned()), (9, "late".to_owned())];
        let found: Vec<_> =
            tcx(&device(), Direction::Ingress, &programs, &ours()).into_iter().map(|finding| finding.found).collect();
        assert_eq!(
            found,
            ["eth0 ingress: program 5 (early) runs before sluice", "eth0 ingress: program 9 (late) runs after sluice"]
        );
    }

    #[test]
    fn xdp_programs_of_others_are_named_and_ours_are_not() {
        let loaded = [(9, Program { name: "shield".into(), tag: String::new() })].into();
        let found: Vec<_> = xdp(&device(), &ours(), &loaded).into_iter().map(|finding| finding.found).collect();
        assert_eq!(found, ["eth0: program 9 (shield) sees packets first"]);
    }

    #[test]
    fn filters_of_others_are_named_and_ours_are_not() {
        let bpf = |program| Filter {
            device: device(),
            direction: Direction::Egress,
            priority: 1,
            kind: "bpf".into(),
            program: Some(program),
            name: Some("shaper".into()),
        };
        assert_eq!(filter(&bpf(7), &ours()), None);
        assert_eq!(filter(&bpf(8), &ours()).unwrap().found, "eth0 egress: bpf filter (shaper) of priority 1");
    }
}
