//! The Kubernetes API server as the source of Services, EndpointSlices, ServiceCIDRs and this node's Node.
//!
//! Only what this node needs is asked for: Services and slices without the labels that leave them to others, which is what
//! kube-proxy selects, and of the Nodes this one. Topology needs no other: an endpoint carries its own zone and node, and
//! its hints name the zones and nodes that it is for.
//!
//! A watch resumes where it broke off, at the version of the last event or bookmark. Where the server has forgotten that
//! version, everything is listed again and compared with what was sent; so while the server is away, and after it is back,
//! the receiver hears of nothing but differences.

mod client;
mod reach;

use std::{pin::pin, time::Duration};

use ::kube::{
    Api, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{WatchStreamExt as _, watcher},
};
use futures::StreamExt as _;
use tokio::time::sleep;
use tracing::{debug, info, warn};

pub use self::client::{Access, ClientError, Connection};
use super::{
    SKIP_LABELS, Sender,
    kind::{EndpointSlices, Kind, Nodes, ServiceCidrs, Services},
    received::{Lean, Received},
    store::Store,
};
use crate::model::Change;

/// What to add to a log filter: the client logs every failed attempt, which is said once here.
pub const LOG_FILTER: &str = "kube_client=off,kube_runtime=off";

/// How long to wait before listing again when the server does not know the version that it has just listed.
const RELIST: Duration = Duration::from_secs(1);

/// Sends everything of the kinds that count, and then every change, until the receiver is dropped.
///
/// Of the Nodes only the one named `node` is watched. There is no error to return: whatever goes wrong is logged, the last
/// state stays with the receiver, and the watches try again. Dropping the future ends them.
pub async fn run(connection: Connection, node: &str, changes: &Sender) {
    let used = SKIP_LABELS.map(|label| format!("!{label}")).join(",");
    let ours = watcher::Config::default().labels(&used);
    let this_node = watcher::Config::default().fields(&format!("metadata.name={node}"));
    tokio::select! {
        () = changes.closed() => {}
        _ = futures::future::join4(
            watch::<Services>(&connection, ours.clone(), changes),
            watch::<EndpointSlices>(&connection, ours, changes),
            watch::<Nodes>(&connection, this_node, changes),
            watch::<ServiceCidrs>(&connection, watcher::Config::default(), changes),
        ) => {}
    }
}

/// The receiver is gone.
struct Closed;

/// Sends one kind of object.
async fn watch<K: Kind>(connection: &Connection, config: watcher::Config, changes: &Sender) -> Result<(), Closed> {
    let mut progress = Progress::<K> { store: Store::new(), synced: false, complaint: None };
    let mut is_guarded = false;
    loop {
        // One object that does not parse must not hide all others of its list. Reading each of them in a way that allows for
        // that costs several times as much as reading it, so it is done only once there has been such an object.
        let end = if is_guarded {
            follow::<K, DeserializeGuard<Lean<K>>>(connection, &config, changes, &mut progress).await?
        } else {
            follow::<K, Lean<K>>(connection, &config, changes, &mut progress).await?
        };
        match end {
            End::Forgotten => {
                debug!("{}: the server has forgotten the version that was seen last; listing again", K::NAME);
                sleep(RELIST).await;
            }
            End::Malformed => {
                debug!("{}: something cannot be read; listing again, object by object", K::NAME);
                is_guarded = true;
            }
        }
    }
}

/// Why a watch begins anew.
enum End {
    /// The server does not know the version that it has just listed.
    Forgotten,
    /// Something was received that cannot be read as `Lean`.
    Malformed,
}

/// Sends one kind of object, received as `R`.
async fn follow<K: Kind, R: Received<K>>(
    connection: &Connection,
    config: &watcher::Config,
    changes: &Sender,
    progress: &mut Progress<K>,
) -> Result<End, Closed> {
    let api: Api<R> = Api::all(connection.client().clone());
    let mut events = pin!(watcher(api, config.clone()).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => send(changes, progress.take(event)).await?,
            // The watcher lists again after an ERROR event, but after this status it would ask for the same version
            // for ever (kube-runtime 5.0, `State::InitListed`).
            Err(watcher::Error::WatchStartFailed(::kube::Error::Api(status))) if status.code == 410 => break,
            Err(error) if R::IS_ALL_OR_NOTHING && is_malformed(&error) => {
                if matches!(error, watcher::Error::WatchFailed(_)) {
                    // It may be no object at all, which the list has nothing to say of.
                    progress.complain(&error, connection);
                }
                return Ok(End::Malformed);
            }
            Err(error) if K::IS_OPTIONAL && is_refused(&error) => send(changes, progress.note_absence(&error)).await?,
            Err(error) => progress.complain(&error, connection),
        }
    }
    Ok(End::Forgotten)
}

/// How far the watch of one kind has come.
struct Progress<K: Kind> {
    store: Store<K>,
    synced: bool,
    /// What was logged last; `None` when all is well again.
    complaint: Option<String>,
}

impl<K: Kind> Progress<K> {
    /// What an event changes.
    fn take<R: Received<K>>(&mut self, event: watcher::Event<R>) -> Vec<Change> {
        if matches!(event, watcher::Event::Init) {
            self.store.begin_list();
            return Vec::new();
        }
        self.complaint = None;
        match event {
            watcher::Event::Init => Vec::new(),
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                Vec::from_iter(apply(&mut self.store, object))
            }
            watcher::Event::Delete(object) => {
                let name = K::name(::kube::Resource::meta(&object));
                Vec::from_iter(name.and_then(|name| self.store.delete(name)))
            }
            watcher::Event::InitDone => {
                let mut changes = self.store.end_list();
                if !std::mem::replace(&mut self.synced, true) {
                    changes.push(Change::Synced(K::SOURCE));
                }
                changes
            }
        }
    }

    /// The server has no objects of an optional kind to show, which is an answer too. The watch goes on asking: the server may be
    /// replaced by a newer one, and permissions may change.
    fn note_absence(&mut self, error: &watcher::Error) -> Option<Change> {
        let text = error.to_string();
        if self.complaint.as_ref() != Some(&text) {
            info!("{}s are not to be had: {text}", K::NAME);
            self.complaint = Some(text);
        }
        (!std::mem::replace(&mut self.synced, true)).then_some(Change::Synced(K::SOURCE))
    }

    /// Logs what went wrong with a watch, once for as long as it stays the same.
    ///
    /// That the server cannot be reached is no matter of one watch: see `reach`.
    fn complain(&mut self, error: &watcher::Error, connection: &Connection) {
        let is_expired = matches!(error, watcher::Error::WatchError(status) if status.code == 410);
        if is_expired || !connection.is_reachable() {
            debug!("{}: {error}", K::NAME);
            return;
        }
        let text = error.to_string();
        if self.complaint.as_ref() != Some(&text) {
            warn!("watching {}s: {text}; the last state is kept, and the watch tries again", K::NAME);
            self.complaint = Some(text);
        }
    }
}

/// Whether something cannot be read.
fn is_malformed(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed};
    matches!(error, InitialListFailed(::kube::Error::SerdeError(_)) | WatchFailed(::kube::Error::SerdeError(_)))
}

/// Whether the server does not know the kind, or may not show it.
fn is_refused(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::InitialListFailed(::kube::Error::Api(status)) if matches!(status.code, 403 | 404)
    )
}

fn apply<K: Kind>(store: &mut Store<K>, object: impl Received<K>) -> Option<Change> {
    let Some(name) = K::name(::kube::Resource::meta(&object)) else {
        warn!("a {} without a name was received and is ignored: {:?}", K::NAME, object.name_any());
        return None;
    };
    match object.read() {
        Ok(object) => store.apply(name, K::convert(&object)),
        Err(error) => {
            store.malformed(name, error);
            None
        }
    }
}

async fn send(changes: &Sender, batch: impl IntoIterator<Item = Change>) -> Result<(), Closed> {
    for change in batch {
        changes.send(change).await.map_err(|_| Closed)?;
    }
    Ok(())
}
