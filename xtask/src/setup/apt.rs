//! Packages of Debian and its relatives.

use std::{ffi::OsStr, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};

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

/// The names of the packages that match the regular expression `pattern`, after an update of the lists when they know none.
pub(crate) fn matching(pattern: &str) -> Result<Vec<String>> {
    if !available() {
        bail!("{pattern} are packages of Debian, and there is no apt here")
    }
    let names = search(pattern)?;
    if !names.is_empty() {
        return Ok(names);
    }
    update()?;
    search(pattern)
}

fn search(pattern: &str) -> Result<Vec<String>> {
    let output = Command::new("apt-cache").args(["search", "--names-only", pattern]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// `packages` and whatever else would be installed with them here.
pub(crate) fn with_missing(packages: &[&str]) -> Result<Vec<String>> {
    if !available() {
        bail!("{} are packages of Debian, and there is no apt here: install them", packages.join(", "))
    }
    if !packages.iter().all(|package| candidate(package).is_some()) {
        update()?;
    }
    let arguments = ["--simulate", "--no-install-recommends", "install"];
    let output = Command::new("apt-get").env("LC_ALL", "C").args(arguments).args(packages).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next());
    Ok(names.map(str::to_owned).collect())
}

/// Fetches `packages` and unpacks them to `folder`, which is there when all of them are. Nothing is installed, so it takes no root.
pub(crate) fn unpack(packages: &[&str], folder: &Path) -> Result<()> {
    let (draft, archives) = (folder.with_extension("draft"), folder.with_extension("archives"));
    for folder in [&draft, &archives] {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let mut download = Command::new("apt-get");
    download.args(["--quiet", "download"]).args(packages).current_dir(&archives);
    let name = packages.first().copied().unwrap_or_default();
    progress::step(&format!("apt-get download {name}"), download)?;
    for archive in fs::read_dir(&archives)? {
        let output = Command::new("dpkg").arg("-x").arg(archive?.path()).arg(&draft).output()?;
        ensure!(output.status.success(), "dpkg: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    fs::remove_dir_all(&archives)?;
    fs::rename(&draft, folder).with_context(|| format!("cannot write {}", folder.display()))
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
