//! The receiving end of a source: what it has heard, what that adds up to, and what was logged meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use dataplane_agent::{
    model::{Change, ObjectName, Source, endpoint::EndpointSlice, node::Node, service::Service},
    watch::{
        file,
        kube::{self as kube_source, Connection},
    },
};
use ipnetwork::IpNetwork;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::EnvFilter;

/// The node that the source works for.
pub(crate) const NODE: &str = "node-a";

/// Far longer than anything takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all changes so far add up to.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) services: BTreeMap<ObjectName, Service>,
    pub(crate) slices: BTreeMap<ObjectName, EndpointSlice>,
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) service_cidrs: BTreeMap<String, Vec<IpNetwork>>,
    pub(crate) synced: BTreeSet<Source>,
}

/// A running source and everything it has sent.
pub(crate) struct Observer {
    pub(crate) state: State,
    /// Every change, in order.
    pub(crate) heard: Vec<Change>,
    pub(crate) log: Log,
    changes: mpsc::Receiver<Change>,
    task: JoinHandle<Result<()>>,
}

impl Observer {
    /// Watches an API server.
    pub(crate) fn of_server(config: kube::Config) -> Result<Self> {
        let log = Log::capture();
        let connection = Connection::with_config(config)?;
        let (sender, changes) = mpsc::channel(16);
        let task = tokio::spawn(async move {
            kube_source::run(connection, NODE, &sender).await;
            Ok(())
        });
        Ok(Self { state: State::default(), heard: Vec::new(), log, changes, task })
    }

    /// Watches a folder.
    pub(crate) fn of_folder(folder: &Path) -> Self {
        let log = Log::capture();
        let (sender, changes) = mpsc::channel(16);
        let folder = folder.to_owned();
        let task = tokio::spawn(async move { Ok(file::run(folder, NODE, &sender).await?) });
        Self { state: State::default(), heard: Vec::new(), log, changes, task }
    }

    /// Listens until `holds`.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&State) -> bool) -> Result<()> {
        let listening = async {
            while !holds(&self.state) {
                let change = self.changes.recv().await.context("the source has ended")?;
                self.hear(change);
            }
            anyhow::Ok(())
        };
        match timeout(PATIENCE, listening).await {
            Ok(result) => result,
            Err(_) => bail!("waited in vain until {what}: {:#?}\n{}", self.state, self.log.text()),
        }
    }

    /// Listens until the log says `text`.
    pub(crate) async fn until_logged(&mut self, text: &str) -> Result<()> {
        let begun = tokio::time::Instant::now();
        while !self.log.text().contains(text) {
            if begun.elapsed() > PATIENCE {
                bail!("waited in vain for the log to say {text:?}:\n{}", self.log.text());
            }
            self.listen(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Listens until every source is synced.
    pub(crate) async fn until_synced(&mut self) -> Result<()> {
        let all = [Source::Services, Source::EndpointSlices, Source::Nodes, Source::ServiceCidrs];
        self.until("everything is synced", |state| all.iter().all(|source| state.synced.contains(source))).await
    }

    /// Listens for so long.
    pub(crate) async fn listen(&mut self, duration: Duration) {
        let listening = async {
            while let Some(change) = self.changes.recv().await {
                self.hear(change);
            }
        };
        // It ends by its timeout, unless the source has ended.
        timeout(duration, listening).await.ok();
    }

    /// Everything heard since this was last asked.
    pub(crate) fn take_heard(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.heard)
    }

    /// The names of the Services there are.
    pub(crate) fn services(&self) -> Vec<&str> {
        self.state.services.keys().map(|name| &*name.name).collect()
    }

    /// Waits for the source to end, with what it ends with.
    pub(crate) async fn ended(self) -> Result<()> {
        drop(self.changes);
        timeout(PATIENCE, self.task).await.context("the source does not end")??
    }

    fn hear(&mut self, change: Change) {
        match &change {
            // The real server keeps a Service for itself.
            Change::Service(name, _) | Change::EndpointSlice(name, _) if name.name.starts_with("kubernetes") => return,
            Change::Service(name, value) => set(&mut self.state.services, name, value.as_ref()),
            Change::EndpointSlice(name, value) => set(&mut self.state.slices, name, value.as_ref()),
            Change::Node(name, value) => set(&mut self.state.nodes, name, value.as_ref()),
            Change::Synced(source) => drop(self.state.synced.insert(*source)),
            // The real server has one of its own.
            Change::ServiceCidr(name, _) if name == "kubernetes" => return,
            Change::ServiceCidr(name, value) => set(&mut self.state.service_cidrs, name, value.as_ref()),
            Change::LocalAddresses(_) | Change::Settings(_) => {}
        }
        self.heard.push(change);
    }
}

fn set<K: Ord + Clone, V: Clone>(map: &mut BTreeMap<K, V>, name: &K, value: Option<&V>) {
    match value {
        Some(value) => drop(map.insert(name.clone(), value.clone())),
        None => drop(map.remove(name)),
    }
}

/// What this thread logs for people to read, until it is dropped.
pub(crate) struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    _guard: DefaultGuard,
}

struct Writer(Arc<Mutex<Vec<u8>>>);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().map_err(|_| io::ErrorKind::Other)?.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn capture() -> Self {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let writer = Arc::clone(&text);
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(format!("info,{}", kube_source::LOG_FILTER)))
            .with_ansi(false)
            .without_time()
            .with_writer(move || Writer(Arc::clone(&writer)))
            .finish();
        Self { text, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// Everything logged so far.
    pub(crate) fn text(&self) -> String {
        self.text.lock().map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// The lines with `part`.
    pub(crate) fn lines_with(&self, part: &str) -> Vec<String> {
        self.text().lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
    }
}
