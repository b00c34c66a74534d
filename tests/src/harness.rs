//! One program, one packet: the datapath's programs run by `BPF_PROG_TEST_RUN` over maps that the test fills.

mod maps;
mod processor;
mod rules;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    programs::{
        Program, TestRun, TestRunOptions, Xdp,
        xdp::{XdpLink, XdpMode},
    },
};
use dataplane_agent::{
    datapath::object::EMBEDDED,
    maps::{
        kernel::KernelMaps,
        pinned::{self, Access},
    },
};
use dataplane_common::{DropReason, NodeConfig, map};
use nix::unistd::Uid;

pub use self::maps::{FlowEntry, Operations, Target};
use self::processor::Bound;
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
    /// From an uplink, before the kernel has made anything of the packet.
    XdpFromUplink,
    /// The same where the driver cannot: behind it, and behind GRO.
    XdpGeneric,
}

impl Hook {
    /// Those that see packets, not frames.
    pub const TC: [Self; 4] = [Self::FromPod, Self::ToPod, Self::FromUplink, Self::ToUplink];

    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::FromPod, Self::ToPod, Self::FromUplink, Self::ToUplink, Self::XdpFromUplink, Self::XdpGeneric];

    /// The program's name in the object.
    pub const fn program(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromUplink => "from_uplink",
            Self::ToUplink => "to_uplink",
            Self::XdpFromUplink => "xdp_from_uplink",
            Self::XdpGeneric => "xdp_generic",
        }
    }
}

/// What a program decided, in the kernel's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// `TC_ACT_UNSPEC`, `TC_ACT_OK` or `XDP_PASS`: on its way.
    Pass,
    /// `TC_ACT_SHOT` or `XDP_DROP`
    Drop,
    /// `TC_ACT_REDIRECT` or `XDP_REDIRECT`
    Redirect,
    /// `XDP_TX`: back out of the interface.
    Transmit,
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
        Self::load_some(config, &Hook::ALL)
    }

    /// The same with the programs at `hooks` alone: the verifier takes its time for each.
    pub fn load_some(config: &NodeConfig, hooks: &[Hook]) -> Result<Self> {
        ensure!(Uid::effective().is_root(), "loading BPF programs needs root: run `cargo xtask test`");
        let mut loader = EbpfLoader::new();
        loader.override_global(NodeConfig::SYMBOL, config, true);
        for spec in map::ALL {
            // The largest ones, whose allocation would dominate the tests. Places that a hash leads to are not where they should be then.
            if spec.entries > SMALL && *spec != map::FLOW_PAIRS {
                loader.map_max_entries(spec.name, SMALL);
            }
        }
        let mut ebpf = loader.load(EMBEDDED).context("the object does not load")?;
        for hook in hooks {
            let loaded = match ebpf.program_mut(hook.program()).context("a program is missing")? {
                Program::SchedClassifier(program) => program.load(),
                Program::Xdp(program) => program.load(),
                other => bail!("{} is of the type {:?}", hook.program(), other.prog_type()),
            };
            loaded.with_context(|| format!("{} does not load", hook.program()))?;
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
        let _bound = Bound::here()?;
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
        self.test_run(hook, frame, 1, Some((index, index)))
    }

    /// The same as if a socket of this node had sent the packet, which now leaves by the interface `index`.
    pub fn run_from_socket(&self, index: u32, hook: Hook, frame: &[u8]) -> Result<Outcome> {
        self.test_run(hook, frame, 1, Some((0, index)))
    }

    /// The same as [`Self::run_on`] for a packet that a device has joined from several with `segment` bytes of payload each.
    pub fn run_joined(&self, index: u32, hook: Hook, frame: &[u8], segment: u16) -> Result<Outcome> {
        let mut context = context_of(index, index);
        context[176..180].copy_from_slice(&u32::from(segment).to_ne_bytes());
        self.test_run_in(hook, frame, 1, Some(&context))
    }

    /// Runs the program at `hook` many times on what it makes of the frame: the packet is not reset in between.
    pub fn repeat(&self, hook: Hook, frame: &[u8], repeat: u32) -> Result<Outcome> {
        self.test_run(hook, frame, repeat, None)
    }

    /// Attaches the XDP program to the interface `index` of the calling thread's network namespace until the link is dropped:
    /// the kernel runs it as if on an interface only where XDP is switched on.
    pub fn attach_xdp(&mut self, index: u32) -> Result<XdpLink> {
        let program = self.ebpf.program_mut(Hook::XdpFromUplink.program()).context("a program is missing")?;
        let program: &mut Xdp = program.try_into()?;
        let id = program.attach_to_if_index(index, XdpMode::Driver)?;
        Ok(program.take_link(id)?)
    }

    /// Runs the program at `hook` on a packet.
    pub fn send(&self, hook: Hook, packet: &Packet) -> Result<Outcome> {
        self.run(hook, &packet.frame()?)
    }

    fn test_run(&self, hook: Hook, frame: &[u8], repeat: u32, interfaces: Option<(u32, u32)>) -> Result<Outcome> {
        let is_xdp = matches!(hook, Hook::XdpFromUplink | Hook::XdpGeneric);
        let context = interfaces.map(|(ingress, interface)| {
            if is_xdp { xdp_context_of(interface, frame.len()) } else { context_of(ingress, interface) }
        });
        self.test_run_in(hook, frame, repeat, context.as_deref())
    }

    fn test_run_in(&self, hook: Hook, frame: &[u8], repeat: u32, context: Option<&[u8]>) -> Result<Outcome> {
        let program = self.ebpf.program(hook.program()).context("a program is missing")?;
        let is_xdp = matches!(program, Program::Xdp(_));
        // Room for the headers of an ICMP error around it.
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: context,
            repeat,
            ..Default::default()
        };
        let result = match program {
            Program::SchedClassifier(program) => program.test_run(options),
            Program::Xdp(program) => program.test_run(options),
            other => bail!("{} is of the type {:?}", hook.program(), other.prog_type()),
        };
        let result = result.with_context(|| format!("{}, {} bytes", hook.program(), frame.len()))?;
        out.truncate(result.data_size_out as usize);
        let action = match (is_xdp, result.return_value.cast_signed()) {
            (false, -1 | 0) | (true, 2) => Action::Pass,
            (false, 2) | (true, 1) => Action::Drop,
            (false, 7) | (true, 4) => Action::Redirect,
            (true, 3) => Action::Transmit,
            (_, other) => Action::Other(other),
        };
        Ok(Outcome { action, frame: out, took: result.duration })
    }

    /// Drops by reason, summed over the processors; reasons without drops are left out.
    pub fn drops(&self) -> Result<BTreeMap<DropReason, u64>> {
        maps::drops(&self.ebpf)
    }

    /// Drops for one reason.
    pub fn dropped(&self, reason: DropReason) -> Result<u64> {
        maps::dropped(&self.ebpf, reason)
    }

    /// Operations of the programs on maps so far; counted with [`NodeConfig::COUNT_MAP_OPS`] only.
    pub fn map_operations(&self) -> Result<Operations> {
        maps::operations(&self.ebpf)
    }
}

/// Entries of maps that are larger by default.
const SMALL: u32 = 16 << 10;

/// The beginning of `struct __sk_buff` up to `gso_size`, the field at 176; the kernel takes the rest as zero.
const CONTEXT: usize = 180;

/// A `struct __sk_buff` with `ingress_ifindex` and `ifindex` set, the fields at 36 and 40.
fn context_of(ingress: u32, interface: u32) -> Vec<u8> {
    let mut context = vec![0; CONTEXT];
    context[36..40].copy_from_slice(&ingress.to_ne_bytes());
    context[40..44].copy_from_slice(&interface.to_ne_bytes());
    context
}

/// A `struct xdp_md` with `data_end` and `ingress_ifindex` set.
fn xdp_context_of(interface: u32, len: usize) -> Vec<u8> {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    [0, len, 0, interface, 0, 0].iter().flat_map(|field: &u32| field.to_ne_bytes()).collect()
}
