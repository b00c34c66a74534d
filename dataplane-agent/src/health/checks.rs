//! healthCheckNodePorts: a server per Service that tells a load balancer whether this node has endpoints for it.

mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use self::server::Server;
use super::Health;
use crate::model::ObjectName;

/// When a port that is taken is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// The servers that there should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// Services that have a healthCheckNodePort.
    pub services: BTreeMap<ObjectName, Check>,
    /// The addresses to listen on; all of the node's when absent.
    pub addresses: Option<BTreeSet<IpAddr>>,
}

/// One Service's health on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// `spec.healthCheckNodePort`
    pub port: NonZeroU16,
    /// Addresses of ready endpoints on this node.
    pub local_endpoints: usize,
}

/// A port that could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("failed to start healthcheck \"{service}\" on port {port}: {source}")]
pub struct CheckFailed {
    /// The Service.
    pub service: ObjectName,
    /// Its port.
    pub port: NonZeroU16,
    /// Why.
    pub source: io::Error,
}

/// Keeps the servers as `wanted` says until its sender is gone; `failed` hears of each port that cannot be had, once for as
/// long as it stays so, while it is tried again.
pub async fn run(mut wanted: watch::Receiver<Checks>, health: Arc<Health>, failed: impl Fn(&CheckFailed) + Send) {
    let mut servers = BTreeMap::<ObjectName, Server>::new();
    let mut failing = BTreeMap::<ObjectName, String>::new();
    loop {
        let checks = wanted.borrow_and_update().clone();
        let addresses = checks.listen_on();
        servers.retain(|name, server| {
            let stays = checks.services.get(name).is_some_and(|check| server.is_on(check.port, &addresses));
            if !stays {
                info!(service = %name, "health check closed");
            }
            stays
        });
        failing.retain(|name, _| checks.services.contains_key(name));
        for (name, check) in &checks.services {
            if let Some(server) = servers.get(name) {
                server.set_endpoints(check.local_endpoints);
                continue;
            }
            match Server::start(name, *check, addresses.clone(), Arc::clone(&health)) {
                Ok(server) => {
                    failing.remove(name);
                    info!(service = %name, port = check.port, "health check open");
                    servers.insert(name.clone(), server);
                }
                Err(source) => {
                    let error = CheckFailed { service: name.clone(), port: check.port, source };
                    let text = error.to_string();
                    if failing.get(name) != Some(&text) {
                        warn!("{error}; tried again every {} s", RETRY.as_secs());
                        failed(&error);
                        failing.insert(name.clone(), text);
                    }
                }
            }
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = sleep(RETRY), if !failing.is_empty() => {}
        }
    }
}

impl Checks {
    fn listen_on(&self) -> BTreeSet<IpAddr> {
        // The unspecified address takes both families: see `listen`.
        self.addresses.clone().unwrap_or_else(|| BTreeSet::from([Ipv4Addr::UNSPECIFIED.into()]))
    }
}

/// `ip` and `port` together.
fn on(ip: &IpAddr, port: NonZeroU16) -> SocketAddr {
    SocketAddr::new(*ip, port.get())
}
