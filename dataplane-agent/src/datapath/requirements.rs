//! What the datapath needs of the kernel and of the machine, checked before anything is touched.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::util::KernelVersion;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, FsType, statfs};

/// `BPF_FS_MAGIC`
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);

/// `bpf_set_retval`, with which a refused `connect(2)` says why, came with this kernel.
const OLDEST_KERNEL: KernelVersion = KernelVersion::new(5, 18, 0);

/// Where the kernel shows its type information.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Capabilities by number: any set of these that contains `CAP_SYS_ADMIN`, or the other three, will do.
const CAPABILITIES: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
const CAP_SYS_ADMIN: u32 = 21;

/// One thing that is missing, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// Too old a kernel.
    #[error("kernel {running} is too old: sluice needs {OLDEST_KERNEL} or newer; update the node's kernel")]
    Kernel {
        /// The version that runs.
        running: KernelVersion,
    },
    /// No type information.
    #[error("the kernel has no BTF ({BTF} is missing): run a kernel built with CONFIG_DEBUG_INFO_BTF=y")]
    Btf,
    /// No privileges.
    #[error("no permission to use BPF (missing {0}): run as root, or add these capabilities to the container")]
    Capabilities(String),
    /// No bpffs.
    #[error("{0} is not a BPF file system: mount one with `mount -t bpf bpf {0}`, or point --bpffs at one")]
    Bpffs(PathBuf),
    /// No cgroup v2.
    #[error("{0} is not in a cgroup v2 hierarchy: point --cgroup-root at one, or switch off with --socket-lb=off")]
    Cgroup(PathBuf),
}

/// Everything that is missing; nothing when all is well. `cgroup` is the root of the cgroups to attach to, if any.
#[must_use]
pub fn missing(bpffs: &Path, cgroup: Option<&Path>) -> Vec<Missing> {
    let mut missing = Vec::new();
    if let Ok(running) = KernelVersion::current()
        && running < OLDEST_KERNEL
    {
        missing.push(Missing::Kernel { running });
    }
    if !Path::new(BTF).exists() {
        missing.push(Missing::Btf);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    missing.extend(capabilities(&status));
    if !is_on(bpffs, BPF_FS_MAGIC) {
        missing.push(Missing::Bpffs(bpffs.to_owned()));
    }
    if let Some(cgroup) = cgroup
        && !is_on(cgroup, CGROUP2_SUPER_MAGIC)
    {
        missing.push(Missing::Cgroup(cgroup.to_owned()));
    }
    missing
}

/// What `status`, the text of `/proc/self/status`, lacks in effective capabilities.
fn capabilities(status: &str) -> Option<Missing> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let has = |number: u32| effective >> number & 1 == 1;
    if has(CAP_SYS_ADMIN) && has(CAPABILITIES[0].1) {
        return None;
    }
    let lacking: Vec<_> = CAPABILITIES.iter().filter(|(_, number)| !has(*number)).map(|(name, _)| *name).collect();
    (!lacking.is_empty()).then(|| Missing::Capabilities(lacking.join(", ")))
}

fn is_on(path: &Path, magic: FsType) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == magic)
}

/// Whether `bpf_l4_csum_replace` takes `BPF_F_IPV6`, which came with 6.16. Distributions have it in older kernels too; there
/// a checksum that a device computed over a whole packet is computed again, which costs time but is right.
pub fn has_ipv6_checksum_flag() -> bool {
    KernelVersion::current().is_ok_and(|running| running >= KernelVersion::new(6, 16, 0))
}

/// Lifts the limit on locked memory, which kernels before 5.11 count maps against.
pub fn lift_memory_limit() -> io::Result<()> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if KernelVersion::current().is_ok_and(|running| running >= KernelVersion::new(5, 11, 0)) {
        return Ok(());
    }
    Ok(setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_lacks_no_capability_and_a_plain_user_is_told_which() {
        assert_eq!(capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), None);
        assert_eq!(
            capabilities("CapEff:\t0000000000001000\n"),
            Some(Missing::Capabilities("CAP_PERFMON, CAP_BPF".to_owned()))
        );
        // CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are enough.
        assert_eq!(capabilities("CapEff:\t000000c000001000\n"), None);
    }

    #[test]
    fn every_message_names_the_next_step() {
        let directory = tempfile::tempdir().unwrap();
        let missing: Vec<_> =
            missing(directory.path(), Some(directory.path())).iter().map(Missing::to_string).collect();
        assert!(missing.iter().any(|line| line.contains("mount -t bpf bpf")), "{missing:?}");
        assert!(missing.iter().any(|line| line.contains("--cgroup-root")), "{missing:?}");
    }
}
