//! Whether the API server answers, over all watches together, and one log line each time that this changes.

use std::{
    error::Error as StdError,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use http::Response;
use tower::BoxError;
use tracing::{info, warn};

/// What is known of one server; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    server: Arc<str>,
    /// Since when the server has not answered; `None` while it does.
    away: Arc<Mutex<Option<Instant>>>,
}

impl Reach {
    pub(super) fn new(server: String) -> Self {
        Self { server: server.into(), away: Arc::default() }
    }

    pub(super) fn is_reachable(&self) -> bool {
        self.away().is_none()
    }

    /// Notes the outcome of one request, which is passed on as it is.
    pub(super) fn observe<B>(&self, result: Result<Response<B>, BoxError>) -> Result<Response<B>, BoxError> {
        match &result {
            // A balancer in front of the server answers so when nothing stands behind it.
            Ok(response) if response.status().is_server_error() => {
                self.lost(&format!("answered {}", response.status()))
            }
            Ok(_) => self.found(),
            Err(error) => self.lost(&root_cause(error.as_ref())),
        }
        result
    }

    fn lost(&self, why: &str) {
        let mut away = self.away();
        if away.is_none() {
            *away = Some(Instant::now());
            warn!(
                "the API server {} cannot be reached: {why}; the last state is kept, and the watches try again",
                self.server
            );
        }
    }

    fn found(&self) {
        if let Some(since) = self.away().take() {
            info!("the API server {} is reachable again after {:.1?}", self.server, since.elapsed());
        }
    }

    /// A poisoned lock holds an instant that is as good as any.
    fn away(&self) -> MutexGuard<'_, Option<Instant>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The innermost error says what happened; those around it that a client had an error.
fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
