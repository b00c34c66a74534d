//! `sluice version`: what this binary is and which map layouts it knows.

use dataplane_common::map;
use serde::Serialize;

use super::output::{Output, properties};

/// What `sluice version` shows.
#[derive(Debug, Serialize)]
pub struct Version {
    /// The version of the package.
    pub version: &'static str,
    /// The version of the map layouts, part of every pin's path.
    pub layout_version: u32,
}

/// Prints the version.
pub fn run(output: Output) -> anyhow::Result<()> {
    let version = Version { version: env!("CARGO_PKG_VERSION"), layout_version: map::LAYOUT_VERSION };
    output.object(&version, |version| {
        properties(&[("sluice", version.version.to_owned()), ("map layout", format!("v{}", version.layout_version))])
    })
}
