//! What the samples say: ratios within rounds, and the rows that have targets.

use super::{
    catalogue::Position,
    contenders::{DEFAULT, DIRECT, IPTABLES, NFTABLES, PACKET, XDP},
    installed::Route,
    plan::{Entry, FEW, MANY},
    rounds::Measured,
    rows::{Better, Row, TARGETS},
    slice::{Load, Sample},
    statistics::Spread,
};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Done per CPU second of the whole machine.
    PerCpu,
    /// Done per second of the clock.
    PerWall,
    /// The median latency.
    P50,
}

impl Figure {
    /// Its value in `sample`.
    pub fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::PerCpu => sample.per_cpu(),
            Self::PerWall => sample.per_wall(),
            Self::P50 => sample.p50.as_secs_f64(),
        }
    }
}

/// Entries in the middle of a cluster.
const fn entry(contender: &'static str, services: u32) -> Entry {
    Entry { contender, services, position: Position::Middle }
}

impl Measured {
    /// The spread of `figure` of `entry`.
    pub fn spread(&self, entry: Entry, figure: Figure) -> Option<Spread> {
        Spread::of(self.of(entry)?.iter().map(|sample| figure.of(sample)))
    }

    /// The spread of the ratios of `entry` to `base`, round by round.
    pub fn ratio(&self, entry: Entry, base: Entry, figure: Figure) -> Option<Spread> {
        let values = |entry| -> Option<Vec<Option<f64>>> {
            Some(self.of(entry)?.iter().map(|sample| Some(figure.of(sample))).collect())
        };
        Spread::of_ratios(&values(entry)?, &values(base)?)
    }

    /// The one of `contenders` that does most.
    pub fn strongest(&self, contenders: &[&'static str], services: u32) -> Option<Entry> {
        let entries = contenders.iter().map(|contender| entry(contender, services));
        let measured = entries.filter_map(|entry| Some((self.spread(entry, Figure::PerCpu)?.median, entry)));
        measured.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, entry)| entry)
    }
}

/// How a row comes out of the phases: the worst of its routes counts.
struct Question {
    id: &'static str,
    load: Load,
    figure: Figure,
    who: Entry,
    /// The strongest of them is compared with.
    against: &'static [&'static str],
    /// Among how many services.
    among: u32,
}

const QUESTIONS: &[Question] = &[
    crr("crr_packet_vs_direct", entry(PACKET, FEW), &[DIRECT], FEW),
    crr("crr_default_vs_direct", entry(DEFAULT, FEW), &[DIRECT], FEW),
    crr("crr_vs_iptables_10", entry(DEFAULT, FEW), &IPTABLES, FEW),
    crr("crr_vs_nftables_10", entry(DEFAULT, FEW), &[NFTABLES], FEW),
    crr("crr_flat", entry(DEFAULT, MANY), &[DEFAULT], FEW),
    Question { load: Load::Rr, figure: Figure::P50, ..crr("rr_p50_vs_direct", entry(DEFAULT, FEW), &[DIRECT], FEW) },
    Question { load: Load::Stream, ..crr("stream_vs_direct", entry(DEFAULT, FEW), &[DIRECT], FEW) },
    Question { load: Load::Packets, ..crr("nodeport_xdp_vs_iptables", entry(XDP, FEW), &IPTABLES, FEW) },
];

const fn crr(id: &'static str, who: Entry, against: &'static [&'static str], among: u32) -> Question {
    Question { id, load: Load::Crr(1), figure: Figure::PerCpu, who, against, among }
}

/// An answered question, with where it was worst and against whom.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The row.
    pub row: Row,
    /// The ratios behind it.
    pub spread: Spread,
    /// The route that it was worst on.
    pub route: Route,
    /// Whom it was compared with there.
    pub against: Entry,
}

/// Rows that these parts answer.
pub fn ids() -> impl Iterator<Item = &'static str> {
    QUESTIONS.iter().map(|question| question.id)
}

/// Whether a phase of `load` is needed for a row that `wants` accepts.
pub fn needs(load: Load, wants: impl Fn(&str) -> bool) -> bool {
    QUESTIONS.iter().any(|question| question.load == load && wants(question.id))
}

/// Answers what the phases allow to answer.
pub fn findings(measured: &[Measured]) -> Vec<Finding> {
    QUESTIONS.iter().filter_map(|question| answer(question, measured)).collect()
}

fn answer(question: &Question, measured: &[Measured]) -> Option<Finding> {
    let better = TARGETS.iter().find(|target| target.id == question.id)?.better;
    // NodePorts are asked for small packets only.
    let routes = |phase: &&Measured| {
        phase.phase.load == question.load && (question.load == Load::Packets || phase.phase.route != Route::NodePort)
    };
    let answers = measured.iter().filter(routes).filter_map(|phase| {
        let against = phase.strongest(question.against, question.among)?;
        Some((phase.ratio(question.who, against, question.figure)?, phase.phase.route, against))
    });
    let worse = |one: &Spread, other: &Spread| match better {
        Better::Higher => one.median.total_cmp(&other.median),
        Better::Lower => other.median.total_cmp(&one.median),
    };
    let (spread, route, against) = answers.min_by(|(one, ..), (other, ..)| worse(one, other))?;
    let row = Row::new(question.id, (spread.median * 1e4).round() / 1e4).ok()?;
    Some(Finding { row, spread, route, against })
}
