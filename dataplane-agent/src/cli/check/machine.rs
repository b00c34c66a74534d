//! What the kernel and its file systems offer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aya::programs::{SchedClassifier, TcAttachType};

use super::Finding;
use crate::datapath::requirements::{self, Missing};

/// The name of the check.
const CGROUP: &str = "cgroup v2";

/// Kernel, BTF, privileges, BPF file system, cgroup v2 and TCX.
pub(super) fn findings(bpffs: &Path, cgroup: Option<&Path>) -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut findings = judge(&requirements::missing(bpffs, cgroup), release.trim(), bpffs, cgroup);
    findings.push(match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Finding::ok("tcx", "the kernel has TCX links"),
        Err(_error) => Finding::ok("tcx", "no TCX links (they came with 6.6): `sluice agent` attaches clsact filters"),
    });
    findings
}

fn judge(missing: &[Missing], release: &str, bpffs: &Path, cgroup: Option<&Path>) -> Vec<Finding> {
    let verdict = |check, test: &dyn Fn(&Missing) -> bool, ok: Finding| {
        missing.iter().find(|each| test(each)).map_or(ok, |missing| error(check, missing))
    };
    let no_cgroup = || {
        Finding::error(
            CGROUP,
            "no cgroup v2 hierarchy is mounted",
            "mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`, or start the agent with --socket-lb=off",
        )
    };
    let cgroup = cgroup.map_or_else(no_cgroup, |path| Finding::ok(CGROUP, path.display().to_string()));
    vec![
        verdict("kernel", &|each| matches!(each, Missing::Kernel { .. }), Finding::ok("kernel", release)),
        verdict("btf", &|each| matches!(each, Missing::Btf), Finding::ok("btf", "/sys/kernel/btf/vmlinux")),
        verdict(
            "privileges",
            &|each| matches!(each, Missing::Capabilities(_)),
            Finding::ok("privileges", "CAP_BPF and CAP_NET_ADMIN"),
        ),
        verdict("bpffs", &|each| matches!(each, Missing::Bpffs(_)), Finding::ok("bpffs", bpffs.display().to_string())),
        verdict(CGROUP, &|each| matches!(each, Missing::Cgroup(_)), cgroup),
    ]
}

/// What is missing, whose text is "what: what to do".
fn error(check: &'static str, missing: &Missing) -> Finding {
    let text = missing.to_string();
    let (found, next) = text.split_once(": ").unwrap_or((&text, "see the documentation"));
    Finding::error(check, found, next)
}

/// Where cgroup v2 is mounted.
pub(super) fn cgroup_root() -> Option<PathBuf> {
    mounted(&fs::read_to_string("/proc/self/mounts").ok()?, "cgroup2")
}

/// The first mount point of a file system of type `kind`.
fn mounted(mounts: &str, kind: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, found) = (fields.next()?, fields.next()?);
        (found == kind).then(|| path.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::Level;

    #[test]
    fn what_is_missing_is_an_error_with_a_next_step_and_the_rest_is_ok() {
        let missing = [Missing::Btf, Missing::Bpffs("/b".into())];
        let findings = judge(&missing, "6.18.0", Path::new("/b"), Some(Path::new("/c")));
        let levels: Vec<_> = findings.iter().map(|finding| (finding.check, finding.level)).collect();
        assert_eq!(
            levels,
            [
                ("kernel", Level::Ok),
                ("btf", Level::Error),
                ("privileges", Level::Ok),
                ("bpffs", Level::Error),
                ("cgroup v2", Level::Ok)
            ]
        );
        assert_eq!(findings[3].found, "/b is not a BPF file system");
        assert!(findings[3].next.as_ref().unwrap().starts_with("mount one with `mount -t bpf bpf /b`"));
    }

    #[test]
    fn a_mount_is_found_by_its_type() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs ro 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mounted(mounts, "cgroup2"), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mounted(mounts, "bpf"), None);
    }
}
