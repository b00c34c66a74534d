//! Child processes inside a namespace and a cgroup that die with their guard, and with the test.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
    },
    unistd::{Pid, write},
};

use crate::{cgroup::Cgroup, netns::Netns};

/// A running child process; killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `command` inside `netns` and, when given, `cgroup`. Mounts stay those of the host.
    pub fn spawn(mut command: Command, netns: &Netns, cgroup: Option<&Cgroup>) -> Result<Self> {
        let netns = netns.file()?;
        let procs = cgroup.map(|cgroup| OpenOptions::new().write(true).open(cgroup.path().join("cgroup.procs")));
        let procs = procs.transpose().context("cannot open cgroup.procs")?;
        let what = format!("cannot start {}", command.get_program().display());
        // Ctrl-C at a terminal goes to the whole process group; it is for the parent to decide what that ends.
        command.process_group(0);
        let enter = move || enter(&netns, procs.as_ref());
        // SAFETY: between fork and exec the closure only makes system calls on descriptors opened before.
        unsafe { command.pre_exec(enter) };
        let (reply, result) = mpsc::sync_channel(1);
        let job: Job = Box::new(move || drop(reply.send(command.spawn())));
        ensure!(spawner().send(job).is_ok(), "the spawning thread has ended");
        Ok(Self { child: result.recv()?.context(what)? })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).context("process id")?;
        Ok(kill(Pid::from_raw(id), signal)?)
    }

    /// Waits until the process has ended; `None` when it still runs after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let begun = Instant::now();
        loop {
            let status = self.child.try_wait()?;
            if status.is_some() || begun.elapsed() > timeout {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends the process with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether the process has ended by the signal that was asked for, or with success.
    pub fn ended_well(status: ExitStatus, signal: Signal) -> bool {
        status.success() || status.signal() == Some(signal as i32)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the process has been waited for already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Moves the calling process, a fresh child, to where it belongs.
fn enter(netns: &File, procs: Option<&File>) -> io::Result<()> {
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    if let Some(procs) = procs {
        write(procs, b"0")?;
    }
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // Whoever blocks signals to clean up after them does not want its children to.
    SigSet::empty().thread_set_mask()?;
    Ok(())
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that starts all children: the parent-death signal is sent when the *thread* that forked ends, so the threads of
/// tests are the wrong ones to fork from.
fn spawner() -> &'static mpsc::Sender<Job> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        sender
    })
}
