//! Reads the interfaces, addresses and routes of a network namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType},
};

use super::classify::{Address, Device, Kind};
use crate::{model::device::IPVS_DEVICE, netlink::Netlink};

/// Every interface, with what is known of it.
pub(super) fn devices(netlink: &mut Netlink) -> io::Result<Vec<Device>> {
    let links = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let mut addresses = addresses(netlink)?;
    let routes = routes(netlink)?;
    Ok(links
        .into_iter()
        .filter_map(|link| match link {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        })
        .filter_map(|link| {
            let index = link.header.index;
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) if name != IPVS_DEVICE => Some(name.clone()),
                _ => None,
            })?;
            Some(Device {
                index,
                name,
                kind: kind(&link),
                // Since Linux 5.14.
                hardware: link.attributes.iter().any(|each| matches!(each, LinkAttribute::ParentDevName(_))),
                ethernet: link.header.link_layer_type == LinkLayerType::Ether,
                addresses: addresses.remove(&index).unwrap_or_default(),
                default_route: routes.default.contains(&index),
                routed: routes.made.contains(&index),
                controller: link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Controller(index) => Some(*index),
                    _ => None,
                }),
                queued: link
                    .attributes
                    .iter()
                    .any(|attribute| matches!(attribute, LinkAttribute::Qdisc(name) if name != "noqueue")),
            })
        })
        .collect())
}

fn kind(link: &LinkMessage) -> Kind {
    if link.header.flags.contains(LinkFlags::Loopback) {
        return Kind::Loopback;
    }
    let peer_elsewhere = link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::LinkNetNsId(_)));
    let kind = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(properties) => properties.iter().find_map(|property| match property {
            LinkInfo::Kind(kind) => Some(kind),
            _ => None,
        }),
        _ => None,
    });
    match kind {
        Some(InfoKind::Veth) => Kind::Veth { peer_elsewhere },
        Some(InfoKind::Bridge) => Kind::Bridge,
        Some(InfoKind::Dummy) => Kind::Dummy,
        Some(InfoKind::Vxlan | InfoKind::Geneve) => Kind::Tunnel,
        _ => Kind::Other,
    }
}

fn addresses(netlink: &mut Netlink) -> io::Result<BTreeMap<u32, Vec<Address>>> {
    let mut addresses = BTreeMap::<u32, Vec<Address>>::new();
    for answer in netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        if let Some(address) = address(&message) {
            addresses.entry(message.header.index).or_default().push(address);
        }
    }
    Ok(addresses)
}

fn address(message: &AddressMessage) -> Option<Address> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    // On a point-to-point link IFA_ADDRESS is the other end, and IFA_LOCAL is ours; IPv6 has only the former.
    let ip = find(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    })
    .or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })?;
    let unwanted = AddressFlags::Deprecated | AddressFlags::Dadfailed;
    let flagged = message.attributes.iter().any(|attribute| match attribute {
        AddressAttribute::Flags(flags) => flags.intersects(unwanted),
        _ => false,
    });
    let short = AddressHeaderFlags::Deprecated | AddressHeaderFlags::Dadfailed;
    Some(Address { ip, preferred: !flagged && !message.header.flags.intersects(short) })
}

/// Indexes of interfaces that routes lead through.
#[derive(Default)]
struct Routes {
    default: BTreeSet<u32>,
    made: BTreeSet<u32>,
}

fn routes(netlink: &mut Netlink) -> io::Result<Routes> {
    let mut routes = Routes::default();
    for answer in netlink.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))? {
        let RouteNetlinkMessage::NewRoute(route) = answer else { continue };
        // Any table: clouds give every network card a table with a default route of its own.
        if route.header.kind != RouteType::Unicast {
            continue;
        }
        let hops = route.attributes.iter().flat_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => vec![*index],
            RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
            _ => Vec::new(),
        });
        let hops = hops.collect::<Vec<_>>();
        if route.header.destination_prefix_length == 0 {
            routes.default.extend(&hops);
        }
        // The kernel makes routes for the addresses that an interface has; any other was made on purpose.
        if route.header.protocol != RouteProtocol::Kernel {
            routes.made.extend(hops);
        }
    }
    Ok(routes)
}
