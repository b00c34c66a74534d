//! The emulated machine.

use std::{os::unix::process::CommandExt as _, path::Path, process::Command};

use super::{release::Kernel, tools::Tools};

/// The command that boots `kernel` with `initrd` and shows on standard output what the machine says; it ends with the machine, and the
/// machine with it.
pub(super) fn command(tools: &Tools, kernel: &Kernel, initrd: &Path) -> Command {
    let mut command = tools.emulator();
    command.args(["-accel", "tcg", "-cpu", "max", "-m", "2048", "-smp", "2"]);
    // Nothing but a processor, memory and a serial line.
    command.args(["-nodefaults", "-nic", "none", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(initrd);
    // A panic restarts the machine, which ends it.
    command.args(["-append", "console=ttyS0 quiet loglevel=3 panic=-1"]);
    // SAFETY: prctl(2) is a system call that touches no memory, so it may run between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // However this process ends, the emulator does, too.
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    command
}
