//! Test binaries: built by the user, run as the user or as root, and counted.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{
    output::{count, read},
    tally::Tally,
};
use crate::{privilege, workspace};

/// The package whose tests need root.
const ROOT_PACKAGE: &str = "dataplane-tests";
/// The suites of real agents and real packets.
const PACKET_SUITES: [&str; 5] = ["addresses", "endpoints", "life", "services", "upstream"];
/// The modes beside the default one.
pub(super) const MODES: [Mode; 4] = [
    Mode { name: "packet", suites: &PACKET_SUITES },
    Mode { name: "bypass", suites: &PACKET_SUITES },
    Mode { name: "socket", suites: &PACKET_SUITES },
    // XDP is on the way of clients outside alone: these are the suites in which they reach everything.
    Mode { name: "xdp", suites: &["addresses", "services", "upstream"] },
];
/// Where the test bed finds the mode.
const MODE: &str = "SLUICE_TEST_MODE";
/// So many tests of a run may need a second try.
const UNSTEADY: usize = 2;
/// The suite that wants SCTP sockets and VLAN interfaces, which a kernel need not have: `cargo xtask kernels` runs it on some that do.
pub(crate) const OF_OTHER_KERNELS: &str = "other_kernels";

/// A way for agents to translate.
pub(super) struct Mode {
    /// As the test bed knows it.
    pub(super) name: &'static str,
    /// What runs in it.
    suites: &'static [&'static str],
}

/// One test binary.
pub(crate) struct Suite {
    /// `package name`, as in `dataplane-tests service`.
    name: String,
    /// The name alone.
    target: String,
    executable: PathBuf,
    /// The package's folder, where cargo would run the binary.
    folder: PathBuf,
    pub(super) needs_root: bool,
    /// Names of the modes that it runs in beside the default one.
    pub(super) modes: Vec<&'static str>,
}

/// Builds every test binary of the workspace that this machine's own kernel is fit for.
///
/// # Errors
/// When one does not build; cargo has said why.
pub(super) fn build() -> Result<Vec<Suite>> {
    Ok(build_selected(&[])?.into_iter().filter(|suite| suite.target != OF_OTHER_KERNELS).collect())
}

/// Builds the test binaries of the workspace that `selection` names in cargo's words; all when it is empty.
///
/// # Errors
/// When one does not build; cargo has said why.
pub(crate) fn build_selected(selection: &[&str]) -> Result<Vec<Suite>> {
    let mut command = workspace::cargo();
    command
        .args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"])
        .args(selection)
        .stderr(Stdio::inherit());
    let output = command.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the tests do not build; cargo's messages are above")
    }
    let messages = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<serde_json::Value>();
    Ok(messages.filter_map(Result::ok).filter_map(|message| Suite::from_message(&message)).collect())
}

/// The examples in the documentation, as cargo runs them.
pub(super) fn run_doctests(filter: Option<&str>, tally: &mut Tally) {
    let mut command = workspace::cargo();
    command.args(["test", "--workspace", "--doc", "--quiet", "--no-fail-fast"]);
    command.args(filter.map(|filter| ["--", filter]).into_iter().flatten());
    count("documentation examples", command, filter.is_some(), tally);
}

impl Suite {
    /// From cargo's message about an artifact; `None` when it is not a test binary.
    fn from_message(message: &serde_json::Value) -> Option<Self> {
        if !message["profile"]["test"].as_bool()? {
            return None;
        }
        let executable = PathBuf::from(message["executable"].as_str()?);
        let folder = PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_owned();
        // `path+file:///...#name@version`, or `...folder#version` when the folder has the package's name.
        let id = message["package_id"].as_str()?;
        let end = id.rsplit_once('#').map_or(id, |(_, end)| end);
        let package = end.split_once('@').map_or_else(|| folder.file_name()?.to_str(), |(name, _)| Some(name))?;
        let target = message["target"]["name"].as_str()?;
        let name = if target.replace('_', "-") == package { package.to_owned() } else { format!("{package} {target}") };
        let needs_root = package == ROOT_PACKAGE;
        let modes =
            MODES.iter().filter(|mode| needs_root && mode.suites.contains(&target)).map(|mode| mode.name).collect();
        Some(Self { name, target: target.to_owned(), executable, folder, needs_root, modes })
    }

    /// The name of cargo's target.
    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// The binary.
    pub(crate) fn executable(&self) -> &Path {
        &self.executable
    }

    /// Whether a test has `filter` in its name.
    pub(crate) fn has(&self, filter: &str) -> bool {
        let listed = Command::new(&self.executable).args(["--list", filter]).output();
        listed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(": test\n"))
    }

    /// Runs the binary in the default mode or in `mode`, shows its output and counts.
    pub(super) fn run(&self, mode: Option<&str>, filter: Option<&str>, tally: &mut Tally) {
        let name = mode.map_or_else(|| self.name.clone(), |mode| format!("{} ({mode})", self.name));
        match self.command(mode) {
            Ok(mut command) => {
                command.args(filter);
                let failed = count(&name, command, filter.is_some(), tally);
                if self.needs_root {
                    failed.iter().for_each(|test| self.run_again(mode, &name, test, tally));
                }
            }
            Err(error) => tally.failed.push(format!("{name}: {error:#}")),
        }
    }

    /// Runs `test`, which has failed, once more and alone: with clocks and packets it matters what else the machine does. One that
    /// passes then is counted as passed, and named at the end all the same.
    fn run_again(&self, mode: Option<&str>, name: &str, test: &str, tally: &mut Tally) {
        let failed = format!("{name}: {test}");
        // Several at once are no accident.
        let Some(position) = tally.failed.iter().position(|other| *other == failed && tally.unsteady.len() < UNSTEADY)
        else {
            return;
        };
        let Ok(mut command) = self.command(mode) else { return };
        command.args(["--exact", test]).stdin(Stdio::null()).stdout(Stdio::piped());
        let Ok(child) = command.spawn() else { return };
        if read(&format!("{name}, once more"), child).is_ok_and(|outcome| outcome.passed == 1 && outcome.failed == 0) {
            tally.failed.remove(position);
            tally.passed += 1;
            tally.unsteady.push(failed);
        }
    }

    fn command(&self, mode: Option<&str>) -> Result<Command> {
        let mut command = if self.needs_root {
            // Through env(1), since sudo may drop variables; without CARGO, so that nothing builds as root.
            let mut command = privilege::as_root("env", "running the integration tests")?;
            let debug = workspace::target().join("debug/sluice");
            command.args(["-u", "CARGO"]).arg(format!("SLUICE_BIN={}", debug.display()));
            command.arg(format!("CARGO_MANIFEST_DIR={}", self.folder.display()));
            // A test that says how to repeat it wants to be told.
            let asked = env::vars().filter(|(name, _)| name.starts_with("SLUICE_MODEL_"));
            command.args(asked.map(|(name, value)| format!("{name}={value}")));
            command.args(mode.map(|mode| format!("{MODE}={mode}"))).arg(&self.executable);
            command
        } else {
            let mut command = Command::new(&self.executable);
            command.env("CARGO_MANIFEST_DIR", &self.folder);
            command
        };
        command.current_dir(&self.folder);
        Ok(command)
    }
}
