//! ServiceCIDR objects.

use ipnetwork::IpNetwork;
use k8s_openapi::api::networking::v1 as networking;

use super::{
    Converted,
    field::{self, Faults},
};

/// Reads a ServiceCIDR. One that is being deleted counts until it is gone: its addresses may still be in use.
#[must_use]
pub fn from_service_cidr(object: &networking::ServiceCIDR) -> Converted<Vec<IpNetwork>> {
    let mut faults = Faults::default();
    let cidrs = object.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
    let ranges = faults.keep_each("spec.cidrs", cidrs, field::range);
    Converted { value: Some(ranges), faults: faults.into_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p10_the_ranges_of_both_families_are_read_and_a_broken_one_is_named() {
        let object = serde_json::json!({
            "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/12", "10.96.0.0", "fd00:96::/112"]},
        });
        let Converted { value, faults } = from_service_cidr(&serde_json::from_value(object).unwrap());
        assert_eq!(value.unwrap(), ["10.96.0.0/12", "fd00:96::/112"].map(|range| range.parse().unwrap()));
        assert_eq!(faults.iter().map(|fault| &*fault.field).collect::<Vec<_>>(), ["spec.cidrs[1]"]);
        assert_eq!(from_service_cidr(&networking::ServiceCIDR::default()).value, Some(Vec::new()));
    }
}
