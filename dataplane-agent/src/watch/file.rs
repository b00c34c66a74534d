//! A folder of Kubernetes YAML or JSON as the source of Services, EndpointSlices, Nodes and ServiceCIDRs.
//!
//! Every file `*.yaml`, `*.yml` and `*.json` directly in the folder counts, except hidden ones, so a mounted ConfigMap
//! works. A file that cannot be read or parsed keeps its last good state and is reported once with line and column; the
//! other files are unaffected. While a file that exists at the start has never been good, nothing is reported as synced:
//! what it defines may be installed already, and must not be deleted for a slip of the pen.

mod documents;
mod folder;
mod notice;

use std::{io, path::PathBuf, time::Duration};

use tracing::{info, warn};

pub use self::folder::{FileProblem, Problem, check};
use self::{folder::Folder, notice::Notice};
use super::Sender;
use crate::model::{Change, Source};

/// How often a folder that has vanished is looked for.
const RETRY: Duration = Duration::from_secs(1);

/// Why the folder cannot be used as a source.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// No such folder.
    #[error("{}: no such folder; create it, or name another one with --file-source", folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// It is something else.
    #[error("{}: not a folder; name the folder that holds the YAML files with --file-source", folder.display())]
    NotAFolder {
        /// The path.
        folder: PathBuf,
    },
    /// It cannot be listed.
    #[error("{}: the folder cannot be read; check its permissions", folder.display())]
    Unreadable {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel gives no notice of its changes.
    #[error("{}: the folder cannot be watched; see fs.inotify.max_user_watches and max_user_instances", folder.display())]
    NotWatchable {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: notify::Error,
    },
}

/// Sends what the folder holds, and then every change of it, until the receiver is dropped.
///
/// Of the Nodes only the one named `node` counts. Dropping the future ends the watch.
///
/// # Errors
///
/// When the folder cannot be read or watched at the start. Later on, its last state is kept until it is back.
pub async fn run(folder: PathBuf, node: &str, changes: &Sender) -> Result<(), FileError> {
    // Watch first, then read: a change between the two is seen twice rather than never.
    let mut notice = Some(Notice::of(&folder)?);
    let mut folder = Folder::new(folder, node);
    folder.read()?;
    let mut synced = false;
    loop {
        for change in folder.changes() {
            if changes.send(change).await.is_err() {
                return Ok(());
            }
        }
        if !synced && folder.is_complete() {
            synced = true;
            for source in [Source::Services, Source::EndpointSlices, Source::Nodes, Source::ServiceCidrs] {
                if changes.send(Change::Synced(source)).await.is_err() {
                    return Ok(());
                }
            }
        }
        tokio::select! {
            () = changes.closed() => return Ok(()),
            () = next_read(&mut folder, &mut notice) => {}
        }
    }
}

/// Waits for a change and reads the folder again.
async fn next_read(folder: &mut Folder, notice: &mut Option<Notice>) {
    if let Some(active) = notice {
        active.settled().await;
        match folder.read() {
            Ok(()) if active.is_intact() => return,
            // Renamed away and replaced within the wait: the old watch follows the old folder.
            Ok(()) => {}
            Err(error) => warn!("{error}; the last state is kept, and the folder is looked for every second"),
        }
        *notice = None;
    }
    loop {
        if let Ok(found) = Notice::of(folder.path()) {
            *notice = Some(found);
            if folder.read().is_ok() {
                info!("{}: the folder is watched again", folder.path().display());
                return;
            }
            *notice = None;
        }
        tokio::time::sleep(RETRY).await;
    }
}
