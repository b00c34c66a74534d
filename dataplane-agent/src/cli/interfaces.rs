//! `sluice interfaces`: which programs are attached where.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::{
    output::{Column, Output, Record},
    pins,
    programs::{self, Program},
};
use crate::{
    datapath::{
        Pins,
        hook::Hook,
        link::{Link, LinkState},
    },
    netlink::{
        Netlink,
        filters::{self, Filter},
    },
};

/// Options of `sluice interfaces`.
#[derive(Args, Clone, Debug, Default)]
pub struct Interfaces {
    /// Only this interface
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
}

/// A program and the place that it is attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Attached {
    /// The interface's name, or the cgroup's path.
    pub target: String,
    /// The hook: the role of the program there.
    pub hook: String,
    /// `tcx`, `clsact`, `xdp native`, `xdp generic` or `cgroup`.
    pub mechanism: &'static str,
    /// The interface's index; null for a cgroup and for an interface that is gone.
    pub ifindex: Option<u32>,
    /// The link's id; null for filters, which are none.
    pub link_id: Option<u32>,
    /// The program's id.
    pub program_id: u32,
    /// The program's name.
    pub program: String,
    /// A hash of the program's instructions.
    pub tag: String,
    /// False when what it was attached to is gone and the pin is a leftover.
    pub attached: bool,
}

impl Record for Attached {
    const COLUMNS: &'static [Column] = &[
        Column::new("target"),
        Column::new("hook"),
        Column::new("mechanism"),
        Column::new("program id"),
        Column::new("tag"),
        Column::new("state"),
        Column::wide("program"),
        Column::wide("ifindex"),
        Column::wide("link id"),
    ];

    fn cells(&self) -> Vec<String> {
        let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        vec![
            self.target.clone(),
            self.hook.clone(),
            self.mechanism.into(),
            self.program_id.to_string(),
            self.tag.clone(),
            if self.attached { "attached" } else { "gone" }.into(),
            self.program.clone(),
            number(self.ifindex),
            number(self.link_id),
        ]
    }
}

/// Prints what is attached where.
pub fn run(args: &Interfaces, bpffs: &Path, output: Output) -> anyhow::Result<()> {
    pins::require(bpffs)?;
    let mut attached = attached(bpffs)?;
    attached.retain(|each| args.interface.as_ref().is_none_or(|wanted| *wanted == each.target));
    output.list_or(&attached, "nothing is attached")
}

/// Everything that is attached: pinned links, and filters of this network namespace that run a pinned program.
pub fn attached(bpffs: &Path) -> anyhow::Result<Vec<Attached>> {
    let programs = programs::loaded()?;
    let ours = programs::pinned(bpffs)?;
    let mut netlink = Netlink::open().context("cannot open a netlink socket")?;
    let filters = filters::filters(&mut netlink).context("cannot list tc filters")?;
    let devices = filters::devices(&mut netlink).context("cannot list interfaces")?;
    let names = devices.into_iter().map(|device| (device.index, device.name)).collect();
    Ok(rows(&links(bpffs)?, &filters, &names, &Loaded { all: &programs, ours: &ours }, &cgroup_path))
}

/// The programs of the kernel, by id.
struct Loaded<'a> {
    all: &'a BTreeMap<u32, Program>,
    /// Those that are pinned by sluice.
    ours: &'a BTreeMap<u32, Program>,
}

/// The lines for pinned links and for those filters that run one of our programs.
fn rows(
    links: &[(PathBuf, LinkState)],
    filters: &[Filter],
    interfaces: &BTreeMap<u32, String>,
    programs: &Loaded<'_>,
    cgroup_path: &dyn Fn(u64) -> Option<String>,
) -> Vec<Attached> {
    let unknown = Program { name: "unknown".into(), tag: "-".into() };
    let mut rows = Vec::new();
    for (pin, state) in links {
        let Program { name, tag } = programs.all.get(&state.program).unwrap_or(&unknown).clone();
        let row = |target, hook, mechanism, ifindex, attached| Attached {
            target,
            hook,
            mechanism,
            ifindex,
            link_id: Some(state.id),
            program_id: state.program,
            program: name,
            tag,
            attached,
        };
        let of_interface =
            Pins::parse_interface_link(pin).map(|(hook, ifindex)| (hook, "tcx", ifindex)).or_else(|| {
                Pins::parse_xdp_link(pin).map(|(running, ifindex)| (Hook::XdpFromUplink, running.mechanism(), ifindex))
            });
        rows.push(match of_interface {
            Some((hook, mechanism, ifindex)) => {
                let name = interfaces.get(&ifindex).filter(|_| state.ifindex != 0).cloned();
                let target = name.unwrap_or_else(|| format!("interface {ifindex}"));
                let ifindex = (state.ifindex != 0).then_some(state.ifindex);
                row(target, hook.name().to_owned(), mechanism, ifindex, ifindex.is_some())
            }
            None => {
                let target = cgroup_path(state.cgroup).unwrap_or_else(|| format!("cgroup {}", state.cgroup));
                let hook = pin.file_name().unwrap_or_default().to_string_lossy().into_owned();
                row(target, hook, "cgroup", None, state.cgroup != 0)
            }
        });
    }
    for filter in filters {
        let Some((id, program)) = filter.program.and_then(|id| programs.ours.get_key_value(&id)) else { continue };
        rows.push(Attached {
            target: filter.device.name.clone(),
            hook: program.name.clone(),
            mechanism: "clsact",
            ifindex: Some(filter.device.index),
            link_id: None,
            program_id: *id,
            program: program.name.clone(),
            tag: program.tag.clone(),
            attached: true,
        });
    }
    rows.sort();
    rows
}

/// The pinned links by their pins.
fn links(bpffs: &Path) -> anyhow::Result<Vec<(PathBuf, LinkState)>> {
    let directory = Pins::new(bpffs).links();
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| directory.display().to_string())?,
    };
    let mut links = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| directory.display().to_string())?.path();
        let state = Link::open(&path).and_then(|link| link.state()).with_context(|| path.display().to_string())?;
        links.push((path, state));
    }
    Ok(links)
}

/// The directory of the cgroup with this id, which is the inode number of that directory.
fn cgroup_path(id: u64) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let roots = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| Path::new(path).to_owned())
    });
    let mut directories: Vec<_> = roots.collect();
    while let Some(directory) = directories.pop() {
        if fs::metadata(&directory).is_ok_and(|metadata| metadata.ino() == id) {
            return Some(directory.display().to_string());
        }
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        directories.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::output::Format,
        netlink::filters::{Device, Direction},
    };

    fn program(name: &str) -> Program {
        Program { name: name.into(), tag: "0123456789abcdef".into() }
    }

    #[test]
    fn links_and_our_filters_are_listed_by_target() {
        let links = [
            (PathBuf::from("/b/from_pod-5"), LinkState { id: 1, program: 10, ifindex: 5, cgroup: 0 }),
            (PathBuf::from("/b/to_pod-6"), LinkState { id: 2, program: 11, ifindex: 0, cgroup: 0 }),
            (PathBuf::from("/b/xdp_from_uplink-native-2"), LinkState { id: 4, program: 14, ifindex: 2, cgroup: 0 }),
            (PathBuf::from("/b/sock_connect4"), LinkState { id: 3, program: 12, ifindex: 0, cgroup: 77 }),
        ];
        let filter = |program| Filter {
            device: Device { index: 2, name: "eth0".into(), xdp: std::collections::BTreeSet::new() },
            direction: Direction::Ingress,
            priority: 21,
            kind: "bpf".into(),
            program: Some(program),
            name: None,
        };
        let ours: BTreeMap<_, _> =
            [(10, "from_pod"), (11, "to_pod"), (12, "sock_connect4"), (13, "from_uplink"), (14, "xdp_from_uplink")]
                .map(|(id, name)| (id, program(name)))
                .into();
        let names = [(2, "eth0".to_owned()), (5, "veth0".to_owned()), (6, "reused".to_owned())].into();
        let programs = Loaded { all: &ours, ours: &ours };
        let path = |id| (id == 77).then(|| "/cgroup/node".to_owned());
        let rows = rows(&links, &[filter(13), filter(99)], &names, &programs, &path);
        assert_eq!(
            Output { format: Format::Wide, no_headers: true }.table(&rows, false),
            "\
/cgroup/node  sock_connect4    cgroup      12  0123456789abcdef  attached  sock_connect4    -  3
eth0          from_uplink      clsact      13  0123456789abcdef  attached  from_uplink      2  -
eth0          xdp_from_uplink  xdp native  14  0123456789abcdef  attached  xdp_from_uplink  2  4
interface 6   to_pod           tcx         11  0123456789abcdef  gone      to_pod           -  2
veth0         from_pod         tcx         10  0123456789abcdef  attached  from_pod         5  1
"
        );
    }
}
