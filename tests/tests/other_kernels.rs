//! What only a kernel with SCTP sockets and VLAN interfaces can show: `cargo xtask kernels` runs this on some.

#[path = "other_kernels/sctp.rs"]
mod sctp;
#[path = "other_kernels/vlan.rs"]
mod vlan;
