//! Finds the pins of this version and says clearly what is there when they are not.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use dataplane_common::map::LAYOUT_VERSION;

use super::failure::Failure;

/// Fails unless maps of this version are pinned below the BPF file system `bpffs`.
pub fn require(bpffs: &Path) -> anyhow::Result<()> {
    let base = bpffs.join("sluice");
    let root = base.join(format!("v{LAYOUT_VERSION}"));
    // Not `exists`: without privileges the directory is there and cannot be seen.
    match fs::read_dir(root.join("maps")) {
        Ok(_entries) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(base, root).into()),
        Err(error) => Err(error).context(root.display().to_string()),
    }
}

/// Why there is nothing at `root`.
fn missing(base: PathBuf, root: PathBuf) -> Failure {
    let mut versions: Vec<String> = fs::read_dir(&base)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_version(name) && *name != format!("v{LAYOUT_VERSION}"))
        .collect();
    if versions.is_empty() {
        return Failure::NoPins { path: root };
    }
    versions.sort();
    Failure::OtherLayout { base, found: versions.join(", "), expected: LAYOUT_VERSION }
}

fn is_version(name: &str) -> bool {
    name.strip_prefix('v').is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(directories: &[&str], expected: &str) {
        let bpffs = tempfile::tempdir().unwrap();
        for directory in directories {
            fs::create_dir_all(bpffs.path().join("sluice").join(directory)).unwrap();
        }
        let text = require(bpffs.path()).map_or_else(|error| error.to_string(), |()| "found".into());
        let text = text.replace(&bpffs.path().display().to_string(), "BPFFS");
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn pins_of_this_version_are_found() {
        let this = format!("v{LAYOUT_VERSION}/maps");
        check(&[&this], "found");
        check(&["v1000/maps", &this], "found");
    }

    #[test]
    fn no_pins_name_the_directory_and_the_next_step() {
        let expected = format!("no pinned maps at BPFFS/sluice/v{LAYOUT_VERSION}");
        check(&[], &format!("{expected}: start `sluice agent`"));
        check(&["volume"], &expected);
    }

    #[test]
    fn pins_of_another_version_are_named_and_never_read() {
        let expected = format!("layout v1000, this sluice reads v{LAYOUT_VERSION}");
        check(&["v1000/maps"], &format!("the maps pinned under BPFFS/sluice have {expected}"));
    }
}
