//! The flows that are measured, and the hooks that their packets pass.

use dataplane_common::FrontendKind;

use crate::harness::Hook;

/// Who talks to what, and the hooks on the way there and back.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// What the destination is; none for one that is no frontend.
    pub(super) kind: Option<FrontendKind>,
    pub(super) client: [&'static str; 2],
    pub(super) frontend: [&'static str; 2],
    pub(super) backend: [&'static str; 2],
    pub(super) is_local: bool,
    pub(super) there: Hook,
    pub(super) back: Hook,
    /// The hook on the other side of the stack that answers pass before, as they are.
    pub(super) passed: Option<Hook>,
    /// Whether packets go around the stack.
    pub(super) bypass: bool,
}

const POD: [&str; 2] = ["10.244.0.10:1", "[fd44::a]:1"];
const OUTSIDE: [&str; 2] = ["172.20.0.200:1", "[fd20::c8]:1"];
const CLUSTER_IP: [&str; 2] = ["10.96.0.10:80", "[fd96::a]:80"];
pub(super) const NODE_PORT: [&str; 2] = ["172.20.0.10:30080", "[fd20::a]:30080"];
const LOCAL: [&str; 2] = ["10.244.0.11:8080", "[fd44::b]:8080"];
const REMOTE: [&str; 2] = ["10.244.1.10:8080", "[fd44:0:0:1::a]:8080"];
// Nobody reaches these by a service: addresses that have had flows cost one look into conntrack more.
const OTHER_LOCAL: [&str; 2] = ["10.244.0.12:8080", "[fd44::c]:8080"];
const OTHER_REMOTE: [&str; 2] = ["10.244.1.11:8080", "[fd44:0:0:1::b]:8080"];

const POD_TO_CLUSTER_IP: Scenario = Scenario {
    name: "pod to ClusterIP",
    kind: Some(FrontendKind::ClusterIp),
    client: POD,
    frontend: CLUSTER_IP,
    backend: REMOTE,
    is_local: false,
    there: Hook::FromPod,
    back: Hook::ToPod,
    passed: Some(Hook::FromUplink),
    bypass: false,
};

const OUTSIDE_TO_LOCAL: Scenario = Scenario {
    name: "outside to NodePort with a local backend",
    kind: Some(FrontendKind::NodePort),
    client: OUTSIDE,
    frontend: NODE_PORT,
    backend: LOCAL,
    is_local: true,
    there: Hook::FromUplink,
    back: Hook::ToUplink,
    passed: Some(Hook::FromPod),
    bypass: false,
};

const OUTSIDE_TO_REMOTE: Scenario = Scenario {
    name: "outside to NodePort with a remote backend (SNAT)",
    backend: REMOTE,
    is_local: false,
    back: Hook::FromUplink,
    passed: None,
    ..OUTSIDE_TO_LOCAL
};

const OUTSIDE_TO_NO_FRONTEND: Scenario = Scenario {
    name: "outside to what is no frontend",
    kind: None,
    frontend: OTHER_LOCAL,
    backend: OTHER_LOCAL,
    passed: None,
    ..OUTSIDE_TO_LOCAL
};

pub(super) const SCENARIOS: [Scenario; 10] = [
    POD_TO_CLUSTER_IP,
    OUTSIDE_TO_LOCAL,
    OUTSIDE_TO_REMOTE,
    Scenario {
        name: "pod to what is no frontend",
        kind: None,
        frontend: OTHER_REMOTE,
        backend: OTHER_REMOTE,
        passed: None,
        ..POD_TO_CLUSTER_IP
    },
    OUTSIDE_TO_NO_FRONTEND,
    Scenario {
        name: "pod to ClusterIP, around the stack",
        back: Hook::FromUplink,
        passed: None,
        bypass: true,
        ..POD_TO_CLUSTER_IP
    },
    Scenario {
        name: "outside to what is no frontend, around the stack",
        frontend: LOCAL,
        backend: LOCAL,
        back: Hook::FromPod,
        bypass: true,
        ..OUTSIDE_TO_NO_FRONTEND
    },
    Scenario { there: Hook::XdpFromUplink, back: Hook::XdpFromUplink, ..OUTSIDE_TO_REMOTE },
    // What XDP passes: these come on top of what `from_uplink` costs.
    Scenario { there: Hook::XdpFromUplink, passed: None, ..OUTSIDE_TO_LOCAL },
    Scenario { there: Hook::XdpFromUplink, ..OUTSIDE_TO_NO_FRONTEND },
];
