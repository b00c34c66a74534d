//! Direct server return: requests from outside keep the client's address on their way to another node, and that node answers.

#[path = "dsr/backend.rs"]
mod backend;
#[path = "dsr/cast.rs"]
mod cast;
#[path = "dsr/entry.rs"]
mod entry;
#[path = "dsr/errors.rs"]
mod errors;
#[path = "dsr/live.rs"]
mod live;
#[path = "dsr/state.rs"]
mod state;
#[path = "dsr/xdp.rs"]
mod xdp;
