//! The real kube-proxy in place of generated rules, on both nodes, fed by an API server of the bed or by another one.

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::contenders::{Backend, Kind};
use crate::{
    apiserver::{Bind, TestServer},
    cluster::{Cluster, Node},
    netns, objects,
    process::Process,
    topology::{self, ROUTER},
};

/// Where iptables' programs lie, whatever `$PATH` says.
const SYSTEM: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// The program that writes the rules.
#[derive(Clone, Debug)]
pub struct KubeProxy {
    /// kube-proxy.
    pub program: PathBuf,
    /// How it reaches an API server that has the services; one of the bed when there is none.
    pub kubeconfig: Option<PathBuf>,
}

/// It runs; the server comes last, since its runtime has to outlive it.
#[derive(Debug)]
pub struct Running {
    _processes: Vec<Process>,
    _server: Option<(TestServer, Runtime)>,
}

impl KubeProxy {
    /// Starts it on every node of `cluster`, in the mode of `kind`. It takes its time until the rules are there.
    pub fn start(&self, kind: Kind, cluster: &Cluster, objects: &[Value]) -> Result<Running> {
        let (kubeconfig, server) = match &self.kubeconfig {
            Some(kubeconfig) => (kubeconfig.clone(), None),
            None => serve(cluster, objects).map(|(path, server)| (path, Some(server)))?,
        };
        let start = |node| self.start_on(kind, node, &kubeconfig, cluster.directory());
        let processes = cluster.nodes.iter().map(start).collect::<Result<_>>()?;
        Ok(Running { _processes: processes, _server: server })
    }

    fn start_on(&self, kind: Kind, node: &Node, kubeconfig: &Path, folder: &Path) -> Result<Process> {
        let mode = if kind == Kind::Nftables { "nftables" } else { "iptables" };
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(kubeconfig).args(["--proxy-mode", mode]);
        command.args(["--hostname-override", node.name(), "--cluster-cidr", topology::POD_CIDRS.0]);
        // The bed's server speaks JSON; limits of the whole machine stay what they are.
        command.args(["--kube-api-content-type", "application/json", "--conntrack-max-per-core", "0"]);
        if let Kind::Iptables(backend) = kind {
            let tools = tools(backend, &folder.join(node.name()))?;
            command.env("PATH", format!("{}:{SYSTEM}", tools.display()));
        }
        let path = folder.join(format!("{}-kube-proxy.log", node.name()));
        let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Process::spawn(command, node.host.netns(), node.host.cgroup())
    }
}

/// Starts a server with `objects` at the router of the fabric, which every node reaches.
fn serve(cluster: &Cluster, objects: &[Value]) -> Result<(PathBuf, (TestServer, Runtime))> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let fabric = cluster.fabric.file()?;
    let listen = move || netns::run_in(&fabric, || TcpListener::bind((ROUTER.v4, 6443)))?;
    let server = {
        let _inside = runtime.enter();
        TestServer::start_with(Bind::new(listen))?
    };
    for object in objects::nodes(cluster).iter().chain(objects) {
        server.apply(object)?;
    }
    let path = cluster.directory().join("kubeconfig");
    fs::write(&path, server.kubeconfig()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok((path, (server, runtime)))
}

/// A folder in which `iptables` and its relatives are those of `backend`.
fn tools(backend: Backend, folder: &Path) -> Result<PathBuf> {
    let folder = folder.join("tools");
    fs::create_dir_all(&folder)?;
    let name = match backend {
        Backend::Nft => "nft",
        Backend::Legacy => "legacy",
    };
    for family in ["iptables", "ip6tables"] {
        for suffix in ["", "-restore", "-save"] {
            let target = Path::new("/usr/sbin").join(format!("{family}-{name}{suffix}"));
            symlink(target, folder.join(format!("{family}{suffix}")))?;
        }
    }
    Ok(folder)
}
