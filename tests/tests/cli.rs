//! The command line on a node whose agent is dead: it reads what is pinned, and says clearly what is not.

#[path = "cli/node.rs"]
mod node;

use std::{fs, process::Output};

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData};
use dataplane_agent::datapath::attach::TcMode;
use serde_json::{Value, json};

use self::node::Node;

/// The standard output of a command that succeeded without a word on standard error.
#[track_caller]
fn text(output: Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {stderr}{stdout}", output.status);
    assert_eq!(stderr, "");
    stdout.into_owned()
}

/// The one line on standard error of a command that failed with exit code `code`.
#[track_caller]
fn error(output: Output, code: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}{}", String::from_utf8_lossy(&output.stdout));
    assert!(stderr.starts_with("error: "), "{stderr}");
    stderr
}

#[expect(clippy::unwrap_used, reason = "a test ends where its command cannot be run or prints no JSON")]
impl Node {
    #[track_caller]
    fn table(&self, arguments: &[&str]) -> String {
        text(self.sluice(arguments).unwrap())
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<_> = arguments.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.table(&arguments)).unwrap()
    }

    /// The lines of a table without its header, with single spaces.
    #[track_caller]
    fn lines(&self, arguments: &[&str]) -> Vec<String> {
        let arguments: Vec<_> = arguments.iter().copied().chain(["--no-headers"]).collect();
        let text = self.table(&arguments);
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }
}

#[test]
fn services_and_backends_are_listed_from_the_pinned_maps() -> Result<()> {
    let node = Node::filled()?;
    assert_eq!(
        node.lines(&["service", "list"]),
        [
            "default/web:http ClusterIP 10.96.0.1:80 TCP 2 Cluster",
            "default/web:http ClusterIP [fd00:96::1]:80 TCP 1 Cluster",
            "default/web:http NodePort 0.0.0.0:30080 TCP 2 (outside 1) Local",
            "kube-system/dns ClusterIP 10.96.0.10:53 UDP 0 Cluster",
        ]
    );
    assert_eq!(
        node.lines(&["backend", "list", "-4"]),
        ["default/web:http 10.0.0.5:8080 TCP ready this", "default/web:http 10.0.1.5:8080 TCP draining other"]
    );
    let header = node.table(&["service", "list", "--namespace", "kube-system"]);
    assert!(header.starts_with("SERVICE "), "{header}");
    assert_eq!(header.lines().count(), 2);

    let frontends = node.json(&["service", "list", "--port", "30080"]);
    assert_eq!(frontends[0]["frontend"], "0.0.0.0:30080");
    assert_eq!(frontends[0]["backends_outside"], 1);
    let service = node.json(&["service", "get", "default/web"]);
    assert_eq!(service[0]["frontends"][0]["inside"][1], json!({"slot": 9, "backend": "10.0.1.5:8080"}));
    assert!(node.table(&["service", "get", "web"]).contains("slot 16 -> [fd00::5]:8080"));
    let yaml = node.table(&["backend", "list", "-6", "-o", "yaml"]);
    assert!(yaml.contains("backend: '[fd00::5]:8080'"), "{yaml}");
    let unknown = error(node.sluice(&["service", "get", "nope"])?, 1);
    assert_eq!(
        unknown,
        "error: no service named \"nope\": `sluice service list` shows those that this node translates\n"
    );
    Ok(())
}

#[test]
fn flows_are_listed_counted_and_flushed() -> Result<()> {
    let node = Node::filled()?;
    let flows = node.json(&["conntrack", "list"]);
    assert_eq!(flows.as_array().context("an array")?.len(), 3);
    assert_eq!(flows[1]["client"], "172.16.0.9:5555");
    assert_eq!(flows[1]["translated_source"], "192.168.0.1:12288");
    assert_eq!(flows[1]["reply_packets"], 3);
    assert_eq!(flows[1]["state"], "established");
    assert_eq!(flows[1]["backend_exists"], true);
    let expires = flows[1]["expires_seconds"].as_i64().context("a number")?;
    assert!((500..=602).contains(&expires), "{expires}");
    assert_eq!(node.lines(&["conntrack", "list", "--entries"]).len(), 6);
    assert_eq!(node.lines(&["conntrack", "list", "--limit", "1"]).len(), 1);
    let line = node.lines(&["conntrack", "list", "-6"]).remove(0);
    assert!(
        line.starts_with("TCP [fd00::9]:41000 [fd00:96::1]:80 [fd00::5]:8080 default/web:http established"),
        "{line}"
    );

    assert_eq!(
        node.lines(&["nat", "list"]),
        ["TCP 172.16.0.9:5555 192.168.0.1:30080 192.168.0.1:12288 10.0.1.5:8080 snat established"]
    );
    assert_eq!(node.json(&["nat", "list"])[0]["node"], "192.168.0.1:12288");

    let stats = node.json(&["conntrack", "stats"]);
    assert_eq!(stats["flows"], 3);
    assert_eq!(stats["entries"], json!({"IPv4": 4, "IPv6": 2}));
    assert_eq!(stats["snat"], 1);
    assert!(node.table(&["conntrack", "stats"]).contains("default/web:http 3"));

    error(node.sluice(&["conntrack", "flush"])?, 2);
    error(node.sluice(&["conntrack", "flush", "--all", "-4"])?, 2);
    let flushed = node.table(&["conntrack", "flush", "--address", "172.16.0.9"]);
    assert_eq!(flushed, "1 flows (2 entries) removed\n");
    assert_eq!(node.json(&["conntrack", "flush", "--all"]), json!({"flows": 2, "entries": 4}));
    assert_eq!(node.json(&["conntrack", "list"]), json!([]));
    Ok(())
}

#[test]
fn drops_maps_and_status_are_shown() -> Result<()> {
    let node = Node::filled()?;
    let drops = node.json(&["drops"]);
    assert_eq!(drops.as_array().context("an array")?.len(), 1);
    assert_eq!(drops[0]["reason"], "no_endpoints");
    assert!(drops[0]["packets"].as_u64().is_some_and(|packets| packets > 0 && packets.is_multiple_of(5)), "{drops}");
    assert!(node.lines(&["drops", "--all"]).len() > 1);

    let maps = node.json(&["map", "list"]);
    let map = |name: &str| maps.as_array().and_then(|maps| maps.iter().find(|map| map["map"] == name)).cloned();
    let conntrack = map("conntrack4").context("conntrack4")?;
    assert_eq!([&conntrack["entries"], &conntrack["max_entries"]], [&json!(4), &json!(1024)]);
    assert!(conntrack["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1024 * 64), "{conntrack}");
    assert_eq!(map("frontends4").context("frontends4")?["entries"], 3);
    assert!(node.table(&["map", "list"]).contains("16 -> 80 bytes"));

    for spec in dataplane_common::map::ALL {
        assert!(node.json(&["map", "dump", spec.name]).is_array(), "{}", spec.name);
        node.sluice(&["map", "dump", spec.name])?;
    }
    assert_eq!(node.lines(&["map", "dump", "slots"]), ["8 1", "9 2", "16 1"]);
    assert_eq!(node.lines(&["map", "dump", "local_addrs4"]), ["192.168.0.1 node-port"]);
    assert_eq!(node.json(&["map", "dump", "sockets4"])[0]["key"]["cookie"], 77);
    assert_eq!(node.json(&["map", "dump", "sockets4"])[0]["value"]["frontend"], "10.96.0.1:80");
    error(node.sluice(&["map", "dump", "nope"])?, 2);

    let status = node.json(&["status"]);
    assert_eq!(status["agent_pid"], Value::Null);
    assert_eq!([&status["services"], &status["frontends"], &status["backends"]], [&json!(2), &json!(4), &json!(3)]);
    assert_eq!(status["frontends_without_backends"], 1);
    assert_eq!(status["attached"]["from_pod"], 1);
    assert!(node.table(&["status"]).contains("Agent         not running"));
    Ok(())
}

#[test]
fn interfaces_show_what_is_attached_where_and_cleanup_removes_it() -> Result<()> {
    for (tc, mechanism) in [(TcMode::Tcx, "tcx"), (TcMode::Clsact, "clsact")] {
        let node = Node::attached(tc)?;
        let attached = node.json(&["interfaces"]);
        let rows: Vec<_> = attached
            .as_array()
            .context("an array")?
            .iter()
            .map(|row| {
                [&row["target"], &row["hook"], &row["mechanism"]].map(|value| value.as_str().unwrap_or("?").to_owned())
            })
            .collect();
        let cgroup = node.cgroup.path().display().to_string();
        for (target, hook, mechanism) in [
            ("pod0", "from_pod", mechanism),
            ("pod0", "to_pod", mechanism),
            ("eth0", "from_uplink", mechanism),
            ("eth0", "to_uplink", mechanism),
            (cgroup.as_str(), "sock_connect4", "cgroup"),
        ] {
            assert!(rows.contains(&[target, hook, mechanism].map(str::to_owned)), "{target} {hook}: {rows:?}");
        }
        assert_eq!(rows.len(), 12);
        assert!(attached[0]["tag"].as_str().is_some_and(|tag| tag.len() == 16));
        assert_eq!(node.lines(&["interfaces", "--interface", "pod0"]).len(), 2);

        // The interface takes its filters with it; a pinned link stays, and says so.
        node.ip("link del pod0")?;
        let left = node.json(&["interfaces"]);
        let gone = left.as_array().context("an array")?.iter().filter(|row| row["attached"] == false).count();
        assert_eq!(gone, if tc == TcMode::Tcx { 2 } else { 0 });

        let removed = node.json(&["cleanup"]);
        assert_eq!(removed["maps"].as_array().map(Vec::len), Some(dataplane_common::map::ALL.len()), "{removed}");
        assert_eq!(node.table(&["cleanup"]), "nothing to remove\n");
        assert!(!node.bpffs.path().join("sluice").exists());
        error(node.sluice(&["interfaces"])?, 1);
    }
    Ok(())
}

#[test]
fn check_names_what_is_wrong_and_fails_on_errors_only() -> Result<()> {
    let node = Node::attached(TcMode::Tcx)?;
    let cgroup = node.cgroup.path().display().to_string();
    let check = ["check", "--cgroup-root", &cgroup];
    let finding = |findings: &Value, name: &str| -> Vec<(String, String)> {
        let of = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
        let all = findings.as_array().cloned().unwrap_or_default();
        all.iter().filter(|each| each["check"] == name).map(|each| (of(each, "level"), of(each, "found"))).collect()
    };
    node.sysctls(&[
        "ipv4/ip_forward=1",
        "ipv6/conf/all/forwarding=1",
        "ipv4/conf/all/rp_filter=0",
        "ipv4/conf/eth0/rp_filter=1",
    ])?;
    let findings = node.json(&check);
    assert_eq!(finding(&findings, "tc hooks")[0].0, "ok", "{findings}");
    assert_eq!(finding(&findings, "cgroup hooks")[0].0, "ok", "{findings}");
    assert_eq!(finding(&findings, "bpffs")[0].0, "ok");
    assert_eq!(finding(&findings, "rp_filter")[0].0, "warning");
    assert!(finding(&findings, "rp_filter")[0].1.starts_with("eth0 is strict"));

    node.output("tc", &["qdisc", "add", "dev", "eth0", "clsact"])?;
    node.output("tc", &["filter", "add", "dev", "eth0", "ingress", "prio", "3", "bpf", "bytecode", "1,6 0 0 0,"])?;
    node.sysctls(&["ipv4/ip_forward=0", "ipv4/ip_local_port_range=10000 60999"])?;
    let output = node.sluice(&check)?;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    for line in [
        "warning  tc hooks         eth0 ingress: bpf filter",
        "error    forwarding IPv4  off, so that no packet reaches a pod through this node: `sysctl -w net.ipv4.ip_forward=1`",
        "error    snat ports       12288-28671 overlaps the node's own ports 10000-60999: ",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line}\n{text}");
    }
    Ok(())
}

#[test]
fn nothing_pinned_or_pinned_by_another_version_is_one_clear_line() -> Result<()> {
    let node = Node::empty()?;
    let root = node.bpffs.path().join("sluice");
    let commands: [&[&str]; 9] = [
        &["status"],
        &["service", "list"],
        &["service", "get", "x"],
        &["backend", "list"],
        &["conntrack", "list"],
        &["nat", "list"],
        &["drops"],
        &["interfaces"],
        &["map", "list"],
    ];
    for command in commands {
        assert_eq!(
            error(node.sluice(command)?, 1),
            format!(
                "error: no pinned maps at {}/v{}: start `sluice agent` on this node, or name the agent's BPF file \
                 system with --bpffs\n",
                root.display(),
                dataplane_common::map::LAYOUT_VERSION
            )
        );
    }
    assert_eq!(node.table(&["cleanup"]), "nothing to remove\n");

    fs::create_dir_all(root.join("v999/maps"))?;
    for command in commands {
        let line = error(node.sluice(command)?, 1);
        let expected = format!("have layout v999, this sluice reads v{}", dataplane_common::map::LAYOUT_VERSION);
        assert!(line.contains(&expected), "{line}");
    }

    // The name is right and the layout is not.
    let node = Node::attached(TcMode::Tcx)?;
    let pin = node.pin("maps/slots");
    fs::remove_file(&pin)?;
    let other = Array::<MapData, u64>::create(16, 0)?;
    other.pin(&pin)?;
    let line = error(node.sluice(&["service", "list"])?, 1);
    assert!(line.contains(&pin.display().to_string()) && line.contains("value size is 8, not 4"), "{line}");
    assert_eq!(line.lines().count(), 1);
    Ok(())
}

#[test]
fn wrong_usage_missing_privileges_and_a_closed_pipe_end_as_they_should() -> Result<()> {
    let node = Node::filled()?;
    error(node.sluice(&["--nope"])?, 2);
    error(node.sluice(&["conntrack", "list", "--state", "nope"])?, 2);
    error(node.sluice(&["service", "list", "--address", "nope"])?, 2);

    let line = error(node.sluice_unprivileged(&["service", "list"])?, 1);
    assert!(line.ends_with("needs CAP_BPF and CAP_NET_ADMIN (run as root)\n"), "{line}");
    assert_eq!(line.lines().count(), 1);

    for command in [&["completion", "bash"][..], &["conntrack", "list"], &["map", "list", "-o", "json"], &["check"]] {
        let output = node.sluice_unread(command)?;
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command:?}");
    }
    Ok(())
}

#[test]
fn version_and_completion_need_no_node() -> Result<()> {
    let node = Node::empty()?;
    assert_eq!(node.json(&["version"])["layout_version"], dataplane_common::map::LAYOUT_VERSION);
    let script = node.table(&["completion", "bash"]);
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("sluice.bash");
    fs::write(&path, &script)?;
    let status = std::process::Command::new("bash").arg("-n").arg(&path).status()?;
    assert!(status.success());
    assert!(script.contains("conntrack"));
    for shell in ["zsh", "fish"] {
        assert!(!node.table(&["completion", shell]).is_empty());
    }
    Ok(())
}
