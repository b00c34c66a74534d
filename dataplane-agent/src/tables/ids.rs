//! Ids of services and backends, stable over restarts because they are read back from the maps.

use std::collections::{BTreeMap, VecDeque};

/// Ids of service ports. They are not used again while the agent lives, so that a flow or an affinity entry that
/// outlives its service never names another one.
#[derive(Clone, Debug)]
pub struct ServiceIds {
    next: u32,
}

impl ServiceIds {
    /// Continues behind the ids `used`.
    pub fn new(used: impl IntoIterator<Item = u32>) -> Self {
        Self { next: used.into_iter().max().unwrap_or_default() }
    }

    /// An id that was not used before.
    pub fn allocate(&mut self) -> u32 {
        // Four billion services later it starts again; zero stays free.
        self.next = self.next.checked_add(1).unwrap_or(1);
        self.next
    }
}

/// Ids of the backends of one family, each with the generation that the array holds for it.
#[derive(Clone, Debug)]
pub struct BackendIds {
    generations: Vec<u32>,
    /// Free ids that were used before. The one that has been free for longest is used first.
    free: VecDeque<u32>,
    entries: u32,
}

impl BackendIds {
    /// The ids of an array of `entries`: `used` and `free` as read back, with their generations.
    pub fn new(entries: u32, used: &BTreeMap<u32, u32>, free: &BTreeMap<u32, u32>) -> Self {
        let last = used.keys().chain(free.keys()).max().copied().unwrap_or_default();
        let of = |id: u32| used.get(&id).or(free.get(&id)).copied().unwrap_or_default();
        Self {
            generations: (0..=last).map(of).collect(),
            free: (1..=last).filter(|id| !used.contains_key(id)).collect(),
            entries,
        }
    }

    /// An id and the (odd) generation it is to be written with; `None` when the array is full.
    pub fn allocate(&mut self) -> Option<(u32, u32)> {
        let id = match self.free.pop_front() {
            Some(id) => id,
            None => {
                let id = u32::try_from(self.generations.len()).ok().filter(|id| *id < self.entries)?;
                self.generations.push(0);
                id
            }
        };
        let generation = self.generations.get(id as usize).copied().unwrap_or_default();
        Some((id, generation.wrapping_add(1) | 1))
    }

    /// Notes that `generation` has been written for `id`.
    pub fn written(&mut self, id: u32, generation: u32) {
        if let Some(last) = self.generations.get_mut(id as usize) {
            *last = generation;
        }
    }

    /// Gives `id` back.
    pub fn release(&mut self, id: u32) {
        self.free.push_back(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_returns_with_the_next_odd_generation() {
        let mut ids = BackendIds::new(3, &BTreeMap::new(), &BTreeMap::new());
        assert_eq!(ids.allocate(), Some((1, 1)));
        assert_eq!(ids.allocate(), Some((2, 1)));
        assert_eq!(ids.allocate(), None);
        ids.written(1, 1);
        ids.written(1, 2);
        ids.release(1);
        assert_eq!(ids.allocate(), Some((1, 3)));
    }

    #[test]
    fn a_restart_continues_with_the_generations_of_the_maps() {
        let mut ids = BackendIds::new(10, &BTreeMap::from([(3, 5)]), &BTreeMap::from([(2, 8)]));
        assert_eq!(ids.allocate(), Some((1, 1)));
        assert_eq!(ids.allocate(), Some((2, 9)));
        assert_eq!(ids.allocate(), Some((4, 1)));
    }

    #[test]
    fn service_ids_continue_behind_those_in_use() {
        let mut ids = ServiceIds::new([7, 3]);
        assert_eq!((ids.allocate(), ids.allocate()), (8, 9));
    }
}
