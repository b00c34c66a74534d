//! TCX links: attached, pinned, adopted and replaced in place.

use std::{collections::BTreeSet, os::fd::AsFd as _, path::Path};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError,
        links::FdLink,
        tc::{TcAttachOptions, TcAttachType},
    },
};

use super::{
    attach::{Applied, AttachError, Attachment, Wanted, is_gone, is_gone_code, program, program_ids, unpin},
    link::Link,
    object::ObjectError,
    pin::{Pins, entries},
};
use crate::model::device::Interface;

/// Makes the links be those of `wanted`.
///
/// What is attached is read from the pins every time, so that an agent that was killed, a pin that somebody removed and an
/// interface that vanished are all the same case.
pub(super) fn apply(ebpf: &mut Ebpf, pins: &Pins, wanted: &Wanted<'_>) -> Result<Applied, ObjectError> {
    let mut applied = Applied::default();
    let ids = program_ids(ebpf)?;
    let mut present = BTreeSet::new();
    let paths = entries(&pins.links())
        .map_err(|source| ObjectError::Unreadable { path: pins.links(), source: source.into() })?;
    for path in paths {
        let Some((hook, ifindex)) = Pins::parse_interface_link(&path) else { continue };
        let attachment = Attachment { hook, ifindex };
        let adopted = if wanted.contains_key(&attachment) {
            adopt(&path, &attachment, ids[&hook], ebpf)
        } else {
            Ok(Adoption::Gone)
        };
        match adopted {
            Ok(Adoption::Current) => {
                present.insert(attachment);
            }
            Ok(Adoption::Replaced) => {
                present.insert(attachment.clone());
                applied.replaced.push(attachment);
            }
            Ok(Adoption::Gone) => match unpin(&path) {
                Ok(()) => applied.detached.push(attachment),
                Err(error) => applied.failed.push(AttachError::new(attachment, "removing the pin", error)),
            },
            Err(error) => {
                // It may still run the old program: attaching a second one beside it would do harm.
                present.insert(attachment);
                applied.failed.push(error);
            }
        }
    }
    for (attachment, interface) in wanted.iter().filter(|(attachment, _)| !present.contains(attachment)) {
        match attach(ebpf, pins, attachment, interface) {
            Ok(()) => applied.attached.push(attachment.clone()),
            Err(AttachFailure::Gone) => {}
            Err(AttachFailure::Refused(error)) => applied.failed.push(error),
        }
    }
    Ok(applied)
}

/// Removes every link of ours; returns where they were.
pub(super) fn remove_all(pins: &Pins) -> std::io::Result<Vec<Attachment>> {
    let mut removed = Vec::new();
    for path in entries(&pins.links())? {
        if let Some((hook, ifindex)) = Pins::parse_interface_link(&path) {
            unpin(&path)?;
            removed.push(Attachment { hook, ifindex });
        }
    }
    Ok(removed)
}

enum Adoption {
    /// It runs this agent's program already.
    Current,
    /// It ran another agent's program.
    Replaced,
    /// Its interface is gone.
    Gone,
}

/// Has the link pinned at `path` run this agent's program.
fn adopt(path: &Path, attachment: &Attachment, id: u32, ebpf: &mut Ebpf) -> Result<Adoption, AttachError> {
    let failed = |source| AttachError::new(attachment.clone(), "opening the link", source);
    let link = Link::open(path).map_err(failed)?;
    let state = link.state().map_err(failed)?;
    if state.ifindex != attachment.ifindex {
        return Ok(Adoption::Gone);
    }
    if state.program == id {
        return Ok(Adoption::Current);
    }
    let replacing = |source: Box<dyn std::error::Error + Send + Sync>| {
        AttachError::new(attachment.clone(), "replacing the program", source)
    };
    let program = program(ebpf, attachment.hook).map_err(|error| replacing(error.into()))?;
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

/// Attaches a program anew and pins its link.
fn attach(ebpf: &mut Ebpf, pins: &Pins, attachment: &Attachment, interface: &Interface) -> Result<(), AttachFailure> {
    let refused = |source: Box<dyn std::error::Error + Send + Sync>| {
        AttachFailure::Refused(AttachError::new(attachment.clone(), "attaching the program", source))
    };
    let or_gone = |error: ProgramError| if is_gone(&error) { AttachFailure::Gone } else { refused(error.into()) };
    let direction = attachment.hook.direction();
    // Translation is symmetric around the host's stack: others see one flow, translated on its way in and on its way out.
    let order = if direction == TcAttachType::Ingress { LinkOrder::first() } else { LinkOrder::last() };
    let program = program(ebpf, attachment.hook).map_err(|error| refused(error.into()))?;
    let id =
        program.attach_with_options(&interface.name, direction, TcAttachOptions::TcxOrder(order)).map_err(or_gone)?;
    let link: FdLink = program.take_link(id).map_err(or_gone)?.try_into().map_err(|error| {
        let error: aya::programs::links::LinkError = error;
        refused(error.into())
    })?;
    link.pin(pins.interface_link(attachment.hook, attachment.ifindex)).map_err(|error| refused(error.into()))?;
    Ok(())
}
