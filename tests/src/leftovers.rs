//! Names that tell whose they are, and the removal of what killed runs left behind.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Result, ensure};
use nix::unistd::Uid;

use crate::{bpffs, cgroup, netns};

/// What the names of all namespaces, cgroups and directories of the test bed begin with; the owner's process id follows.
const TAG: &str = "slt";

/// Directories with mounts, logs and manifests.
pub const DIRECTORY: &str = "/run/sluice-tests";

/// A prefix for names that no other test uses: `slt<pid>-<number>`.
///
/// The first call in a process removes what dead processes left behind, and fails without root.
pub fn unique_prefix() -> Result<String> {
    static SWEEP: Once = Once::new();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    ensure!(
        Uid::effective().is_root(),
        "the test bed needs root: run `cargo xtask test`, or the test binary with sudo"
    );
    SWEEP.call_once(sweep);
    Ok(format!("{TAG}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Removes namespaces, cgroups and mounts whose owner is dead.
pub fn sweep() {
    for path in abandoned(Path::new(netns::DIRECTORY)) {
        netns::remove(&path);
    }
    for path in abandoned(Path::new(DIRECTORY)) {
        remove_directory(&path);
    }
    if let Ok(root) = cgroup::mount_point() {
        for path in abandoned(root) {
            // It is tried again by the next run.
            cgroup::remove(&path).ok();
        }
    }
}

/// Removes a cluster's directory with the bpffs mounts of its nodes.
pub fn remove_directory(path: &Path) {
    for node in fs::read_dir(path).into_iter().flatten().flatten() {
        bpffs::remove(&node.path().join("bpf"));
    }
    fs::remove_dir_all(path).ok();
}

/// The entries of `directory` that carry our tag and the id of a process that is gone.
fn abandoned(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_str().is_some_and(is_abandoned)).map(|entry| entry.path()).collect()
}

fn is_abandoned(name: &str) -> bool {
    let owner = name.strip_prefix(TAG).and_then(|rest| rest.split_once('-')).map(|(owner, _)| owner);
    let Some(Ok(owner)) = owner.map(str::parse::<u32>) else { return false };
    !Path::new("/proc").join(owner.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_owners_are_abandoned() {
        assert!(!is_abandoned(&format!("{TAG}{}-0-node", std::process::id())));
        assert!(is_abandoned(&format!("{TAG}4194999-0-node")), "above the largest process id");
        assert!(!is_abandoned("cni-1234"));
        assert!(!is_abandoned("slt-notes"));
    }
}
