//! Packages of Debian and its relatives.

use std::{ffi::OsStr, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{privilege, progress};

/// Installs `packages`, which `why` needs.
///
/// # Errors
/// On a system without apt, without root, or when apt fails.
pub(super) fn install(packages: &[&str], why: &str) -> Result<()> {
    if !available() {
        bail!("{why} needs {}: install it with this system's package manager", packages.join(", "))
    }
    eprintln!("{why}: installing {}", packages.join(", "));
    if !packages.iter().all(|package| candidate(package).is_some()) {
        update()?;
    }
    // A package that another one conflicts with is the user's: fail rather than remove it.
    let arguments = ["install", "--yes", "--no-install-recommends", "--no-remove"];
    let command = apt_get(why, arguments.iter().chain(packages))?;
    progress::step(&format!("apt-get install {}", packages.join(" ")), command)
}

/// Whether this system has apt.
pub(super) fn available() -> bool {
    Path::new("/usr/bin/apt-get").exists()
}

/// The version that would be installed, after an update of the lists when they do not know one.
pub(super) fn known(package: &str) -> Result<Option<String>> {
    if !available() {
        return Ok(None);
    }
    if let Some(version) = candidate(package) {
        return Ok(Some(version));
    }
    update()?;
    Ok(candidate(package))
}

/// Fetches the package lists, once: a second look at them in the same run finds them fresh.
pub(super) fn update() -> Result<()> {
    use std::sync::Once;
    static UPDATED: Once = Once::new();
    let mut result = Ok(());
    UPDATED.call_once(|| {
        result = apt_get("fetching the package lists", ["update"])
            .and_then(|command| progress::step("apt-get update", command));
    });
    result
}

fn candidate(package: &str) -> Option<String> {
    let output = Command::new("apt-cache").env("LC_ALL", "C").args(["policy", package]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then(|| version.to_owned())
}

fn apt_get(why: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Command> {
    let mut command = privilege::as_root("env", why)?;
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "-o", "DPkg::Lock::Timeout=300"])
        .args(arguments);
    Ok(command)
}
