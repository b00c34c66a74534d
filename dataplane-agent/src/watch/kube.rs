//! The Kubernetes API server as the source of Services, EndpointSlices and this node's Node.
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

use ::kube::{
    Api, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{WatchStreamExt as _, watcher},
};
use futures::StreamExt as _;
use tracing::{debug, warn};

pub use self::client::{Access, ClientError, Connection};
use super::{
    SKIP_LABELS, Sender,
    kind::{EndpointSlices, Kind, Nodes, Services},
    store::Store,
};
use crate::model::Change;

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
        _ = futures::future::join3(
            watch::<Services>(&connection, ours.clone(), changes),
            watch::<EndpointSlices>(&connection, ours, changes),
            watch::<Nodes>(&connection, this_node, changes),
        ) => {}
    }
}

/// The receiver is gone.
struct Closed;

/// Sends one kind of object.
async fn watch<K: Kind>(connection: &Connection, config: watcher::Config, changes: &Sender) -> Result<(), Closed> {
    // One object that does not parse must not hide all others of its list.
    let api: Api<DeserializeGuard<K::Object>> = Api::all(connection.client().clone());
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut store = Store::<K>::new();
    let mut synced = false;
    let mut complaint = None;
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                complain::<K>(&mut complaint, &error, connection);
                continue;
            }
        };
        match event {
            watcher::Event::Init => store.begin_list(),
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                complaint = None;
                send(changes, apply(&mut store, object)).await?;
            }
            watcher::Event::Delete(object) => {
                complaint = None;
                let gone = K::name(::kube::Resource::meta(&object)).and_then(|name| store.delete(name));
                send(changes, gone).await?;
            }
            watcher::Event::InitDone => {
                complaint = None;
                send(changes, store.end_list()).await?;
                if !synced {
                    synced = true;
                    send(changes, [Change::Synced(K::SOURCE)]).await?;
                }
            }
        }
    }
    Ok(())
}

fn apply<K: Kind>(store: &mut Store<K>, object: DeserializeGuard<K::Object>) -> Option<Change> {
    let Some(name) = K::name(::kube::Resource::meta(&object)) else {
        warn!("a {} without a name was received and is ignored: {:?}", K::NAME, object.name_any());
        return None;
    };
    match object.0 {
        Ok(object) => store.apply(name, K::convert(&object)),
        Err(invalid) => {
            store.malformed(name, invalid.error);
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

/// Logs what went wrong with a watch, once for as long as it stays the same.
///
/// That the server cannot be reached is no matter of one watch: see `reach`.
fn complain<K: Kind>(last: &mut Option<String>, error: &watcher::Error, connection: &Connection) {
    let is_expired = match error {
        watcher::Error::WatchError(status) => status.code == 410,
        watcher::Error::WatchStartFailed(::kube::Error::Api(status))
        | watcher::Error::InitialListFailed(::kube::Error::Api(status)) => status.code == 410,
        _ => false,
    };
    if is_expired {
        debug!("{}: the server has forgotten the version that was seen last; listing again", K::NAME);
        return;
    }
    if !connection.is_reachable() {
        debug!("{}: {error}", K::NAME);
        return;
    }
    let text = error.to_string();
    if last.as_ref() != Some(&text) {
        warn!("watching {}s: {text}; the last state is kept, and the watch tries again", K::NAME);
        *last = Some(text);
    }
}
