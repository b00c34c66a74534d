//! What tests and the demo expect of a client: an answer by somebody in particular, or a refusal in time.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    cluster::Site,
    pace,
    traffic::{Answer, Ask, Failure, FailureKind, Report},
};

/// How long a change of the manifests may take to show in the traffic, on a busy machine.
pub const SETTLED: Duration = Duration::from_secs(10);

/// How soon a client must learn that nobody answers.
pub const AT_ONCE: Duration = Duration::from_millis(10);

/// Expects an answer by one of `servers`, which comes from the address that the client has asked.
pub fn answered(client: &Site, ask: &Ask, servers: &[&str]) -> Result<Answer> {
    let from = client.name();
    let answer = client.ask(ask)?.with_context(|| format!("{from} -> {} {}", ask.to, ask.transport))?;
    ensure!(
        servers.contains(&answer.server.as_str()),
        "{from} -> {} {}: answered by {}, not by {servers:?}",
        ask.to,
        ask.transport,
        answer.server
    );
    ensure!(
        answer.peer == ask.to,
        "{from} -> {} {}: the answer seems to come from {}",
        ask.to,
        ask.transport,
        answer.peer
    );
    Ok(answer)
}

/// The same, and the server must have seen the client at the address `seen`.
pub fn answered_seeing(client: &Site, ask: &Ask, servers: &[&str], seen: IpAddr) -> Result<Answer> {
    let answer = answered(client, ask, servers)?;
    let (from, to) = (client.name(), ask.to);
    ensure!(answer.seen.ip() == seen, "{from} -> {to} {}: seen as {}, not {seen}", ask.transport, answer.seen);
    Ok(answer)
}

/// Expects that nobody answers and that the client learns it within `limit`: the best of a few tries, since the first one
/// may wait for a neighbour and the machine for a processor.
pub fn refused(client: &Site, ask: &Ask, limit: Duration) -> Result<Failure> {
    let (limit, mut last) = (pace::allow(limit), None);
    for _ in 0..5 {
        let failure = refusal(client, ask)?;
        if failure.took <= limit {
            return Ok(failure);
        }
        last = Some(failure.took);
    }
    Err(anyhow::anyhow!("{} -> {} {}: refused only after {last:?}", client.name(), ask.to, ask.transport))
}

/// Expects that everything is refused, however long that takes.
pub fn refusal(client: &Site, ask: &Ask) -> Result<Failure> {
    let from = client.name();
    match client.ask(ask)? {
        Ok(answer) => Err(anyhow::anyhow!("{from} -> {} {}: answered by {}", ask.to, ask.transport, answer.server)),
        Err(failure) => {
            ensure!(failure.kind == FailureKind::Refused, "{from} -> {} {}: {failure}", ask.to, ask.transport);
            Ok(failure)
        }
    }
}

/// Tries until `attempt` succeeds, for as long as a change may take to arrive.
pub fn eventually<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let (begun, limit) = (Instant::now(), pace::allow(SETTLED));
    loop {
        match attempt() {
            Err(error) if begun.elapsed() > limit => return Err(error.context(format!("still after {limit:?}"))),
            Err(_) => thread::sleep(Duration::from_millis(10)),
            done => return done,
        }
    }
}

/// Expects that all of `count` connections are answered, and that only by `servers`, each of them at least once.
pub fn spread(client: &Site, ask: &Ask, count: u32, servers: &[&str]) -> Result<Report> {
    let report = client.repeat(ask, count)?;
    let (from, to) = (client.name(), ask.to);
    ensure!(report.failed() == 0, "{from} -> {to} {}: {:?}", ask.transport, report.failures);
    let answered: Vec<&str> = report.servers.keys().map(String::as_str).collect();
    let mut expected = servers.to_vec();
    expected.sort_unstable();
    ensure!(answered == expected, "{from} -> {to} {}: answered by {:?}", ask.transport, report.servers);
    Ok(report)
}

/// Expects that nothing has failed, and that at least `least` were answered.
pub fn lossless(what: &str, report: &Report, least: u32) -> Result<String> {
    ensure!(report.failed() == 0, "{what}: {} failed: {:?}", report.failed(), report.failures);
    ensure!(report.answered() >= least, "{what}: only {} requests", report.answered());
    Ok(format!("{} requests, 0 failed", report.answered()))
}
