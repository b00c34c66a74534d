//! Filters of clsact qdiscs in this network namespace, whoever they belong to.

use std::{collections::BTreeSet, io};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, LinkXdp},
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};

use super::Netlink;

/// The direction of the traffic that a filter sees, as the kernel puts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Into the host.
    Ingress,
    /// Out of it.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// What filters of this direction hang from.
    const fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { major: u16::MAX, minor }
    }
}

/// An interface of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Ids of its XDP programs, of whatever mode.
    pub xdp: BTreeSet<u32>,
}

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filter {
    /// The interface it is on.
    pub device: Device,
    /// What it sees.
    pub direction: Direction,
    /// Its place in the order of filters.
    pub priority: u32,
    /// `bpf`, `flower` and so on.
    pub kind: String,
    /// The id of its program, when it runs one.
    pub program: Option<u32>,
    /// The name it was given, usually its program's.
    pub name: Option<String>,
}

/// Every interface.
pub fn devices(netlink: &mut Netlink) -> io::Result<Vec<Device>> {
    let links = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(links
        .into_iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewLink(link) = message else { return None };
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            })?;
            Some(Device { index: link.header.index, name, xdp: xdp(&link.attributes) })
        })
        .collect())
}

/// The ids of the programs that a link's attributes name.
fn xdp(attributes: &[LinkAttribute]) -> BTreeSet<u32> {
    let named = attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    });
    let ids = named.flatten().filter_map(|xdp| match xdp {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => Some(*id),
        _ => None,
    });
    ids.filter(|id| *id != 0).collect()
}

/// Every filter of every interface.
pub fn filters(netlink: &mut Netlink) -> io::Result<Vec<Filter>> {
    let mut filters = Vec::new();
    for device in devices(netlink)? {
        for direction in Direction::ALL {
            filters.extend(filters_of(netlink, &device, direction)?);
        }
    }
    Ok(filters)
}

/// The filters of one interface and direction.
pub fn filters_of(netlink: &mut Netlink, device: &Device, direction: Direction) -> io::Result<Vec<Filter>> {
    let mut request = TcMessage::default();
    request.header.index = device.index.cast_signed();
    request.header.parent = direction.parent();
    let answers = match netlink.dump(RouteNetlinkMessage::GetTrafficFilter(request)) {
        // The interface went away, or has no such qdisc.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL | libc::ENOENT)) => Vec::new(),
        answers => answers?,
    };
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            // The kernel also lists each priority as a filter without a handle.
            RouteNetlinkMessage::NewTrafficFilter(filter) if filter.header.handle != TcHandle::UNSPEC => {
                Some(decode(&filter, device, direction))
            }
            _ => None,
        })
        .collect())
}

fn decode(message: &TcMessage, device: &Device, direction: Direction) -> Filter {
    let mut filter = Filter {
        device: device.clone(),
        direction,
        priority: message.header.info >> 16,
        kind: String::new(),
        program: None,
        name: None,
    };
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => filter.kind.clone_from(kind),
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(*id),
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name = Some(name.clone()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    filter
}
