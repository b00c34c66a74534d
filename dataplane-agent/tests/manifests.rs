//! What an operator applies is what the API server and `sluice` understand.

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use clap::Parser as _;
    use dataplane_agent::cli::Cli;
    use k8s_openapi::{
        api::{
            apps::v1::DaemonSet,
            core::v1::{ConfigMap, Container, PodSpec, ServiceAccount},
            rbac::v1::{ClusterRole, ClusterRoleBinding},
        },
        serde::{Serialize, de::DeserializeOwned},
    };
    use serde_json::Value;

    /// Every document of the manifest.
    fn documents() -> Vec<Value> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/sluice.yaml");
        let text = fs::read_to_string(path).unwrap();
        let documents = serde_norway::Deserializer::from_str(&text);
        documents.map(|document| serde::Deserialize::deserialize(document).unwrap()).collect()
    }

    /// The document of `kind`, of which there is one, as the API's type.
    #[track_caller]
    fn object<T: DeserializeOwned + Serialize>(kind: &str) -> T {
        let documents = documents();
        let mut found = documents.iter().filter(|document| document["kind"] == kind);
        let document = found.next().unwrap_or_else(|| panic!("no {kind}"));
        assert!(found.next().is_none(), "more than one {kind}");
        typed(document)
    }

    /// Parses a document and refuses what the type does not know: whatever was written must come out again.
    #[track_caller]
    fn typed<T: DeserializeOwned + Serialize>(document: &Value) -> T {
        let object: T = serde_json::from_value(document.clone()).unwrap();
        let known = serde_json::to_value(&object).unwrap();
        lost(document, &known, "").map_or(Ok(()), Err).unwrap();
        object
    }

    /// The first field of `written` that `known` does not have, or has with another value.
    fn lost(written: &Value, known: &Value, path: &str) -> Option<String> {
        match (written, known) {
            (Value::Object(written), Value::Object(_)) => written.iter().find_map(|(field, value)| {
                let path = format!("{path}.{field}");
                known
                    .get(field)
                    .map_or_else(|| Some(format!("{path} is not a field")), |known| lost(value, known, &path))
            }),
            (Value::Array(written), Value::Array(known)) if written.len() == known.len() => {
                let mut pairs = written.iter().zip(known).enumerate();
                pairs.find_map(|(index, (written, known))| lost(written, known, &format!("{path}[{index}]")))
            }
            _ => (written != known).then(|| format!("{path}: {written} was read as {known}")),
        }
    }

    fn pod() -> PodSpec {
        object::<DaemonSet>("DaemonSet").spec.template.spec.unwrap()
    }

    fn container() -> Container {
        let mut containers = pod().containers;
        assert_eq!(containers.len(), 1);
        containers.remove(0)
    }

    #[test]
    fn every_document_is_what_the_api_knows() {
        for document in documents() {
            match document["kind"].as_str().unwrap() {
                "ServiceAccount" => drop(typed::<ServiceAccount>(&document)),
                "ConfigMap" => drop(typed::<ConfigMap>(&document)),
                "ClusterRole" => drop(typed::<ClusterRole>(&document)),
                "ClusterRoleBinding" => drop(typed::<ClusterRoleBinding>(&document)),
                "DaemonSet" => drop(typed::<DaemonSet>(&document)),
                kind => panic!("{kind} is not looked at"),
            }
        }
    }

    #[test]
    fn a_field_that_the_api_does_not_know_is_noticed() {
        let mut document = documents().into_iter().find(|document| document["kind"] == "DaemonSet").unwrap();
        document["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = Value::Array(Vec::new());
        let known = serde_json::to_value(serde_json::from_value::<DaemonSet>(document.clone()).unwrap()).unwrap();
        let expected = ".spec.template.spec.containers[0].volumeMount is not a field";
        assert_eq!(lost(&document, &known, "").as_deref(), Some(expected));
    }

    #[test]
    fn the_arguments_are_those_of_this_command_line() {
        let container = container();
        let arguments = container.args.unwrap();
        Cli::try_parse_from(["sluice".to_owned()].into_iter().chain(arguments)).unwrap();
        // What the arguments leave to the environment.
        let environment: Vec<String> = container.env.unwrap().into_iter().map(|variable| variable.name).collect();
        assert_eq!(environment, ["NODE_NAME", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"]);
    }

    #[test]
    fn it_runs_on_every_linux_node_and_before_the_pod_network() {
        let pod = pod();
        assert_eq!(pod.host_network, Some(true));
        assert_eq!(pod.dns_policy.as_deref(), Some("Default"));
        assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
        let tolerations = pod.tolerations.unwrap();
        // No key and no effect: all of them.
        assert!(
            tolerations
                .iter()
                .any(|t| t.operator.as_deref() == Some("Exists") && t.key.is_none() && t.effect.is_none())
        );
        let selector = pod.node_selector.unwrap();
        assert_eq!(selector.into_iter().collect::<Vec<_>>(), [("kubernetes.io/os".to_owned(), "linux".to_owned())]);
    }

    #[test]
    fn names_of_the_parts_fit_together() {
        let account: ServiceAccount = object("ServiceAccount");
        let binding: ClusterRoleBinding = object("ClusterRoleBinding");
        let role: ClusterRole = object("ClusterRole");
        let settings: ConfigMap = object("ConfigMap");
        let set: DaemonSet = object("DaemonSet");
        let subject = &binding.subjects.unwrap()[0];
        assert_eq!(Some(&subject.name), account.metadata.name.as_ref());
        assert_eq!(subject.namespace, account.metadata.namespace);
        assert_eq!(set.metadata.namespace, account.metadata.namespace);
        assert_eq!(settings.metadata.namespace, account.metadata.namespace);
        assert_eq!(Some(binding.role_ref.name), role.metadata.name);
        assert_eq!(pod().service_account_name, account.metadata.name);
        let spec = set.spec;
        assert_eq!(spec.selector.match_labels, spec.template.metadata.unwrap().labels);

        let data = settings.data.unwrap();
        for variable in container().env.unwrap() {
            let Some(key) = variable.value_from.and_then(|source| source.config_map_key_ref) else { continue };
            assert_eq!(Some(key.name), settings.metadata.name);
            assert!(data.contains_key(&key.key), "{} is not in the ConfigMap", key.key);
        }
        let volumes: Vec<String> = pod().volumes.unwrap().into_iter().map(|volume| volume.name).collect();
        let mounts: Vec<String> = container().volume_mounts.unwrap().into_iter().map(|mount| mount.name).collect();
        assert_eq!(volumes, mounts);
    }

    #[test]
    fn the_role_allows_what_the_agent_asks_for_and_no_writing_but_events() {
        let rules = object::<ClusterRole>("ClusterRole").rules.unwrap();
        let allowed = |group: &str, resource: &str, verb: &str| {
            rules.iter().any(|rule| {
                let names = |list: &Option<Vec<String>>, name: &str| list.iter().flatten().any(|entry| entry == name);
                names(&rule.api_groups, group)
                    && names(&rule.resources, resource)
                    && rule.verbs.iter().any(|allowed| allowed == verb)
            })
        };
        let watched = [
            ("", "services"),
            ("", "nodes"),
            ("discovery.k8s.io", "endpointslices"),
            ("networking.k8s.io", "servicecidrs"),
        ];
        for (group, resource) in watched {
            for verb in ["list", "watch"] {
                assert!(allowed(group, resource, verb), "{verb} {resource}");
            }
        }
        for verb in ["create", "patch"] {
            assert!(allowed("", "events", verb) && allowed("events.k8s.io", "events", verb), "{verb} events");
        }
        let reading = ["get", "list", "watch"];
        for rule in rules.iter().filter(|rule| rule.resources.iter().flatten().any(|resource| resource != "events")) {
            assert!(rule.verbs.iter().all(|verb| reading.contains(&verb.as_str())), "{rule:?}");
        }
    }

    #[test]
    fn the_probes_ask_where_kube_proxy_answers() {
        let container = container();
        let ports = container.ports.unwrap();
        assert_eq!((ports[0].name.as_deref(), ports[0].container_port), (Some("healthz"), 10256));
        let probes = [(container.startup_probe, "/livez"), (container.liveness_probe, "/livez")];
        for (probe, path) in probes.into_iter().chain([(container.readiness_probe, "/healthz")]) {
            assert_eq!(probe.unwrap().http_get.unwrap().path.as_deref(), Some(path));
        }
    }
}
