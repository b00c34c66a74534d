//! Removes what the programs noted about sockets that are gone: the kernel's list of sockets tells.
//!
//! A socket's end leaves no trace in `sockets*`, and a map full of them would give up those of sockets that live: their
//! processes would see backends, and connected UDP sockets would not be ended with theirs.

use std::{
    collections::{HashMap, HashSet},
    io, mem,
    path::Path,
};

use aya::Pod;
use dataplane_common::{SocketKey, SocketOrigin, Ticks, V4, V6};

use crate::{
    maps::{
        MapError,
        expired::{Pass, Sweep, Swept},
        observed::ObservedFamily,
        pinned::{Access, PinnedError},
    },
    netlink::sock_diag::SockDiag,
};

/// How long a socket must have been in no list. Its entry is written a moment before it is in one, and between two
/// connections of the same socket it is in none.
const GRACE: Ticks = Ticks::from_secs(20);

/// `sockets4` and `sockets6`, to be swept by one who is in the node's network namespace while only the node's sockets are
/// translated: those of pods are in no list of this namespace.
pub fn sweeps(bpffs: &Path) -> Result<Vec<Box<dyn Sweep>>, PinnedError> {
    Ok(vec![Box::new(Sockets::<V4>::open(bpffs)?), Box::new(Sockets::<V6>::open(bpffs)?)])
}

/// Translated sockets of one family.
struct Sockets<F: ObservedFamily>
where
    SocketKey<F::Addr>: Pod,
    SocketOrigin<F::Addr>: Pod,
{
    pass: Pass<SocketKey<F::Addr>, SocketOrigin<F::Addr>>,
    absence: Absence,
}

impl<F: ObservedFamily> Sockets<F>
where
    SocketKey<F::Addr>: Pod,
    SocketOrigin<F::Addr>: Pod,
{
    fn open(bpffs: &Path) -> Result<Self, PinnedError> {
        Ok(Self { pass: Pass::open(bpffs, F::SOCKETS, Access::ReadWrite)?, absence: Absence::default() })
    }
}

impl<F: ObservedFamily> Sweep for Sockets<F>
where
    SocketKey<F::Addr>: Pod,
    SocketOrigin<F::Addr>: Pod,
{
    fn map(&self) -> &'static str {
        self.pass.about().0.name
    }

    fn capacity(&self) -> u32 {
        self.pass.about().1
    }

    fn step(&mut self, now: Ticks) -> Result<Swept, MapError> {
        if self.pass.is_at_start() {
            self.absence.begin(now);
        }
        let list = || SockDiag::open()?.cookies();
        let absence = &mut self.absence;
        self.pass.step(|_, key, _| {
            let [low, high] = key.cookie.map(u64::from);
            let is_over = absence.is_over(high << 32 | low, list).map_err(|source| MapError {
                map: F::SOCKETS.name,
                op: "list sockets for",
                source,
            })?;
            Ok(if is_over { vec![*key] } else { Vec::new() })
        })
    }
}

/// Which sockets were in no list, and since when.
#[derive(Debug, Default)]
struct Absence {
    /// None before the first entry of a pass: the kernel goes through the sockets of every namespace to list those of one.
    listed: Option<HashSet<u64>>,
    /// When the pass began.
    at: Ticks,
    /// Missing since, as of the pass before.
    before: HashMap<u64, Ticks>,
    /// The same, as of this pass: what has no entry any more is forgotten.
    now: HashMap<u64, Ticks>,
}

impl Absence {
    /// Begins a pass at the tick `at`.
    fn begin(&mut self, at: Ticks) {
        (self.listed, self.at) = (None, at);
        self.before = mem::take(&mut self.now);
    }

    /// Whether the socket with this cookie has been missing for long enough; `list` tells the cookies of all there are.
    fn is_over(&mut self, cookie: u64, list: impl FnOnce() -> io::Result<HashSet<u64>>) -> io::Result<bool> {
        let listed = match &mut self.listed {
            Some(listed) => listed,
            none => none.insert(list()?),
        };
        if listed.contains(&cookie) {
            return Ok(false);
        }
        let since = self.before.get(&cookie).copied().unwrap_or(self.at);
        self.now.insert(cookie, since);
        Ok(self.at.0.saturating_sub(since.0) >= GRACE.0)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_socket_is_gone_when_no_list_had_it_for_a_while() {
        let mut absence = Absence::default();
        let mut pass = |sockets: &[u64], seconds: u64, entries: &[u64]| -> Vec<u64> {
            absence.begin(Ticks::from_secs(seconds));
            let list = || Ok(sockets.iter().copied().collect());
            entries.iter().copied().filter(|cookie| absence.is_over(*cookie, list).unwrap()).collect()
        };
        assert_eq!(pass(&[1], 100, &[1, 2, 3]), [0; 0]);
        assert_eq!(pass(&[1], 110, &[1, 2, 3]), [0; 0]);
        // 3 was between two connections, and begins anew.
        assert_eq!(pass(&[1, 3], 115, &[1, 2, 3]), [0; 0]);
        assert_eq!(pass(&[1], 121, &[1, 2, 3]), [2]);
        assert_eq!(pass(&[], 130, &[1, 3]), [0; 0]);
        assert_eq!(pass(&[], 142, &[1, 3, 4]), [3]);
        assert_eq!(pass(&[], 151, &[1]), [1]);
    }

    #[test]
    fn sockets_are_listed_once_per_pass_and_not_for_nothing() {
        let mut absence = Absence::default();
        let lists = Cell::new(0);
        let list = || {
            lists.set(lists.get() + 1);
            Ok(HashSet::new())
        };
        for expected in 1..3 {
            absence.begin(Ticks::from_secs(100));
            assert_eq!(lists.get(), expected - 1);
            for cookie in [1, 2] {
                assert!(!absence.is_over(cookie, list).unwrap());
            }
            assert_eq!(lists.get(), expected);
        }
    }
}
