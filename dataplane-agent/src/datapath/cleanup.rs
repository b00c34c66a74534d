//! Removes everything that sluice left in the kernel, of any version.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    clsact,
    pin::{LockError, Pins, entries},
};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Links, by pin.
    pub links: Vec<PathBuf>,
    /// Filters of clsact qdiscs, as "hook on interface index".
    pub filters: Vec<String>,
    /// Programs, by pin.
    pub programs: Vec<PathBuf>,
    /// Maps, by pin, and whatever else was there.
    pub maps: Vec<PathBuf>,
}

impl Report {
    /// Whether there was nothing to remove.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why something is still there.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// An agent is running, or the directory cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A pin cannot be removed.
    #[error("{}: cannot be removed", path.display())]
    Pin {
        /// The pin, or its directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Filters cannot be removed.
    #[error("the filters of clsact qdiscs cannot be removed")]
    Filters(#[source] io::Error),
}

/// Detaches every program of ours and removes every pin, of this layout and of any other. Does nothing the second time.
///
/// Filters are looked for in the calling thread's network namespace. What belongs to others stays.
pub fn cleanup(pins: &Pins) -> Result<Report, CleanupError> {
    let root = pins.root();
    if !root.exists() {
        let mut report = Report::default();
        remove_filters(&mut report)?;
        return Ok(report);
    }
    // Held to the end, so that no agent starts on what is about to go.
    let _lock = pins.lock()?;
    remove_pins(pins)
}

/// The same, for one who holds the lock.
pub(super) fn remove_pins(pins: &Pins) -> Result<Report, CleanupError> {
    let mut report = Report::default();
    let list = |path: &Path| entries(path).map_err(|source| CleanupError::Pin { path: path.to_owned(), source });
    let layouts = list(&pins.root())?;
    // Detached before the maps go: a program must not run on maps that nobody can reach any more.
    for layout in &layouts {
        remove_tree(&layout.join("links"), &mut report.links)?;
    }
    remove_filters(&mut report)?;
    for layout in &layouts {
        remove_tree(&layout.join("programs"), &mut report.programs)?;
        remove_tree(layout, &mut report.maps)?;
    }
    remove_tree(&pins.root(), &mut report.maps)?;
    Ok(report)
}

fn remove_filters(report: &mut Report) -> Result<(), CleanupError> {
    let filters = clsact::remove_all().map_err(CleanupError::Filters)?;
    report.filters.extend(filters.iter().map(ToString::to_string));
    Ok(())
}

/// Removes `path` and what is below it; notes the files.
fn remove_tree(path: &Path, removed: &mut Vec<PathBuf>) -> Result<(), CleanupError> {
    let failed = |source| CleanupError::Pin { path: path.to_owned(), source };
    if !path.exists() {
        return Ok(());
    }
    if !path.is_dir() {
        removed.push(path.to_owned());
        return std::fs::remove_file(path).map_err(failed);
    }
    for entry in entries(path).map_err(failed)? {
        remove_tree(&entry, removed)?;
    }
    std::fs::remove_dir(path).map_err(failed)
}
