//! Cgroups of test nodes, so that cgroup programs see the processes of one node only.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// Where cgroup v2 may be mounted: alone, or beside version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// A child cgroup; its processes are killed and it is removed on drop.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Creates the child `name` of the root cgroup.
    pub fn create(name: &str) -> Result<Self> {
        let path = mount_point()?.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot create the cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Creates a child of this one, which has to be dropped first.
    pub fn child(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot create the cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("cannot remove the cgroup {}: {error}", self.path.display());
        }
    }
}

/// The mount point of cgroup v2.
pub fn mount_point() -> Result<&'static Path> {
    let found = MOUNTS.map(Path::new).into_iter().find(|path| path.join("cgroup.controllers").exists());
    ensure!(found.is_some(), "no cgroup v2 at any of {MOUNTS:?}; mount it with: mount -t cgroup2 none /sys/fs/cgroup");
    Ok(found.unwrap_or(Path::new(MOUNTS[0])))
}

/// Kills what runs in the cgroup and removes it with its children.
pub fn remove(path: &Path) -> io::Result<()> {
    for child in fs::read_dir(path)?.flatten().filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&child.path())?;
    }
    // Since 5.14; on older kernels the processes die by their guards.
    fs::write(path.join("cgroup.kill"), "1").ok();
    let begun = Instant::now();
    loop {
        match fs::remove_dir(path) {
            // A killed process leaves its cgroup a moment after its parent has seen it die.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && begun.elapsed() < Duration::from_secs(2) => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}
