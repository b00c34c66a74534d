//! The agent's view of pinned maps, on the kernel's own: what is written is read back, and foreign layouts are refused.

#[path = "pinned_maps/adopted.rs"]
mod adopted;
#[path = "pinned_maps/reuse.rs"]
mod reuse;
#[path = "pinned_maps/sockets.rs"]
mod sockets;
#[path = "pinned_maps/sweep.rs"]
mod sweep;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData, MapType, PerCpuArray, PerCpuValues};
use aya_obj::{
    EbpfSectionKind,
    maps::{LegacyMap, PinningType, bpf_map_def},
};
use dataplane_agent::{
    maps::{
        self, Maps,
        kernel::KernelMaps,
        observed,
        pinned::{self, Access, Layout, PinnedError},
    },
    plan::{self, Plan},
    tables::{BackendId, BackendRow, ClientRange, FrontendAddr, IpFamily, SnatKey, Tables},
};
use dataplane_common::{
    BePort, Direction, DropReason, Flow, FlowKey, FlowState, Frontend, FrontendKind, Next, Protocol, Scope, Side,
    SlotRange, Ticks, V4, Way,
    map::{self, MapSpec},
};
use dataplane_tests::{bpffs::Bpffs, leftovers};

/// A bpffs with every map of sluice, made without loading a program.
struct Pins {
    bpffs: Bpffs,
    directory: PathBuf,
}

impl Pins {
    fn create() -> Result<Self> {
        let directory = Path::new(leftovers::DIRECTORY).join(leftovers::unique_prefix()?);
        let bpffs = Bpffs::mount(&directory.join("bpffs"))?;
        let this = Self { bpffs, directory };
        fs::create_dir_all(pinned::directory(this.path()))?;
        for spec in map::ALL {
            this.pin(spec, pinned::layout(spec).context("no layout")?)?;
        }
        Ok(this)
    }

    fn path(&self) -> &Path {
        self.bpffs.path()
    }

    fn pin(&self, spec: &MapSpec, layout: Layout) -> Result<()> {
        // The programs' object makes hash maps and tries without preallocation (BPF_F_NO_PREALLOC).
        let map_flags = u32::from(matches!(layout.kind, MapType::Hash | MapType::LpmTrie));
        let map = aya_obj::Map::Legacy(LegacyMap {
            def: bpf_map_def {
                map_type: layout.kind as u32,
                key_size: layout.key_size,
                value_size: layout.value_size,
                max_entries: layout.entries,
                map_flags,
                id: 0,
                pinning: PinningType::None,
            },
            inner_def: None,
            section_index: 0,
            section_kind: EbpfSectionKind::Maps,
            symbol_index: None,
            data: Vec::new(),
        });
        let path = pinned::directory(self.path()).join(spec.name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        Ok(MapData::create(map, spec.name, None)?.pin(path)?)
    }

    fn raw(&self, spec: &MapSpec) -> Result<MapData> {
        Ok(MapData::from_pin(pinned::directory(self.path()).join(spec.name))?)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        dataplane_tests::bpffs::remove(self.bpffs.path());
        fs::remove_dir_all(&self.directory).ok();
    }
}

/// A service with a frontend of each scope in both families.
fn tables() -> Result<Tables> {
    let mut tables = Tables::default();
    tables.service_names.insert(7, "default/web:http".to_owned());
    let mut first = 8;
    for (family, vip, endpoints) in [
        (IpFamily::V4, "10.96.0.1", ["10.0.0.1:8080", "10.0.0.2:8080"]),
        (IpFamily::V6, "fd00:96::1", ["[fd00::1]:8080", "[fd00::2]:8080"]),
    ] {
        for (number, endpoint) in (1..).zip(endpoints) {
            let id = BackendId { family, number };
            let flags = if number == 1 { BackendRow::LOCAL } else { BackendRow::TERMINATING };
            let row = BackendRow { addr: endpoint.parse()?, protocol: Protocol::Udp, flags, service: 7, generation: 3 };
            tables.backends.insert(id, row);
            tables.slots.insert(first + number - 1, id);
        }
        let frontend = Frontend {
            service: 7,
            inside: SlotRange { first, count: 2 },
            outside: SlotRange { first, count: 1 },
            affinity_seconds: 10_800,
            kind: FrontendKind::ClusterIp as u8,
            flags: Frontend::DROP_OUTSIDE,
            pad: 0,
        };
        let at = |addr, port, scope| FrontendAddr { addr, port, protocol: Some(Protocol::Udp), scope };
        tables.frontends.insert(at(vip.parse()?, 53, Scope::Address), frontend);
        tables.frontends.insert(at(family.unspecified(), 30053, Scope::NodePort), frontend);
        let silent = Frontend { inside: SlotRange::default(), outside: SlotRange::default(), ..frontend };
        tables.frontends.insert(FrontendAddr::other_ports(vip.parse()?), silent);
        tables.local_addrs.insert(vip.parse()?, map::local_addr::LOOPBACK);
        tables.snat_addrs.insert(SnatKey { interface: 2, family }, vip.parse()?);
        // The last slot there is, so that reading sees the whole array.
        first = map::SLOTS.entries - 4;
    }
    for (range, bits) in [
        ("10.96.0.0/12", map::cidr::SERVICE),
        ("10.0.0.0/8", map::cidr::POD),
        ("0.0.0.0/0", map::cidr::POD),
        ("fd00:96::/112", map::cidr::SERVICE | map::cidr::POD),
    ] {
        tables.cidrs.insert(range.parse()?, bits);
    }
    for range in ["0.0.0.0/0", "203.0.113.0/24", "203.0.113.7/32", "2001:db8::/32", "2001:db8::1/128"] {
        tables.source_ranges.insert(ClientRange { service: 7, range: range.parse()? });
        tables.source_ranges.insert(ClientRange { service: 8, range: range.parse()? });
    }
    Ok(tables)
}

fn apply(from: &Tables, to: &Tables, kernel: &mut KernelMaps) -> Result<()> {
    let outcome = maps::apply(&Plan::of([plan::between(from, to)]), kernel);
    ensure!(outcome.failed.is_empty(), "{:?}", outcome.failed);
    Ok(())
}

#[test]
fn what_a_plan_writes_is_read_back_and_what_it_deletes_is_gone() -> Result<()> {
    let pins = Pins::create()?;
    let mut kernel = KernelMaps::open(pins.path(), Access::ReadWrite)?;
    let empty = Tables::default();
    assert_eq!(kernel.read()?.tables, empty);
    let full = tables()?;
    apply(&empty, &full, &mut kernel)?;
    let read_only = KernelMaps::open(pins.path(), Access::ReadOnly)?;
    let start = Instant::now();
    let snapshot = read_only.read()?;
    println!("read everything in {:?}", start.elapsed());
    assert_eq!(snapshot.tables, full);
    assert_eq!(snapshot.free, BTreeMap::new());

    apply(&full, &empty, &mut kernel)?;
    let snapshot = kernel.read()?;
    assert_eq!(snapshot.tables, empty);
    // The ids are free, and their generations go on from where they were.
    assert_eq!(snapshot.free.values().copied().collect::<Vec<_>>(), [4, 4, 4, 4]);
    Ok(())
}

#[test]
fn p33_a_trie_that_is_full_is_named() -> Result<()> {
    let pins = Pins::create()?;
    let layout = pinned::layout(&map::SOURCE_RANGES4).context("no layout")?;
    pins.pin(&map::SOURCE_RANGES4, Layout { entries: 2, ..layout })?;
    let mut kernel = KernelMaps::open(pins.path(), Access::ReadWrite)?;
    let mut admit =
        |range: &str| -> Result<_> { Ok(kernel.put_source_range(ClientRange { service: 7, range: range.parse()? })) };
    admit("203.0.113.0/24")??;
    admit("192.0.2.0/24")??;
    let error = admit("198.51.100.0/24")?.expect_err("there was room");
    assert_eq!(error.in_full(), "map source_ranges4 is full");
    // What is there already can be written again.
    admit("192.0.2.0/24")??;
    Ok(())
}

#[test]
fn maps_opened_read_only_cannot_be_written() -> Result<()> {
    let pins = Pins::create()?;
    let mut kernel = KernelMaps::open(pins.path(), Access::ReadOnly)?;
    let error = kernel.put_service_name(1, "default/web").expect_err("written");
    assert_eq!(error.source.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
    Ok(())
}

#[test]
fn a_pinned_map_of_another_layout_is_refused_by_name_with_what_to_do() -> Result<()> {
    let pins = Pins::create()?;
    let expected = pinned::layout(&map::SLOTS).context("no layout")?;
    for (other, words) in [
        (Layout { value_size: 8, ..expected }, "value size is 8, not 4"),
        (Layout { kind: MapType::Hash, ..expected }, "type is Hash, not Array"),
    ] {
        pins.pin(&map::SLOTS, other)?;
        let error = KernelMaps::open(pins.path(), Access::ReadWrite).err().context("opened")?;
        let text = error.to_string();
        assert!(matches!(error, PinnedError::Layout { .. }), "{text}");
        assert!(text.contains("maps/slots: made by another version"), "{text}");
        assert!(text.contains(words) && text.contains("sluice cleanup"), "{text}");
        assert!(pinned::check(&pinned::directory(pins.path())).is_err());
    }
    pins.pin(&map::SLOTS, expected)?;
    pinned::check(&pinned::directory(pins.path()))?;
    Ok(())
}

#[test]
fn the_sizes_of_the_maps_are_those_of_the_kernel() -> Result<()> {
    let pins = Pins::create()?;
    let expected = pinned::layout(&map::SLOTS).context("no layout")?;
    pins.pin(&map::SLOTS, Layout { entries: 5000, ..expected })?;
    let snapshot = KernelMaps::open(pins.path(), Access::ReadOnly)?.read()?;
    assert_eq!((snapshot.capacities.slots, snapshot.capacities.backends4), (5000, map::BACKENDS4.entries));
    Ok(())
}

#[test]
fn a_file_system_without_maps_says_that_the_agent_has_not_run() -> Result<()> {
    let pins = Pins::create()?;
    fs::remove_file(pinned::directory(pins.path()).join("frontends4"))?;
    let error = KernelMaps::open(pins.path(), Access::ReadOnly).err().context("opened")?;
    assert!(matches!(error, PinnedError::Missing { .. }), "{error}");
    // What is not there yet is no reason to refuse to start.
    pinned::check(&pinned::directory(pins.path()))?;
    Ok(())
}

type Entry4 = (FlowKey<[u32; 1]>, Flow<[u32; 1]>);

/// Both entries of a flow from port `port` that answers come back for, with the deadlines of its two directions.
fn flow(protocol: Protocol, port: u16, backend: u32, deadlines: [u32; 2]) -> [Entry4; 2] {
    let key = FlowKey::new([1_u32], [2], BePort::new(port), BePort::new(80), protocol as u8);
    let entry = |to: FlowKey<[u32; 1]>, direction, deadline| Flow {
        way: Way::UNKNOWN,
        packets: 1,
        bytes: 60,
        src: to.src,
        dst: to.dst,
        src_port: to.src_port,
        dst_port: to.dst_port,
        backend,
        generation: 1,
        service: 7,
        deadline,
        direction: direction as u8,
        side: Side::Ingress as u8,
        next: Next::Stack as u8,
        state: FlowState::REPLIED,
    };
    let translated = FlowKey::new(key.src, [9], key.src_port, BePort::new(8080), key.protocol);
    [
        (key, entry(translated, Direction::Original, deadlines[0])),
        (translated.reversed(), entry(key.reversed(), Direction::Reply, deadlines[1])),
    ]
}

#[test]
fn flows_and_drops_are_read_and_flows_deleted() -> Result<()> {
    let pins = Pins::create()?;
    let key = |src_port| FlowKey::new([1_u32], [2], BePort::new(src_port), BePort::new(80), Protocol::Tcp as u8);
    let flow = Flow {
        way: Way::UNKNOWN,
        packets: 3,
        bytes: 180,
        src: [1],
        dst: [9],
        src_port: BePort::new(1),
        dst_port: BePort::new(8080),
        backend: 1,
        generation: 1,
        service: 7,
        deadline: 100,
        direction: Direction::Original as u8,
        side: Side::Ingress as u8,
        next: Next::Stack as u8,
        state: FlowState::REPLIED,
    };
    let mut raw = HashMap::try_from(Map::LruHashMap(pins.raw(&map::CONNTRACK4)?))?;
    for port in 1..=100 {
        raw.insert(key(port), flow, 0)?;
    }
    let mut conntrack = observed::conntrack::<V4>(pins.path(), Access::ReadWrite)?;
    assert_eq!(conntrack.iter().collect::<Result<Vec<_>, _>>()?.len(), 100);
    assert!(conntrack.delete(&key(5))?);
    assert!(!conntrack.delete(&key(5))?);
    assert_eq!((conntrack.get(&key(5))?, conntrack.get(&key(6))?), (None, Some(flow)));
    assert_eq!(observed::conntrack::<V4>(pins.path(), Access::ReadOnly)?.iter().count(), 99);

    let mut drops = PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(pins.raw(&map::DROPS)?))?;
    let processors = drops.get(&0, 0)?.len();
    let index = DropReason::StaleSlot as u32;
    drops.set(index, PerCpuValues::try_from(vec![2; processors])?, 0)?;
    let totals: BTreeMap<_, _> = observed::drops(pins.path())?.into_iter().collect();
    assert_eq!(totals[&DropReason::StaleSlot], 2 * processors as u64);
    assert_eq!(totals[&DropReason::NoEndpoints], 0);
    Ok(())
}
