//! Requests from outside to backends on other nodes, forwarded by XDP: single packets, and real ones over real links.

#[path = "xdp/cast.rs"]
mod cast;
#[path = "xdp/flows.rs"]
mod flows;
#[path = "xdp/links.rs"]
mod links;
#[path = "xdp/packets.rs"]
mod packets;
#[path = "xdp/untouched.rs"]
mod untouched;
#[path = "xdp/wire.rs"]
mod wire;
