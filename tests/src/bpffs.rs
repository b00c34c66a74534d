//! A BPF file system per test node.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A mounted bpffs; unmounting it on drop lets go of everything pinned in it.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    /// Mounts a bpffs of its own at `path`, which is created.
    pub fn mount(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("cannot mount a bpffs at {}", path.display()))?;
        Ok(Self { path: path.to_owned() })
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Unmounts and removes the directory `path`.
pub fn remove(path: &Path) {
    umount2(path, MntFlags::MNT_DETACH).ok();
    fs::remove_dir(path).ok();
}
