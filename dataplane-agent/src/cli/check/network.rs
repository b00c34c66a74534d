//! Settings of the network stack that the datapath depends on.

use std::{fmt, fs, path::Path, str::FromStr};

use dataplane_common::NodeConfig;

use super::Finding;

/// Consecutive ports, written `FIRST+COUNT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    count: u16,
}

impl Default for PortRange {
    fn default() -> Self {
        Self { first: NodeConfig::DEFAULT.snat_port_first, count: NodeConfig::DEFAULT.snat_port_count }
    }
}

impl PortRange {
    /// The last port.
    const fn last(self) -> u16 {
        self.first.saturating_add(self.count.saturating_sub(1))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.first, self.count)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('+').and_then(|(first, count)| Some((first.parse().ok()?, count.parse().ok()?)));
        let (first, count): (u16, u16) = parsed.ok_or("write it as FIRST+COUNT, such as 12288+16384")?;
        match first.checked_add(count.saturating_sub(1)) {
            Some(_) if first > 0 && count > 0 => Ok(Self { first, count }),
            _ => Err("the range must lie within 1 to 65535".into()),
        }
    }
}

/// Forwarding, reverse-path filters and port ranges, as `root`'s `/proc` has them.
pub(super) fn findings(root: &Path, snat: PortRange) -> Vec<Finding> {
    let sysctls = root.join("proc/sys/net");
    let mut findings = vec![forwarding4(&sysctls), forwarding6(&sysctls)];
    findings.extend(reverse_path(&sysctls));
    findings.push(ports(&sysctls, snat));
    findings
}

fn read(sysctls: &Path, name: &str) -> Option<String> {
    Some(fs::read_to_string(sysctls.join(name)).ok()?.trim().to_owned())
}

fn forwarding4(sysctls: &Path) -> Finding {
    match read(sysctls, "ipv4/ip_forward").as_deref() {
        Some("1") => Finding::ok("forwarding IPv4", "on"),
        _ => Finding::error(
            "forwarding IPv4",
            "off, so that no packet reaches a pod through this node",
            "`sysctl -w net.ipv4.ip_forward=1`",
        ),
    }
}

fn forwarding6(sysctls: &Path) -> Finding {
    match read(sysctls, "ipv6/conf/all/forwarding").as_deref() {
        None => Finding::ok("forwarding IPv6", "the kernel runs without IPv6"),
        Some("1") => Finding::ok("forwarding IPv6", "on"),
        // A cluster without IPv6 does well without it.
        Some(_) => Finding::warning(
            "forwarding IPv6",
            "off, so that no IPv6 packet reaches a pod through this node",
            "for a cluster with IPv6, `sysctl -w net.ipv6.conf.all.forwarding=1`",
        ),
    }
}

/// One line per interface that filters strictly; the kernel takes the larger of the interface's value and that of `all`.
fn reverse_path(sysctls: &Path) -> Vec<Finding> {
    let value = |name: &str| -> u8 {
        read(sysctls, &format!("ipv4/conf/{name}/rp_filter")).and_then(|text| text.parse().ok()).unwrap_or_default()
    };
    let mut names: Vec<_> = fs::read_dir(sysctls.join("ipv4/conf"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name != "all" && name != "default" && name != "lo")
        .collect();
    names.sort();
    let strict: Vec<_> = names
        .iter()
        .filter(|name| value("all").max(value(name)) == 1)
        .map(|name| {
            Finding::warning(
                "rp_filter",
                format!("{name} is strict: a packet that comes in elsewhere than its answer goes out is lost"),
                format!("`sysctl -w net.ipv4.conf.{}.rp_filter=2`", name.replace('.', "/")),
            )
        })
        .collect();
    if strict.is_empty() {
        return vec![Finding::ok("rp_filter", format!("off or loose on {} interfaces", names.len()))];
    }
    strict
}

/// SNAT and the node's own sockets must not choose from the same ports.
fn ports(sysctls: &Path, snat: PortRange) -> Finding {
    let text = read(sysctls, "ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|number| number.parse::<u16>().ok());
    let (Some(low), Some(high)) = (numbers.next(), numbers.next()) else {
        return Finding::warning("snat ports", "net.ipv4.ip_local_port_range cannot be read", "run as root");
    };
    if snat.first <= high && low <= snat.last() {
        return Finding::error(
            "snat ports",
            format!("{}-{} overlaps the node's own ports {low}-{high}", snat.first, snat.last()),
            format!(
                "`sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"`, or start the agent with other --snat-ports \
                 than {snat}"
            ),
        );
    }
    Finding::ok("snat ports", format!("{}-{}, apart from the node's own {low}-{high}", snat.first, snat.last()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Level;

    fn node(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join("proc/sys/net").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        root
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &[(Level, &str)]) {
        let findings = findings(node(files).path(), PortRange::default());
        let found: Vec<_> = findings.iter().map(|finding| (finding.level, finding.found.as_str())).collect();
        assert_eq!(found, expected);
        assert!(findings.iter().all(|finding| (finding.level == Level::Ok) == finding.next.is_none()));
    }

    #[test]
    fn a_fit_node_has_nothing_but_ok() {
        check(
            &[
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv4/conf/all/rp_filter", "2"),
                ("ipv4/conf/eth0/rp_filter", "1"),
                ("ipv4/ip_local_port_range", "32768\t60999"),
            ],
            &[
                (Level::Ok, "on"),
                (Level::Ok, "on"),
                (Level::Ok, "off or loose on 1 interfaces"),
                (Level::Ok, "12288-28671, apart from the node's own 32768-60999"),
            ],
        );
    }

    #[test]
    fn an_unfit_node_is_told_what_is_wrong() {
        check(
            &[
                ("ipv4/ip_forward", "0"),
                ("ipv6/conf/all/forwarding", "0"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/eth0.5/rp_filter", "1"),
                ("ipv4/ip_local_port_range", "1024 60999"),
            ],
            &[
                (Level::Error, "off, so that no packet reaches a pod through this node"),
                (Level::Warning, "off, so that no IPv6 packet reaches a pod through this node"),
                (Level::Warning, "eth0.5 is strict: a packet that comes in elsewhere than its answer goes out is lost"),
                (Level::Error, "12288-28671 overlaps the node's own ports 1024-60999"),
            ],
        );
    }

    #[test]
    fn port_ranges_are_written_as_the_agent_takes_them() {
        assert_eq!("12288+16384".parse(), Ok(PortRange::default()));
        assert_eq!(PortRange::default().to_string(), "12288+16384");
        for wrong in ["", "1", "0+5", "5+0", "65000+1000", "a+b"] {
            assert!(wrong.parse::<PortRange>().is_err(), "{wrong}");
        }
    }
}
