//! The loop itself, on a real clock.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc, watch};

use super::*;
use crate::{
    sync::{Observer, Options, Status, run},
    tables::{BackendId, BackendRow},
};

/// What the loop has told.
#[derive(Clone, Debug, Default)]
struct Told {
    gone: Arc<Mutex<Vec<String>>>,
    settled: Arc<AtomicBool>,
}

impl Observer for Told {
    fn settled(&mut self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    fn backends_gone(&mut self, gone: &[(BackendId, BackendRow)]) {
        self.gone.lock().unwrap().extend(gone.iter().map(|(id, row)| format!("{id} {}", row.addr)));
    }
}

/// The loop in a task of its own, on maps in memory.
struct Running {
    changes: mpsc::Sender<Change>,
    status: watch::Receiver<Arc<Status>>,
    told: Told,
    attached: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl Running {
    fn start(maps: MemoryMaps) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new("here");
        options.status_file = Some(dir.path().join("run/status.json"));
        let (changes, receiver) = mpsc::channel(64);
        let (sender, status) = watch::channel(Arc::default());
        let (attached, known) = watch::channel(true);
        options.attached = Some(known);
        let told = Told::default();
        let observer = told.clone();
        let task = tokio::spawn(async move {
            run(options, maps, receiver, sender, observer, std::future::pending()).await.unwrap();
        });
        Self { changes, status, told, attached, task, dir }
    }

    async fn send(&self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.changes.send(change).await.unwrap();
        }
    }

    async fn sync(&self) {
        self.send(Source::ALL.map(Change::Synced)).await;
    }

    async fn wait(&mut self, what: impl FnMut(&Arc<Status>) -> bool) -> Arc<Status> {
        let found = tokio::time::timeout(Duration::from_secs(10), self.status.wait_for(what)).await;
        Arc::clone(&found.unwrap().unwrap())
    }

    async fn stop(self) -> Status {
        drop(self.changes);
        self.task.await.unwrap();
        Status::read(&self.dir.path().join("run/status.json")).unwrap()
    }
}

#[tokio::test]
async fn changes_are_installed_and_the_status_file_tells() {
    let mut running = Running::start(MemoryMaps::default());
    running.send([set_service("web", service(&["10.96.0.1"])), set_slice("web", "10.0.0.1 10.0.0.2")]).await;
    let waiting = running.wait(|status| status.waiting_for.len() == 5).await;
    assert_eq!(waiting.services, 0);
    running.sync().await;
    let status = running.wait(|status| status.backends == 2).await;
    assert_eq!((status.services, status.frontends, status.operations), (1, 1, 7));
    running.send([set_slice("web", "10.0.0.1")]).await;
    running.wait(|status| status.backends == 1).await;
    assert_eq!(*running.told.gone.lock().unwrap(), ["4.2 10.0.0.2:8080"]);
    let status = running.stop().await;
    assert_eq!((status.node.as_str(), status.backends, status.failed_operations), ("here", 1, 0));
    assert!(status.last_change_millis > 0 && status.errors.is_empty());
}

#[tokio::test]
async fn the_maps_are_written_before_the_programs_are_attached_and_nothing_is_ready_before() {
    let mut running = Running::start(MemoryMaps::default());
    running.attached.send_replace(false);
    running.send([set_service("web", service(&["10.96.0.1"])), set_slice("web", "10.0.0.1")]).await;
    running.sync().await;
    let status = running.wait(|status| status.backends == 1 && status.rounds > 0).await;
    assert_eq!((status.is_ready(), &*status.waiting_for), (false, &["programs".to_owned()][..]));
    assert!(!running.told.settled.load(Ordering::Relaxed), "health would say so");
    running.attached.send_replace(true);
    running.wait(|status| status.is_ready()).await;
    assert!(running.told.settled.load(Ordering::Relaxed));
}

#[tokio::test]
async fn p55_a_burst_is_few_rounds() {
    let mut running = Running::start(MemoryMaps::default());
    running.sync().await;
    running.send([set_service("web", service(&["10.96.0.1"]))]).await;
    running.send((1..=2000).map(|count| set_slice("web", &format!("10.0.{}.{}", count / 250, count % 250)))).await;
    running.send([set_slice("web", "10.9.9.9 10.9.9.8 10.9.9.7")]).await;
    let status = running.wait(|status| status.backends == 3).await;
    assert!(status.rounds < 500, "{} rounds", status.rounds);
}

#[tokio::test]
async fn a_failing_service_is_named_and_tried_again() {
    let maps = MemoryMaps { refuse: vec!["+ frontend 10.96.0.1".to_owned()], ..MemoryMaps::default() };
    let mut running = Running::start(maps);
    running.send([set_service("web", service(&["10.96.0.1"])), set_service("api", service(&["10.96.0.2"]))]).await;
    running.sync().await;
    let status = running.wait(|status| status.failed_operations >= 3).await;
    assert_eq!(status.errors.get("default/web").map(String::as_str), Some("map frontends is full"));
    assert_eq!((status.frontends, status.errors.len()), (1, 1));
    // What cannot be installed may be wished for no longer.
    running.send([Change::Service(name("web"), None)]).await;
    running.wait(|status| status.errors.is_empty()).await;
}
