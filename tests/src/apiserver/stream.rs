//! Watch streams: one JSON event per line, for as long as the client listens.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{Response, header},
};
use futures::{StreamExt as _, stream};
use serde_json::json;
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{Command, Shared, selector::Selector, status::Failure, target::Resource};

/// How often a stream that allows them gets a bookmark; the real server's is about a minute.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// How long a stream lasts when the client does not say.
const TIMEOUT: u64 = 1800;

/// What a client asked for.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) resource: Resource,
    pub(super) selector: Selector,
    /// Where to begin; `None` begins with everything there is, as added.
    pub(super) version: Option<u64>,
    pub(super) bookmarks: bool,
    pub(super) timeout: Option<u64>,
}

/// One stream.
pub(super) struct Stream {
    shared: Arc<Shared>,
    options: Options,
    /// The last version that the client knows.
    position: u64,
    pending: VecDeque<Bytes>,
    last: Option<Bytes>,
    versions: watch::Receiver<u64>,
    commands: broadcast::Receiver<Command>,
    deadline: Instant,
    bookmark: Instant,
    has_ended: bool,
}

impl Stream {
    /// Begins a stream.
    pub(super) fn respond(shared: &Arc<Shared>, options: Options) -> Result<Response<Body>, Failure> {
        let storage = shared.storage();
        let mut pending = VecDeque::new();
        let position = match options.version {
            Some(version) => {
                let events = storage.events(options.resource, &options.selector, version);
                if let (Err(expired), true) = (events, shared.faults().expire_by_status) {
                    return Err(expired);
                }
                version
            }
            None => {
                let page = storage.list(options.resource, &options.selector, None, None, usize::MAX)?;
                pending.extend(page.items.iter().map(|item| line("ADDED", item.text())));
                page.version
            }
        };
        drop(storage);
        let now = Instant::now();
        let stream = Self {
            position,
            last: pending.back().cloned(),
            pending,
            versions: shared.version.subscribe(),
            commands: shared.commands.subscribe(),
            deadline: now + Duration::from_secs(options.timeout.unwrap_or(TIMEOUT)),
            bookmark: now + BOOKMARKS,
            has_ended: false,
            options,
            shared: Arc::clone(shared),
        };
        let lines = stream::unfold(stream, |mut stream| async move {
            let line = stream.next().await?;
            Some((Ok::<_, Infallible>(line), stream))
        });
        let mut response = Response::new(Body::from_stream(lines));
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        Ok(response)
    }

    /// The next line; it is made only when the client has taken the one before.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.pending.pop_front() {
                return Some(line);
            }
            if self.has_ended {
                return None;
            }
            self.collect();
            if self.pending.is_empty() && !self.has_ended {
                self.wait().await;
            }
        }
    }

    /// Takes up what was written since.
    fn collect(&mut self) {
        let storage = self.shared.storage();
        match storage.events(self.options.resource, &self.options.selector, self.position) {
            Ok(events) => {
                self.position = storage.version();
                self.pending.extend(events.iter().map(|seen| line(seen.kind, seen.object.text())));
                self.last = self.pending.back().cloned().or_else(|| self.last.take());
            }
            Err(expired) => {
                self.pending.push_back(line("ERROR", &expired.object().to_string()));
                self.has_ended = true;
            }
        }
    }

    async fn wait(&mut self) {
        tokio::select! {
            changed = self.versions.changed() => self.has_ended = changed.is_err(),
            command = self.commands.recv() => match command {
                Ok(Command::Bookmark) => self.push_bookmark(),
                Ok(Command::Line(text)) => self.pending.push_back(format!("{text}\n").into()),
                Ok(Command::Repeat) => self.pending.extend(self.last.clone()),
                // Too many at once: those that are lost were faults anyway.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => self.has_ended = true,
            },
            () = sleep_until(self.bookmark) => self.push_bookmark(),
            () = sleep_until(self.deadline) => {
                // The real server says where it ends, too.
                self.push_bookmark();
                self.has_ended = true;
            }
        }
    }

    fn push_bookmark(&mut self) {
        self.bookmark = Instant::now() + BOOKMARKS;
        // A bookmark says that everything up to its version has been sent.
        self.collect();
        if self.options.bookmarks && !self.has_ended {
            let object = json!({
                "apiVersion": self.options.resource.api_version(),
                "kind": self.options.resource.kind(),
                "metadata": {"resourceVersion": self.position.to_string(), "creationTimestamp": null},
            });
            self.pending.push_back(line("BOOKMARK", &object.to_string()));
        }
    }
}

fn line(kind: &str, object: &str) -> Bytes {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into()
}

/// Sends a body in small pieces with pauses between them.
pub(super) fn trickled(body: Body, bytes: usize, pause: Duration) -> Body {
    let pieces = body.into_data_stream().flat_map(move |chunk| {
        let pieces: Vec<_> = match chunk {
            Ok(chunk) => {
                (0..chunk.len()).step_by(bytes).map(|at| Ok(chunk.slice(at..chunk.len().min(at + bytes)))).collect()
            }
            Err(error) => vec![Err(error)],
        };
        stream::iter(pieces).then(move |piece| async move {
            sleep(pause).await;
            piece
        })
    });
    Body::from_stream(pieces)
}
