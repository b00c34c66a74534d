//! Debian's kernels: found, fetched and unpacked, and installed nowhere.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{setup::apt, workspace};

/// A series of kernels that get corrections for years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Series {
    /// Without TCX, and before the helpers were told which family a checksum belongs to
    #[value(name = "6.1")]
    Linux6_1,
    /// The first whose program arrays take one attach type
    #[value(name = "6.12")]
    Linux6_12,
}

/// An unpacked kernel.
pub(super) struct Kernel {
    pub(super) series: Series,
    /// As `uname -r` says it.
    pub(super) release: String,
    /// The package's files.
    folder: PathBuf,
}

impl Series {
    pub(super) const ALL: [Self; 2] = [Self::Linux6_1, Self::Linux6_12];

    const fn name(self) -> &'static str {
        match self {
            Self::Linux6_1 => "6.1",
            Self::Linux6_12 => "6.12",
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Kernel {
    /// The newest kernel of `series`, or the one that is here already.
    pub(super) fn obtain(series: Series) -> Result<Self> {
        let kernels = workspace::target().join("kernels").join(series.name());
        if !kernels.join("boot").is_dir() {
            fetch(series, &kernels)?;
        }
        let image = fs::read_dir(kernels.join("boot"))?.flatten().find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some(name.strip_prefix("vmlinuz-")?.to_owned())
        });
        let release = image.with_context(|| format!("no kernel in {}", kernels.display()))?;
        Ok(Self { series, release, folder: kernels })
    }

    /// What an emulator boots.
    pub(super) fn image(&self) -> PathBuf {
        self.folder.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The folder of its modules.
    pub(super) fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.release)
    }
}

/// Fetches the newest package of `series` and unpacks it to `folder`.
fn fetch(series: Series, folder: &Path) -> Result<()> {
    // The flavour without drivers for hardware is the smallest one.
    let pattern = format!("^linux-image-{}\\..*-cloud-amd64$", series.name().replace('.', "\\."));
    let packages = apt::matching(&pattern)?;
    let package = newest(&packages).with_context(|| format!("apt knows no package like {pattern}"))?;
    apt::unpack(&[package], folder)
}

/// The package with the highest numbers in its name.
fn newest(packages: &[String]) -> Option<&str> {
    let numbers = |name: &str| -> Vec<u32> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    packages.iter().map(String::as_str).max_by_key(|name| numbers(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let names =
            ["linux-image-6.12.9-cloud-amd64", "linux-image-6.12.100+deb12-cloud-amd64", "linux-image-6.12.22-x"];
        assert_eq!(newest(&names.map(str::to_owned)), Some(names[1]));
        assert_eq!(newest(&[]), None);
    }
}
