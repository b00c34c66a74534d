//! An API server for tests: the list and watch protocol of kube-apiserver over plain HTTP, and faults on demand.
//!
//! It keeps Services, EndpointSlices, Nodes and ServiceCIDRs, and an unmodified Kubernetes client can read, write and watch them. It does
//! not validate or default anything, so tests can serve objects that a real server would refuse; what depends on a real
//! server's own behaviour is proved against one (see [`real`]).

mod connections;
pub mod real;
mod selector;
mod serve;
mod status;
mod storage;
mod stream;
mod target;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::http::StatusCode;
use serde_json::Value;
use tokio::sync::{broadcast, watch};

use self::{connections::Connections, storage::Storage};
pub use self::{status::Failure, target::Resource};

/// How many requests are remembered.
const REQUESTS: usize = 10_000;

/// An API server that the same tests run against, whatever stands behind it.
pub trait ApiServer: Sized + Send {
    /// Starts the server.
    fn start() -> impl Future<Output = Result<Self>> + Send;
    /// How clients reach it.
    fn config(&self) -> kube::Config;
    /// Takes it away: connections break, new ones are refused, objects stay.
    fn go_away(&mut self) -> impl Future<Output = Result<()>> + Send;
    /// Brings it back at the same address.
    fn come_back(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// The server for tests; dropping it ends it.
#[derive(Debug)]
pub struct TestServer {
    shared: Arc<Shared>,
    addr: SocketAddr,
    bind: Bind,
    connections: Option<Connections>,
}

/// Makes the listening socket, each time the server comes back; a closure can enter a network namespace first.
#[derive(Clone)]
pub struct Bind(Arc<dyn Fn() -> io::Result<TcpListener> + Send + Sync>);

impl std::fmt::Debug for Bind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bind")
    }
}

/// One request that the server has received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The query's parameters.
    pub query: BTreeMap<String, String>,
}

impl Request {
    /// Whether a watch was asked for.
    #[must_use]
    pub fn is_watch(&self) -> bool {
        self.query.get("watch").is_some_and(|watch| matches!(&**watch, "1" | "true"))
    }

    /// A parameter, empty when it was not given.
    #[must_use]
    pub fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }
}

/// What can be told to all watch streams while they run.
#[derive(Clone, Debug)]
enum Command {
    Bookmark,
    Line(String),
    Repeat,
}

/// How the server misbehaves.
#[derive(Clone, Debug, Default)]
struct Faults {
    /// Answer everything with this status.
    answer: Option<StatusCode>,
    /// Kinds that it has never heard of.
    unknown: BTreeSet<Resource>,
    /// Say that a version is too old by the HTTP status rather than by an event in the stream.
    expire_by_status: bool,
    /// Send so many bytes at a time, and pause after them.
    trickle: Option<(usize, Duration)>,
}

/// What requests work on.
#[derive(Debug)]
struct Shared {
    storage: Mutex<Storage>,
    /// The version of the last write, for streams that wait.
    version: watch::Sender<u64>,
    commands: broadcast::Sender<Command>,
    faults: Mutex<Faults>,
    requests: Mutex<VecDeque<Request>>,
    uids: AtomicU32,
}

impl Shared {
    fn storage(&self) -> MutexGuard<'_, Storage> {
        self.storage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, request: Request) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.push_back(request);
        while requests.len() > REQUESTS {
            requests.pop_front();
        }
    }
}

impl ApiServer for TestServer {
    async fn start() -> Result<Self> {
        // Each server has a loopback address of its own, so that nothing takes its port while it is away.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id().wrapping_mul(64).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let [_, a, b, c] = number.to_be_bytes();
        let addr = SocketAddr::from((Ipv4Addr::new(127, a | 0x80, b, c), 6443));
        Self::start_with(Bind::new(move || TcpListener::bind(addr)))
    }

    fn config(&self) -> kube::Config {
        let mut config = kube::Config::new(self.url().parse().unwrap_or_default());
        // A server that answers 503 for a while is a fault to observe, not to paper over.
        config.default_retry = false;
        config
    }

    async fn go_away(&mut self) -> Result<()> {
        if let Some(connections) = self.connections.take() {
            connections.stop().await;
        }
        Ok(())
    }

    async fn come_back(&mut self) -> Result<()> {
        if self.connections.is_none() {
            let (connections, _) = Connections::serve(&self.bind, Arc::clone(&self.shared))?;
            self.connections = Some(connections);
        }
        Ok(())
    }
}

impl Bind {
    /// Listens with what `bind` returns.
    pub fn new(bind: impl Fn() -> io::Result<TcpListener> + Send + Sync + 'static) -> Self {
        Self(Arc::new(bind))
    }
}

impl TestServer {
    /// Starts the server with a listening socket of the caller's; within a tokio runtime.
    pub fn start_with(bind: Bind) -> Result<Self> {
        let shared = Arc::new(Shared {
            storage: Mutex::new(Storage::new()),
            version: watch::Sender::new(0),
            commands: broadcast::Sender::new(64),
            faults: Mutex::default(),
            requests: Mutex::default(),
            uids: AtomicU32::new(1),
        });
        let (connections, addr) = Connections::serve(&bind, Arc::clone(&shared))?;
        Ok(Self { shared, addr, bind, connections: Some(connections) })
    }

    /// The server's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// A kubeconfig file's text that leads here.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        let url = self.url();
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: '{url}'}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n\
             users: [{{name: test, user: {{}}}}]\n"
        )
    }

    /// Creates an object, or replaces it whatever its version, and returns it as stored; its status stays when none is given.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        self.write(object, |old| {
            let mut new = object.clone();
            if let (None, Some(status)) = (new.get("status"), old.and_then(|old| old.get("status"))) {
                new["status"] = status.clone();
            }
            Ok(Some(new))
        })
    }

    /// Creates or replaces every object of a YAML text with any number of documents.
    pub fn apply_yaml(&self, yaml: &str) -> Result<()> {
        for document in serde_norway::Deserializer::from_str(yaml) {
            let object: Value = serde::Deserialize::deserialize(document)?;
            self.apply(&object)?;
        }
        Ok(())
    }

    /// Replaces an object's status by the one of `object`.
    pub fn update_status(&self, object: &Value) -> Result<Value> {
        self.write(object, |old| {
            let mut updated = old.ok_or_else(|| Failure::not_found("the object"))?.clone();
            updated["status"] = object.get("status").cloned().unwrap_or_default();
            Ok(Some(updated))
        })
    }

    /// Deletes the object with the kind and name of `object`, and returns it as it was.
    pub fn delete(&self, object: &Value) -> Result<Value> {
        self.write(object, |_| Ok(None))
    }

    /// Writes the text of every object, so that no client has to wait for that.
    pub fn prepare(&self) {
        self.shared.storage().prepare();
    }

    /// What was asked of the server, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        let requests = self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().cloned().collect()
    }

    /// How many watch streams are open.
    #[must_use]
    pub fn open_watches(&self) -> usize {
        self.shared.commands.receiver_count()
    }

    /// The version of the last write.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.storage().version()
    }

    /// Breaks every connection off; new ones are accepted.
    pub fn drop_connections(&self) {
        if let Some(connections) = &self.connections {
            connections.drop_all();
        }
    }

    /// Forgets the history: versions handed out before are answered with 410 Gone, and running streams end with it.
    ///
    /// A watch that begins at such a version gets the HTTP status when `by_status`, and an ERROR event otherwise; the real
    /// server does either, depending on where it notices.
    pub fn expire(&self, by_status: bool) {
        self.shared.faults().expire_by_status = by_status;
        let version = {
            let mut storage = self.shared.storage();
            storage.compact();
            storage.version()
        };
        self.shared.version.send_replace(version);
    }

    /// Sends a bookmark on every stream that allows them.
    pub fn send_bookmarks(&self) {
        self.tell(Command::Bookmark);
    }

    /// Sends a line that is no event on every stream.
    pub fn send_line(&self, line: &str) {
        self.tell(Command::Line(line.to_owned()));
    }

    /// Sends the last event of every stream once more.
    pub fn repeat_events(&self) {
        self.tell(Command::Repeat);
    }

    /// Answers every request with `code` from now on; `None` ends that.
    pub fn answer_with(&self, code: Option<StatusCode>) {
        self.shared.faults().answer = code;
    }

    /// Knows nothing of a kind from now on, like an old server.
    pub fn without(&self, resource: Resource) {
        self.shared.faults().unknown.insert(resource);
    }

    /// Sends every body that begins from now on `bytes` at a time with a `pause` after them.
    pub fn trickle(&self, bytes: usize, pause: Duration) {
        self.shared.faults().trickle = Some((bytes.max(1), pause));
    }

    fn tell(&self, command: Command) {
        // Without any stream there is nobody to tell.
        self.shared.commands.send(command).ok();
    }

    fn write(
        &self,
        object: &Value,
        new: impl FnOnce(Option<&Value>) -> Result<Option<Value>, Failure>,
    ) -> Result<Value> {
        let word = |name: &str| object[name].as_str().unwrap_or_default();
        let resource = Resource::of_kind(word("apiVersion"), word("kind"))
            .with_context(|| format!("no objects of kind {} {} are kept", word("apiVersion"), word("kind")))?;
        let key = serve::key(resource, &object["metadata"]).context("the object has no name")?;
        let stored = serve::change(&self.shared, resource, key, new)?;
        Ok(Value::clone(&stored))
    }
}
