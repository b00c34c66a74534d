//! `sluice service get`: a service port's frontends, and the backends in their slots.

use std::collections::BTreeSet;

use dataplane_common::{Frontend, FrontendKind, SlotRange};
use serde::Serialize;

use super::{FrontendRow, named, slots};
use crate::{
    cli::{
        backend::{self, BackendLine},
        failure::Failure,
        output::{self, Format, Output},
    },
    tables::{IpFamily, Tables},
};

/// One service port with everything the datapath knows of it.
#[derive(Clone, Debug, Serialize)]
pub struct ServicePort {
    /// `namespace/name:port`.
    pub service: String,
    /// Its id in the maps.
    pub service_id: u32,
    /// `ClientIP` affinity in seconds, zero when there is none.
    pub affinity_seconds: u32,
    /// The clients that load-balancer addresses admit, of a family that they do not restrict all; null when they admit everyone.
    pub source_ranges: Option<Vec<String>>,
    /// What clients send to.
    pub frontends: Vec<FrontendSlots>,
    /// What answers, including backends that only finish their flows.
    pub backends: Vec<BackendLine>,
}

/// A frontend and its slots.
#[derive(Clone, Debug, Serialize)]
pub struct FrontendSlots {
    /// The frontend.
    #[serde(flatten)]
    pub frontend: FrontendRow,
    /// Backends for clients on this node, by slot.
    pub inside: Vec<SlotLine>,
    /// Backends for clients that reach the node from outside, by slot.
    pub outside: Vec<SlotLine>,
}

/// A slot and the backend it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotLine {
    /// Position in the map `slots`.
    pub slot: u32,
    /// The backend's address and port; null when the slot names a backend that does not exist.
    pub backend: Option<String>,
}

/// The service ports that `name` names.
pub fn services(tables: &Tables, name: &str) -> anyhow::Result<Vec<ServicePort>> {
    let mut found: Vec<_> = named(tables, name).map(|(id, text)| service(tables, id, text)).collect();
    if found.is_empty() {
        let next = "`sluice service list` shows those that this node translates";
        return Err(Failure::NotFound { what: "service", name: name.into(), next }.into());
    }
    found.sort_by(|a, b| a.service.cmp(&b.service));
    Ok(found)
}

fn service(tables: &Tables, id: u32, name: &str) -> ServicePort {
    let mut frontends: Vec<_> = tables
        .frontends
        .iter()
        .filter(|(frontend, value)| frontend.is_served() && value.service == id)
        .map(|(frontend, value)| {
            let family = IpFamily::of(frontend.addr);
            FrontendSlots {
                frontend: FrontendRow::new(tables, frontend, value),
                inside: resolve(tables, family, value.inside),
                outside: resolve(tables, family, value.outside),
            }
        })
        .collect();
    frontends.sort_by(|a, b| a.frontend.cmp(&b.frontend));
    ServicePort {
        service: name.into(),
        service_id: id,
        source_ranges: source_ranges(tables, id),
        affinity_seconds: frontends.iter().map(|each| each.frontend.affinity_seconds).max().unwrap_or_default(),
        frontends,
        backends: backend::lines(tables, |backend| backend.service == id),
    }
}

/// Whom the load-balancer addresses of the service port `id` admit, unless that is everyone.
fn source_ranges(tables: &Tables, id: u32) -> Option<Vec<String>> {
    let frontends = tables.frontends.iter().filter(|(_, value)| value.service == id);
    let checks = |value: &Frontend| value.flags & Frontend::SOURCE_RANGES != 0;
    let is_open = |value: &Frontend| value.kind == FrontendKind::LoadBalancer as u8 && !checks(value);
    if !frontends.clone().any(|(_, value)| checks(value)) {
        return None;
    }
    let open: BTreeSet<_> =
        frontends.filter(|(_, value)| is_open(value)).map(|(addr, _)| IpFamily::of(addr.addr)).collect();
    let everyone = open.into_iter().map(|family| format!("{}/0", family.unspecified()));
    let ranges = tables.source_ranges.iter().filter(|row| row.service == id).map(|row| row.range.to_string());
    Some(ranges.chain(everyone).collect())
}

/// The slots of `range` and what they name.
fn resolve(tables: &Tables, family: IpFamily, range: SlotRange) -> Vec<SlotLine> {
    slots(range)
        .map(|slot| {
            let id = tables.slots.get(&slot).filter(|id| id.family == family);
            let backend = id.and_then(|id| tables.backends.get(id)).map(|backend| backend.addr.to_string());
            SlotLine { slot, backend }
        })
        .collect()
}

/// Prints service ports: an array in JSON and YAML; for people, a paragraph each.
pub fn print(services: &[ServicePort], output: Output) -> anyhow::Result<()> {
    match output.format {
        Format::Json | Format::Yaml => output.object(&services, |_| String::new()),
        Format::Table | Format::Wide => {
            output::print(&services.iter().map(|service| text(service, output)).collect::<Vec<_>>().join("\n"))
        }
    }
}

/// One service port for people.
fn text(service: &ServicePort, output: Output) -> String {
    let affinity = match service.affinity_seconds {
        0 => "none".to_owned(),
        seconds => format!("ClientIP for {seconds} s"),
    };
    let mut text = output::properties(&[
        ("Service", service.service.clone()),
        ("Id", service.service_id.to_string()),
        ("Affinity", affinity),
    ]);
    if let Some(ranges) = &service.source_ranges {
        let ranges = if ranges.is_empty() { "nobody".to_owned() } else { ranges.join(", ") };
        text.push_str(&format!("Load-balancer addresses admit {ranges}\n"));
    }
    text.push_str("Frontends\n");
    for each in &service.frontends {
        let FrontendRow { frontend, protocol, kind, policy, when_empty, when_empty_outside, .. } = &each.frontend;
        text.push_str(&format!("  {kind} {frontend}/{protocol}, policy {policy}\n"));
        if each.inside == each.outside && when_empty == when_empty_outside {
            push_slots(&mut text, "", &each.inside, when_empty);
        } else {
            push_slots(&mut text, "clients on this node: ", &each.inside, when_empty);
            push_slots(&mut text, "clients outside: ", &each.outside, when_empty_outside);
        }
    }
    if service.backends.is_empty() {
        text.push_str("Backends: none\n");
    } else {
        text.push_str("Backends\n");
        let columns = Output { format: Format::Wide, ..output };
        // The first column repeats the service's name.
        let table = columns.table(&service.backends, false);
        let skip = service.service.len().max("SERVICE".len()) + 2;
        text.extend(table.lines().map(|line| format!("  {}\n", line.get(skip..).unwrap_or(line))));
    }
    text
}

fn push_slots(text: &mut String, clients: &str, slots: &[SlotLine], when_empty: &str) {
    if slots.is_empty() {
        text.push_str(&format!("    {clients}no backend: {when_empty}\n"));
    }
    for SlotLine { slot, backend } in slots {
        let backend = backend.as_deref().unwrap_or("a backend that does not exist");
        text.push_str(&format!("    {clients}slot {slot} -> {backend}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::fixture, tables::ClientRange};

    #[track_caller]
    fn check(name: &str, expected: &str) {
        let services = services(&fixture::tables(), name).unwrap();
        let texts: String = services.iter().map(|service| text(service, Output::default())).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn a_service_shows_its_frontends_with_the_backends_in_their_slots() {
        check(
            "web",
            "\
Service   default/web:http
Id        7
Affinity  none
Frontends
  ClusterIP 10.96.0.1:80/TCP, policy Cluster
    slot 8 -> 10.0.0.5:8080
    slot 9 -> 10.0.1.5:8080
    slot 10 -> 10.0.1.6:8080
  ClusterIP [fd00:96::1]:80/TCP, policy Cluster
    slot 16 -> [fd00::5]:8080
  NodePort 0.0.0.0:30080/TCP, policy Local
    clients on this node: slot 8 -> 10.0.0.5:8080
    clients on this node: slot 9 -> 10.0.1.5:8080
    clients on this node: slot 10 -> 10.0.1.6:8080
    clients outside: slot 8 -> 10.0.0.5:8080
Backends
  BACKEND         PROTOCOL  STATE     NODE   SLOTS  ID  GENERATION
  10.0.0.5:8080   TCP       ready     this   8      1   1
  10.0.1.5:8080   TCP       ready     other  9      2   1
  10.0.1.6:8080   TCP       draining  other  10     3   1
  10.0.1.7:8080   TCP       draining  other  none   4   1
  [fd00::5]:8080  TCP       ready     this   16     1   1
",
        );
    }

    #[test]
    fn a_service_without_endpoints_says_what_its_clients_get() {
        check(
            "kube-system/dns",
            "\
Service   kube-system/dns
Id        9
Affinity  ClientIP for 10800 s
Frontends
  ClusterIP 10.96.0.10:53/UDP, policy Cluster
    no backend: reject
Backends: none
",
        );
    }

    #[test]
    fn p33_the_clients_that_are_admitted_are_shown() {
        let mut tables = fixture::tables();
        let shown = |tables: &Tables| {
            let services = services(tables, "web").unwrap();
            (services[0].source_ranges.clone(), text(&services[0], Output::default()))
        };
        assert_eq!(shown(&tables).0, None);
        let balanced = |tables: &mut Tables, wanted: IpFamily, flags: u8| {
            for (addr, value) in tables.frontends.iter_mut().filter(|(_, value)| value.service == 7) {
                if IpFamily::of(addr.addr) == wanted {
                    (value.kind, value.flags) = (FrontendKind::LoadBalancer as u8, value.flags | flags);
                }
            }
        };
        balanced(&mut tables, IpFamily::V4, Frontend::SOURCE_RANGES);
        assert!(shown(&tables).1.contains("Load-balancer addresses admit nobody\n"));
        tables.source_ranges.insert(ClientRange { service: 7, range: "203.0.113.0/24".parse().unwrap() });
        tables.source_ranges.insert(ClientRange { service: 9, range: "192.0.2.0/24".parse().unwrap() });
        assert!(shown(&tables).1.contains("Load-balancer addresses admit 203.0.113.0/24\n"));
        // Those of a family without ranges admit everyone.
        balanced(&mut tables, IpFamily::V6, 0);
        assert!(shown(&tables).1.contains("Load-balancer addresses admit 203.0.113.0/24, ::/0\n"));
    }

    #[test]
    fn an_unknown_service_is_an_error_with_a_next_step() {
        let error = services(&fixture::tables(), "default/nope").unwrap_err();
        assert_eq!(
            error.to_string(),
            "no service named \"default/nope\": `sluice service list` shows those that this node translates"
        );
    }

    #[test]
    fn json_nests_slots_below_frontends() {
        let value = serde_json::to_value(services(&fixture::tables(), "default/web").unwrap()).unwrap();
        assert_eq!(value[0]["frontends"][1]["frontend"], "[fd00:96::1]:80");
        assert_eq!(value[0]["frontends"][1]["inside"][0], serde_json::json!({"slot": 16, "backend": "[fd00::5]:8080"}));
        assert_eq!(value[0]["backends"][3]["state"], "draining");
        assert_eq!(value[0]["backends"][3]["slots"], serde_json::json!([]));
    }
}
