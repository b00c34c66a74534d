//! Rows at rest.

use dataplane_common::Frontend;

use super::{BackendId, BackendRow, ClientRange, FrontendAddr, Tables};

/// The rows of one service port as [`Tables`] has them, without the room that its trees keep free: that would be most of what an
/// agent needs, since most services are small.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    frontends: Box<[(FrontendAddr, Frontend)]>,
    slots: Box<[(u32, BackendId)]>,
    backends: Box<[(BackendId, BackendRow)]>,
    service_names: Box<[(u32, String)]>,
    source_ranges: Box<[ClientRange]>,
}

impl From<Tables> for Packed {
    /// The node's own rows, which no service port has, are left out.
    fn from(tables: Tables) -> Self {
        Self {
            frontends: tables.frontends.into_iter().collect(),
            slots: tables.slots.into_iter().collect(),
            backends: tables.backends.into_iter().collect(),
            service_names: tables.service_names.into_iter().collect(),
            source_ranges: tables.source_ranges.into_iter().collect(),
        }
    }
}

impl Packed {
    /// The rows, to work with.
    pub fn tables(&self) -> Tables {
        Tables {
            frontends: self.frontends.iter().copied().collect(),
            slots: self.slots.iter().copied().collect(),
            backends: self.backends.iter().copied().collect(),
            service_names: self.service_names.iter().cloned().collect(),
            source_ranges: self.source_ranges.iter().copied().collect(),
            ..Tables::default()
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The frontends.
    pub fn frontends(&self) -> impl Iterator<Item = &(FrontendAddr, Frontend)> {
        self.frontends.iter()
    }

    /// How many backends there are.
    pub fn backends(&self) -> usize {
        self.backends.len()
    }

    /// Whether `id` is one of the backends.
    pub fn has_backend(&self, id: BackendId) -> bool {
        self.backends.binary_search_by_key(&id, |(id, _)| *id).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_the_same_after_a_rest() {
        let id = |number| BackendId { family: crate::tables::IpFamily::V4, number };
        let mut tables = Tables::default();
        tables.service_names.insert(7, "default/web".to_owned());
        tables.slots.extend([(4, id(2)), (3, id(9))]);
        let packed = Packed::from(tables.clone());
        assert_eq!(packed.tables(), tables);
        assert!(!packed.is_empty() && Packed::default().is_empty());
        assert!(!packed.has_backend(id(2)));
    }
}
