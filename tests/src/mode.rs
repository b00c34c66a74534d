//! The way that agents of a whole run translate, so that a suite shows the same in each of them.

use std::env;

use anyhow::{Result, bail};

/// The environment variable that names the mode.
pub const VARIABLE: &str = "SLUICE_TEST_MODE";

/// A way to translate, as options of the agent say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As installed: nothing is said.
    Default,
    /// Every packet takes the way through the stack.
    Packet,
    /// Packets go around the stack wherever they can.
    Bypass,
    /// Pods' TCP sockets are translated at connect time, too.
    Socket,
    /// XDP runs on the uplinks, in the driver.
    Xdp,
}

impl Mode {
    /// The option of [`Mode::Xdp`].
    pub const NATIVE_XDP: &'static str = "--xdp=native";

    const ALL: [Self; 5] = [Self::Default, Self::Packet, Self::Bypass, Self::Socket, Self::Xdp];

    /// The mode of this run: `$SLUICE_TEST_MODE`, or the default.
    pub fn current() -> Result<Self> {
        let Ok(name) = env::var(VARIABLE) else { return Ok(Self::Default) };
        match Self::ALL.into_iter().find(|mode| mode.name() == name) {
            Some(mode) => Ok(mode),
            None => bail!("{VARIABLE}={name} is none of {:?}", Self::ALL.map(Self::name)),
        }
    }

    /// The value of the variable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Packet => "packet",
            Self::Bypass => "bypass",
            Self::Socket => "socket",
            Self::Xdp => "xdp",
        }
    }

    /// What the mode adds to an agent's command line; an option that the test gives itself wins.
    pub fn arguments(self, given: &[String]) -> impl Iterator<Item = &'static str> {
        let options: &[&str] = match self {
            Self::Default => &[],
            Self::Packet => &["--host-bypass=off"],
            Self::Bypass => &["--host-bypass=on"],
            Self::Socket => &["--socket-lb=all"],
            Self::Xdp => &[Self::NATIVE_XDP],
        };
        let given: Vec<String> = given.iter().map(|option| name(option).to_owned()).collect();
        options.iter().copied().filter(move |option| !given.iter().any(|given| given == name(option)))
    }

    /// Whether a pod's TCP sockets are translated when they connect: their packets never carry a service's address then.
    pub fn translates_pods_at_connect(self) -> bool {
        self == Self::Socket
    }

    /// Whether XDP runs on the uplinks of agents that are not told otherwise: clusters are built for it then.
    pub fn runs_xdp(self) -> bool {
        self == Self::Xdp
    }
}

/// `--option` of `--option=value`.
fn name(option: &str) -> &str {
    option.split_once('=').map_or(option, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_a_test_gives_itself_wins() {
        let given = |options: &[&str]| options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>();
        let added = |options: &[&str]| Mode::Socket.arguments(&given(options)).collect::<Vec<_>>();
        assert_eq!(added(&["--tc=clsact"]), ["--socket-lb=all"]);
        assert_eq!(added(&["--tc=clsact", "--socket-lb=off"]), [""; 0]);
        assert_eq!(Mode::Default.arguments(&[]).count(), 0);
    }
}
