//! The page in Markdown: what was measured, on what, how, and what came out.

use std::{
    fmt::{self, Write},
    fs,
    process::Command,
};

use super::{super::contenders::CONTENDERS, BASE, Load, Results, terminal};
use crate::bench::{findings::Figure, rounds::Measured, rows::Better, statistics::Spread};

/// The whole page.
pub(super) fn page(results: &Results, plots: &[(&str, &str)]) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    write_page(&mut text, results, plots).ok();
    text
}

fn write_page(text: &mut String, results: &Results, plots: &[(&str, &str)]) -> fmt::Result {
    text.push_str("# Connections, requests, streams and packets\n\nWritten by `cargo xtask bench --report`.\n\n");
    machine(text)?;
    method(text, results)?;
    rows(text, results)?;
    for (name, title) in plots {
        writeln!(text, "![{title}]({name}.svg)\n")?;
    }
    contenders(text, results)?;
    text.push_str("## Measurements\n\n");
    text.push_str("Medians; ratios are medians of the ratios within rounds, with quartiles.\n\n");
    for measured in &results.measured {
        phase(text, measured)?;
    }
    Ok(())
}

fn machine(text: &mut String) -> fmt::Result {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = read("/proc/cpuinfo");
    let field = |name: &str| cpu.lines().find(|line| line.starts_with(name)).and_then(|line| line.split(": ").nth(1));
    let processors = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory = read("/proc/meminfo");
    let memory =
        memory.lines().next().unwrap_or_default().split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok());
    writeln!(text, "## Machine\n")?;
    writeln!(text, "| | |\n| --- | --- |")?;
    writeln!(text, "| processor | {} × {} |", processors, field("model name").unwrap_or("unknown"))?;
    writeln!(text, "| memory | {} MB |", memory.unwrap_or_default() / 1024)?;
    writeln!(text, "| kernel | {} |", read("/proc/sys/kernel/osrelease"))?;
    writeln!(text, "| sluice | {} |", env!("CARGO_PKG_VERSION"))?;
    for (program, argument) in [("iptables", "--version"), ("nft", "--version"), ("iperf3", "--version")] {
        let output = Command::new(program).arg(argument).output().map(|output| output.stdout).unwrap_or_default();
        let output = String::from_utf8_lossy(&output).lines().next().unwrap_or_default().to_owned();
        writeln!(text, "| {program} | {} |", output.trim())?;
    }
    text.push('\n');
    Ok(())
}

fn method(text: &mut String, results: &Results) -> fmt::Result {
    let slices: usize = results.measured.iter().flat_map(|measured| &measured.samples).map(Vec::len).sum();
    let repeated: u32 = results.measured.iter().map(|measured| measured.repeated).sum();
    let disturbed: u32 = results.measured.iter().map(|measured| measured.disturbed).sum();
    writeln!(
        text,
        "## Method\n\n\
         Every contender has a cluster of network namespaces of its own: two nodes, each with pods behind veth pairs and host routes, joined by a bridge, and a client \
         outside. All are alive during the whole run and idle but for one. In each round every contender gets one slice, beginning with another \
         one each round, and connections and requests after 80 ms that do not count; with each table stands how many rounds of which slices there were. Ratios are taken within a round, so that a machine that is faster at times does not show.\n\n\
         Rates count per second of the clock and per **CPU second of the whole machine**, which decides: user, kernel and interrupt time of everything on the machine, \
         from what `/proc/stat` says of idle, disk and stolen time, less the time of processes that have nothing to do with the benchmark. The kernel keeps idle time exactly and \
         shows it in hundredths of a second. {slices} slices were measured; {repeated} in which foreign processes used more than a tenth of one processor were thrown away \
         and repeated; {disturbed} such slices were kept, since the number of repetitions is bounded.\n\n\
         * **CRR**: a client connects, sends one byte, receives one byte, and reads the end of the connection, which the server closes first; then it closes its own. \
         So the server's side has the connection that waits, and clients do not run out of ports.\n\
         * **RR**: one byte there and one back, on one connection; **UDP RR**: with datagrams of one socket.\n\
         * **TCP stream**: iperf3, one connection.\n\
         * **Small packets**: UDP packets with 18 bytes of payload of 64 flows to a NodePort whose backend is on the other node. The kernel makes the frames at \
         the far end of the node's uplink (`BPF_PROG_TEST_RUN` with live frames), and they are counted and dropped at the same place when the node has sent them on, so nearly all of the \
         CPU time is the node's.\n\n\
         Services that nobody asks have one port and two endpoints. The rules of iptables and nftables mode come from generators with the chains, jumps, matches, marks and maps \
         that kube-proxy 1.36 writes, and are installed on both nodes.\n"
    )
}

fn rows(text: &mut String, results: &Results) -> fmt::Result {
    writeln!(text, "## Rows\n")?;
    writeln!(
        text,
        "The value is that of the worse route where a row was measured on several, and against the strongest variant.\n"
    )?;
    writeln!(text, "| row | what | value (quartiles) | target | | route | against |")?;
    writeln!(text, "| --- | --- | ---: | ---: | --- | --- | --- |")?;
    for finding in &results.findings {
        let row = &finding.row;
        let sign = if row.better == Better::Higher { "≥" } else { "≤" };
        writeln!(
            text,
            "| `{}` | {} | {} | {sign} {} | {} | {} | {} |",
            row.id,
            row.what(),
            terminal::quartiles(finding.spread, 3),
            row.target,
            if row.ok { "met" } else { "missed" },
            finding.route.name(),
            finding.against.contender
        )?;
    }
    text.push('\n');
    Ok(())
}

fn contenders(text: &mut String, results: &Results) -> fmt::Result {
    writeln!(
        text,
        "## Contenders\n\n| contender | what | services | installed on both nodes in |\n| --- | --- | ---: | ---: |"
    )?;
    for contender in CONTENDERS {
        if results.missing.contains(&contender.name) {
            writeln!(text, "| {} | {} | | this build lacks its options |", contender.name, contender.what)?;
        }
        for (_, services, took) in results.installs.iter().filter(|(name, ..)| *name == contender.name) {
            writeln!(text, "| {} | {} | {services} | {:.2} s |", contender.name, contender.what, took.as_secs_f64())?;
        }
    }
    text.push('\n');
    Ok(())
}

fn phase(text: &mut String, measured: &Measured) -> fmt::Result {
    let unit = measured.phase.load.unit();
    let latency = matches!(measured.phase.load, Load::Crr(_) | Load::Rr | Load::UdpRr);
    let pace = measured.pace;
    writeln!(text, "### {}\n", terminal::title(measured))?;
    writeln!(text, "{} rounds with slices of {} ms.\n", pace.rounds, pace.slice.as_millis())?;
    write!(text, "| contender | services | {unit} per CPU s | to direct | {unit} per s | to direct |")?;
    writeln!(text, "{}", if latency { " p50 µs | to direct | p99 µs |" } else { "" })?;
    writeln!(text, "| --- | ---: | ---: | ---: | ---: | ---: |{}", if latency { " ---: | ---: | ---: |" } else { "" })?;
    for entry in measured.phase.entries.iter().copied() {
        let of = |figure| measured.spread(entry, figure).map_or(f64::NAN, |spread| spread.median);
        let to = |figure| {
            measured.ratio(entry, BASE, figure).map_or("-".to_owned(), |spread| terminal::quartiles(spread, 2))
        };
        write!(
            text,
            "| {} | {} | {:.0} | {} | {:.0} | {} |",
            entry.contender,
            terminal::among(entry),
            of(Figure::PerCpu),
            to(Figure::PerCpu),
            of(Figure::PerWall),
            to(Figure::PerWall)
        )?;
        if latency {
            let samples = measured.of(entry).unwrap_or_default();
            let p99 = Spread::of(samples.iter().map(|sample| sample.p99.as_secs_f64() * 1e6));
            let p99 = p99.map_or(f64::NAN, |spread| spread.median);
            write!(text, " {:.1} | {} | {p99:.1} |", of(Figure::P50) * 1e6, to(Figure::P50))?;
        }
        text.push('\n');
    }
    text.push('\n');
    Ok(())
}
