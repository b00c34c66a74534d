//! XDP links on uplinks: attached, pinned, adopted and replaced in place.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
    path::Path,
};

use aya::{
    Ebpf,
    programs::{ProgramError, Xdp, links::FdLink, xdp::XdpMode as Flavour},
};
use tracing::{info, warn};

use super::{
    attach::{Applied, AttachError, Attachment, is_gone, is_gone_code, unpin},
    hook::Hook,
    link::Link,
    object::{ObjectError, pin_program},
    pin::{Pins, entries},
};
use crate::model::device::{Interface, Role};

/// Whether and how uplinks run the XDP program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum XdpMode {
    /// In the driver, on uplinks that are hardware and whose driver can; nowhere else.
    ///
    /// Virtual interfaces are left out: there are few whose drivers gain by it, and a veth that carries streams loses three
    /// quarters of its throughput.
    #[default]
    Auto,
    /// In the driver, on every uplink.
    Native,
    /// Behind the driver, on every uplink: for trying it out, as it saves little there.
    Generic,
    /// Nowhere.
    Off,
}

impl XdpMode {
    /// How the program runs where it does.
    #[must_use]
    pub const fn running(self) -> Running {
        match self {
            Self::Generic => Running::Generic,
            Self::Auto | Self::Native | Self::Off => Running::Native,
        }
    }
}

/// How an XDP program runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Running {
    /// In the driver.
    Native,
    /// Behind it, on packets that the kernel has made its own.
    Generic,
}

impl Running {
    /// The name in pins.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    /// The one called `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Native, Self::Generic].into_iter().find(|running| running.name() == name)
    }

    /// The name of the program.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Native => "xdp_from_uplink",
            Self::Generic => "xdp_generic",
        }
    }

    /// The name in tables.
    #[must_use]
    pub const fn mechanism(self) -> &'static str {
        match self {
            Self::Native => "xdp native",
            Self::Generic => "xdp generic",
        }
    }

    const fn flavour(self) -> Flavour {
        match self {
            Self::Native => Flavour::Driver,
            Self::Generic => Flavour::Skb,
        }
    }
}

/// The XDP program `name` of `ebpf`.
fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, ObjectError> {
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or(ObjectError::NoProgram(name))
}

/// Has the kernel load the program, and pins it, unless that has happened.
fn load(ebpf: &mut Ebpf, pins: &Pins, running: Running) -> Result<(), ObjectError> {
    let name = running.program();
    let program = program(ebpf, name)?;
    if program.fd().is_ok() {
        return Ok(());
    }
    program.load().map_err(|source| ObjectError::Program { program: name, source })?;
    let pin = pins.program(name);
    let program = ebpf.program_mut(name).ok_or(ObjectError::NoProgram(name))?;
    pin_program(program, &pin).map_err(|source| ObjectError::Unreadable { path: pin, source: source.into() })
}

/// The uplinks that are to run the program in `mode`.
fn wanted(mode: XdpMode, interfaces: &[Interface]) -> BTreeMap<u32, &Interface> {
    let is_wanted = |interface: &&Interface| match mode {
        XdpMode::Off => false,
        XdpMode::Auto => interface.role == Role::Uplink && interface.hardware,
        XdpMode::Native | XdpMode::Generic => interface.role == Role::Uplink,
    };
    interfaces.iter().filter(is_wanted).map(|interface| (interface.index, interface)).collect()
}

/// Makes the XDP links be those that `mode` wants on `interfaces`. Interfaces in `refused` are not tried again while they
/// are there; with [`XdpMode::Auto`] a driver's refusal puts one in.
pub(super) fn apply(
    ebpf: &mut Ebpf,
    pins: &Pins,
    mode: XdpMode,
    interfaces: &[Interface],
    refused: &mut BTreeSet<u32>,
) -> Result<Applied, ObjectError> {
    let (running, mut wanted) = (mode.running(), wanted(mode, interfaces));
    refused.retain(|ifindex| wanted.contains_key(ifindex));
    wanted.retain(|ifindex, _| !refused.contains(ifindex));
    if !wanted.is_empty() {
        match load(ebpf, pins, running) {
            // What nobody has asked for must not keep the node from its services.
            Err(error) if mode == XdpMode::Auto => {
                warn!(%error, "no XDP: the tc programs do its work");
                refused.extend(wanted.keys());
                wanted.clear();
            }
            loaded => loaded?,
        }
    }
    let mut applied = Applied::default();
    let paths = entries(&pins.links())
        .map_err(|source| ObjectError::Unreadable { path: pins.links(), source: source.into() })?;
    for path in paths {
        let Some((found, ifindex)) = Pins::parse_xdp_link(&path) else { continue };
        let attachment = Attachment { hook: Hook::XdpFromUplink, ifindex };
        let adopted = if found == running && wanted.contains_key(&ifindex) {
            adopt(&path, running, &attachment, ebpf)
        } else {
            Ok(Adoption::Gone)
        };
        match adopted {
            Ok(Adoption::Current) => _ = wanted.remove(&ifindex),
            Ok(Adoption::Replaced) => {
                wanted.remove(&ifindex);
                applied.replaced.push(attachment);
            }
            Ok(Adoption::Gone) => match unpin(&path) {
                Ok(()) => applied.detached.push(attachment),
                Err(error) => applied.failed.push(AttachError::new(attachment, "removing the pin", error)),
            },
            Err(error) => {
                wanted.remove(&ifindex);
                applied.failed.push(error);
            }
        }
    }
    for (ifindex, interface) in wanted {
        let attachment = Attachment { hook: Hook::XdpFromUplink, ifindex };
        match attach(ebpf, pins, running, &attachment) {
            Ok(()) => applied.attached.push(attachment),
            Err(AttachFailure::Gone) => {}
            Err(AttachFailure::Refused(error)) if mode == XdpMode::Auto => {
                refused.insert(ifindex);
                let reason = error.source.to_string();
                info!(interface = interface.name, reason, "no XDP: the tc programs do its work");
            }
            Err(AttachFailure::Refused(error)) => applied.failed.push(error),
        }
    }
    Ok(applied)
}

enum Adoption {
    /// It runs this agent's program already.
    Current,
    /// It ran another agent's program.
    Replaced,
    /// Its interface is gone, or it is not wanted.
    Gone,
}

/// Has the link pinned at `path` run this agent's program.
fn adopt(path: &Path, running: Running, attachment: &Attachment, ebpf: &mut Ebpf) -> Result<Adoption, AttachError> {
    let failed = |source| AttachError::new(attachment.clone(), "opening the link", source);
    let link = Link::open(path).map_err(failed)?;
    let state = link.state().map_err(failed)?;
    if state.ifindex != attachment.ifindex {
        return Ok(Adoption::Gone);
    }
    let replacing = |source: Box<dyn std::error::Error + Send + Sync>| {
        AttachError::new(attachment.clone(), "replacing the program", source)
    };
    let program = program(ebpf, running.program()).map_err(|error| replacing(error.into()))?;
    if program.info().map_err(|error| replacing(error.into()))?.id() == state.program {
        return Ok(Adoption::Current);
    }
    let fd = program.fd().map_err(|error| replacing(error.into()))?;
    match link.update(fd.as_fd()) {
        Ok(()) => Ok(Adoption::Replaced),
        Err(error) if error.raw_os_error().is_some_and(is_gone_code) => Ok(Adoption::Gone),
        Err(error) => Err(replacing(error.into())),
    }
}

enum AttachFailure {
    /// The interface is gone.
    Gone,
    /// The kernel said no.
    Refused(AttachError),
}

/// Attaches the program anew and pins its link.
fn attach(ebpf: &mut Ebpf, pins: &Pins, running: Running, attachment: &Attachment) -> Result<(), AttachFailure> {
    let refused = |source: Box<dyn std::error::Error + Send + Sync>| {
        AttachFailure::Refused(AttachError::new(attachment.clone(), "attaching the program", source))
    };
    let or_gone = |error: ProgramError| if is_gone(&error) { AttachFailure::Gone } else { refused(error.into()) };
    let program = program(ebpf, running.program()).map_err(|error| refused(error.into()))?;
    let id = program.attach_to_if_index(attachment.ifindex, running.flavour()).map_err(or_gone)?;
    // A kernel or driver that takes the program over netlink alone gives no link: dropping what it gives detaches.
    let link: FdLink = program.take_link(id).map_err(or_gone)?.try_into().map_err(|error| {
        let error: aya::programs::links::LinkError = error;
        refused(error.into())
    })?;
    link.pin(pins.xdp_link(running, attachment.ifindex)).map_err(|error| refused(error.into()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_hardware_uplinks_and_never_a_pods_interface() {
        let interface = |index, role, hardware| Interface { index, name: format!("if{index}"), role, hardware };
        let interfaces = [
            interface(1, Role::Uplink, true),
            interface(2, Role::Uplink, false),
            interface(3, Role::Pod, true),
            interface(4, Role::Pod, false),
        ];
        let indices = |mode| wanted(mode, &interfaces).into_keys().collect::<Vec<_>>();
        assert_eq!(indices(XdpMode::Auto), [1]);
        assert_eq!(indices(XdpMode::Native), [1, 2]);
        assert_eq!(indices(XdpMode::Generic), [1, 2]);
        assert_eq!(indices(XdpMode::Off), [0; 0]);
    }
}
