//! Opens pinned maps, and refuses those whose layout is not the one this program was built with.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapType, lpm_trie::Key};
use dataplane_common::{
    Affinity, AffinityKey, Backend, Device, Flow, FlowKey, FragmentKey, FragmentPorts, Frontend, FrontendKey, PairWay,
    ServiceName, SocketKey, SocketOrigin, SourceRange,
    map::{self, MapSpec},
};

use super::syscall;

/// The directory of this layout version's maps on the BPF file system mounted at `bpffs`.
pub fn directory(bpffs: &Path) -> PathBuf {
    bpffs.join("sluice").join(format!("v{}", map::LAYOUT_VERSION)).join("maps")
}

/// What the owner of a file descriptor may do with its map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Look up and iterate.
    ReadOnly,
    /// Also write and delete.
    ReadWrite,
}

/// The properties of a map that decide whether its bytes can be understood.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layout {
    /// Hash, array and so on.
    pub kind: MapType,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Capacity.
    pub entries: u32,
}

/// Why a pinned map cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinnedError {
    /// There is none, so the agent has never run on this file system.
    #[error("{path}: not there; has `sluice agent` run on this node?", path = .path.display())]
    Missing {
        /// The pin.
        path: PathBuf,
    },
    /// The kernel refused to open it or to describe it.
    #[error("{path}: cannot be opened", path = .path.display())]
    Open {
        /// The pin.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// It is another map than this program expects.
    #[error(
        "{path}: made by another version of sluice: {differences}; run `sluice cleanup`, then start \
         the agent again", path = .path.display()
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// Each property that differs, with both values.
        differences: String,
    },
}

/// Opens the map `spec` pinned in `dir` after comparing its layout with the Rust types of its keys and values.
///
/// The kernel copies as many bytes as the pinned map says, so a map of another layout must not even be read.
pub fn open(dir: &Path, spec: &MapSpec, access: Access) -> Result<MapData, PinnedError> {
    let path = dir.join(spec.name);
    let open_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => PinnedError::Missing { path: path.clone() },
        _ => PinnedError::Open { path: path.clone(), source },
    };
    let fd = syscall::open_pin(&path, access == Access::ReadOnly).map_err(open_error)?;
    let map = MapData::from_fd(fd).map_err(|error| open_error(super::into_io(error)))?;
    let actual = actual_layout(&map).map_err(|error| open_error(super::into_io(error)))?;
    // Sizes are the operator's to choose, and whoever creates the maps compares them: they do not change what bytes mean.
    match layout(spec).map(|layout| Layout { entries: actual.entries, ..layout }) {
        Some(expected) if expected == actual => Ok(map),
        Some(expected) => Err(PinnedError::Layout { path, differences: differences(&expected, &actual) }),
        None => Err(open_error(io::Error::new(io::ErrorKind::Unsupported, "not a map of this version"))),
    }
}

/// Refuses every map pinned in `dir` that has another layout; maps that are not there yet are fine.
pub fn check(dir: &Path) -> Result<(), PinnedError> {
    for spec in map::ALL {
        match open(dir, spec, Access::ReadOnly) {
            Ok(_) | Err(PinnedError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The layout that this program's types give the map `spec`; `None` for a name that is no map of sluice.
pub fn layout(spec: &MapSpec) -> Option<Layout> {
    use MapType::{Array, Hash, LpmTrie, LruHash, PerCpuArray};
    type A4 = [u32; 1];
    type A6 = [u32; 4];
    let of = match spec.name {
        "frontends4" => sized::<FrontendKey<A4>, Frontend>(Hash),
        "frontends6" => sized::<FrontendKey<A6>, Frontend>(Hash),
        "slots" | "flow_pairs" => sized::<u32, u32>(Array),
        "backends4" => sized::<u32, Backend<A4>>(Array),
        "backends6" => sized::<u32, Backend<A6>>(Array),
        "service_names" => sized::<u32, ServiceName>(Hash),
        "local_addrs4" => sized::<A4, u32>(Hash),
        "local_addrs6" => sized::<A6, u32>(Hash),
        "snat_addrs4" => sized::<u32, A4>(Hash),
        "snat_addrs6" => sized::<u32, A6>(Hash),
        "conntrack4" => sized::<FlowKey<A4>, Flow<A4>>(LruHash),
        "conntrack6" => sized::<FlowKey<A6>, Flow<A6>>(LruHash),
        "sockets4" => sized::<SocketKey<A4>, SocketOrigin<A4>>(LruHash),
        "sockets6" => sized::<SocketKey<A6>, SocketOrigin<A6>>(LruHash),
        "source_ranges4" => sized::<Key<SourceRange<A4>>, u32>(LpmTrie),
        "source_ranges6" => sized::<Key<SourceRange<A6>>, u32>(LpmTrie),
        "cidrs4" => sized::<Key<A4>, u32>(LpmTrie),
        "cidrs6" => sized::<Key<A6>, u32>(LpmTrie),
        "affinity4" => sized::<AffinityKey<A4>, Affinity>(LruHash),
        "affinity6" => sized::<AffinityKey<A6>, Affinity>(LruHash),
        "fragments4" => sized::<FragmentKey<A4>, FragmentPorts>(LruHash),
        "fragments6" => sized::<FragmentKey<A6>, FragmentPorts>(LruHash),
        "devices" => sized::<u32, Device>(Hash),
        "ways4" => sized::<u32, PairWay<A4>>(PerCpuArray),
        "ways6" => sized::<u32, PairWay<A6>>(PerCpuArray),
        "drops" | "map_ops" => sized::<u32, u64>(PerCpuArray),
        _ => return None,
    };
    Some(Layout { entries: spec.entries, ..of })
}

const fn sized<K, V>(kind: MapType) -> Layout {
    Layout { kind, key_size: size_of::<K>() as u32, value_size: size_of::<V>() as u32, entries: 0 }
}

fn actual_layout(map: &MapData) -> Result<Layout, aya::maps::MapError> {
    let about = map.info()?;
    Ok(Layout {
        kind: about.map_type()?,
        key_size: about.key_size(),
        value_size: about.value_size(),
        entries: about.max_entries(),
    })
}

fn differences(expected: &Layout, actual: &Layout) -> String {
    fn differ(what: &str, actual: impl fmt::Debug + PartialEq, expected: impl fmt::Debug) -> String {
        format!("{what} is {actual:?}, not {expected:?}")
    }
    let mut found = Vec::new();
    if actual.kind != expected.kind {
        found.push(differ("type", actual.kind, expected.kind));
    }
    for (what, actual, expected) in
        [("key size", actual.key_size, expected.key_size), ("value size", actual.value_size, expected.value_size)]
    {
        if actual != expected {
            found.push(differ(what, actual, expected));
        }
    }
    found.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_a_layout() {
        for spec in map::ALL {
            let layout = layout(spec).unwrap_or_else(|| panic!("{} has none", spec.name));
            assert_eq!(layout.entries, spec.entries);
            assert!(layout.key_size >= 4 && layout.value_size >= 4);
        }
    }

    #[test]
    fn a_refusal_names_everything_that_differs() {
        let expected = layout(&map::SLOTS).unwrap();
        let actual = Layout { kind: MapType::Hash, value_size: 8, ..expected };
        assert_eq!(differences(&expected, &actual), "type is Hash, not Array, value size is 8, not 4");
    }
}
