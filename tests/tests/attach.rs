//! Programs on real interfaces and cgroups: attached, adopted, replaced in place, and removed without a trace.

#[path = "attach/node.rs"]
mod node;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use dataplane_agent::{
    datapath::{
        Datapath, Options, Pins,
        attach::TcMode,
        cgroup::SocketLb,
        hook::{CGROUP_PROGRAMS, Hook},
        object, others,
    },
    model::device::Role,
    watch::devices::{Devices, classify::Rules},
};
use dataplane_tests::cgroup::Cgroup;

use self::node::Node;

#[test]
fn p52_a_restart_replaces_tcx_programs_in_place() -> Result<()> {
    let node = Node::create()?;
    drop(node.start(TcMode::Tcx)?);
    let before = node.links()?;
    assert_eq!(before.len(), 4 + CGROUP_PROGRAMS.len());

    let mut datapath = node.open(TcMode::Auto)?;
    assert_eq!(datapath.tc(), TcMode::Tcx);
    assert!(!datapath.is_fresh());
    let applied = node.attach(&mut datapath, &node.interfaces()?)?;
    assert_eq!((applied.replaced.len(), applied.attached.len(), applied.detached.len()), (4, 0, 0));
    let after = node.links()?;
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, old) in &before {
        let new = after[name];
        assert_eq!(new.id, old.id, "{name}: the link is the same");
        assert_ne!(new.program, old.program, "{name}: the program is new");
    }
    // Nothing to do is nothing done.
    let applied = node.attach(&mut datapath, &node.interfaces()?)?;
    assert_eq!((applied.replaced.len(), applied.attached.len(), applied.detached.len()), (0, 0, 0));
    Ok(())
}

#[test]
fn p52_a_restart_replaces_clsact_filters_in_place() -> Result<()> {
    let node = Node::create()?;
    drop(node.start(TcMode::Clsact)?);
    let before = [node.filters("pod0")?, node.filters("eth0.1")?].concat();
    assert_eq!(before.len(), 4, "{before:?}");
    drop(node.start(TcMode::Clsact)?);
    let after = [node.filters("pod0")?, node.filters("eth0.1")?].concat();
    assert_eq!(after.len(), 4, "{after:?}");
    for (old, new) in before.iter().zip(&after) {
        let place = |line: &str| line.split(" id ").next().unwrap_or_default().to_owned();
        assert_eq!(place(old), place(new));
        assert_ne!(old, new, "the program is new");
    }
    Ok(())
}

#[test]
fn another_tc_mode_takes_over_and_leaves_nothing_of_the_first() -> Result<()> {
    let node = Node::create()?;
    drop(node.start(TcMode::Tcx)?);
    drop(node.start(TcMode::Clsact)?);
    assert_eq!(node.links()?.len(), CGROUP_PROGRAMS.len());
    assert_eq!(node.filters("pod0")?.len(), 2);
    drop(node.start(TcMode::Tcx)?);
    assert_eq!(node.links()?.len(), CGROUP_PROGRAMS.len() + 4);
    assert_eq!(node.filters("pod0")?, Vec::<String>::new());
    Ok(())
}

#[test]
fn an_interface_that_changes_its_role_or_leaves_has_no_program_too_many() -> Result<()> {
    for tc in [TcMode::Tcx, TcMode::Clsact] {
        let node = Node::create()?;
        let mut datapath = node.start(tc)?;
        let as_uplink = node.interface("pod0", Role::Uplink)?;
        node.attach(&mut datapath, std::slice::from_ref(&as_uplink))?;
        match tc {
            TcMode::Clsact => {
                let filters = node.filters("pod0")?;
                assert!(filters.iter().all(|line| line.contains("uplink")) && filters.len() == 2, "{filters:?}");
                assert_eq!(node.filters("eth0.1")?, Vec::<String>::new());
            }
            _ => {
                let names: Vec<_> = node.links()?.into_keys().filter(|name| name.contains('-')).collect();
                let index = as_uplink.index;
                assert_eq!(names, [format!("from_uplink-{index}"), format!("to_uplink-{index}")]);
            }
        }
    }
    Ok(())
}

#[test]
fn a_veth_that_vanished_loses_its_pins_even_when_its_index_is_used_again() -> Result<()> {
    let node = Node::create()?;
    let mut datapath = node.start(TcMode::Tcx)?;
    let interfaces = node.interfaces()?;
    let before = node.links()?;
    let index = interfaces[0].index;
    node.netns.ip("link del pod0")?;
    node.netns.ip(&format!("link add pod0 index {index} type veth peer name again netns {}-pod", node.prefix))?;
    let applied = node.attach(&mut datapath, &interfaces)?;
    assert_eq!((applied.attached.len(), applied.detached.len()), (2, 2));
    let after = node.links()?;
    for hook in [Hook::FromPod, Hook::ToPod] {
        let name = format!("{hook}-{index}");
        assert_ne!(before[&name].id, after[&name].id);
        assert_eq!(after[&name].ifindex, index);
    }

    node.netns.ip("link del pod0")?;
    // The list is older than the interface's end: no failure, and the pins go.
    node.attach(&mut datapath, &interfaces)?;
    let pins: Vec<_> = node.links()?.into_keys().filter(|name| name.ends_with(&format!("pod-{index}"))).collect();
    assert!(pins.is_empty(), "{pins:?}");
    Ok(())
}

#[test]
fn a_renamed_interface_keeps_its_links() -> Result<()> {
    let node = Node::create()?;
    drop(node.start(TcMode::Tcx)?);
    let before = node.links()?;
    node.netns.ip("link set pod0 down\nlink set pod0 name other\nlink set other up")?;
    let mut datapath = node.open(TcMode::Tcx)?;
    node.attach(&mut datapath, &[node.interface("other", Role::Pod)?, node.interface("eth0.1", Role::Uplink)?])?;
    let after = node.links()?;
    assert!(before.iter().all(|(name, link)| after[name].id == link.id));
    Ok(())
}

#[test]
fn socket_programs_follow_the_option_and_the_cgroup() -> Result<()> {
    let node = Node::create()?;
    drop(node.start(TcMode::Tcx)?);
    let before = node.links()?["sock_connect4"];
    assert_eq!(before.cgroup, std::os::unix::fs::MetadataExt::ino(&fs::metadata(node.cgroup.path())?));

    let off = Options { socket_lb: SocketLb::Off, ..node.options(TcMode::Tcx) };
    drop(node.open_with(off)?);
    assert!(node.links()?.keys().all(|name| !name.starts_with("sock_")));
    let programs: Vec<_> = fs::read_dir(node.pins().programs())?.collect();
    assert_eq!(programs.len(), 4);

    let other = Cgroup::create(&format!("{}-other", node.prefix))?;
    drop(node.open_with(Options { socket_lb: SocketLb::All, ..node.options(TcMode::Tcx) })?);
    drop(node.open_with(Options { cgroup_root: other.path().to_owned(), ..node.options(TcMode::Tcx) })?);
    let moved = node.links()?["sock_connect4"];
    assert_eq!(moved.cgroup, std::os::unix::fs::MetadataExt::ino(&fs::metadata(other.path())?));
    // Its pins hold the links to the cgroup, which cannot end before them.
    node.cleanup()?;
    Ok(())
}

#[test]
fn p57_cleanup_leaves_nothing_of_ours_and_everything_of_others() -> Result<()> {
    for tc in [TcMode::Tcx, TcMode::Clsact] {
        let node = Node::create()?;
        let tc_command = |words: &str| node.netns.output("tc", &words.split(' ').collect::<Vec<_>>());
        tc_command("qdisc add dev pod0 clsact")?;
        tc_command("filter add dev pod0 ingress protocol ip prio 5 u32 match ip src 203.0.113.9/32 flowid 1:1")?;
        tc_command("filter add dev pod0 egress protocol ip prio 22 u32 match ip dst 203.0.113.9/32 flowid 1:1")?;
        let foreign = node.filters("pod0")?;
        assert!(!foreign.is_empty());

        let datapath = node.start(tc)?;
        let refused = node.cleanup().expect_err("an agent is running").to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(datapath);

        let report = node.cleanup()?;
        assert_eq!(report.links.len(), CGROUP_PROGRAMS.len() + if tc == TcMode::Tcx { 4 } else { 0 });
        assert_eq!(report.filters.len(), if tc == TcMode::Tcx { 0 } else { 4 });
        assert_eq!(report.programs.len(), CGROUP_PROGRAMS.len() + 4);
        assert_eq!(node.left()?, BTreeSet::new());
        assert_eq!(node.filters("pod0")?, foreign);
        let qdiscs = node.netns.output("tc", &["qdisc", "show"])?;
        assert_eq!(qdiscs.matches("clsact").count(), 1, "that of the foreign filter: {qdiscs}");
        assert!(node.cleanup()?.is_empty(), "the second time there is nothing to do");
    }
    Ok(())
}

#[test]
fn pins_of_another_layout_are_refused_by_name_and_never_touched() -> Result<()> {
    let node = Node::create()?;
    let check = |expected: &[&str]| {
        let error = node.open(TcMode::Tcx).err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    fs::create_dir_all(node.pins().root().join("v7/maps"))?;
    check(&["sluice/v7", "another version", "sluice cleanup"]);
    node.cleanup()?;

    // A map of the right name and another shape.
    drop(node.start(TcMode::Tcx)?);
    let slots = node.pins().map("slots");
    fs::remove_file(&slots)?;
    MapData::from_pin(node.pins().map("backends4"))?.pin(&slots)?;
    let before = node.links()?;
    check(&["maps/slots", "the pinned map has", "this version needs", "sluice cleanup"]);
    fs::remove_file(&slots)?;
    fs::create_dir(&slots)?;
    check(&["maps/slots", "sluice cleanup"]);
    fs::remove_dir(&slots)?;
    assert_eq!(node.links()?, before, "what runs goes on running");

    let mut options = node.options(TcMode::Tcx);
    options.entries.insert("conntrack4", 2048);
    let error = node.open_with(options).expect_err("another size").to_string();
    for part in ["maps/conntrack4", "1024", "2048", "sluice cleanup"] {
        assert!(error.contains(part), "{error}");
    }
    node.start(TcMode::Tcx)?;
    Ok(())
}

#[test]
fn a_first_start_that_fails_leaves_nothing() -> Result<()> {
    let node = Node::create()?;
    let mut options = node.options(TcMode::Tcx);
    // The kernel refuses a map of this size after it has made others.
    options.entries.insert("backends6", u32::MAX);
    node.open_with(options).expect_err("no machine has this much memory");
    assert_eq!(node.left()?, BTreeSet::new());

    let garbage = node.netns.run(|| Datapath::open_object(b"not an object", node.options(TcMode::Tcx)))?;
    garbage.expect_err("no object");
    assert_eq!(node.left()?, BTreeSet::new());

    let missing = Options { pins: Pins::new("/tmp"), cgroup_root: "/tmp".into(), ..node.options(TcMode::Tcx) };
    let error = node.open_with(missing).expect_err("neither is there").to_string();
    assert!(error.contains("mount -t bpf bpf /tmp") && error.contains("--cgroup-root"), "{error}");
    assert!(!Path::new("/tmp/sluice").exists());
    Ok(())
}

#[test]
fn a_second_agent_is_refused_with_the_pid_of_the_first() -> Result<()> {
    let node = Node::create()?;
    let first = node.open(TcMode::Tcx)?;
    let error = node.open(TcMode::Tcx).expect_err("the first has it").to_string();
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    drop(first);
    node.open(TcMode::Tcx)?;
    Ok(())
}

#[test]
fn a_new_pod_interface_is_seen_and_attached_within_100_ms() -> Result<()> {
    let node = Node::create()?;
    node.netns.ip("addr add 192.0.2.1/24 dev eth0.1\naddr add 10.7.0.1/32 dev pod0\nlink set outside up")?;
    let mut datapath = node.open(TcMode::Tcx)?;
    // Twice the same: once slow is the machine's fault, always slow is ours.
    let took = node.netns.run(|| -> Result<Vec<Duration>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (_addresses, known) = tokio::sync::watch::channel(vec!["192.0.2.1".parse()?]);
            let mut devices = Devices::open(Rules::default(), known, others::run_at)?;
            let view = devices.next().await?;
            let roles: BTreeMap<_, _> = view.interfaces.iter().map(|found| (&*found.name, found.role)).collect();
            assert_eq!(roles, BTreeMap::from([("eth0.1", Role::Uplink), ("pod0", Role::Pod)]));
            let uplink = view.interfaces.iter().find(|found| found.role == Role::Uplink).context("an uplink")?;
            assert_eq!(view.addresses.snat[&uplink.index], ["192.0.2.1".parse::<std::net::IpAddr>()?]);
            assert!(view.addresses.node_port.contains(&"10.7.0.1".parse()?));
            datapath.attach(&view.interfaces)?;

            let mut took = Vec::new();
            for name in ["pod1", "pod2", "pod3"] {
                node.add_pod_interface(name)?;
                let begun = Instant::now();
                loop {
                    let view = tokio::time::timeout(Duration::from_secs(5), devices.next()).await??;
                    datapath.attach(&view.interfaces)?;
                    if view.interfaces.iter().any(|found| found.name == name) {
                        break;
                    }
                }
                took.push(begun.elapsed());
            }
            Ok(took)
        })
    })??;
    assert!(took.iter().min().is_some_and(|took| *took < Duration::from_millis(100)), "{took:?}");
    assert_eq!(node.links()?.keys().filter(|name| name.contains("_pod-")).count(), 8);
    Ok(())
}

#[test]
fn every_map_is_pinned_under_its_name() -> Result<()> {
    let node = Node::create()?;
    drop(node.open(TcMode::Tcx)?);
    for spec in dataplane_common::map::ALL {
        MapData::from_pin(node.pins().map(spec.name)).with_context(|| spec.name.to_owned())?;
    }
    object::compare(object::EMBEDDED, &node.pins(), &node.options(TcMode::Tcx).entries)?;
    Ok(())
}
