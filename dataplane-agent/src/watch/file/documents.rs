//! The objects in the text of one file: several documents, lists, YAML or JSON.

use std::fmt;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use tracing::debug;

/// One object of a kind that counts here.
#[derive(Debug)]
pub(super) enum Object {
    Service(Box<core::Service>),
    EndpointSlice(Box<discovery::EndpointSlice>),
    Node(Box<core::Node>),
    ServiceCidr(Box<networking::ServiceCIDR>),
}

/// Why a file's text could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("document {document}: {reason}")]
pub struct ParseError {
    /// The document within the file, counted from one.
    pub document: usize,
    /// Line and column, counted from one, where they are known.
    pub at: Option<(usize, usize)>,
    /// What is wrong there.
    pub reason: String,
}

/// Reads YAML, of which there may be several documents; each object with the number of its document.
pub(super) fn parse_yaml(text: &str) -> Result<Vec<(usize, Object)>, ParseError> {
    let failed = |i: usize, error: serde_norway::Error| {
        let at = error.location().map(|at| (at.line(), at.column()));
        ParseError { document: i + 1, at, reason: without_place(&error.to_string(), at) }
    };
    // The kinds come first and the objects in a second pass: read as plain values and then converted, the objects would
    // lose the lines they stand on.
    let mut headers = Vec::new();
    for (i, document) in serde_norway::Deserializer::from_str(text).enumerate() {
        headers.push(Option::<Header>::deserialize(document).map_err(|error| failed(i, error))?.unwrap_or_default());
    }
    let mut objects = Vec::new();
    for (i, (document, header)) in serde_norway::Deserializer::from_str(text).zip(&headers).enumerate() {
        Reader { header, document: i + 1, objects: &mut objects }
            .deserialize(document)
            .map_err(|error| failed(i, error))?;
    }
    Ok(objects)
}

/// Reads JSON, where documents simply follow each other.
pub(super) fn parse_json(text: &str) -> Result<Vec<(usize, Object)>, ParseError> {
    let failed = |i: usize, error: serde_json::Error| {
        let at = Some((error.line(), error.column()));
        ParseError { document: i + 1, at, reason: without_place(&error.to_string(), at) }
    };
    let mut headers = Vec::new();
    for (i, header) in serde_json::Deserializer::from_str(text).into_iter::<Option<Header>>().enumerate() {
        headers.push(header.map_err(|error| failed(i, error))?.unwrap_or_default());
    }
    let mut objects = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    for (i, header) in headers.iter().enumerate() {
        Reader { header, document: i + 1, objects: &mut objects }
            .deserialize(&mut deserializer)
            .map_err(|error| failed(i, error))?;
    }
    Ok(objects)
}

/// Takes the place out of a message, since it is shown before the message.
fn without_place(message: &str, at: Option<(usize, usize)>) -> String {
    at.map_or_else(
        || message.to_owned(),
        |(line, column)| message.replacen(&format!(" at line {line} column {column}"), "", 1),
    )
}

/// What must be known of a document to read it as the right type.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "expected a Kubernetes object")]
struct Header {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    items: Option<Vec<Self>>,
}

/// Reads one document, or one item of a list, as the type that its header asks for.
struct Reader<'a> {
    header: &'a Header,
    document: usize,
    objects: &'a mut Vec<(usize, Object)>,
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let object = match (self.header.api_version.as_str(), self.header.kind.as_str()) {
            ("v1", "Service") => Object::Service(Deserialize::deserialize(deserializer)?),
            ("v1", "Node") => Object::Node(Deserialize::deserialize(deserializer)?),
            ("networking.k8s.io/v1", "ServiceCIDR") => Object::ServiceCidr(Deserialize::deserialize(deserializer)?),
            ("discovery.k8s.io/v1", "EndpointSlice") => Object::EndpointSlice(Deserialize::deserialize(deserializer)?),
            (_, kind) if kind.ends_with("List") && self.header.items.is_some() => {
                return deserializer.deserialize_map(self);
            }
            (version, kind) => {
                if !kind.is_empty() {
                    debug!("document {}: kind {kind} of {version} is ignored", self.document);
                }
                return IgnoredAny::deserialize(deserializer).map(drop);
            }
        };
        self.objects.push((self.document, object));
        Ok(())
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let headers = self.header.items.as_deref().unwrap_or_default();
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                map.next_value_seed(Items { headers, document: self.document, objects: &mut *self.objects })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Reads the items of a list.
struct Items<'a> {
    headers: &'a [Header],
    document: usize,
    objects: &'a mut Vec<(usize, Object)>,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for header in self.headers {
            let reader = Reader { header, document: self.document, objects: &mut *self.objects };
            if items.next_element_seed(reader)?.is_none() {
                break;
            }
        }
        // A list must be read to its end, which the headers came from.
        items.next_element::<IgnoredAny>().map(drop)
    }
}

#[cfg(test)]
mod tests;
