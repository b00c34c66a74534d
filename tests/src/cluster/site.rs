//! A place that traffic comes from and goes to: a pod, a node's own processes, or a client outside.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Mutex, OnceLock, PoisonError},
};

use anyhow::Result;
use dataplane_common::Protocol;

use crate::{
    cgroup::Cgroup,
    netns::Netns,
    topology::{Addresses, IpVersion},
    traffic::{Answer, Ask, Connection, Failure, Load, Report, Traffic, protocol::Transport},
};

/// What a site stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A pod.
    Pod,
    /// A node's own processes.
    Host,
    /// A client outside the cluster.
    External,
}

/// A pod, a node's own processes, or a client outside.
#[derive(Debug)]
pub struct Site {
    name: String,
    role: Role,
    addresses: Addresses,
    // Before the namespace and the cgroup: the process ends first.
    traffic: OnceLock<Traffic>,
    starting: Mutex<()>,
    netns: Netns,
    cgroup: Option<Cgroup>,
}

impl Site {
    /// A site in `netns`, whose processes belong to `cgroup`.
    pub fn new(name: &str, role: Role, addresses: Addresses, netns: Netns, cgroup: Option<Cgroup>) -> Self {
        let name = name.to_owned();
        Self { name, role, addresses, traffic: OnceLock::new(), starting: Mutex::new(()), netns, cgroup }
    }

    /// The name, with which its servers answer.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it stands for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its address of `version`.
    pub fn ip(&self, version: IpVersion) -> IpAddr {
        self.addresses.ip(version)
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its cgroup: a node's, or a pod's below that; outside there is none.
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// The traffic process, started on first use.
    pub fn traffic(&self) -> Result<&Traffic> {
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(traffic) = self.traffic.get() {
            return Ok(traffic);
        }
        let traffic = Traffic::start(&self.netns, self.cgroup.as_ref())?;
        Ok(self.traffic.get_or_init(|| traffic))
    }

    /// Serves TCP and UDP on `port` at both of the site's addresses.
    pub fn serve(&self, port: u16) -> Result<()> {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            self.serve_only(protocol, port)?;
        }
        Ok(())
    }

    /// Serves one protocol on `port` at both of the site's addresses.
    pub fn serve_only(&self, protocol: Protocol, port: u16) -> Result<()> {
        for version in IpVersion::BOTH {
            self.traffic()?.serve(&self.name, protocol, (self.ip(version), port).into())?;
        }
        Ok(())
    }

    /// Asks whoever answers at `to`.
    pub fn ask(&self, ask: &Ask) -> Result<Result<Answer, Failure>> {
        self.traffic()?.ask(ask)
    }

    /// Asks over a TCP connection of its own.
    pub fn tcp(&self, to: SocketAddr) -> Result<Result<Answer, Failure>> {
        self.ask(&Ask::new(Transport::Tcp, to))
    }

    /// Asks from a connected UDP socket of its own.
    pub fn udp(&self, to: SocketAddr) -> Result<Result<Answer, Failure>> {
        self.ask(&Ask::new(Transport::Udp, to))
    }

    /// Asks `count` times, one after the other.
    pub fn repeat(&self, ask: &Ask, count: u32) -> Result<Report> {
        self.traffic()?.repeat(ask, count)
    }

    /// Opens a connection that stays until it is dropped.
    pub fn open(&self, ask: &Ask) -> Result<Connection<'_>> {
        self.traffic()?.open(ask)
    }

    /// Asks `per_second` times a second until the load is finished.
    pub fn load(&self, ask: &Ask, per_second: u32) -> Result<Load<'_>> {
        self.traffic()?.load(ask, per_second)
    }
}
