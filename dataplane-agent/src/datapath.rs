//! Loads, pins, attaches and replaces the BPF programs.
//!
//! Everything is pinned, so that traffic goes on while no agent runs; an agent that starts adopts what is there and swaps
//! the programs in place.

pub mod attach;
pub mod cgroup;
pub mod cleanup;
mod clsact;
pub mod hook;
pub mod link;
pub mod object;
pub mod others;
pub mod pin;
pub mod requirements;
pub mod sockets;
pub mod sockets_gone;
mod tcx;
pub mod xdp;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
};

use aya::Ebpf;
use dataplane_common::NodeConfig;

use self::{
    attach::{Applied, TcMode},
    cgroup::{CgroupError, SocketLb},
    cleanup::CleanupError,
    hook::{CGROUP_PROGRAMS, Hook},
    object::ObjectError,
    pin::{LockError, PinsLock},
    requirements::Missing,
    xdp::XdpMode,
};
pub use self::{
    cleanup::{Report, cleanup},
    pin::Pins,
};
use crate::model::device::Interface;

/// What the operator chose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where things are pinned.
    pub pins: Pins,
    /// The cgroup whose processes' sockets are translated.
    pub cgroup_root: PathBuf,
    /// How programs are attached to interfaces.
    pub tc: TcMode,
    /// Whether and how uplinks run the XDP program.
    pub xdp: XdpMode,
    /// Whose sockets are translated at connect time.
    pub socket_lb: SocketLb,
    /// Sizes of maps that are not the default, by name.
    pub entries: BTreeMap<&'static str, u32>,
    /// Constants of the programs; what this module finds out itself is filled in.
    pub config: NodeConfig,
}

/// Why there is no datapath.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The machine lacks something.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Missing(Vec<Missing>),
    /// Another agent is there.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The programs or maps cannot be loaded, or do not fit what is pinned.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The cgroup programs cannot be attached.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Some other step failed.
    #[error("{step} failed")]
    Io {
        /// Which.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A program cannot be attached to an interface on a first start.
    #[error(transparent)]
    Attach(#[from] attach::AttachError),
    /// A failed first start could not be undone.
    #[error("a failed start left something behind: run `sluice cleanup`")]
    Undo(#[from] CleanupError),
}

/// The maps, and the programs once they are loaded. Dropping it leaves them attached and pinned.
#[derive(Debug)]
pub struct Datapath {
    ebpf: Ebpf,
    options: Options,
    /// Nothing was pinned before this agent, so a failure may take everything away again.
    fresh: bool,
    /// Whether what the other way of attaching left behind is gone.
    swept: bool,
    /// Uplinks whose driver does not take the XDP program, with --xdp=auto.
    without_xdp: BTreeSet<u32>,
    _lock: PinsLock,
}

impl Datapath {
    /// Creates the maps of the embedded object, or adopts those that are pinned; [`Self::load`] comes next. Nothing is left
    /// behind by a first start that fails.
    pub fn open(options: Options) -> Result<Self, DatapathError> {
        Self::open_object(object::EMBEDDED, options)
    }

    /// The same with another object.
    pub fn open_object(object: &[u8], mut options: Options) -> Result<Self, DatapathError> {
        let cgroup = (options.socket_lb != SocketLb::Off).then_some(options.cgroup_root.as_path());
        let missing = requirements::missing(options.pins.bpffs(), cgroup);
        if !missing.is_empty() {
            return Err(DatapathError::Missing(missing));
        }
        let io = |step| move |source| DatapathError::Io { step, source };
        requirements::lift_memory_limit().map_err(io("lifting the limit on locked memory"))?;
        options.tc = options.tc.resolve();
        options.config.host_netns_cookie = cgroup::netns_cookie().map_err(io("finding the network namespace"))?;
        if options.socket_lb == SocketLb::All {
            options.config.flags |= NodeConfig::SOCKETS_OF_PODS;
        }
        if requirements::has_ipv6_checksum_flag() {
            options.config.flags |= NodeConfig::IPV6_CHECKSUM_FLAG;
        }

        let lock = options.pins.lock()?;
        if let Err(error) = object::compare(object, &options.pins, &options.entries) {
            // The lock has made the directory; it stays when anything is in it.
            std::fs::remove_dir(options.pins.root()).ok();
            return Err(error.into());
        }
        let fresh = !options.pins.layout().exists();
        match object::load(object, &options.pins, &options.entries, &options.config) {
            Ok(ebpf) => Ok(Self { ebpf, options, fresh, swept: false, without_xdp: BTreeSet::new(), _lock: lock }),
            Err(error) => {
                if fresh {
                    cleanup::remove_pins(&options.pins)?;
                }
                Err(error.into())
            }
        }
    }

    /// Loads and pins the programs, and attaches those of cgroups. The maps may be written meanwhile: most of a start is the
    /// kernel's look at the programs.
    pub fn load(&mut self) -> Result<(), DatapathError> {
        let Options { pins, cgroup_root, socket_lb, xdp, .. } = &self.options;
        let ebpf = &mut self.ebpf;
        let mut names = Hook::TC.map(Hook::name).to_vec();
        if *socket_lb == SocketLb::Off {
            let io = |source| DatapathError::Io { step: "detaching the programs of cgroups", source };
            cgroup::remove_all(pins).map_err(io)?;
        } else {
            names.extend(CGROUP_PROGRAMS);
        }
        object::load_programs(ebpf, &names)?;
        let io = |source| DatapathError::Io { step: "pinning the programs", source };
        for name in pin::entries(&pins.programs()).map_err(io)? {
            // The XDP program is loaded and pinned when an uplink wants it.
            let kept = (*xdp != XdpMode::Off).then(|| xdp.running().program());
            if !names.iter().chain(&kept).any(|wanted| name.ends_with(wanted)) {
                attach::unpin(&name).map_err(io)?;
            }
        }
        for name in names {
            let program = ebpf.program_mut(name).ok_or(ObjectError::NoProgram(name))?;
            object::pin_program(program, &pins.program(name)).map_err(io)?;
        }
        if *socket_lb != SocketLb::Off {
            cgroup::attach_all(ebpf, pins, cgroup_root)?;
        }
        Ok(())
    }

    /// How programs are attached to interfaces: never `Auto`.
    pub fn tc(&self) -> TcMode {
        self.options.tc
    }

    /// Whether nothing was pinned before this agent.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Has exactly `interfaces` run our programs, which are loaded, in this network namespace: attaches, replaces and detaches.
    pub fn attach(&mut self, interfaces: &[Interface]) -> Result<Applied, DatapathError> {
        let wanted = attach::wanted(interfaces);
        let Options { pins, tc, xdp, .. } = &self.options;
        let mut applied = match tc {
            TcMode::Tcx | TcMode::Auto => tcx::apply(&mut self.ebpf, pins, &wanted)?,
            TcMode::Clsact => clsact::apply(&mut self.ebpf, &wanted)?,
        };
        if !self.swept && applied.failed.is_empty() {
            // Only now, so that no packet meets neither.
            let io = |source| DatapathError::Io { step: "removing what another --tc had attached", source };
            match tc {
                TcMode::Tcx | TcMode::Auto => clsact::remove_all().map_err(io)?,
                TcMode::Clsact => tcx::remove_all(pins).map_err(io)?,
            };
            self.swept = true;
        }
        // Last, because the XDP program leaves to the others what it does not send on itself.
        applied.append(xdp::apply(&mut self.ebpf, pins, *xdp, interfaces, &mut self.without_xdp)?);
        Ok(applied)
    }

    /// Takes everything away again: for a first start that fails after all.
    pub fn undo(&mut self) -> Result<Report, CleanupError> {
        cleanup::remove_pins(&self.options.pins)
    }
}
