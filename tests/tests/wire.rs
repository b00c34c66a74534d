//! Packets of every kind through single programs: what a Service promises beyond the plain way, both families.

#[path = "wire/affinity.rs"]
mod affinity;
#[path = "wire/cast.rs"]
mod cast;
#[path = "wire/closing.rs"]
mod closing;
#[path = "wire/fragments.rs"]
mod fragments;
#[path = "wire/headers.rs"]
mod headers;
#[path = "wire/icmp.rs"]
mod icmp;
#[path = "wire/masquerade.rs"]
mod masquerade;
#[path = "wire/refusals.rs"]
mod refusals;
#[path = "wire/sctp.rs"]
mod sctp;
