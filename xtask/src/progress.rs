//! Long steps: what is being done, for how long already, and the end of the output when it fails.

use std::{
    fs::File,
    io::{IsTerminal, Write, stderr},
    process::{Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// How many lines of a failed step are shown.
const TAIL: usize = 25;
/// When a step begins to show that it still runs.
const SLOW: Duration = Duration::from_secs(2);
/// How often a log, where no line can be rewritten, is told that a step still runs.
const REMINDER: Duration = Duration::from_secs(20);

/// Runs `command` with its output in a log, and says on standard error what runs and how long it took.
///
/// # Errors
/// When it does not start or fails; the end of the log has been shown then.
pub(crate) fn step(what: &str, mut command: Command) -> Result<()> {
    let logs = workspace::target().join("xtask");
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let name: String = what.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let path = logs.join(format!("{}.log", name.trim_matches('-')));
    let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = command.spawn().with_context(|| format!("{what}: cannot run {program}"))?;

    let mut line = Line::new(what);
    let status: ExitStatus = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        sleep(Duration::from_millis(50));
        line.tick();
    };
    if status.success() {
        line.end("done");
        return Ok(());
    }
    line.end("FAILED");
    let text = std::fs::read(&path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(TAIL)..] {
        eprintln!("    {line}");
    }
    bail!("{what} failed ({status}); its whole output is in {}", path.display())
}

/// The line of a running step.
struct Line<'a> {
    what: &'a str,
    start: Instant,
    shown: Instant,
    terminal: bool,
}

impl<'a> Line<'a> {
    fn new(what: &'a str) -> Self {
        let line = Self { what, start: Instant::now(), shown: Instant::now(), terminal: stderr().is_terminal() };
        if line.terminal {
            eprint!("  {what} ... ");
        } else {
            eprintln!("  {what} ...");
        }
        line
    }

    fn tick(&mut self) {
        let elapsed = self.start.elapsed();
        if self.terminal && elapsed > SLOW && self.shown.elapsed() > Duration::from_millis(500) {
            eprint!("\r  {} ... {} s ", self.what, elapsed.as_secs());
            let _flushed = stderr().flush();
            self.shown = Instant::now();
        } else if !self.terminal && self.shown.elapsed() > REMINDER {
            eprintln!("  {} ... {} s", self.what, elapsed.as_secs());
            self.shown = Instant::now();
        }
    }

    fn end(&self, how: &str) {
        let begin = if self.terminal { "\r" } else { "" };
        eprintln!("{begin}  {} ... {how} in {:.1} s", self.what, self.start.elapsed().as_secs_f32());
    }
}
