//! Every program in every configuration through the kernel's verifier.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use aya::{
    EbpfLoader,
    programs::{Program, ProgramInfo},
};
use dataplane_agent::datapath::object::EMBEDDED;
use dataplane_common::{NodeConfig, map};

use super::record::Size;

/// Flags that are tried without any other and on top of all others: to combine them, too, would take the verifier as long
/// again for each.
const MORE: [(&str, u32); 2] =
    [("count map operations", NodeConfig::COUNT_MAP_OPS), ("direct return", NodeConfig::DIRECT_RETURN)];

/// Every other flag of the configuration; each combination of them is another program to the verifier.
const FLAGS: [(&str, u32); 5] = [
    ("sockets of pods", NodeConfig::SOCKETS_OF_PODS),
    ("host bypass", NodeConfig::HOST_BYPASS),
    ("IPv6 checksum flag", NodeConfig::IPV6_CHECKSUM_FLAG),
    ("masquerade all", NodeConfig::MASQUERADE_ALL),
    ("masquerade outside", NodeConfig::MASQUERADE_OUTSIDE),
];

/// Entries of maps that are larger by default: their allocation would take longer than the verifier.
const FEW: u32 = 64;

/// Loads everything; by program, then by configuration.
///
/// # Errors
/// When the verifier refuses a program: its log is part of the error.
pub fn measure() -> Result<BTreeMap<String, BTreeMap<String, Size>>> {
    let mut sizes: BTreeMap<String, BTreeMap<String, Size>> = BTreeMap::new();
    let all = (1_u32 << FLAGS.len()) - 1;
    let alone = MORE.iter().flat_map(|flag| [0, all].map(|bits| (bits, vec![flag])));
    let together = [(all, MORE.iter().collect())];
    for (bits, more) in (0..=all).map(|bits| (bits, Vec::new())).chain(alone).chain(together) {
        let chosen = || {
            let flags = FLAGS.iter().enumerate().filter(move |(index, _)| bits & 1 << index != 0).map(|(_, flag)| flag);
            flags.chain(more.iter().copied())
        };
        let names: Vec<&str> = chosen().map(|(name, _)| *name).collect();
        let name = if names.is_empty() { "default".to_owned() } else { names.join(" + ") };
        let flags = chosen().fold(0, |flags, (_, flag)| flags | flag);
        for (program, size) in load(flags).with_context(|| format!("with the configuration: {name}"))? {
            sizes.entry(program).or_default().insert(name.clone(), size);
        }
    }
    Ok(sizes)
}

fn load(flags: u32) -> Result<Vec<(String, Size)>> {
    let config = NodeConfig { flags, ..NodeConfig::DEFAULT };
    let mut loader = EbpfLoader::new();
    loader.override_global(NodeConfig::SYMBOL, &config, true);
    for spec in map::ALL.iter().filter(|spec| spec.entries > FEW) {
        loader.map_max_entries(spec.name, FEW);
    }
    let mut ebpf = loader.load(EMBEDDED).context("the object does not load")?;
    let programs = ebpf.programs_mut().map(|(name, program)| {
        let info = load_one(program).with_context(|| format!("the program {name} does not load"))?;
        let verified = info.verified_instruction_count().context("the kernel counts no verified instructions")?;
        Ok((name.to_owned(), Size { verified, jitted: info.size_jitted() }))
    });
    programs.collect()
}

fn load_one(program: &mut Program) -> Result<ProgramInfo> {
    Ok(match program {
        Program::SchedClassifier(program) => {
            program.load()?;
            program.info()?
        }
        Program::Xdp(program) => {
            program.load()?;
            program.info()?
        }
        Program::CgroupSockAddr(program) => {
            program.load()?;
            program.info()?
        }
        other => bail!("a program of the type {:?} is new: load it here", other.prog_type()),
    })
}
