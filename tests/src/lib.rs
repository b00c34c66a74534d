//! The test bed: clusters of network namespaces, real agents and real traffic, and programs run packet by packet.
//!
//! Everything here needs root and cleans up after itself: every namespace, cgroup, mount and process belongs to a guard,
//! and what a killed run left behind is removed by the next one (see [`leftovers`]).

pub mod bench;
pub mod demo;

pub mod cluster;
pub mod expect;
pub mod scenario;
pub mod topology;
pub mod traffic;

pub mod costs;
pub mod harness;
pub mod meaning;
pub mod packet;
pub mod raw;
pub mod reference;
pub mod router;

pub mod agent;
pub mod apiserver;
pub mod binaries;
pub mod mode;
pub mod objects;

pub mod bpffs;
pub mod cgroup;
pub mod http;
pub mod leftovers;
pub mod netns;
pub mod offload;
pub mod pace;
pub mod process;
