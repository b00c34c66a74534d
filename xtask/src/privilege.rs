//! The few commands that need root: directly when we are, else through `sudo` for exactly that command.

use std::{ffi::OsStr, path::Path, process::Command};

use anyhow::{Result, bail};

/// Whether this runs as root.
pub(crate) fn is_root() -> bool {
    // SAFETY: no arguments, no memory, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A command that runs `program` as root. `why` is what the user reads before `sudo` asks for a password.
///
/// # Errors
/// When there is no way to become root.
pub(crate) fn as_root(program: impl AsRef<OsStr>, why: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let sudo = ["/usr/bin/sudo", "/bin/sudo", "/usr/local/bin/sudo"].into_iter().find(|path| Path::new(path).exists());
    let Some(sudo) = sudo else { bail!("{why} needs root, and there is no sudo here: run the command again as root") };
    let asks = !Command::new(sudo).args(["-n", "true"]).output().is_ok_and(|output| output.status.success());
    if asks {
        eprintln!("{why} needs root: sudo may ask for your password");
        // Asked here, where the terminal is ours; the command itself may have its input and output elsewhere.
        if !Command::new(sudo).arg("-v").status()?.success() {
            bail!("{why} needs root, and sudo refused: run the command again as root")
        }
    }
    let mut command = Command::new(sudo);
    command.args(["-n", "-E", "--"]).arg(program);
    Ok(command)
}
