//! Texts and what is found in them.

use super::*;

fn found(objects: Result<Vec<(usize, Object)>, ParseError>) -> Vec<String> {
    let name = |object: &Object| match object {
        Object::Service(object) => format!("Service {}", object.metadata.name.as_deref().unwrap_or("-")),
        Object::EndpointSlice(object) => format!("EndpointSlice {}", object.metadata.name.as_deref().unwrap_or("-")),
        Object::ServiceCidr(object) => format!("ServiceCIDR {}", object.metadata.name.as_deref().unwrap_or("-")),
        Object::Node(object) => format!("Node {}", object.metadata.name.as_deref().unwrap_or("-")),
    };
    objects.unwrap().iter().map(|(document, object)| format!("{document}: {}", name(object))).collect()
}

#[test]
fn documents_and_lists_are_read_and_other_kinds_ignored() {
    let text = "
# A comment before the first document.
apiVersion: v1
kind: Service
metadata: {name: a}
---
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: x}
spec: {anything: [goes, {here: 1}]}
---
apiVersion: v1
kind: List
metadata: {resourceVersion: ''}
items:
- {apiVersion: v1, kind: Node, metadata: {name: b}}
- {apiVersion: v1, kind: Pod, metadata: {name: y}}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: c}, addressType: IPv4, endpoints: []}
---
apiVersion: v2
kind: Service
";
    assert_eq!(found(parse_yaml(text)), ["1: Service a", "4: Node b", "4: EndpointSlice c"]);
}

#[test]
fn nothing_at_all_is_fine() {
    for text in ["", "\n\n", "# only a comment\n", "---\n", "---\n---\n", "null"] {
        assert_eq!(found(parse_yaml(text)), [""; 0], "{text:?}");
    }
}

#[test]
fn json_is_read_with_tabs_and_several_documents() {
    let text = "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\n\t\"metadata\":{\"name\":\"a\"}}\n{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":\
                [{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"b\"}}]}";
    assert_eq!(found(parse_json(text)), ["1: Node a", "2: Service b"]);
}

#[track_caller]
fn check_error(result: Result<Vec<(usize, Object)>, ParseError>, document: usize, line: usize, reason: &str) {
    let error = result.unwrap_err();
    assert_eq!((error.document, error.at.map(|at| at.0)), (document, Some(line)), "{error}");
    assert!(error.reason.contains(reason), "{error}");
    let place = error.at.map(|(line, column)| format!("line {line} column {column}")).unwrap();
    assert!(!error.reason.contains(&place), "{error}");
}

#[test]
fn errors_name_the_document_and_the_line_in_the_file() {
    let good = "apiVersion: v1\nkind: Node\nmetadata: {name: a}\n---\n";
    check_error(parse_yaml(&format!("{good}metadata: [")), 2, 6, "");
    check_error(parse_yaml(&format!("{good}\tkind: Node")), 2, 5, "");
    check_error(parse_yaml(&format!("{good}hello")), 2, 5, "expected a Kubernetes object");
    let port = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: http\n";
    check_error(parse_yaml(&format!("{good}{port}")), 2, 10, "spec.ports[0].port: invalid type: string \"http\"");
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  spec: {ports: {}}\n";
    check_error(parse_yaml(&format!("{good}{list}")), 2, 10, "expected a sequence");
    check_error(parse_json("{\"kind\":\n \"Node\""), 1, 2, "EOF");
    check_error(
        parse_json("{\"apiVersion\":\"v1\",\"kind\":\"Service\",\n\"spec\":{\"ports\":3}}"),
        1,
        2,
        "invalid type",
    );
}
