//! Requests and their answers: get, list, watch, create, update, patch and delete.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use axum::{
    body::{Body, to_bytes},
    extract::Query,
    http::{Method, Request, Response, StatusCode},
};
use serde_json::{Value, json};

use super::{
    Shared,
    selector::Selector,
    status::{Failure, json_response, json_text},
    storage::{Key, Stored},
    stream::{self, Stream, trickled},
    target::{Resource, Target},
};

/// The longest body that is read.
const BODY: usize = 4 << 20;

/// Answers one request.
pub(super) async fn answer(shared: Arc<Shared>, request: Request<Body>) -> Response<Body> {
    let query = Query::<BTreeMap<String, String>>::try_from_uri(request.uri()).map(|query| query.0).unwrap_or_default();
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    shared.remember(super::Request { method, path, query: query.clone() });
    let trickle = shared.faults().trickle;
    let response = route(&shared, request, &query).await.unwrap_or_else(|failure| failure.response());
    match trickle {
        Some((bytes, pause)) => response.map(|body| trickled(body, bytes, pause)),
        None => response,
    }
}

async fn route(
    shared: &Arc<Shared>,
    request: Request<Body>,
    query: &BTreeMap<String, String>,
) -> Result<Response<Body>, Failure> {
    if let Some(code) = shared.faults().answer {
        return Err(Failure::injected(code));
    }
    let path = request.uri().path().to_owned();
    let target = Target::parse(&path).ok_or_else(|| Failure::not_found(&path))?;
    if shared.faults().unknown.contains(&target.resource) {
        return Err(Failure::not_found(&path));
    }
    let method = request.method().clone();
    let is_merge_patch =
        request.headers().get("content-type").is_some_and(|kind| kind == "application/merge-patch+json");
    let body = to_bytes(request.into_body(), BODY).await.map_err(|error| Failure::bad_request(error.to_string()))?;
    let body = || serde_json::from_slice::<Value>(&body).map_err(|error| Failure::bad_request(error.to_string()));
    let Target { resource, namespace, name, is_status } = target;
    let Some(name) = name else {
        return match method {
            Method::GET => collection(shared, resource, namespace.as_deref(), query),
            Method::POST => create(shared, resource, namespace, body()?),
            other => Err(Failure::not_allowed(other.as_str())),
        };
    };
    let what = format!("{} \"{name}\"", resource.plural());
    let key = (namespace.unwrap_or_default(), name);
    match method {
        Method::GET => {
            let object = shared.storage().object(resource, &key).ok_or_else(|| Failure::not_found(&what))?;
            Ok(json_response(StatusCode::OK, &object))
        }
        Method::PUT => {
            let new = body()?;
            let updated = change(shared, resource, key, |old| {
                let old = old.ok_or_else(|| Failure::not_found(&what))?;
                let wanted = new["metadata"]["resourceVersion"].as_str().filter(|version| !version.is_empty());
                if wanted.is_some_and(|wanted| old["metadata"]["resourceVersion"] != wanted) {
                    return Err(Failure::conflict(&what));
                }
                let (mut object, part) = if is_status { (old.clone(), &new) } else { (new.clone(), old) };
                match part.get("status") {
                    Some(status) => object["status"] = status.clone(),
                    None => drop(object.as_object_mut().and_then(|object| object.remove("status"))),
                }
                Ok(Some(object))
            })?;
            Ok(json_response(StatusCode::OK, &updated))
        }
        Method::PATCH if is_merge_patch => {
            let patch = body()?;
            let patched = change(shared, resource, key, |old| {
                let mut object = old.ok_or_else(|| Failure::not_found(&what))?.clone();
                merge(&mut object, &patch);
                Ok(Some(object))
            })?;
            Ok(json_response(StatusCode::OK, &patched))
        }
        Method::DELETE => {
            let gone = change(shared, resource, key, |old| match old {
                Some(_) => Ok(None),
                None => Err(Failure::not_found(&what)),
            })?;
            Ok(json_response(StatusCode::OK, &gone))
        }
        other => Err(Failure::not_allowed(other.as_str())),
    }
}

/// Lists or watches a collection.
fn collection(
    shared: &Arc<Shared>,
    resource: Resource,
    namespace: Option<&str>,
    query: &BTreeMap<String, String>,
) -> Result<Response<Body>, Failure> {
    let parameter = |name: &str| query.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let number = |name: &str| {
        let parsed = parameter(name).map(|text| {
            text.parse::<u64>().map_err(|_| Failure::bad_request(format!("{name}: `{text}` is not a number")))
        });
        parsed.transpose()
    };
    let selector = Selector::parse(namespace, parameter("labelSelector"), parameter("fieldSelector"))?;
    let version = number("resourceVersion")?.filter(|version| *version != 0);
    if matches!(parameter("watch"), Some("1" | "true")) {
        let options = stream::Options {
            resource,
            selector,
            version,
            bookmarks: matches!(parameter("allowWatchBookmarks"), Some("1" | "true")),
            timeout: number("timeoutSeconds")?,
        };
        return Stream::respond(shared, options);
    }
    let exact = version.filter(|_| parameter("resourceVersionMatch") == Some("Exact"));
    let (version, after) = match parameter("continue") {
        None => (exact, None),
        Some(token) => {
            let broken = || Failure::bad_request("continue key is not valid");
            let (version, namespace, name): (u64, String, String) =
                serde_json::from_str(token).map_err(|_| broken())?;
            (Some(version), Some((namespace, name)))
        }
    };
    let limit = number("limit")?
        .filter(|limit| *limit > 0)
        .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let page = shared.storage().list(resource, &selector, version, after.as_ref(), limit)?;
    let mut metadata = json!({"resourceVersion": page.version.to_string()});
    if let Some(((namespace, name), remaining)) = page.more {
        metadata["continue"] = json!(json!([page.version, namespace, name]).to_string());
        if let Some(remaining) = remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
    }
    let kind = format!("{}List", resource.kind());
    let mut list = json!({"apiVersion": resource.api_version(), "kind": kind, "metadata": metadata}).to_string();
    // The items as they have been written before, since a large cluster is listed page by page.
    list.truncate(list.len() - 1);
    list.push_str(",\"items\":[");
    for (index, item) in page.items.iter().enumerate() {
        list.push_str(if index == 0 { "" } else { "," });
        list.push_str(item.text());
    }
    list.push_str("]}");
    Ok(json_text(StatusCode::OK, list))
}

fn create(
    shared: &Arc<Shared>,
    resource: Resource,
    namespace: Option<String>,
    mut object: Value,
) -> Result<Response<Body>, Failure> {
    if let (Some(namespace), true) = (namespace, resource.is_namespaced()) {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object["apiVersion"] = json!(resource.api_version());
    object["kind"] = json!(resource.kind());
    let key = key(resource, &object["metadata"]).ok_or_else(|| Failure::bad_request("name is required"))?;
    let what = format!("{} \"{}\"", resource.plural(), key.1);
    let created = change(shared, resource, key, |old| match old {
        Some(_) => Err(Failure::already_exists(&what)),
        None => Ok(Some(object)),
    })?;
    Ok(json_response(StatusCode::CREATED, &created))
}

/// Writes what `new` makes of the stored object, and returns it as stored.
///
/// An equal object is no write; `None` deletes it, and what is returned is the object as it was.
pub(super) fn change(
    shared: &Shared,
    resource: Resource,
    key: Key,
    new: impl FnOnce(Option<&Value>) -> Result<Option<Value>, Failure>,
) -> Result<Arc<Stored>, Failure> {
    let mut storage = shared.storage();
    let old = storage.object(resource, &key);
    let mut new = new(old.as_deref().map(|old| &**old))?;
    if let Some(new) = &mut new {
        let metadata = &mut new["metadata"];
        match old.as_deref().map(|old| &old["metadata"]) {
            Some(old) => {
                for field in ["resourceVersion", "uid", "creationTimestamp"] {
                    metadata[field] = old[field].clone();
                }
            }
            None => {
                let uid = shared.uids.fetch_add(1, Ordering::Relaxed);
                metadata["uid"] = json!(format!("00000000-0000-0000-0000-{uid:012x}"));
                metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
        }
    }
    if let Some(old) = old.filter(|old| new.as_ref() == Some(&***old)) {
        return Ok(old);
    }
    let what = format!("{} \"{}\"", resource.plural(), key.1);
    let written = storage.write(resource, key, new);
    let version = storage.version();
    drop(storage);
    shared.version.send_replace(version);
    written.ok_or_else(|| Failure::not_found(&what))
}

/// The key of an object, by its metadata; without a namespace it is in `default`.
pub(super) fn key(resource: Resource, metadata: &Value) -> Option<Key> {
    let name = metadata["name"].as_str().filter(|name| !name.is_empty())?.to_owned();
    let namespace = if resource.is_namespaced() { metadata["namespace"].as_str().unwrap_or("default") } else { "" };
    Some((namespace.to_owned(), name))
}

/// Applies a JSON merge patch (RFC 7396).
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (name, value) in patch {
        if value.is_null() {
            object.as_object_mut().map(|object| object.remove(name));
        } else {
            merge(&mut object[name], value);
        }
    }
}
