//! XDP links in the life of an agent: which interfaces get one, how it changes and how it goes.

use std::fs;

use anyhow::{Context, Result, ensure};
use dataplane_agent::datapath::{Pins, xdp::Running};
use dataplane_tests::{
    agent::AgentOptions, binaries, cluster::Node, expect::eventually, scenario::Scenario, topology::Wiring,
};

/// The names of the pinned XDP links of a node.
fn pinned(node: &Node) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(Pins::new(node.bpffs.path()).links())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("xdp_from_uplink") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// How XDP runs on the uplink, as `ip` tells.
fn attached(node: &Node) -> Result<&'static str> {
    let text = node.host.netns().output("ip", &["link", "show", "dev", "eth0"])?;
    let modes = [("xdpgeneric", "generic"), ("xdp", "native")];
    Ok(modes.iter().find(|(word, _)| text.contains(word)).map_or("none", |(_, mode)| mode))
}

/// Waits until XDP runs so: the kernel detaches a while after the last pin is gone, and attaches in another mode only then.
fn becomes(node: &Node, expected: &str) -> Result<()> {
    eventually(|| {
        let found = attached(node)?;
        ensure!(found == expected, "XDP runs: {found}, not {expected}");
        Ok(())
    })
}

fn restart(scenario: &mut Scenario, mode: &str) -> Result<()> {
    let manifests = scenario.cluster.manifests.clone();
    let node = scenario.cluster.node_mut("a");
    node.agent.take().context("the agent runs")?.stop()?;
    node.start_agent(&AgentOptions::with(&["--xdp", mode]), &manifests)
}

#[test]
fn a_veth_gets_no_xdp_unless_asked_and_modes_change_in_either_direction() -> Result<()> {
    let mut scenario = Scenario::new(Wiring::Routed, &[])?;
    ensure!(pinned(scenario.cluster.node("a"))?.is_empty(), "auto attaches to a veth");
    assert_eq!(attached(scenario.cluster.node("a"))?, "none");
    for (mode, running) in [
        ("native", Some(Running::Native)),
        ("generic", Some(Running::Generic)),
        ("native", Some(Running::Native)),
        ("off", None),
        ("generic", Some(Running::Generic)),
        ("auto", None),
    ] {
        restart(&mut scenario, mode)?;
        let node = scenario.cluster.node("a");
        becomes(node, running.map_or("none", Running::name)).with_context(|| format!("--xdp={mode}"))?;
        match running {
            Some(running) => assert!(node.xdp_pin(running)?.exists(), "{:?}", pinned(node)?),
            None => assert_eq!(pinned(node)?, [""; 0]),
        }
        for (running, expected) in [(Running::Native, mode == "native"), (Running::Generic, mode == "generic")] {
            let loaded = Pins::new(node.bpffs.path()).program(running.program()).exists();
            assert_eq!(loaded, expected, "--xdp={mode}: {}", running.program());
        }
    }
    Ok(())
}

#[test]
fn commands_show_xdp_and_cleanup_removes_it() -> Result<()> {
    let mut scenario = Scenario::new(Wiring::Routed, &["--xdp=native"])?;
    let node = scenario.cluster.node_mut("a");
    let sluice = binaries::sluice()?;
    let sluice = sluice.to_str().context("a path")?;
    let bpffs = node.bpffs.path().to_str().context("a path")?.to_owned();
    let show = |node: &Node, command: &str| node.host.netns().output(sluice, &[command, "--bpffs", &bpffs]);
    let interfaces = show(node, "interfaces")?;
    let line = interfaces.lines().find(|line| line.contains("xdp_from_uplink")).context(interfaces.clone())?;
    ensure!(line.contains("eth0") && line.contains("xdp native") && line.contains("attached"), "{line}");
    let status = show(node, "status")?;
    ensure!(status.contains("xdp_from_uplink 1"), "{status}");
    node.agent.take().context("the agent runs")?.stop()?;
    assert_eq!(attached(node)?, "native", "traffic goes on without an agent");
    show(node, "cleanup")?;
    becomes(node, "none")
}
