//! What goes wrong, as one line with a next step, and the exit code that goes with it.

use std::{error::Error, io, path::PathBuf, process::ExitCode};

/// A failure whose next step is known.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No agent has pinned anything below this mount.
    #[error(
        "no pinned maps at {path}: start `sluice agent` on this node, or name the agent's BPF file system with --bpffs"
    )]
    NoPins {
        /// The directory looked for.
        path: PathBuf,
    },
    /// Maps are pinned, but by a sluice with other layouts.
    #[error(
        "the maps pinned under {base} have layout {found}, this sluice reads v{expected}: use the `sluice` that the \
         running agent comes from, or replace the agent by this version"
    )]
    OtherLayout {
        /// The directory that holds the layout directories.
        base: PathBuf,
        /// The versions that are there.
        found: String,
        /// The version this binary knows.
        expected: u32,
    },
    /// A map's pin is missing.
    #[error("no map is pinned at {path}: the agent has not finished its start, or it is another version; try again")]
    NoMap {
        /// The pin looked for.
        path: PathBuf,
    },
    /// A pinned map is not of the type or size that this version expects.
    #[error(
        "the map pinned at {path} is {found}, expected {expected}: end the agent, run `sluice cleanup`, start it again"
    )]
    WrongMap {
        /// The pin.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The name does not exist.
    #[error("no {what} named {name:?}: {next}")]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// Its name.
        name: String,
        /// Where the names that exist are.
        next: &'static str,
    },
}

/// The exit code for `error`, after telling the user; a reader that closed the pipe has what it wanted.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if has_kind(error, io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {}", line(error));
    ExitCode::FAILURE
}

/// `error` and its causes in one line.
fn line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
    if has_kind(error, io::ErrorKind::PermissionDenied) {
        format!("{text}: needs CAP_BPF and CAP_NET_ADMIN (run as root)")
    } else {
        text
    }
}

/// Whether an I/O error of `kind` is among the causes.
fn has_kind(error: &anyhow::Error, kind: io::ErrorKind) -> bool {
    error.chain().any(|cause| kind_of(cause) == Some(kind))
}

fn kind_of(cause: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let errno = cause.downcast_ref::<nix::Error>().map(|errno| io::Error::from(*errno).kind());
    cause.downcast_ref::<io::Error>().map(io::Error::kind).or(errno)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn missing_privileges_name_the_capabilities() {
        let error = Err::<(), _>(io::Error::from_raw_os_error(1)).context("/x/maps/slots").unwrap_err();
        assert_eq!(
            line(&error),
            "/x/maps/slots: Operation not permitted (os error 1): needs CAP_BPF and CAP_NET_ADMIN (run as root)"
        );
    }

    #[test]
    fn an_error_is_one_line_that_names_the_next_step() {
        let error = anyhow::Error::from(Failure::NoPins { path: "/sys/fs/bpf/sluice/v1".into() });
        assert_eq!(
            line(&error),
            "no pinned maps at /sys/fs/bpf/sluice/v1: start `sluice agent` on this node, or name the agent's BPF file \
             system with --bpffs"
        );
        assert_eq!(line(&anyhow::anyhow!("a\n  b")), "a b");
    }
}
