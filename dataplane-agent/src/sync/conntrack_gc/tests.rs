//! Passes over a map that only counts.

use std::sync::Mutex;

use super::*;
use crate::{maps::expired::Swept, tables::IpFamily};

/// A map of 100 steps with 1000 entries each; one entry in ten is over.
struct Counting {
    position: u32,
    /// When each step was made.
    steps: Arc<Mutex<Vec<Instant>>>,
}

impl Sweep for Counting {
    fn map(&self) -> &'static str {
        "conntrack4"
    }

    fn capacity(&self) -> u32 {
        110_000
    }

    fn step(&mut self, _now: Ticks) -> Result<Swept, MapError> {
        self.steps.lock().unwrap().push(Instant::now());
        self.position = (self.position + 1) % 100;
        Ok(Swept { seen: 1000, removed: 100, is_complete: self.position == 0 })
    }
}

struct Running {
    steps: Arc<Mutex<Vec<Instant>>>,
    usage: watch::Receiver<BTreeMap<String, Usage>>,
    alarm: Alarm,
}

fn start(pace: Pace) -> Running {
    let steps = Arc::default();
    let (sender, usage) = watch::channel(BTreeMap::new());
    let alarm = Alarm::default();
    let map: Box<dyn Sweep> = Box::new(Counting { position: 0, steps: Arc::clone(&steps) });
    tokio::spawn(run(pace, vec![map], alarm.clone(), sender));
    Running { steps, usage, alarm }
}

const NEVER: Duration = Duration::from_secs(3600);

/// Passes are made only when something calls for one.
const ON_DEMAND: Pace = Pace { pause: NEVER, pass: NEVER, urgent: Duration::ZERO };

impl Running {
    /// The time of each step, after there have been at least `count`.
    async fn steps(&self, count: usize) -> Vec<Instant> {
        loop {
            let steps = self.steps.lock().unwrap().clone();
            if steps.len() >= count {
                return steps;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

fn gone(protocol: Protocol) -> [(BackendId, BackendRow); 1] {
    let addr = "10.0.0.1:53".parse().unwrap();
    let row = BackendRow { addr, protocol, flags: 0, service: 1, generation: 2 };
    [(BackendId { family: IpFamily::V4, number: 1 }, row)]
}

#[tokio::test]
async fn a_start_is_one_pass_at_once_and_tells_how_full_the_map_is() {
    let mut running = start(ON_DEMAND);
    running.usage.changed().await.unwrap();
    let expected = Usage { used: 90_000, capacity: 110_000 };
    assert_eq!(running.usage.borrow_and_update()["conntrack4"], expected);
    assert!(expected.is_high());
    assert_eq!(running.steps(0).await.len(), 100);
}

#[tokio::test]
async fn later_passes_pause_between_their_steps() {
    let pause = Duration::from_millis(5);
    let running = start(Pace { pause, pass: Duration::ZERO, urgent: Duration::ZERO });
    let steps = running.steps(150).await;
    let later = &steps[100..150];
    assert!(later.windows(2).all(|pair| pair[1] - pair[0] >= pause));
}

#[tokio::test]
async fn p50_a_datagram_backend_that_goes_is_a_pass_at_once_and_a_tcp_backend_is_not() {
    let mut running = start(ON_DEMAND);
    running.steps(100).await;
    running.alarm.backends_gone(&gone(Protocol::Tcp));
    sleep(Duration::from_millis(50)).await;
    assert_eq!(running.steps(100).await.len(), 100);
    running.alarm.backends_gone(&gone(Protocol::Udp));
    running.steps(200).await;
}

#[tokio::test]
async fn p50_an_alarm_during_a_pass_ends_its_pauses_and_makes_another() {
    let mut running = start(Pace { pass: Duration::ZERO, ..ON_DEMAND });
    // The second pass stands in its first pause.
    running.steps(101).await;
    running.alarm.backends_gone(&gone(Protocol::Udp));
    running.steps(300).await;
}

#[test]
fn a_map_is_nearly_full_from_four_fifths_on() {
    let high = |used, capacity| Usage { used, capacity }.is_high();
    assert_eq!([high(79, 100), high(80, 100), high(0, 0), high(262_144, 262_144)], [false, true, false, true]);
}
