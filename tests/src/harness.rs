//! One program, one packet: the datapath's programs run by `BPF_PROG_TEST_RUN` over maps that the test fills.

mod maps;
mod rules;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use dataplane_agent::{
    datapath::object::EMBEDDED,
    maps::{
        kernel::KernelMaps,
        pinned::{self, Access},
    },
};
use dataplane_common::{NodeConfig, map};
use nix::unistd::Uid;

pub use self::maps::{FlowEntry, Operations, Target};
use crate::{
    bpffs::Bpffs,
    packet::{Packet, Parsed},
};

/// Where in a node a packet meets a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// From a pod, before the stack.
    FromPod,
    /// To a pod, after the stack.
    ToPod,
    /// From an uplink, before the stack.
    FromUplink,
    /// To an uplink, after the stack.
    ToUplink,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::FromPod, Self::ToPod, Self::FromUplink, Self::ToUplink];

    /// The program's name in the object.
    pub const fn program(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromUplink => "from_uplink",
            Self::ToUplink => "to_uplink",
        }
    }
}

/// What a program decided, in the kernel's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// `TC_ACT_UNSPEC` or `TC_ACT_OK`: on its way.
    Pass,
    /// `TC_ACT_SHOT`
    Drop,
    /// `TC_ACT_REDIRECT`
    Redirect,
    /// Anything else.
    Other(i32),
}

/// A program's verdict and what has become of the packet.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The verdict.
    pub action: Action,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// Time per run.
    pub took: Duration,
}

impl Outcome {
    /// The packet, with every checksum checked.
    pub fn parsed(&self) -> Result<Parsed> {
        Parsed::from_frame(&self.frame)
    }

    /// The TCP segment or UDP datagram, with every checksum checked.
    pub fn packet(&self) -> Result<Packet> {
        self.parsed()?.transport()
    }
}

/// The loaded programs with maps of their own, pinned nowhere and attached to nothing.
#[derive(Debug)]
pub struct Harness {
    ebpf: Ebpf,
    node: maps::Allocation,
}

impl Harness {
    /// Loads the object that the agent embeds, with small maps.
    pub fn load(config: &NodeConfig) -> Result<Self> {
        ensure!(Uid::effective().is_root(), "loading BPF programs needs root: run `cargo xtask test`");
        let mut loader = EbpfLoader::new();
        loader.override_global(NodeConfig::SYMBOL, config, true);
        for spec in map::ALL {
            // The largest ones, whose allocation would dominate the tests.
            if spec.entries > SMALL {
                loader.map_max_entries(spec.name, SMALL);
            }
        }
        let mut ebpf = loader.load(EMBEDDED).context("the object does not load")?;
        for hook in Hook::ALL {
            let program = ebpf.program_mut(hook.program()).context("a program is missing")?;
            let program: &mut SchedClassifier = program.try_into()?;
            program.load().with_context(|| format!("{} does not load", hook.program()))?;
        }
        Ok(Self { ebpf, node: maps::Allocation::default() })
    }

    /// Lends the harness of this process, with empty maps.
    pub fn with<T>(work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        Self::with_flags(0, work)
    }

    /// The same for programs with `flags` (`NodeConfig::*`). There is one of each in a process: loading takes much longer than
    /// most tests.
    pub fn with_flags<T>(flags: u32, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        static SHARED: Mutex<BTreeMap<u32, Harness>> = Mutex::new(BTreeMap::new());
        // A test that has failed leaves nothing behind that `reset` does not remove.
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let harness = match shared.entry(flags) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Self::load(&NodeConfig { flags, ..NodeConfig::DEFAULT })?),
        };
        harness.reset()?;
        work(harness)
    }

    /// The maps as the agent writes them; they are pinned on `bpffs` for it.
    pub fn agent_maps(&self, bpffs: &Bpffs) -> Result<KernelMaps> {
        let directory = pinned::directory(bpffs.path());
        fs::create_dir_all(&directory)?;
        for (name, map) in self.ebpf.maps().filter(|(name, _)| map::ALL.iter().any(|spec| spec.name == *name)) {
            map.pin(directory.join(name)).with_context(|| format!("cannot pin {name}"))?;
        }
        Ok(KernelMaps::open(bpffs.path(), Access::ReadWrite)?)
    }

    /// Runs the program at `hook` once.
    pub fn run(&self, hook: Hook, frame: &[u8]) -> Result<Outcome> {
        self.repeat(hook, frame, 1)
    }

    /// Runs the program at `hook` of the interface `index` of the calling thread's network namespace, once, as if the packet
    /// had come in there.
    pub fn run_on(&self, index: u32, hook: Hook, frame: &[u8]) -> Result<Outcome> {
        self.test_run(hook, frame, 1, Some(index))
    }

    /// Runs the program at `hook` many times on what it makes of the frame: the packet is not reset in between.
    pub fn repeat(&self, hook: Hook, frame: &[u8], repeat: u32) -> Result<Outcome> {
        self.test_run(hook, frame, repeat, None)
    }

    /// Runs the program at `hook` on a packet.
    pub fn send(&self, hook: Hook, packet: &Packet) -> Result<Outcome> {
        self.run(hook, &packet.frame()?)
    }

    fn test_run(&self, hook: Hook, frame: &[u8], repeat: u32, interface: Option<u32>) -> Result<Outcome> {
        let program: &SchedClassifier =
            self.ebpf.program(hook.program()).context("a program is missing")?.try_into()?;
        // Room for the headers of an ICMP error around it.
        let mut out = vec![0; frame.len() + 256];
        let context = interface.map(context_of);
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: context.as_ref().map(<[u8; CONTEXT]>::as_slice),
            repeat,
            ..Default::default()
        };
        let result = program.test_run(options).with_context(|| format!("{}, {} bytes", hook.program(), frame.len()))?;
        out.truncate(result.data_size_out as usize);
        let action = match result.return_value.cast_signed() {
            -1 | 0 => Action::Pass,
            2 => Action::Drop,
            7 => Action::Redirect,
            other => Action::Other(other),
        };
        Ok(Outcome { action, frame: out, took: result.duration })
    }

    /// Drops by reason, summed over the processors; reasons without drops are left out.
    pub fn drops(&self) -> Result<BTreeMap<dataplane_common::DropReason, u64>> {
        maps::drops(&self.ebpf)
    }

    /// Operations of the programs on maps so far; counted with [`NodeConfig::COUNT_MAP_OPS`] only.
    pub fn map_operations(&self) -> Result<Operations> {
        maps::operations(&self.ebpf)
    }
}

/// Entries of maps that are larger by default.
const SMALL: u32 = 16 << 10;

/// The beginning of `struct __sk_buff` up to `ifindex`; the kernel takes the rest as zero.
const CONTEXT: usize = 44;

/// A `struct __sk_buff` with `ingress_ifindex` and `ifindex` set, the fields at 36 and 40.
fn context_of(interface: u32) -> [u8; CONTEXT] {
    let mut context = [0; CONTEXT];
    context[36..40].copy_from_slice(&interface.to_ne_bytes());
    context[40..44].copy_from_slice(&interface.to_ne_bytes());
    context
}
