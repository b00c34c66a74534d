//! Network namespaces that go away with their guard.

use std::{
    fs::{self, File},
    io::{self, Write},
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

/// Where `ip netns` keeps its names.
pub const DIRECTORY: &str = "/run/netns";

/// A named network namespace, visible to `ip netns`; removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Creates the namespace `name`, with its loopback device up.
    pub fn create(name: &str) -> Result<Self> {
        share_directory().with_context(|| format!("cannot prepare {DIRECTORY}"))?;
        let path = Path::new(DIRECTORY).join(name);
        File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let file = mount_new(&path).and_then(|()| Ok(File::open(&path)?)).inspect_err(|_| remove(&path));
        let file = file.with_context(|| format!("cannot create the network namespace {name}"))?;
        let netns = Self { name: name.to_owned(), path, file };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The name as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path to hand to `nsenter --net=`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A handle that outlives no namespace: for entering it from a child process.
    pub fn file(&self) -> Result<File> {
        Ok(self.file.try_clone()?)
    }

    /// Runs `work` on a fresh thread inside the namespace; a panic in there goes on out here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        run_in(&self.file, work).with_context(|| format!("cannot enter the network namespace {}", self.name))
    }

    /// Runs the lines of `script` as `ip` commands, in one process.
    pub fn ip(&self, script: &str) -> Result<()> {
        let output = self.run(|| -> Result<_> {
            let mut child = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .context("cannot run `ip` (package iproute2)")?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(script.as_bytes())?;
            }
            Ok(child.wait_with_output()?)
        })??;
        ensure!(
            output.status.success(),
            "`ip` failed in {}: {}\n{script}",
            self.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// What a command prints when it runs inside the namespace.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.run(|| Command::new(program).args(args).output())??;
        if !output.status.success() {
            bail!("{program} {args:?} failed in {}: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Writes kernel parameters below `/proc/sys/net`, given as `ipv4/ip_forward=1`.
    pub fn sysctls(&self, settings: &[&str]) -> Result<()> {
        self.run(|| {
            for setting in settings {
                let (key, value) = setting.split_once('=').context("a setting is key=value")?;
                fs::write(Path::new("/proc/sys/net").join(key), value)
                    .with_context(|| format!("cannot set net/{setting} in {}", self.name))?;
            }
            Ok(())
        })?
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Runs `work` on a fresh thread inside the namespace behind `file`; a panic in there goes on out here.
pub fn run_in<T: Send>(file: &File, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let inside = || -> io::Result<T> {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    };
    thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// Removes the name `path`; the namespace itself ends with the last process and socket in it.
pub fn remove(path: &Path) {
    // Either may fail on a half-made name; a name that stays is found again by the next run.
    umount2(path, MntFlags::MNT_DETACH).ok();
    fs::remove_file(path).ok();
}

/// Makes the directory of names a shared mount of its own, as `ip netns add` does: were it left to a later call of that, the
/// new mount would hide the names made here.
fn share_directory() -> Result<()> {
    let none = None::<&str>;
    let share = || mount(none, DIRECTORY, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    fs::create_dir_all(DIRECTORY)?;
    // The lock that `ip netns` takes, too.
    let directory = File::open(DIRECTORY)?;
    directory.lock()?;
    match share() {
        // Not a mount point yet.
        Err(Errno::EINVAL) => {
            mount(Some(DIRECTORY), DIRECTORY, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
            Ok(share()?)
        }
        result => Ok(result?),
    }
}

/// Makes a namespace on a thread of its own and binds it to `path`.
fn mount_new(path: &Path) -> Result<()> {
    let inside = || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
        mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context("mount --bind")
    };
    thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic))
}
