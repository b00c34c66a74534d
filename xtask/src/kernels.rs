//! `cargo xtask kernels`: real packets on kernels other than this machine's, in an emulator.
//!
//! They show what this machine's kernel may lack (clsact in place of TCX, SCTP sockets, VLAN interfaces), and that every
//! program loads there. One boot per suite: a kernel that stops takes no other suite with it.

mod image;
mod machine;
mod modules;
mod release;
mod tools;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result, ensure};

use self::{
    image::Image,
    release::{Kernel, Series},
    tools::Tools,
};
use crate::{
    build, setup,
    test::{
        output::count,
        suite::{self, OF_OTHER_KERNELS, Suite},
        tally::Tally,
    },
    workspace,
};

/// What runs there: what only there can run, and single packets through every program. Suites of many clusters take too long to be usual.
const SUITES: &[&str] = &[OF_OTHER_KERNELS, "packets"];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this series; may be given more than once [default: all]
    #[arg(long = "kernel", value_name = "SERIES", value_enum)]
    series: Vec<Series>,
    /// Run only the tests whose name contains this
    filter: Option<String>,
    /// Run these suites of `tests/tests` in place of the usual ones
    #[arg(long = "suite", value_name = "NAME")]
    suites: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let start = Instant::now();
    setup::ensure()?;
    let tools = Tools::obtain()?;
    let series = if arguments.series.is_empty() { &Series::ALL[..] } else { &arguments.series };
    let kernels = series.iter().map(|series| Kernel::obtain(*series)).collect::<Result<Vec<_>>>()?;
    let programs = build::binaries(&["--workspace", "--bins"], false)?;
    let suites = suites(arguments)?;

    let mut tally = Tally::default();
    for kernel in &kernels {
        println!("\nLinux {}", kernel.release);
        for suite in &suites {
            let name = format!("{} ({})", suite.target(), kernel.series);
            match prepare(&tools, kernel, suite, &programs, arguments.filter.as_deref()) {
                Ok(initrd) => {
                    let machine = machine::command(&tools, kernel, &initrd);
                    count(&name, machine, arguments.filter.is_some(), &mut tally);
                }
                Err(error) => tally.fail(format!("{name}: {error:#}")),
            }
        }
    }
    Ok(tally.end(start))
}

/// The suites that have something to run, in their order.
fn suites(arguments: &Arguments) -> Result<Vec<Suite>> {
    let asked: Vec<&str> = arguments.suites.iter().map(String::as_str).collect();
    let names = if asked.is_empty() { SUITES } else { &asked };
    let mut suites = suite::build_selected(&names.iter().flat_map(|name| ["--test", *name]).collect::<Vec<_>>())?;
    suites.sort_by_key(|suite| names.iter().position(|name| *name == suite.target()));
    if let Some(filter) = &arguments.filter {
        suites.retain(|suite| suite.has(filter));
        ensure!(!suites.is_empty(), "no test of {} has {filter} in its name", names.join(", "));
    }
    Ok(suites)
}

/// Everything that `suite` needs in memory, as an archive that the kernel unpacks at its start.
fn prepare(
    tools: &Tools,
    kernel: &Kernel,
    suite: &Suite,
    programs: &[PathBuf],
    filter: Option<&str>,
) -> Result<PathBuf> {
    // Where tests look for the other programs: the folder above their own, as in cargo's.
    const BINARIES: &str = "target/debug";
    let folder = workspace::target().join("kernels");
    let mut image = Image::begin(&folder.join("initrd"), &tools.shell)?;
    modules::put(kernel, &mut image)?;
    for tool in ["ip", "tc", "nft"] {
        let path = setup::find(tool).with_context(|| format!("there is no `{tool}` here"))?;
        image.program(&path, &format!("usr/sbin/{tool}"))?;
    }
    for program in ["sluice", "traffic", "sluice-demo"] {
        let path = programs.iter().find(|path| path.file_name().is_some_and(|name| name == program));
        let path = path.with_context(|| format!("cargo built no program `{program}`"))?;
        image.program(path, &format!("{BINARIES}/{program}"))?;
    }
    image.program(suite.executable(), &format!("{BINARIES}/deps/suite"))?;
    image.folder(&workspace::root().join("manifests/examples"), "manifests/examples")?;
    image.text("filter", filter.unwrap_or_default())?;
    let archive = folder.join("initrd.cpio");
    image.pack(&archive)?;
    Ok(archive)
}
