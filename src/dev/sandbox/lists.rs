//! Lists, newest first, with cursors and time filters.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::state::{number, text};
use super::transaction::{Call, Transaction};

/// A page of the matching objects of a type.
pub(super) fn list(tx: &Transaction, call: &Call, kind: &str, matches: impl Fn(&Value) -> bool) -> ApiResult {
    let matching = tx.all(kind, |object| matches(object) && within(&call.params, number(object, "/created")));
    page(&matching, call, kind)
}

/// The requested page of all matching objects, which are newest first.
pub(super) fn page(matching: &[Value], call: &Call, kind: &str) -> ApiResult {
    let limit = match call.params.get("limit").and_then(Value::as_i64) {
        None => 10,
        Some(limit) => usize::try_from(limit).ok().filter(|limit| (1..=100).contains(limit)).ok_or_else(|| {
            ApiError::invalid("Limits must be between 1 and 100.")
                .code("parameter_invalid_integer")
                .at("limit")
                .before_execution()
        })?,
    };
    let (after, before) = (text(&call.params, "/starting_after"), text(&call.params, "/ending_before"));
    if !after.is_empty() && !before.is_empty() {
        let message = "You may only specify one of these parameters: starting_after, ending_before.";
        return Err(ApiError::invalid(message).before_execution());
    }
    let place = |cursor: &str, param: &str| {
        matching
            .iter()
            .position(|object| text(object, "/id") == cursor)
            .ok_or_else(|| ApiError { status: 400, ..ApiError::missing(kind, cursor, param) })
    };
    let (from, to, has_more) = if before.is_empty() {
        let start = if after.is_empty() { 0 } else { place(after, "starting_after")? + 1 };
        let end = (start + limit).min(matching.len());
        (start, end, end < matching.len())
    } else {
        let end = place(before, "ending_before")?;
        (end.saturating_sub(limit), end, end > limit)
    };
    let data = matching.get(from..to).unwrap_or_default();
    Ok(json!({ "object": "list", "data": data, "has_more": has_more, "url": call.path }))
}

/// Whether a time matches the `created` filter.
pub(super) fn within(params: &Value, created: i64) -> bool {
    match params.get("created") {
        None => true,
        Some(Value::Object(bounds)) => bounds.iter().all(|(bound, value)| {
            let value = value.as_i64().unwrap_or_default();
            match bound.as_str() {
                "gt" => created > value,
                "gte" => created >= value,
                "lt" => created < value,
                _ => created <= value,
            }
        }),
        Some(exact) => exact.as_i64() == Some(created),
    }
}
