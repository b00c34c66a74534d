//! Where maps, links and programs are pinned, and the lock that keeps a second agent away.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use dataplane_common::map::LAYOUT_VERSION;
use nix::fcntl::{Flock, FlockArg};

use super::{hook::Hook, xdp::Running};

/// Paths below a mounted bpffs: `<bpffs>/sluice/v<LAYOUT_VERSION>/{maps,links,programs}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    bpffs: PathBuf,
}

impl Pins {
    /// Where bpffs is mounted unless a flag says otherwise.
    pub const DEFAULT_BPFFS: &'static str = "/sys/fs/bpf";

    /// The paths below `bpffs`.
    pub fn new(bpffs: impl Into<PathBuf>) -> Self {
        Self { bpffs: bpffs.into() }
    }

    /// The bpffs itself.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// What holds all layout versions.
    pub fn root(&self) -> PathBuf {
        self.bpffs.join("sluice")
    }

    /// What holds this version's pins.
    pub fn layout(&self) -> PathBuf {
        self.root().join(format!("v{LAYOUT_VERSION}"))
    }

    /// The directory of maps.
    pub fn maps(&self) -> PathBuf {
        self.layout().join("maps")
    }

    /// The pin of the map `name`.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The directory of links.
    pub fn links(&self) -> PathBuf {
        self.layout().join("links")
    }

    /// The pin of the link of the cgroup program `name`.
    pub fn cgroup_link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// The pin of the TCX link at `hook` of the interface with the index `ifindex`.
    ///
    /// An index outlives a change of the name; a link whose interface is gone says so, even when the index is used again.
    pub fn interface_link(&self, hook: Hook, ifindex: u32) -> PathBuf {
        self.links().join(format!("{hook}-{ifindex}"))
    }

    /// The hook and the interface index that the pin `path` of a link belongs to; `None` for that of a cgroup program.
    #[must_use]
    pub fn parse_interface_link(path: &Path) -> Option<(Hook, u32)> {
        let (hook, ifindex) = path.file_name()?.to_str()?.split_once('-')?;
        Some((Hook::from_name(hook)?, ifindex.parse().ok()?))
    }

    /// The pin of the XDP link, of the kind `running`, of the interface with the index `ifindex`.
    pub fn xdp_link(&self, running: Running, ifindex: u32) -> PathBuf {
        self.links().join(format!("{}-{}-{ifindex}", Hook::XdpFromUplink, running.name()))
    }

    /// How and on which interface the XDP link runs that is pinned at `path`; `None` for other links.
    #[must_use]
    pub fn parse_xdp_link(path: &Path) -> Option<(Running, u32)> {
        let rest = path.file_name()?.to_str()?.strip_prefix(Hook::XdpFromUplink.name())?.strip_prefix('-')?;
        let (running, ifindex) = rest.split_once('-')?;
        Some((Running::from_name(running)?, ifindex.parse().ok()?))
    }

    /// The directory of programs.
    pub fn programs(&self) -> PathBuf {
        self.layout().join("programs")
    }

    /// The pin of the program `name`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// Directories of layouts other than this version's.
    pub fn other_layouts(&self) -> io::Result<Vec<PathBuf>> {
        let ours = self.layout();
        Ok(entries(&self.root())?.into_iter().filter(|path| *path != ours).collect())
    }

    /// The process that holds the lock: the agent that runs, if one does.
    pub fn holder(&self) -> Option<u32> {
        holder(fs::metadata(self.root()).ok()?.ino())
    }

    /// Keeps every other agent (and cleanup) away until the value is dropped, also by the death of the process.
    pub fn lock(&self) -> Result<PinsLock, LockError> {
        let root = self.root();
        let failed = |source| LockError::Io { path: self.root(), source };
        fs::create_dir_all(&root).map_err(failed)?;
        let directory = File::open(&root).map_err(failed)?;
        let inode = directory.metadata().map_err(failed)?.ino();
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(PinsLock { _lock: lock }),
            Err((_, nix::Error::EWOULDBLOCK)) => Err(LockError::Held { path: root, pid: holder(inode) }),
            Err((_, error)) => Err(failed(error.into())),
        }
    }
}

/// Held by the one agent of a bpffs.
#[derive(Debug)]
pub struct PinsLock {
    // An flock on the directory itself: it needs no file elsewhere, and dies with the process.
    _lock: Flock<File>,
}

/// Why a [`PinsLock`] cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "{}: already in use by a sluice agent{}; stop it first, or use another --bpffs",
        path.display(),
        pid.map(|pid| format!(" with pid {pid}")).unwrap_or_default()
    )]
    Held {
        /// What is locked.
        path: PathBuf,
        /// Who holds it, where the kernel tells.
        pid: Option<u32>,
    },
    /// It cannot be locked at all.
    #[error("{}: cannot be locked", path.display())]
    Io {
        /// What was to be locked.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The process that holds an flock on `inode`, as `/proc/locks` has it.
fn holder(inode: u64) -> Option<u32> {
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // "1: FLOCK  ADVISORY  WRITE 1234 00:2a:5678 0 EOF"
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else { return None };
        (file.rsplit(':').next()?.parse() == Ok(inode)).then(|| pid.parse().ok())?
    })
}

/// What is in `directory`, sorted; nothing when it does not exist.
pub(crate) fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pin_of_a_link_tells_hook_and_interface() {
        let pins = Pins::new("/bpf");
        assert_eq!(Pins::parse_interface_link(&pins.interface_link(Hook::ToUplink, 12)), Some((Hook::ToUplink, 12)));
        assert_eq!(Pins::parse_interface_link(&pins.cgroup_link("sock_connect4")), None);
        assert_eq!(Pins::parse_xdp_link(&pins.xdp_link(Running::Generic, 3)), Some((Running::Generic, 3)));
        assert_eq!(Pins::parse_interface_link(&pins.xdp_link(Running::Native, 3)), None);
        assert_eq!(Pins::parse_xdp_link(&pins.interface_link(Hook::ToUplink, 12)), None);
    }

    #[test]
    fn a_second_lock_is_refused_with_the_pid_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let pins = Pins::new(directory.path());
        let lock = pins.lock().unwrap();
        let message = pins.lock().unwrap_err().to_string();
        assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
        drop(lock);
        pins.lock().unwrap();
    }
}
