//! Kubernetes Events: what an operator finds with `kubectl describe`.

use std::{sync::Arc, time::Duration};

use ::kube::runtime::events::{self, EventType, Reporter};
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::kube::Connection;
use crate::model::ObjectName;

/// Attempts to write an event, each after twice the time of the one before.
const ATTEMPTS: u32 = 6;

/// Writes events, or only logs them where there is no API server.
#[derive(Clone)]
pub struct Recorder {
    api: Option<Arc<events::Recorder>>,
    node: String,
}

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// This node.
    Node,
    /// A Service.
    Service(ObjectName),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The object.
    pub about: About,
    /// Whether something is wrong.
    pub is_warning: bool,
    /// Why, in one word.
    pub reason: &'static str,
    /// What was done, in one word.
    pub action: &'static str,
    /// What there is to say.
    pub note: String,
}

impl Recorder {
    /// Events of the agent of `node`, written through `connection`; without one they are only logged.
    pub fn new(connection: Option<&Connection>, node: &str) -> Self {
        let reporter = || Reporter { controller: "sluice".into(), instance: Some(node.to_owned()) };
        let api = connection.map(|connection| Arc::new(events::Recorder::new(connection.client().clone(), reporter())));
        Self { api, node: node.to_owned() }
    }

    /// Logs `event`, and writes it in the background; an API server that is away for long never sees it.
    pub fn publish(&self, event: Event) {
        if event.is_warning {
            warn!(reason = event.reason, "{}", event.note);
        } else {
            info!(reason = event.reason, "{}", event.note);
        }
        let Some(api) = self.api.clone() else { return };
        let regarding = self.reference(&event.about);
        let event = events::Event {
            type_: if event.is_warning { EventType::Warning } else { EventType::Normal },
            reason: event.reason.to_owned(),
            note: Some(event.note),
            action: event.action.to_owned(),
            secondary: None,
        };
        tokio::spawn(async move {
            for attempt in 0..ATTEMPTS {
                match api.publish(&event, &regarding).await {
                    Ok(()) => return,
                    Err(error) => debug!(reason = event.reason, %error, "the event is not written"),
                }
                sleep(Duration::from_secs(1 << attempt)).await;
            }
        });
    }

    fn reference(&self, about: &About) -> ObjectReference {
        let api_version = Some("v1".to_owned());
        match about {
            // The kubelet's convention for events about its node, which `kubectl describe node` looks for.
            About::Node => ObjectReference {
                api_version,
                kind: Some("Node".into()),
                name: Some(self.node.clone()),
                uid: Some(self.node.clone()),
                ..ObjectReference::default()
            },
            About::Service(name) => ObjectReference {
                api_version,
                kind: Some("Service".into()),
                namespace: Some(name.namespace.to_string()),
                name: Some(name.name.to_string()),
                ..ObjectReference::default()
            },
        }
    }
}
