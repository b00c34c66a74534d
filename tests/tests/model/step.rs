//! The steps of a history as data, so that they can be told again without whatever chose them.

use std::{
    fmt::{self, Display, Formatter},
    net::SocketAddr,
};

use dataplane_common::Protocol;
use dataplane_tests::{
    packet::IcmpError,
    reference::{edit::Edit, rules::Client},
};

/// Something that happens in a history.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// An object changes.
    Edit(Edit),
    /// The agent brings the maps up to date, as it also does before the next packet.
    Sync,
    /// Clients that are remembered are silent for some seconds.
    Wait(u64),
    /// The first packet of the flow of this number, and its answer.
    Begin(u32, Aim, Complaints),
    /// A later packet of a flow, if the first one has been answered.
    GoOn(u32, Complaints),
    /// First packets until each backend has got one.
    Everyone(Aim),
}

/// Who sends what where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Aim {
    /// Who.
    pub(crate) client: Client,
    /// Where.
    pub(crate) to: SocketAddr,
    /// In what.
    pub(crate) protocol: Protocol,
}

/// What is complained about: a packet that has arrived, and the answer to it.
pub(crate) type Complaints = [Option<Complaint>; 2];

/// An ICMP error about a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Complaint {
    /// Whether a router before the receiver sends it, if there can be one.
    pub(crate) by_router: bool,
    /// What it says.
    pub(crate) error: IcmpError,
    /// The bytes that it quotes behind the network header.
    pub(crate) quoted: usize,
}

impl Step {
    /// The same with less in it, in one respect each.
    pub(crate) fn simpler(&self) -> Vec<Self> {
        let mut all = match self {
            Self::Edit(edit) => return edit.simpler().into_iter().map(Self::Edit).collect(),
            Self::Sync => return Vec::new(),
            Self::Begin(flow, aim, complaints) => {
                fewer(complaints).into_iter().map(|complaints| Self::Begin(*flow, *aim, complaints)).collect()
            }
            Self::GoOn(flow, complaints) => {
                fewer(complaints).into_iter().map(|complaints| Self::GoOn(*flow, complaints)).collect()
            }
            Self::Wait(_) | Self::Everyone(_) => Vec::new(),
        };
        // Perhaps all that matters of it is that the agent does not hear of two changes at once.
        all.insert(0, Self::Sync);
        all
    }
}

fn fewer(complaints: &Complaints) -> Vec<Complaints> {
    let [first, second] = *complaints;
    let mut all = Vec::new();
    if first.is_some() {
        all.push([None, second]);
    }
    if second.is_some() {
        all.push([first, None]);
    }
    all
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Edit(edit) => edit.fmt(f),
            Self::Sync => f.write_str("the agent brings the maps up to date"),
            Self::Wait(seconds) => write!(f, "{seconds} seconds pass"),
            Self::Begin(flow, aim, complaints) => {
                write!(f, "flow {flow} begins: {aim}")?;
                write_complaints(f, complaints)
            }
            Self::GoOn(flow, complaints) => {
                write!(f, "flow {flow} goes on")?;
                write_complaints(f, complaints)
            }
            Self::Everyone(aim) => write!(f, "flows until each backend has one: {aim}"),
        }
    }
}

impl Display for Aim {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} -> {}/{}", self.client, self.to, self.protocol)
    }
}

fn write_complaints(f: &mut Formatter<'_>, complaints: &Complaints) -> fmt::Result {
    for (complaint, about) in complaints.iter().zip(["it", "the answer"]) {
        if let Some(Complaint { by_router, error, quoted }) = complaint {
            let by = if *by_router { "a router" } else { "the receiver" };
            write!(f, ", {error:?} about {about} by {by} quotes {quoted} bytes")?;
        }
    }
    Ok(())
}
