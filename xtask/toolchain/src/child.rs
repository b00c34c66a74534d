//! Child processes that must not inherit what cargo and rustup told this one.

use std::{env, ffi::OsStr, process::Command};

/// A command for `program` without the variables by which a surrounding cargo or rustup would steer its compiler.
pub fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(steers) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether a variable steers the compiler of a nested cargo.
fn steers(name: &str) -> bool {
    const EXACT: &[&str] = &[
        "CARGO",
        "CARGO_BUILD_RUSTC",
        "CARGO_BUILD_RUSTC_WRAPPER",
        "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_TARGET_DIR",
        "CARGO_ENCODED_RUSTFLAGS",
        // The verifier refuses programs that were compiled piece by piece.
        "CARGO_INCREMENTAL",
        "CARGO_TARGET_DIR",
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
        "HOST",
        "LD_LIBRARY_PATH",
        "OUT_DIR",
        "PROFILE",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUSTUP_TOOLCHAIN_SOURCE",
        "TARGET",
    ];
    const PREFIX: &[&str] = &[
        "RUSTC",
        "RUSTDOC",
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "DEP_",
    ];
    EXACT.contains(&name) || PREFIX.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_a_compiler_is_dropped_and_what_names_a_place_or_proxy_stays() {
        for name in ["RUSTC", "RUSTC_WRAPPER", "RUSTUP_TOOLCHAIN", "CARGO_ENCODED_RUSTFLAGS", "TARGET"] {
            assert!(steers(name), "{name}");
        }
        for name in
            ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "HTTPS_PROXY", "CARGO_HTTP_CAINFO", "CARGO_NET_OFFLINE"]
        {
            assert!(!steers(name), "{name}");
        }
    }
}
