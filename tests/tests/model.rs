//! Random histories of objects against the reference: whether and where random packets go, through the agent's own planning
//! and the real programs.
//!
//! `SLUICE_MODEL_CASES` sets the number of cases, `SLUICE_MODEL_SEED` repeats a run. A history that fails is reported as the few
//! steps of it that suffice.

#[path = "model/errors.rs"]
mod errors;
#[path = "model/failure.rs"]
mod failure;
#[path = "model/reduce.rs"]
mod reduce;
#[path = "model/run.rs"]
mod run;
#[path = "model/step.rs"]
mod step;
#[path = "model/story.rs"]
mod story;
#[path = "model/tally.rs"]
mod tally;
#[path = "model/way.rs"]
mod way;

use std::{env, path::Path};

use anyhow::Result;
use dataplane_agent::maps::kernel::KernelMaps;
use dataplane_common::NodeConfig;
use dataplane_tests::{
    bpffs::Bpffs,
    harness::{Harness, Hook},
    leftovers,
    netns::Netns,
    reference::source::Masquerade,
    topology::{self, IpVersion},
};
use fastrand::Rng;

use self::{
    failure::Failure,
    run::{PORTS, Place, Run},
    story::Story,
    tally::Tally,
};

/// Cases in a usual run; one is a few changes and a few packets.
const CASES: u64 = 10_000;
/// Cases after which a world ends, and the agent starts anew on the maps of the last one.
const HISTORY: u64 = 100;

/// What programs are loaded with, and the operator's decisions that go with it.
const VARIANTS: [(u32, &[Masquerade]); 3] = [
    (0, &[Masquerade::Never]),
    (NodeConfig::MASQUERADE_ALL, &[Masquerade::All]),
    (
        NodeConfig::MASQUERADE_OUTSIDE,
        &[Masquerade::UnlessFromCluster, Masquerade::UnlessFromNode, Masquerade::UnlessFromInterface],
    ),
];

#[test]
fn p10_p20_p21_p22_p25_p27_p28_p30_p31_p32_p33_p34_p35_p36_p42_p44_packets_go_where_the_reference_says() -> Result<()> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let cases = number("SLUICE_MODEL_CASES").unwrap_or(CASES);
    let seed = number("SLUICE_MODEL_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}, {cases} cases");
    let prefix = leftovers::unique_prefix()?;
    let netns = node(&prefix)?;
    let [uplink, pods] = ["up0", "pod0"].map(|name| netns.run(|| nix::net::if_::if_nametoindex(name)));
    let (uplink, pods) = (uplink??, pods??);
    let directory = Path::new(leftovers::DIRECTORY).join(&prefix);
    let mut variants = VARIANTS
        .iter()
        .enumerate()
        .map(|(index, (flags, _))| Variant::load(*flags, &directory.join(format!("model{index}/bpf"))))
        .collect::<Result<Vec<_>>>()?;
    let result = netns.run(|| {
        let mut tally = Tally::default();
        for history in 0..cases.div_ceil(HISTORY) {
            let seed = seed.wrapping_add(history);
            let mut rng = Rng::with_seed(seed);
            let index = rng.usize(0..VARIANTS.len());
            let masquerade = rng.choice(VARIANTS[index].1).copied().unwrap_or_default();
            let Variant { harness, maps, port, .. } = &mut variants[index];
            let mut place = Place { harness, maps, uplink, pods, masquerade, port };
            let mut story = Story::new(Run::start(place.again(), &mut tally)?, rng);
            if let Err(error) = story.tell(HISTORY.min(cases - history * HISTORY)) {
                let Story { steps, cases, .. } = story;
                return Err(Failure { seed, cases, steps, error }.report(place));
            }
        }
        println!("{tally:?}");
        tally.has_seen_everything(cases)
    })?;
    drop(variants);
    leftovers::remove_directory(&directory);
    result
}

/// Programs of one configuration, their maps, and the last port of a client that they know.
struct Variant {
    harness: Harness,
    maps: KernelMaps,
    port: u16,
    _bpffs: Bpffs,
}

impl Variant {
    fn load(flags: u32, bpffs: &Path) -> Result<Self> {
        let bpffs = Bpffs::mount(bpffs)?;
        let harness = Harness::load_some(&NodeConfig { flags, ..NodeConfig::DEFAULT }, &Hook::TC)?;
        let maps = harness.agent_maps(&bpffs)?;
        Ok(Self { harness, maps, port: *PORTS.end(), _bpffs: bpffs })
    }
}

/// A node with an uplink, neighbours on it, and routes to every pod; one interface stands for all that lead to its own pods.
fn node(prefix: &str) -> Result<Netns> {
    let netns = Netns::create(&format!("{prefix}-model"))?;
    netns.sysctls(&["ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv6/conf/default/accept_dad=0"])?;
    let mut script = String::from("link add up0 type veth peer name far0\nlink set far0 up\nlink set up0 up\n");
    script.push_str("link add pod0 type veth peer name eth0\nlink set eth0 up\nlink set pod0 up\n");
    for version in IpVersion::BOTH {
        let length = if version == IpVersion::V4 { 24 } else { 64 };
        script.push_str(&format!("addr add {}/{length} dev up0\n", topology::node(0).ip(version)));
        // Nodes, an address of services beside theirs, and clients.
        for other in [1, 2, 20, 190, 191] {
            let ip = topology::node(other).ip(version);
            script.push_str(&format!("neigh add {ip} lladdr 02:00:00:00:00:{other:02x} dev up0\n"));
        }
    }
    for pods in [topology::POD_CIDRS.0, topology::POD_CIDRS.1] {
        let via = topology::node(1).ip(if pods.contains(':') { IpVersion::V6 } else { IpVersion::V4 });
        script.push_str(&format!("route add {pods} via {via}\nroute add default via {via}\n"));
    }
    netns.ip(&script)?;
    Ok(netns)
}
