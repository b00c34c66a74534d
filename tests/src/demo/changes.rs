//! What clients notice when the cluster changes, and when agents die.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Demo;
use crate::{
    expect,
    topology::IpVersion,
    traffic::{Ask, protocol::Transport},
};

/// Requests per second and client while agents are restarted.
const RATE: u32 = 50;

impl Demo<'_> {
    /// An endpoint goes, a service goes.
    pub(super) fn change(&mut self) -> Result<()> {
        self.report.step("An endpoint is removed while connections to it are open");
        let outcomes = self.remove_endpoint()?;
        outcomes.into_iter().try_for_each(|(name, outcome)| self.check(name, outcome))?;
        self.report.step("A service is deleted");
        let outcomes = self.delete_service()?;
        outcomes.into_iter().try_for_each(|(name, outcome)| self.check(name, outcome))
    }

    /// Agents are killed, and started again, under load.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.report.step("The agents of both nodes are killed and started again, under load");
        let outcomes = self.kill_and_start()?;
        outcomes.into_iter().try_for_each(|(name, outcome)| self.check(name, outcome))
    }

    fn remove_endpoint(&self) -> Result<Vec<(String, Result<String>)>> {
        let web = self.service("web")?;
        let shop = self.cluster.pod("shop");
        let mut open = Vec::new();
        for version in IpVersion::BOTH {
            let ask = Ask::new(Transport::Tcp, web.cluster_ip(version));
            // Until the random choice falls on the endpoint that is about to go.
            let connection = expect::eventually(|| {
                let connection = shop.open(&ask)?;
                ensure!(connection.answer().server == "web-a", "another backend");
                Ok(connection)
            });
            open.push((version, ask, connection));
        }
        let text = self.example.manifests.get("web").context("the examples have a file web.yaml")?;
        let without: Vec<&str> = text.lines().filter(|line| !line.contains("nodeName: node-a")).collect();
        self.cluster.put_text("web", &without.join("\n"))?;
        let mut outcomes = Vec::new();
        for (version, ask, connection) in open {
            let next = expect::eventually(|| expect::spread(shop, &ask, 20, &["web-b"]));
            let next = next.map(|report| format!("20 of {} connections to web-b", report.answered()));
            outcomes.push((format!("{version}: an endpoint removed, the next connections go elsewhere"), next));
            let goes_on = connection.and_then(|connection| {
                let answer = connection.ping()?.context("the open connection has ended")?;
                ensure!(answer.server == "web-a", "answered by {}", answer.server);
                Ok(format!("still answered by {} in {}", answer.server, super::report::time(answer.took)))
            });
            outcomes.push((format!("{version}: an endpoint removed, the open connection goes on"), goes_on));
        }
        self.cluster.put_text("web", text)?;
        for version in IpVersion::BOTH {
            let ask = Ask::new(Transport::Tcp, web.cluster_ip(version));
            let back = expect::eventually(|| expect::spread(shop, &ask, 40, &["web-a", "web-b"]));
            let back = back.map(|report| format!("{:?}", report.servers));
            outcomes.push((format!("{version}: the endpoint is back and used again"), back));
        }
        Ok(outcomes)
    }

    fn delete_service(&self) -> Result<Vec<(String, Result<String>)>> {
        let retired = self.service("retired")?;
        let (shop, a) = (self.cluster.pod("shop"), self.cluster.node("node-a"));
        let mut outcomes = Vec::new();
        for version in IpVersion::BOTH {
            let ask = Ask::new(Transport::Tcp, retired.cluster_ip(version));
            let before = expect::answered(shop, &ask, &["web-b"]).map(|answer| answer.server);
            outcomes.push((format!("{version}: a service before it is deleted"), before));
        }
        self.cluster.delete_manifest("retired")?;
        for version in IpVersion::BOTH {
            for (what, client, to) in [
                ("ClusterIP from a pod", shop, retired.cluster_ip(version)),
                ("ClusterIP from a host process", &a.host, retired.cluster_ip(version)),
                ("NodePort from outside", &self.cluster.external, a.address(version, retired.node_port)),
            ] {
                for transport in [Transport::Tcp, Transport::Udp] {
                    let ask = Ask::new(transport, to);
                    let outcome = expect::eventually(|| expect::refusal(client, &ask));
                    let outcome = outcome.map(|failure| format!("{to}: {}", super::report::time(failure.took)));
                    outcomes
                        .push((format!("{version}: a service deleted, {what} is refused over {transport}"), outcome));
                }
            }
        }
        Ok(outcomes)
    }

    fn kill_and_start(&mut self) -> Result<Vec<(String, Result<String>)>> {
        let (web, far) = (self.service("web")?, self.service("far")?);
        // The agents are taken out of the cluster, so that its clients can be used meanwhile.
        let agents: Vec<_> = self.cluster.nodes.iter_mut().filter_map(|node| node.agent.take()).collect();
        let cluster = &self.cluster;
        let a = cluster.node("node-a");
        let mut loads = Vec::new();
        for version in IpVersion::BOTH {
            for (what, client, to) in [
                ("a pod", cluster.pod("shop"), web.cluster_ip(version)),
                ("a host process", &a.host, web.cluster_ip(version)),
                ("outside, remote backend", &cluster.external, a.address(version, far.node_port)),
            ] {
                for transport in [Transport::Tcp, Transport::Udp] {
                    let name = format!("{version}: agents restarted under load from {what} over {transport}, 0 failed");
                    loads.push((name, client.load(&Ask::new(transport, to), RATE)?));
                }
            }
        }
        self.pause(Duration::from_millis(500))?;
        for agent in agents {
            self.report.say(&format!("killing process {}", agent.id()));
            agent.kill()?;
        }
        self.pause(Duration::from_millis(500))?;
        let mut started = Vec::new();
        for node in &cluster.nodes {
            let agent = crate::agent::Agent::start(node, &self.options, &cluster.manifests)?;
            self.report.say(&format!("node {}: started again as process {}", node.name(), agent.id()));
            started.push(agent);
        }
        self.pause(Duration::from_millis(500))?;
        let finished: Vec<_> = loads.into_iter().map(|(name, load)| (name, load.finish())).collect();
        for (node, agent) in self.cluster.nodes.iter_mut().zip(started) {
            node.agent = Some(agent);
        }
        let judge = |report: Result<crate::traffic::Report>| expect::lossless("while agents restarted", &report?, RATE);
        Ok(finished.into_iter().map(|(name, report)| (name, judge(report))).collect())
    }
}
