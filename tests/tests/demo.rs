//! The demo as a program: what it prints, what it leaves behind, and how it ends.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dataplane_tests::{binaries, cgroup, leftovers, netns};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn demo(arguments: &[&str]) -> Result<Command> {
    // Fails with a clear message without root.
    leftovers::unique_prefix()?;
    let mut command = Command::new(binaries::own("sluice-demo")?);
    command.args(arguments).env("SLUICE_BIN", binaries::sluice()?);
    Ok(command)
}

/// Fails when a namespace, directory or cgroup of the process `id` is there.
fn leaves_nothing(id: u32) -> Result<()> {
    for directory in [Path::new(netns::DIRECTORY), Path::new(leftovers::DIRECTORY), cgroup::mount_point()?] {
        for entry in directory.read_dir().into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            ensure!(!name.contains(&format!("{id}-")), "{} is left", entry.path().display());
        }
    }
    Ok(())
}

fn ends(child: &mut Child) -> Result<std::process::ExitStatus> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.kill()?;
    anyhow::bail!("it does not end")
}

#[test]
fn the_demo_prints_one_json_object_whose_checks_all_pass() -> Result<()> {
    for wiring in ["routed", "bridge"] {
        let child = demo(&["--json", "--wiring", wiring])?.stdout(Stdio::piped()).spawn()?;
        let id = child.id();
        let output = child.wait_with_output()?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).context("not one JSON object")?;
        let checks = report["checks"].as_array().context("checks")?;
        let failed: Vec<_> = checks.iter().filter(|check| check["ok"] != true).collect();
        ensure!(failed.is_empty(), "{wiring}: {failed:#?}");
        ensure!(output.status.success(), "{}", output.status);
        assert_eq!(report["failed"], 0);
        assert_eq!(report["passed"], checks.len());
        assert!(checks.len() >= 60, "{}", checks.len());
        for version in ["IPv4: ", "IPv6: "] {
            let of_version =
                checks.iter().filter(|check| check["name"].as_str().is_some_and(|n| n.starts_with(version)));
            assert_eq!(of_version.count(), checks.len() / 2);
        }
        leaves_nothing(id)?;
    }
    Ok(())
}

#[test]
fn the_demo_cleans_up_when_it_is_interrupted() -> Result<()> {
    // While it builds, while it checks, and while it is kept running.
    for (signal, after, arguments) in [
        (Signal::SIGINT, "Building", &[] as &[&str]),
        (Signal::SIGTERM, "ok", &[]),
        (Signal::SIGINT, "End it with", &["--keep"]),
    ] {
        let mut command = demo(arguments)?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (out, err) = (child.stdout.take().context("stdout")?, child.stderr.take().context("stderr")?);
        // Both are read to the end, so that it never waits for its reader.
        let (seen, wait) = std::sync::mpsc::channel();
        for stream in [Box::new(out) as Box<dyn std::io::Read + Send>, Box::new(err)] {
            let seen = seen.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if line.trim_start().starts_with(after) {
                        // Whoever waits has seen enough after the first one.
                        seen.send(()).ok();
                    }
                }
            });
        }
        wait.recv_timeout(Duration::from_secs(120)).with_context(|| format!("it never says {after}"))?;
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        let status = ends(&mut child)?;
        ensure!(status.success() == (after == "End it with"), "{after}: {status}");
        leaves_nothing(child.id()).context(after)?;
    }
    Ok(())
}

#[test]
fn what_a_killed_demo_leaves_behind_is_removed_by_the_next_run() -> Result<()> {
    let mut child = demo(&[])?.stdout(Stdio::piped()).spawn()?;
    let out = BufReader::new(child.stdout.take().context("stdout")?);
    for line in out.lines() {
        if line?.trim_start().starts_with("ok") {
            break;
        }
    }
    child.kill()?;
    child.wait()?;
    ensure!(leaves_nothing(child.id()).is_err(), "it was killed too late to leave anything");
    leftovers::sweep();
    leaves_nothing(child.id())
}
