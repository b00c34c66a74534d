//! The demo: a small cluster from YAML, every way to reach a service, and what happens when things change.

mod changes;
mod example;
mod reach;
mod report;

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use self::example::Example;
pub use self::report::{Check, Report};
use crate::{agent::AgentOptions, cluster::Cluster, topology::Wiring};

/// The port that the pods of the examples serve on.
const PORT: u16 = 8080;

/// A running demo.
#[derive(Debug)]
pub struct Demo<'a> {
    /// The cluster, also for those who want to look around.
    pub cluster: Cluster,
    /// What has been found out so far.
    pub report: Report,
    example: Example,
    options: AgentOptions,
    stop: &'a AtomicBool,
}

impl<'a> Demo<'a> {
    /// Builds the cluster of the YAML in `examples` and starts its agents; `stop` ends it early.
    pub fn start(
        examples: &Path,
        wiring: Wiring,
        options: AgentOptions,
        report: Report,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let example = Example::read(examples)?;
        report.step(&format!("Building a cluster from {}", examples.display()));
        let cluster = Cluster::new(example.topology(wiring))?;
        example.check_addresses(&cluster)?;
        for node in &cluster.nodes {
            let pods: Vec<&str> = node.pods.iter().map(crate::cluster::Site::name).collect();
            let addresses = node.host.addresses();
            report.say(&format!(
                "node {}: {} and {}, pods {}",
                node.name(),
                addresses.v4,
                addresses.v6,
                pods.join(", ")
            ));
            for pod in &node.pods {
                pod.serve(PORT)?;
            }
        }
        let addresses = cluster.external.addresses();
        report.say(&format!("client outside: {} and {}, no route to pods or services", addresses.v4, addresses.v6));
        report.say("a service address that no service owns: refused by the router between the nodes");
        for (name, text) in &example.manifests {
            cluster.put_text(name, text)?;
        }
        let mut demo = Self { cluster, report, example, options, stop };
        demo.report.step("Starting `sluice agent` on every node");
        demo.cluster.start_agents(&demo.options)?;
        for node in &demo.cluster.nodes {
            let agent = node.agent.as_ref().context("the agent runs")?;
            demo.report.say(&format!("node {}: process {}", node.name(), agent.id()));
        }
        Ok(demo)
    }

    /// Runs all the checks.
    pub fn run(&mut self) -> Result<()> {
        self.reach()?;
        self.change()?;
        self.restart()
    }

    /// Records how a check went.
    fn check(&mut self, name: String, outcome: Result<String>) -> Result<()> {
        self.report.record(name, outcome);
        self.go_on()
    }

    /// Fails when the demo is to end.
    fn go_on(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }

    fn pause(&self, time: Duration) -> Result<()> {
        std::thread::sleep(time);
        self.go_on()
    }

    /// Fails unless a service of the examples is there, for checks that name it.
    fn service(&self, name: &str) -> Result<example::Frontends> {
        let found = self.example.services.get(name);
        ensure!(found.is_some(), "the examples have no service {name}");
        found.copied().context("service")
    }
}
