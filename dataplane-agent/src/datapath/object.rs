//! The BPF object inside the binary: compared with what is pinned, then loaded.

use std::{
    collections::BTreeMap,
    fmt, io,
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::MapData,
    programs::{Program, ProgramError},
};
use aya_obj::{Object, ParseError};
use dataplane_common::{NodeConfig, map};

use super::pin::Pins;

/// The object that the build made of the BPF programs.
pub static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dataplane"));

/// What a map looks like from the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The kernel's number of the map's type.
    pub kind: u32,
    /// Bytes per key.
    pub key: u32,
    /// Bytes per value.
    pub value: u32,
    /// Number of entries.
    pub entries: u32,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, key, value, entries } = self;
        write!(f, "type {kind}, key {key}, value {value}, {entries} entries")
    }
}

/// Why the object cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The bytes are no BPF object.
    #[error("the BPF object cannot be parsed")]
    Parse(#[from] ParseError),
    /// The object lacks a map.
    #[error("the BPF object has no map {0}")]
    NoMap(&'static str),
    /// The object lacks a program, or it is of another type.
    #[error("the BPF object has no program {0} of the expected type")]
    NoProgram(&'static str),
    /// Pins of another version are there.
    #[error(
        "{}: pinned by another version of sluice, whose layout is not v{}; traffic still uses it. Run that version, or \
         `sluice cleanup` and start again",
        path.display(),
        map::LAYOUT_VERSION
    )]
    OtherLayout {
        /// The other version's directory.
        path: PathBuf,
    },
    /// A pinned map has another shape.
    #[error(
        "{}: the pinned map has {pinned}, this version needs {needed}. Run `sluice cleanup` and start again",
        path.display()
    )]
    Mismatch {
        /// The pin.
        path: PathBuf,
        /// What is there.
        pinned: Shape,
        /// What should be.
        needed: Shape,
    },
    /// Only the number of entries differs: a flag has changed.
    #[error(
        "{}: the pinned map has room for {pinned} entries, configured are {needed}. Give the old size, or run `sluice \
         cleanup` and start again",
        path.display()
    )]
    Resized {
        /// The pin.
        path: PathBuf,
        /// Its entries.
        pinned: u32,
        /// Those of the configuration.
        needed: u32,
    },
    /// What is pinned cannot be looked at.
    #[error("{}: cannot be read; if sluice is not running, `sluice cleanup` removes it", path.display())]
    Unreadable {
        /// The pin.
        path: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel refused the maps.
    #[error("the BPF object cannot be loaded")]
    Load(#[from] EbpfError),
    /// The kernel refused a program.
    #[error("the program {program} does not load")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why not.
        source: ProgramError,
    },
}

/// Shapes that `object` gives its maps when `entries` overrides the sizes.
fn shapes(object: &[u8], entries: &BTreeMap<&str, u32>) -> Result<BTreeMap<&'static str, Shape>, ObjectError> {
    let object = Object::parse(object)?;
    map::ALL
        .iter()
        .map(|spec| {
            let map = object.maps.get(spec.name).ok_or(ObjectError::NoMap(spec.name))?;
            let shape = Shape {
                kind: map.map_type(),
                key: map.key_size(),
                value: map.value_size(),
                entries: entries.get(spec.name).copied().unwrap_or_else(|| map.max_entries()),
            };
            Ok((spec.name, shape))
        })
        .collect()
}

/// Refuses pins that the maps of `object` would not fit.
///
/// aya takes a pinned map as it is: with a longer value the kernel would write past a buffer, with a shorter one every
/// answer would be nonsense.
pub fn compare(object: &[u8], pins: &Pins, entries: &BTreeMap<&str, u32>) -> Result<(), ObjectError> {
    let others = pins.other_layouts().map_err(|source| unreadable(&pins.root(), source))?;
    if let Some(path) = others.into_iter().next() {
        return Err(ObjectError::OtherLayout { path });
    }
    for (name, needed) in shapes(object, entries)? {
        let path = pins.map(name);
        if !path.try_exists().map_err(|source| unreadable(&path, source))? {
            continue;
        }
        let pinned = pinned_shape(&path)?;
        if pinned == needed {
            continue;
        }
        return Err(if (Shape { entries: needed.entries, ..pinned }) == needed {
            ObjectError::Resized { path, pinned: pinned.entries, needed: needed.entries }
        } else {
            ObjectError::Mismatch { path, pinned, needed }
        });
    }
    Ok(())
}

fn pinned_shape(path: &Path) -> Result<Shape, ObjectError> {
    let map = MapData::from_pin(path).map_err(|source| unreadable(path, source))?;
    let info = map.info().map_err(|source| unreadable(path, source))?;
    Ok(Shape {
        kind: info.map_type().map_err(|source| unreadable(path, source))? as u32,
        key: info.key_size(),
        value: info.value_size(),
        entries: info.max_entries(),
    })
}

fn unreadable(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ObjectError {
    ObjectError::Unreadable { path: path.to_owned(), source: source.into() }
}

/// Creates the maps that are not pinned yet, pins them, and opens those that are. [`compare`] comes first.
pub fn load(
    object: &[u8],
    pins: &Pins,
    entries: &BTreeMap<&'static str, u32>,
    config: &NodeConfig,
) -> Result<Ebpf, ObjectError> {
    for directory in [pins.maps(), pins.links(), pins.programs()] {
        std::fs::create_dir_all(&directory)
            .map_err(|source| EbpfError::FileError { path: directory.clone(), error: source })?;
    }
    let mut loader = EbpfLoader::new();
    loader.override_global(NodeConfig::SYMBOL, config, true);
    for spec in map::ALL {
        loader.map_pin_path(spec.name, pins.map(spec.name));
    }
    for (name, entries) in entries {
        loader.map_max_entries(name, *entries);
    }
    Ok(loader.load(object)?)
}

/// Has the kernel verify and load the programs `names`, all at once: that takes most of a start.
pub(super) fn load_programs(ebpf: &mut Ebpf, names: &[&'static str]) -> Result<(), ObjectError> {
    let mut programs: BTreeMap<&str, &mut Program> = ebpf.programs_mut().collect();
    let wanted = names.iter().map(|name| Ok((*name, programs.remove(name).ok_or(ObjectError::NoProgram(name))?)));
    let wanted: Vec<_> = wanted.collect::<Result<_, ObjectError>>()?;
    let load = |name: &'static str, program: &mut Program| {
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::Xdp(program) => program.load(),
            _ => return Err(ObjectError::NoProgram(name)),
        };
        loaded.map_err(|source| ObjectError::Program { program: name, source })
    };
    thread::scope(|scope| {
        let loads: Vec<_> =
            wanted.into_iter().map(|(name, program)| scope.spawn(move || load(name, program))).collect();
        loads.into_iter().try_for_each(|load| load.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Makes `pin` the pin of `program`, in one step where there was one before.
pub(super) fn pin_program(program: &mut Program, pin: &Path) -> io::Result<()> {
    let fresh = pin.with_file_name(format!("{}_new", pin.file_name().unwrap_or_default().display()));
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    program.pin(&fresh).map_err(io::Error::other)?;
    std::fs::rename(&fresh, pin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_object_has_every_map_of_the_contract() {
        let shapes = shapes(EMBEDDED, &BTreeMap::from([("slots", 7)])).unwrap();
        assert_eq!(shapes["slots"].entries, 7);
        for spec in map::ALL.iter().filter(|spec| spec.name != "slots") {
            assert_eq!(shapes[spec.name].entries, spec.entries, "{}", spec.name);
        }
    }
}
