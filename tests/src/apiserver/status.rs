//! Failures as the API server puts them: an HTTP status and a `Status` object.

use axum::{
    body::Body,
    http::{Response, StatusCode, header},
};
use serde_json::{Value, json};

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The HTTP status.
    pub code: StatusCode,
    /// The word that clients decide on.
    pub reason: &'static str,
    /// What people read.
    pub message: String,
}

impl Failure {
    pub(super) fn not_found(what: &str) -> Self {
        Self { code: StatusCode::NOT_FOUND, reason: "NotFound", message: format!("{what} not found") }
    }

    pub(super) fn already_exists(what: &str) -> Self {
        Self { code: StatusCode::CONFLICT, reason: "AlreadyExists", message: format!("{what} already exists") }
    }

    pub(super) fn conflict(what: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {what}: the object has been modified");
        Self { code: StatusCode::CONFLICT, reason: "Conflict", message }
    }

    pub(super) fn expired(version: u64, oldest: u64) -> Self {
        let message = format!("too old resource version: {version} ({oldest})");
        Self { code: StatusCode::GONE, reason: "Expired", message }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self { code: StatusCode::BAD_REQUEST, reason: "BadRequest", message: message.into() }
    }

    pub(super) fn not_allowed(method: &str) -> Self {
        let message = format!("the server does not allow {method} on the requested resource");
        Self { code: StatusCode::METHOD_NOT_ALLOWED, reason: "MethodNotAllowed", message }
    }

    pub(super) fn injected(code: StatusCode) -> Self {
        Self { code, reason: "ServiceUnavailable", message: format!("the test asked for {code}") }
    }

    /// The object that goes into the body, or into an ERROR event.
    pub(super) fn object(&self) -> Value {
        json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        })
    }

    pub(super) fn response(&self) -> Response<Body> {
        json_response(self.code, &self.object())
    }
}

/// A response with a JSON body.
pub(super) fn json_response(code: StatusCode, value: &Value) -> Response<Body> {
    json_text(code, value.to_string())
}

/// A response with a JSON body that is written already.
pub(super) fn json_text(code: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
