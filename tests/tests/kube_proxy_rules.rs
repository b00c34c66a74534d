//! What kube-proxy leaves behind goes, and what others made stays byte for byte.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dataplane_tests::{
    agent::AgentOptions,
    binaries,
    cluster::Cluster,
    leftovers,
    netns::Netns,
    topology::{Topology, Wiring},
};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// Rules of others, and of the kubelet; counters and quotes included.
const FOREIGN: &str = r#"*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:MINE - [0:0]
[7:420] -A INPUT -j KUBE-FIREWALL
[0:0] -A INPUT -p tcp -m tcp --dport 22 -m comment --comment "not \"KUBE-SERVICES\" -j KUBE-SERVICES" -j MINE
[0:0] -A OUTPUT -j KUBE-FIREWALL
[5:300] -A MINE -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:MINE-TOO - [0:0]
[1:60] -A POSTROUTING -j MINE-TOO
[1:60] -A MINE-TOO -j MASQUERADE
COMMIT
"#;

/// kube-proxy's, before and between those of others.
const KUBE_PROXY: &str = r#"*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
*nat
:KUBE-EXT-CEZPIJSAUFW5MYPQ - [0:0]
:KUBE-FW-CEZPIJSAUFW5MYPQ - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-6E7XQMQ4RAYOWTTM - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-CEZPIJSAUFW5MYPQ - [0:0]
:KUBE-SVL-CEZPIJSAUFW5MYPQ - [0:0]
-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-EXT-CEZPIJSAUFW5MYPQ -j KUBE-MARK-MASQ
-A KUBE-EXT-CEZPIJSAUFW5MYPQ -j KUBE-SVC-CEZPIJSAUFW5MYPQ
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-EXT-CEZPIJSAUFW5MYPQ
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SVC-CEZPIJSAUFW5MYPQ -j KUBE-SEP-6E7XQMQ4RAYOWTTM
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
"#;

/// Rules of another user of nftables.
const TABLES: &str =
    "table ip mine { chain c { type filter hook input priority 0; ip saddr 192.0.2.1 counter drop; }; }\n";

/// Runs `tool` in `netns` with `input`.
fn run(netns: &Netns, tool: &str, arguments: &[&str], input: &str) -> Result<String> {
    let output = netns.run(|| -> Result<_> {
        let mut child = Command::new(tool)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {tool}"))?;
        child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
        Ok(child.wait_with_output()?)
    })??;
    ensure!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether traffic counts: it passes where an agent runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counters {
    Compared,
    LeftOut,
}

/// Every rule, by tool, without the lines that hold a time.
fn state(netns: &Netns, tools: &[&str], counters: Counters) -> Result<Vec<String>> {
    let compared = counters == Counters::Compared;
    let mut state = Vec::new();
    for tool in tools {
        let text = run(netns, &format!("{tool}-save"), if compared { &["-c"] } else { &[] }, "")?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        // Policies of chains have counters of their own, which are always printed.
        let lines = lines.map(|line| line.split_once(" [").filter(|_| !compared).map_or(line, |(chain, _)| chain));
        state.push(lines.map(|line| format!("{line}\n")).collect());
    }
    state.push(run(
        netns,
        "nft",
        if compared { &["list", "ruleset"] } else { &["--stateless", "list", "ruleset"] },
        "",
    )?);
    Ok(state)
}

/// The legacy backend needs modules that a kernel may not have.
fn tools(netns: &Netns) -> Vec<&'static str> {
    let all = ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"];
    let works = |tool: &&str| {
        ["filter", "nat", "mangle"].iter().all(|table| run(netns, tool, &["-t", table, "-S"], "").is_ok())
    };
    let tools: Vec<_> = all.into_iter().filter(works).collect();
    eprintln!("iptables that work here: {tools:?}");
    tools
}

/// Leaves behind what kube-proxy would; returns what must be there afterwards.
fn prepare(netns: &Netns, tools: &[&str], counters: Counters) -> Result<Vec<String>> {
    for tool in tools {
        run(netns, &format!("{tool}-restore"), &["-c"], FOREIGN)?;
    }
    run(netns, "nft", &["-f", "-"], TABLES)?;
    let before = state(netns, tools, counters)?;
    for tool in tools {
        run(netns, &format!("{tool}-restore"), &["--noflush"], KUBE_PROXY)?;
    }
    for family in ["ip", "ip6"] {
        let table =
            format!("table {family} kube-proxy {{ chain services {{ type nat hook prerouting priority dstnat; }}; }}");
        run(netns, "nft", &["-f", "-"], &table)?;
    }
    Ok(before)
}

#[test]
fn p57_cleanup_removes_kube_proxys_rules_and_leaves_others_byte_for_byte() -> Result<()> {
    let netns = Netns::create(&format!("{}-rules", leftovers::unique_prefix()?))?;
    let tools = tools(&netns);
    ensure!(tools.len() >= 2, "no iptables works here");
    let before = prepare(&netns, &tools, Counters::Compared)?;
    assert_ne!(state(&netns, &tools, Counters::Compared)?, before);
    let sluice = binaries::sluice()?;
    let sluice = sluice.to_str().context("a path")?;
    let said = run(&netns, sluice, &["cleanup", "--kube-proxy"], "")?;
    assert_eq!(state(&netns, &tools, Counters::Compared)?, before, "{said}");
    for line in [
        "removed rule iptables-nft nat: OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
        "removed chain ip6tables-nft filter: KUBE-FORWARD",
        "removed nftables table ip6 kube-proxy",
    ] {
        assert!(said.lines().any(|other| other == line), "{line}\n{said}");
    }
    let said = run(&netns, sluice, &["cleanup", "--kube-proxy"], "")?;
    assert_eq!(said, "nothing of kube-proxy to remove\n");
    assert_eq!(state(&netns, &tools, Counters::Compared)?, before);
    Ok(())
}

#[test]
fn p57_an_agent_removes_kube_proxys_rules_after_taking_over() -> Result<()> {
    let mut cluster = Cluster::new(Topology::two_nodes(Wiring::Routed, &["web-a"], &[]))?;
    cluster.put_nodes()?;
    let tools = ["iptables-nft", "ip6tables-nft"];
    let before = prepare(cluster.host("a").netns(), &tools, Counters::LeftOut)?;
    let manifests = cluster.manifests.clone();
    cluster.node_mut("a").start_agent(&AgentOptions::with(&["--cleanup-kube-proxy"]), &manifests)?;
    let begun = Instant::now();
    loop {
        let now = state(cluster.host("a").netns(), &tools, Counters::LeftOut)?;
        if now == before {
            break;
        }
        ensure!(begun.elapsed() < Duration::from_secs(20), "{now:#?}");
        thread::sleep(Duration::from_millis(50));
    }
    let healthz = SocketAddr::from((Ipv4Addr::LOCALHOST, 10256));
    let answer = dataplane_tests::http::get(cluster.host("a").netns(), healthz, "/healthz")?;
    assert_eq!(answer.status, 200, "{answer:?}");
    Ok(())
}

/// Makes an empty IP set of the type `hash:ip` in `netns`, as `ipset create` does.
fn create_set(netns: &Netns, name: &str) -> Result<()> {
    const CREATE: u16 = 6 << 8 | 2;
    // `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_EXCL`, `NLM_F_CREATE`.
    const FLAGS: u16 = 0x605;
    let mut payload = vec![2, 0, 0, 0];
    // Protocol, name, type, revision, family, and no options.
    let (name, kind) = ([name.as_bytes(), &[0]].concat(), b"hash:ip\0");
    for (number, value) in [(1_u16, &[6][..]), (2, &name), (3, kind), (4, &[0]), (5, &[2]), (7 | 0x8000, &[])] {
        payload.extend((4 + u16::try_from(value.len())?).to_ne_bytes());
        payload.extend(number.to_ne_bytes());
        payload.extend(value);
        payload.resize(payload.len().next_multiple_of(4), 0);
    }
    let mut message = (16 + u32::try_from(payload.len())?).to_ne_bytes().to_vec();
    message.extend([CREATE.to_ne_bytes(), FLAGS.to_ne_bytes()].concat());
    message.extend([0; 8]);
    message.extend(payload);
    netns.run(|| -> Result<()> {
        let protocol = SockProtocol::NetlinkNetFilter;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = [0; 256];
        recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        ensure!(answer[16..20] == [0; 4], "the set cannot be made: {:?}", &answer[..20]);
        Ok(())
    })?
}

/// The kernel of a test has no IPVS and no dummy devices: a bridge has the name, and virtual servers are a matter of the
/// unit tests.
#[test]
fn p57_cleanup_removes_the_sets_and_the_device_of_the_ipvs_mode() -> Result<()> {
    let netns = Netns::create(&format!("{}-ipvs", leftovers::unique_prefix()?))?;
    netns
        .ip("link add kube-ipvs0 type bridge\naddress add 10.96.0.1/32 dev kube-ipvs0\nlink add mine0 type bridge\n")?;
    for name in ["KUBE-CLUSTER-IP", "KUBE-6-LOOP-BACK", "KUBE-LOOP-BACK", "KUBE-SRC-MINE", "mine"] {
        create_set(&netns, name)?;
    }
    // The one is referred to by kube-proxy's own rule, the other by somebody else's.
    let rules = "*filter\n:KUBE-IPVS-FILTER - [0:0]\n:MINE - [0:0]\n\
                 -A INPUT -j KUBE-IPVS-FILTER\n\
                 -A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst -j RETURN\n\
                 -A MINE -m set --match-set KUBE-LOOP-BACK dst -j RETURN\nCOMMIT\n";
    run(&netns, "iptables-nft-restore", &[], rules)?;
    let sluice = binaries::sluice()?;
    let sluice = sluice.to_str().context("a path")?;
    let said = run(&netns, sluice, &["cleanup", "--kube-proxy"], "")?;
    assert_eq!(
        said,
        "removed rule iptables-nft filter: INPUT -j KUBE-IPVS-FILTER\n\
         removed chain iptables-nft filter: KUBE-IPVS-FILTER\n\
         removed IP set KUBE-6-LOOP-BACK\n\
         removed IP set KUBE-CLUSTER-IP\n\
         removed device kube-ipvs0\n\
         note: the IP set KUBE-LOOP-BACK stays: something still refers to it\n"
    );
    let links = netns.output("ip", &["-o", "link", "show"])?;
    assert!(links.contains("mine0") && !links.contains("kube-ipvs0"), "{links}");
    // What is still there cannot be made again.
    for (name, is_there) in
        [("KUBE-CLUSTER-IP", false), ("KUBE-LOOP-BACK", true), ("KUBE-SRC-MINE", true), ("mine", true)]
    {
        assert_eq!(create_set(&netns, name).is_err(), is_there, "{name}");
    }
    Ok(())
}
