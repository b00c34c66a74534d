//! What is sent, and what is not sent again.

use super::*;
use crate::{model::node::Node, watch::kind::Nodes};

fn node(zone: &str) -> Converted<Node> {
    Converted { value: Some(Node { zone: Some(zone.to_owned()), ..Node::default() }), faults: Vec::new() }
}

fn sent(change: Option<Change>) -> Option<(String, Option<String>)> {
    change.map(|change| match change {
        Change::Node(name, node) => (name, node.map(|node| node.zone.unwrap())),
        other => unreachable!("{other:?}"),
    })
}

fn some(name: &str, zone: Option<&str>) -> Option<(String, Option<String>)> {
    Some((name.to_owned(), zone.map(str::to_owned)))
}

#[test]
fn p58_an_equal_value_is_not_sent_again() {
    let mut store = Store::<Nodes>::new();
    assert_eq!(sent(store.apply("a".to_owned(), node("1"))), some("a", Some("1")));
    assert_eq!(sent(store.apply("a".to_owned(), node("1"))), None);
    assert_eq!(sent(store.apply("a".to_owned(), node("2"))), some("a", Some("2")));
    assert_eq!(sent(store.delete("a".to_owned())), some("a", None));
    assert_eq!(sent(store.delete("a".to_owned())), None);
}

#[test]
fn p06_an_object_that_is_not_ours_is_sent_only_when_it_was() {
    let mut store = Store::<Nodes>::new();
    assert_eq!(sent(store.apply("a".to_owned(), Converted::not_ours())), None);
    assert_eq!(sent(store.delete("a".to_owned())), None);
    assert_eq!(sent(store.apply("a".to_owned(), node("1"))), some("a", Some("1")));
    assert_eq!(sent(store.apply("a".to_owned(), Converted::not_ours())), some("a", None));
    assert_eq!(sent(store.apply("a".to_owned(), node("1"))), some("a", Some("1")));
}

#[test]
fn p58_a_list_ends_with_the_objects_it_did_not_mention() {
    let mut store = Store::<Nodes>::new();
    for name in ["a", "b", "c"] {
        store.apply(name.to_owned(), node("1"));
    }
    store.begin_list();
    store.apply("a".to_owned(), node("1"));
    // This list broke off; a second one begins.
    store.begin_list();
    assert_eq!(sent(store.apply("b".to_owned(), node("1"))), None);
    store.malformed("c".to_owned(), "not a node".to_owned());
    let gone: Vec<_> = store.end_list().into_iter().map(|change| sent(Some(change))).collect();
    assert_eq!(gone, [some("a", None)]);
    assert_eq!(sent(store.apply("c".to_owned(), node("1"))), None, "the last good version stayed");
    assert!(store.end_list().is_empty(), "no list is under way");
}
