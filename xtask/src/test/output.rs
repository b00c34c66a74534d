//! Runs what speaks as the test harness of Rust: shows its output and counts.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{libtest::Outcome, tally::Tally};

/// What is silent for so long hangs.
const SILENCE: Duration = Duration::from_secs(600);

/// Runs `command`, which speaks as the test harness of Rust does, adds what it says to `tally`, and returns the tests that failed.
pub(crate) fn count(name: &str, mut command: Command, filtered: bool, tally: &mut Tally) -> Vec<String> {
    let start = Instant::now();
    let outcome = match command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn() {
        Ok(child) => read(name, child),
        Err(error) => Err(format!("does not start: {error}")),
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            tally.failed.push(format!("{name}: {error}"));
            return Vec::new();
        }
    };
    let tests = outcome.passed + outcome.failed;
    if tests > 0 {
        tally.suites.push((name.to_owned(), tests, start.elapsed().as_secs_f32()));
    }
    tally.passed += outcome.passed;
    tally.failed.extend(outcome.failed_names.iter().map(|test| format!("{name}: {test}")));
    let unnamed = outcome.failed.saturating_sub(outcome.failed_names.len());
    tally.failed.extend((0..unnamed).map(|_| format!("{name}: a test whose name is above")));
    // A test that does not run proves nothing: it is repaired or removed.
    tally.failed.extend(outcome.ignored_names.iter().map(|test| format!("{name}: {test} is ignored")));
    if outcome.filtered > 0 && !filtered {
        tally.failed.push(format!("{name}: {} tests were left out", outcome.filtered));
    }
    outcome.failed_names
}

/// Shows and reads the output of `child` to its end.
pub(super) fn read(name: &str, mut child: Child) -> Result<Outcome, String> {
    let stdout = child.stdout.take().ok_or("has no output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut bytes = Vec::new();
        // Tests print bytes of any kind; only the harness' own lines matter.
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            bytes.clear();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut outcome = Outcome::default();
    let mut titled = false;
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => {
                outcome.line(&line);
                if line == "running 0 tests" || line.trim().is_empty() || line.starts_with("test result: ok. 0 passed")
                {
                    continue;
                }
                if !titled {
                    println!("\n{name}");
                    titled = true;
                }
                println!("  {line}");
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                // It may be gone by now, which is as good.
                child.kill().ok();
                return Err(format!("silent for {} s: ended", SILENCE.as_secs()));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    match (status.success(), outcome.complete) {
        (_, true) if status.success() || outcome.failed > 0 => Ok(outcome),
        // No tests, no summary: a package without documentation examples.
        (true, false) if outcome.failed_names.is_empty() => Ok(outcome),
        _ => Err(format!("ended early ({status})")),
    }
}
