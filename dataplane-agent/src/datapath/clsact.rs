//! Filters of clsact qdiscs, for kernels without TCX: attached, found again, replaced in place and removed.

use std::{collections::BTreeMap, io, mem};

use aya::{
    Ebpf,
    programs::{
        ProgramError,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcError, TcHandle},
    },
};
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::LinkMessage,
    tc::{TcAttribute, TcFilterBpfOption, TcHandle as Handle, TcMessage, TcOption},
};

use super::{
    attach::{Applied, AttachError, Attachment, Wanted, is_gone, program, program_ids},
    hook::Hook,
    object::ObjectError,
};
use crate::{model::device::Interface, netlink::Netlink};

/// Priority of our filters: others may go before, and few choose this one.
const PRIORITY: u16 = 21;

/// Handle of our filters, the same on every interface, so that one replaces the other.
const HANDLE: u32 = 0x51;

/// A filter that is ours.
#[derive(Clone, Debug)]
struct Filter {
    attachment: Attachment,
    program: Option<u32>,
    message: TcMessage,
}

/// Makes the filters be those of `wanted`.
pub(super) fn apply(ebpf: &mut Ebpf, wanted: &Wanted<'_>) -> Result<Applied, ObjectError> {
    let mut applied = Applied::default();
    let ids = program_ids(ebpf)?;
    let unreadable = |source: io::Error| ObjectError::Unreadable { path: "netlink".into(), source: source.into() };
    let mut netlink = Netlink::open().map_err(unreadable)?;
    let present: BTreeMap<_, _> =
        ours(&mut netlink).map_err(unreadable)?.into_iter().map(|filter| (filter.attachment.clone(), filter)).collect();

    for (attachment, interface) in wanted {
        let before = present.get(attachment);
        if before.is_some_and(|filter| filter.program == Some(ids[&attachment.hook])) {
            continue;
        }
        // The hook of another role shares direction, priority and handle: it is replaced like the same hook.
        let replaces = before.is_some()
            || present.keys().any(|other| {
                other.ifindex == attachment.ifindex && other.hook.direction() == attachment.hook.direction()
            });
        match put(ebpf, attachment, interface, replaces) {
            Ok(()) if replaces => applied.replaced.push(attachment.clone()),
            Ok(()) => applied.attached.push(attachment.clone()),
            Err(PutError::Program(error)) if is_gone(&error) => {}
            Err(error) => applied.failed.push(AttachError::new(attachment.clone(), "attaching the filter", error)),
        }
    }
    for filter in present.into_values().filter(|filter| !covered(&filter.attachment, wanted)) {
        match remove(&mut netlink, &filter) {
            Ok(()) => applied.detached.push(filter.attachment),
            Err(error) => applied.failed.push(AttachError::new(filter.attachment, "removing the filter", error)),
        }
    }
    Ok(applied)
}

/// Removes every filter of ours in this network namespace, and the clsact qdiscs that this empties; returns where they were.
pub(super) fn remove_all() -> io::Result<Vec<Attachment>> {
    let mut netlink = Netlink::open()?;
    let filters = ours(&mut netlink)?;
    for filter in &filters {
        remove(&mut netlink, filter)?;
    }
    Ok(filters.into_iter().map(|filter| filter.attachment).collect())
}

/// Whether something wanted is, or has just replaced, what is at `attachment`.
fn covered(attachment: &Attachment, wanted: &Wanted<'_>) -> bool {
    wanted
        .keys()
        .any(|other| other.ifindex == attachment.ifindex && other.hook.direction() == attachment.hook.direction())
}

#[derive(Debug, thiserror::Error)]
enum PutError {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Attaches a program, or replaces the one that is there in one step.
fn put(ebpf: &mut Ebpf, attachment: &Attachment, interface: &Interface, replaces: bool) -> Result<(), PutError> {
    let program = program(ebpf, attachment.hook)?;
    let direction = attachment.hook.direction();
    let handle = TcHandle::from(HANDLE);
    let id = if replaces {
        let link = SchedClassifierLink::attached(&interface.name, direction, PRIORITY, handle, None);
        program.attach_to_link(link.map_err(ProgramError::IOError)?)?
    } else {
        match tc::qdisc_add_clsact(&interface.name) {
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(ProgramError::from(error).into()),
            Ok(()) => {}
        }
        let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle, classid: None });
        program.attach_with_options(&interface.name, direction, options)?
    };
    // The filter stays when the agent goes; dropping the link would remove it.
    mem::forget(program.take_link(id)?);
    Ok(())
}

/// Our filters in this network namespace.
fn ours(netlink: &mut Netlink) -> io::Result<Vec<Filter>> {
    let mut filters = Vec::new();
    for link in netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        let RouteNetlinkMessage::NewLink(link) = link else { continue };
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            let found = all_filters(netlink, link.header.index, direction)?;
            filters.extend(found.into_iter().filter_map(recognise));
        }
    }
    Ok(filters)
}

/// Every filter in one direction of an interface, whoever's it is.
fn all_filters(netlink: &mut Netlink, ifindex: u32, direction: TcAttachType) -> io::Result<Vec<TcMessage>> {
    let mut request = TcMessage::default();
    request.header.index = ifindex.cast_signed();
    request.header.parent = parent(direction);
    let answers = match netlink.dump(RouteNetlinkMessage::GetTrafficFilter(request)) {
        // The interface went away, or has no such qdisc.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL | libc::ENOENT)) => Vec::new(),
        answers => answers?,
    };
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            // The kernel also lists each chain's protocol block as a filter without a handle.
            RouteNetlinkMessage::NewTrafficFilter(filter) if filter.header.handle != Handle::UNSPEC => Some(filter),
            _ => None,
        })
        .collect())
}

/// The filter as ours, if it is: by kind, priority, handle and the name of its program.
fn recognise(message: TcMessage) -> Option<Filter> {
    if message.header.info >> 16 != u32::from(PRIORITY) || u32::from(message.header.handle) != HANDLE {
        return None;
    }
    let mut hook = None;
    let mut program = None;
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => hook = Hook::from_name(name),
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(*id),
                _ => {}
            }
        }
    }
    let hook = hook?;
    let ifindex = message.header.index.cast_unsigned();
    (message.header.parent == parent(hook.direction())).then_some(Filter {
        attachment: Attachment { hook, ifindex },
        program,
        message,
    })
}

/// Removes a filter, and the qdisc when nobody else has a filter there.
fn remove(netlink: &mut Netlink, filter: &Filter) -> io::Result<()> {
    let mut request = TcMessage::default();
    request.header = filter.message.header.clone();
    request.attributes = vec![TcAttribute::Kind("bpf".to_owned())];
    netlink.execute(RouteNetlinkMessage::DelTrafficFilter(request), 0)?;

    let ifindex = filter.attachment.ifindex;
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        if !all_filters(netlink, ifindex, direction)?.is_empty() {
            return Ok(());
        }
    }
    let mut request = TcMessage::default();
    request.header.index = ifindex.cast_signed();
    request.header.parent = Handle::CLSACT;
    request.header.handle = Handle { major: u16::MAX, minor: 0 };
    netlink.execute(RouteNetlinkMessage::DelQueueDiscipline(request), 0)
}

/// The parent that filters of a direction hang from.
const fn parent(direction: TcAttachType) -> Handle {
    match direction {
        TcAttachType::Ingress => Handle { major: u16::MAX, minor: Handle::MIN_INGRESS },
        TcAttachType::Egress | TcAttachType::Custom(_) => Handle { major: u16::MAX, minor: Handle::MIN_EGRESS },
    }
}
