//! The situations of Kubernetes' own `[sig-network]` end-to-end suites, one file per suite, on the test bed.
//!
//! Each test's documentation is the title it is written after; docs/upstream.md lists all titles.

#[path = "upstream/affinity.rs"]
mod affinity;
#[path = "upstream/bed.rs"]
mod bed;
#[path = "upstream/conntrack.rs"]
mod conntrack;
#[path = "upstream/dual_stack.rs"]
mod dual_stack;
#[path = "upstream/endpoint_slices.rs"]
mod endpoint_slices;
#[path = "upstream/host_port.rs"]
mod host_port;
#[path = "upstream/load_balancers.rs"]
mod load_balancers;
#[path = "upstream/networking.rs"]
mod networking;
#[path = "upstream/services.rs"]
mod services;
#[path = "upstream/traffic_distribution.rs"]
mod traffic_distribution;
#[path = "upstream/traffic_policy.rs"]
mod traffic_policy;
