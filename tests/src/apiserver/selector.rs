//! Label and field selectors.

use serde_json::Value;

use super::status::Failure;

/// What a list or watch asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    namespace: Option<String>,
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

/// One condition, on a label or on the field at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    condition: Condition,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Exists,
    Absent,
    In(Vec<String>),
    /// Holds for objects without the key, too.
    NotIn(Vec<String>),
}

impl Selector {
    pub(super) fn parse(namespace: Option<&str>, labels: Option<&str>, fields: Option<&str>) -> Result<Self, Failure> {
        let labels =
            split(labels.unwrap_or_default()).into_iter().map(|text| requirement(&text)).collect::<Result<_, _>>()?;
        let fields = split(fields.unwrap_or_default()).into_iter().map(|text| requirement(&text));
        let fields: Vec<_> = fields.collect::<Result<_, _>>()?;
        // The real server knows few fields per kind and refuses the others.
        let known = ["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type", "spec.unschedulable"];
        if let Some(unknown) = fields.iter().find(|field| !known.contains(&&*field.key)) {
            return Err(Failure::bad_request(format!("field label not supported: {}", unknown.key)));
        }
        Ok(Self { namespace: namespace.map(str::to_owned), labels, fields })
    }

    /// Whether nothing is left out.
    pub(super) fn is_everything(&self) -> bool {
        self.namespace.is_none() && self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        self.namespace.as_deref().is_none_or(|namespace| metadata["namespace"] == namespace)
            && self.labels.iter().all(|label| label.holds(metadata["labels"].get(&label.key)))
            && self.fields.iter().all(|field| {
                let path = format!("/{}", field.key.replace('.', "/"));
                field.holds(object.pointer(&path))
            })
    }
}

impl Requirement {
    fn holds(&self, value: Option<&Value>) -> bool {
        let text = value.and_then(Value::as_str);
        let is_in = |values: &[String]| text.is_some_and(|text| values.iter().any(|value| value == text));
        match &self.condition {
            Condition::Exists => value.is_some(),
            Condition::Absent => value.is_none(),
            Condition::In(values) => is_in(values),
            Condition::NotIn(values) => !is_in(values),
        }
    }
}

/// Splits at commas, but not at those within the parentheses of a set.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0u32;
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn requirement(text: &str) -> Result<Requirement, Failure> {
    let text = text.trim();
    let new = |key: &str, condition| {
        let key = key.trim();
        let is_word = !key.is_empty() && !key.contains(|c: char| c.is_whitespace() || "!=(),".contains(c));
        let made = is_word.then(|| Requirement { key: key.to_owned(), condition });
        made.ok_or_else(|| Failure::bad_request(format!("unable to parse requirement: {text}")))
    };
    let set = |list: &str| list.trim().trim_matches(['(', ')']).split(',').map(|v| v.trim().to_owned()).collect();
    if let Some(key) = text.strip_prefix('!') {
        return new(key, Condition::Absent);
    }
    if let Some((key, list)) = text.split_once(" notin ") {
        return new(key, Condition::NotIn(set(list)));
    }
    if let Some((key, list)) = text.split_once(" in ") {
        return new(key, Condition::In(set(list)));
    }
    if let Some((key, value)) = text.split_once("!=") {
        return new(key, Condition::NotIn(vec![value.trim().to_owned()]));
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return new(key, Condition::In(vec![value.trim().to_owned()]));
    }
    new(text, Condition::Exists)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_select_as_the_api_server_selects() {
        let object = json!({"metadata": {"name": "a", "labels": {"app": "web", "tier": ""}}});
        for (selector, expected) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("!other,!another", true),
            ("app=web,tier=", true),
            ("app==db", false),
            ("app!=db,other!=x", true),
            ("app in (web, db),tier", true),
            ("app notin (web,db)", false),
            ("other notin (x)", true),
            ("other in (x)", false),
        ] {
            let parsed = Selector::parse(None, Some(selector), None).unwrap();
            assert_eq!(parsed.matches(&object), expected, "{selector:?}");
        }
        for broken in ["a b", "=x", "!", "in (x)"] {
            assert!(Selector::parse(None, Some(broken), None).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn fields_select_by_path_and_only_those_that_the_api_server_knows() {
        let object = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"type": "NodePort"}});
        for (fields, expected) in [
            ("metadata.name=a", true),
            ("metadata.name=b", false),
            ("spec.type!=NodePort", false),
            ("metadata.namespace=n", true),
        ] {
            assert_eq!(Selector::parse(None, None, Some(fields)).unwrap().matches(&object), expected, "{fields}");
        }
        assert!(Selector::parse(None, None, Some("spec.ports=1")).is_err());
        assert!(!Selector::parse(Some("other"), None, None).unwrap().matches(&object));
    }
}
