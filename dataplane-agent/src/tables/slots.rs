//! Hands out runs of the array `slots`: a buddy allocator, so that freed runs of any size join again.

use std::collections::BTreeSet;

/// Binary logarithm of the smallest run. Services of up to four endpoints never move, and 1 Mi slots still make 256 Ki
/// runs: the two sets of both families for each of 64 Ki services.
const MIN_ORDER: u32 = 2;

/// A run of `1 << order` slots, aligned to its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The first slot.
    pub first: u32,
    /// Binary logarithm of the number of slots.
    pub order: u32,
}

impl Block {
    /// Number of slots.
    pub const fn capacity(self) -> u32 {
        1 << self.order
    }
}

/// The slots that no service owns.
#[derive(Clone, Debug)]
pub struct SlotPool {
    /// Per order, the first slots of the free runs.
    free: Vec<BTreeSet<u32>>,
}

impl SlotPool {
    /// A pool of the slots `0..entries`.
    pub fn new(entries: u32) -> Self {
        let mut pool = Self { free: vec![BTreeSet::new(); 32] };
        let mut first = 0;
        for order in (MIN_ORDER..32).rev() {
            if (entries - first) >> order != 0 {
                pool.free[order as usize].insert(first);
                first += 1 << order;
            }
        }
        pool
    }

    /// The order of the smallest run with room for `count` slots.
    pub const fn order_for(count: u32) -> u32 {
        let order = count.next_power_of_two().trailing_zeros();
        if order < MIN_ORDER { MIN_ORDER } else { order }
    }

    /// Takes a run with room for `count` slots; `None` when no run is large enough.
    pub fn allocate(&mut self, count: u32) -> Option<Block> {
        let order = Self::order_for(count);
        let (larger, first) =
            (order..32).find_map(|larger| self.free[larger as usize].pop_first().map(|first| (larger, first)))?;
        self.split(first, larger, Block { first, order });
        Some(Block { first, order })
    }

    /// Takes exactly `block`, which something uses already; false when part of it is taken or it is not aligned.
    pub fn reserve(&mut self, block: Block) -> bool {
        if !block.first.is_multiple_of(block.capacity()) {
            return false;
        }
        for larger in block.order..32 {
            let first = block.first >> larger << larger;
            if self.free[larger as usize].remove(&first) {
                self.split(first, larger, block);
                return true;
            }
        }
        false
    }

    /// Doubles `block` in place; `None` when the slots behind it are taken or it is the upper half of a pair.
    pub fn extend(&mut self, block: Block) -> Option<Block> {
        let upper = block.first | block.capacity();
        let extends = upper != block.first && self.free[block.order as usize].remove(&upper);
        extends.then_some(Block { order: block.order + 1, ..block })
    }

    /// Gives `block` back, except for a run with room for `count` slots at its beginning.
    pub fn shrink(&mut self, mut block: Block, count: u32) -> Block {
        while block.order > Self::order_for(count) {
            block.order -= 1;
            self.release(Block { first: block.first + block.capacity(), order: block.order });
        }
        block
    }

    /// Gives `block` back.
    pub fn release(&mut self, mut block: Block) {
        while self.free[block.order as usize].remove(&(block.first ^ block.capacity())) {
            block.first &= !block.capacity();
            block.order += 1;
        }
        self.free[block.order as usize].insert(block.first);
    }

    /// Puts back what is left of the run at `first` of order `larger` when `block` is cut out of it.
    fn split(&mut self, first: u32, larger: u32, block: Block) {
        let mut first = first;
        for order in (block.order..larger).rev() {
            let upper = first + (1 << order);
            let other = if block.first >= upper { std::mem::replace(&mut first, upper) } else { upper };
            self.free[order as usize].insert(other);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn freed_runs_join_again() {
        let mut pool = SlotPool::new(64);
        let blocks: Vec<_> = (0..16).map(|_| pool.allocate(4).unwrap()).collect();
        assert_eq!(pool.allocate(1), None);
        for block in blocks {
            pool.release(block);
        }
        assert_eq!(pool.allocate(64), Some(Block { first: 0, order: 6 }));
    }

    #[test]
    fn a_capacity_that_is_no_power_of_two_is_used_up() {
        let mut pool = SlotPool::new(28);
        let firsts: Vec<_> = (0..7).map(|_| pool.allocate(3).unwrap().first).collect();
        assert_eq!(pool.allocate(1), None);
        assert_eq!(firsts.iter().max(), Some(&24));
    }

    #[test]
    fn a_run_grows_in_place_when_its_buddy_is_free_and_shrinks_again() {
        let mut pool = SlotPool::new(64);
        let block = pool.allocate(4).unwrap();
        let grown = pool.extend(block).unwrap();
        assert_eq!(grown, Block { first: 0, order: 3 });
        assert_eq!(pool.allocate(4).unwrap().first, 8);
        assert_eq!(pool.shrink(grown, 2), block);
        assert_eq!(pool.allocate(4).unwrap().first, 4);
    }

    proptest! {
        #[test]
        fn runs_never_overlap(steps in prop::collection::vec((any::<bool>(), 1_u32..40), 1..200)) {
            let mut pool = SlotPool::new(256);
            let mut taken: Vec<Block> = Vec::new();
            for (free, size) in steps {
                if free && !taken.is_empty() {
                    pool.release(taken.swap_remove(size as usize % taken.len()));
                } else if let Some(block) = pool.allocate(size) {
                    prop_assert!(block.capacity() >= size);
                    prop_assert!(block.first + block.capacity() <= 256);
                    taken.push(block);
                }
                let mut sorted: Vec<_> = taken.iter().map(|block| (block.first, block.capacity())).collect();
                sorted.sort_unstable();
                prop_assert!(sorted.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
                // A restart takes the same runs out of a new pool.
                let mut restored = SlotPool::new(256);
                prop_assert!(taken.iter().all(|block| restored.reserve(*block)));
            }
        }
    }
}
