//! How slow the machine is that the tests run on, as whoever starts them says.

use std::{env, sync::OnceLock, time::Duration};

/// By how much time limits are multiplied; one when it is not set. An emulator needs it.
const VARIABLE: &str = "SLUICE_TEST_PATIENCE";

/// The time to allow here for what may take `time` elsewhere.
pub fn allow(time: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(1));
    time.saturating_mul(*factor)
}
