//! Programs made up by tests.

use std::{path::Path, process::Command};

/// Makes `path` a shell script.
///
/// Another process writes it: a file that this one has open for writing may at that moment be inherited by a child of
/// another test's thread, and then cannot be run ("text file busy").
pub(crate) fn write(path: &Path, text: &str) {
    let write = r#"printf '%s\n' '#!/bin/sh' "$1" > "$0" && chmod 755 "$0""#;
    let status = Command::new("sh").arg("-c").arg(write).arg(path).arg(text).status().unwrap();
    assert!(status.success());
}
