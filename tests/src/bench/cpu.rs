//! CPU time of the whole machine, and how much of it went to processes that have nothing to do with the benchmark.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// The unit of times in /proc, USER_HZ: a hundredth of a second on every architecture that Linux runs on here.
const TICK: Duration = Duration::from_millis(10);

/// The machine at a moment.
#[derive(Debug)]
pub struct Moment {
    at: Instant,
    idle: Duration,
    processors: u32,
    foreign: Duration,
}

/// What the machine did between two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// By the clock.
    pub wall: Duration,
    /// CPU time of everything but foreign processes: user, kernel and interrupts.
    pub cpu: Duration,
    /// CPU time of processes that neither the benchmark has started nor the kernel runs for itself.
    pub foreign: Duration,
}

impl Moment {
    /// The beginning of a measurement: what it takes to look at all processes is before it.
    pub fn begin() -> Result<Self> {
        let foreign = foreign()?;
        Ok(Self { foreign, ..Self::without_processes()? })
    }

    /// The end of a measurement, which the look at all processes comes after.
    pub fn end() -> Result<Self> {
        let moment = Self::without_processes()?;
        Ok(Self { foreign: foreign()?, ..moment })
    }

    /// Busy time is what is left of the clock beside idle time. The kernel keeps that exactly whatever its tick (`get_idle_time`),
    /// and shows it in hundredths of a second, while user and system time are samples taken at ticks.
    fn without_processes() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let (idle, processors) = idle(&stat).context("/proc/stat has no idle time")?;
        Ok(Self { at: Instant::now(), idle, processors, foreign: Duration::ZERO })
    }

    /// What has happened since `earlier`.
    pub fn since(&self, earlier: &Self) -> Usage {
        let wall = self.at - earlier.at;
        let busy = (wall * self.processors).saturating_sub(self.idle.saturating_sub(earlier.idle));
        let foreign = self.foreign.saturating_sub(earlier.foreign);
        Usage { wall, cpu: busy.saturating_sub(foreign), foreign }
    }
}

/// Idle time of all processors, with what they waited for disks and what the hypervisor took; and their number.
fn idle(stat: &str) -> Option<(Duration, u32)> {
    let total = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u32> = total.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let ticks = fields.get(3)? + fields.get(4)? + fields.get(7)?;
    let processors = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    Some((TICK * ticks, u32::try_from(processors).ok()?))
}

/// CPU time so far of all processes but ours, our children and the kernel's threads. A process that ends hands its time to its
/// parent, so the sum does not lose it.
fn foreign() -> Result<Duration> {
    let own = std::process::id();
    let mut ticks = 0_u32;
    for entry in fs::read_dir("/proc").context("cannot read /proc")?.flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // It may have ended by now.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some(process) = Process::parse(&stat) else { continue };
        if id != own && process.parent != own && !process.of_the_kernel(id) {
            ticks = ticks.wrapping_add(process.ticks);
        }
    }
    Ok(TICK * ticks)
}

#[derive(Debug, PartialEq)]
struct Process {
    parent: u32,
    ticks: u32,
}

impl Process {
    /// From a line of /proc/PID/stat, whose second field is a name in parentheses that may hold anything.
    fn parse(stat: &str) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u32>().ok();
        // utime, stime, cutime, cstime.
        let ticks = [11, 12, 13, 14].into_iter().map(number).sum::<Option<u32>>()?;
        Some(Self { parent: number(1)?, ticks })
    }

    /// kthreadd has the process id 2 and starts all others.
    fn of_the_kernel(&self, id: u32) -> bool {
        id == 2 || self.parent == 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_idle_disk_and_stolen_time_of_all_processors() {
        let stat =
            "cpu  100 0 50 1000 20 0 3 7 0 0\ncpu0 50 0 25 500 10 0 1 3 0 0\ncpu1 50 0 25 500 10 0 2 4 0 0\nintr 1\n";
        assert_eq!(idle(stat), Some((TICK * 1027, 2)));
    }

    #[test]
    fn a_process_name_may_hold_spaces_and_parentheses() {
        let stat = "17 (a) b (c) S 2 0 0 0 -1 0 0 0 0 0 5 6 7 8 20 0 1";
        let process = Process::parse(stat).unwrap();
        assert_eq!(process, Process { parent: 2, ticks: 26 });
        assert!(process.of_the_kernel(17));
    }

    #[test]
    fn a_busy_loop_is_ours_and_costs_about_what_it_takes() {
        let begun = Moment::begin().unwrap();
        while begun.at.elapsed() < Duration::from_millis(200) {}
        let usage = Moment::end().unwrap().since(&begun);
        assert!(usage.wall >= Duration::from_millis(200));
        // Others may have had the processor, but not more than there is.
        assert!(usage.cpu + usage.foreign <= usage.wall * begun.processors + 4 * TICK, "{usage:?}");
    }
}
