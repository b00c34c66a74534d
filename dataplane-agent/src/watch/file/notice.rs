//! Notice of changes in a folder, given once the writers are done.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::FileError;

/// Changes are read once nothing has happened for so long.
const QUIET: Duration = Duration::from_millis(50);
/// The longest wait for quiet, and for a file that somebody keeps open and writes to.
const PATIENCE: Duration = Duration::from_secs(1);

/// A watch on one folder.
pub(super) struct Notice {
    /// Keeps the kernel's watch alive.
    _watcher: RecommendedWatcher,
    folder: PathBuf,
    /// Device and inode that the watch is on.
    watched: Option<(u64, u64)>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    changed: Notify,
    /// Files written to and not closed since.
    open: Mutex<BTreeSet<PathBuf>>,
}

impl State {
    /// A poisoned lock is as good as any: the set is only a hint.
    fn open(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, event: notify::Result<notify::Event>) {
        // An error of the watch, such as a full queue, says no more than "look again".
        if let Ok(event) = event {
            match event.kind {
                // Reading the folder must not be a reason to read it again.
                EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write) => return,
                EventKind::Modify(ModifyKind::Data(_)) => self.open().extend(event.paths),
                _ => self.open().retain(|path| !event.paths.contains(path)),
            }
        }
        self.changed.notify_one();
    }
}

impl Notice {
    /// Begins to watch.
    pub(super) fn of(folder: &Path) -> Result<Self, FileError> {
        let meta = match fs::metadata(folder) {
            Ok(meta) if !meta.is_dir() => return Err(FileError::NotAFolder { folder: folder.to_owned() }),
            Ok(meta) => meta,
            Err(source) => return Err(super::folder::unreadable(folder, source)),
        };
        let state = Arc::new(State::default());
        let noted = Arc::clone(&state);
        let failed = |source| FileError::NotWatchable { folder: folder.to_owned(), source };
        let mut watcher = notify::recommended_watcher(move |event| noted.note(event)).map_err(failed)?;
        watcher.watch(folder, RecursiveMode::NonRecursive).map_err(failed)?;
        Ok(Self { _watcher: watcher, folder: folder.to_owned(), watched: Some((meta.dev(), meta.ino())), state })
    }

    /// Waits for a change, and then until the writers seem to be done.
    pub(super) async fn settled(&self) {
        self.state.changed.notified().await;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let calm = timeout(QUIET, self.state.changed.notified()).await.is_err();
            if calm && self.state.open().is_empty() {
                break;
            }
        }
        // Whoever keeps a file open for longer is not waited for again unless it is written to again.
        self.state.open().clear();
    }

    /// Whether the path still leads to the folder that is watched.
    pub(super) fn is_intact(&self) -> bool {
        fs::metadata(&self.folder).map(|meta| (meta.dev(), meta.ino())).ok() == self.watched
    }
}
