//! Lists, newest first, with cursors and time filters; and `expand`.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::line_items;
use super::state::{Account, number, text};
use super::transaction::{Call, Transaction};
use super::versions;

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

/// The fields that can be expanded, so that a mistake is an error before the request is executed.
const EXPANDABLE: &[&str] = &[
    "balance_transaction",
    "charge",
    "customer",
    "invoice_settings",
    "latest_attempt",
    "latest_charge",
    "line_items",
    "mandate",
    "payment_intent",
    "payment_method",
    "price",
    "product",
    "setup_intent",
];

/// Rejects `expand[]` of a field that can never be expanded.
pub(super) fn check_expand(params: &Value) -> Result<(), ApiError> {
    for path in params.get("expand").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        let first = path.strip_prefix("data.").unwrap_or(path).split('.').next().unwrap_or_default();
        if !EXPANDABLE.contains(&first) {
            let message = format!("This property cannot be expanded ({path}).");
            return Err(ApiError::invalid(message).at("expand").before_execution());
        }
        if path.split('.').count() > 4 {
            return Err(ApiError::invalid("You cannot expand more than 4 levels of a property.")
                .at("expand")
                .before_execution());
        }
    }
    Ok(())
}

/// Replaces ids by their objects, rendered in the version, for every `expand[]`.
pub(super) fn expand(account: &Account, result: &mut Value, params: &Value, version: &str) -> Result<(), ApiError> {
    let Some(paths) = params.get("expand").and_then(Value::as_array) else { return Ok(()) };
    for path in paths.iter().filter_map(Value::as_str) {
        let parts: Vec<&str> = path.split('.').collect();
        expand_one(account, result, &parts, path, version)?;
    }
    Ok(())
}

fn expand_one(account: &Account, at: &mut Value, parts: &[&str], path: &str, version: &str) -> Result<(), ApiError> {
    let Some((field, rest)) = parts.split_first() else { return Ok(()) };
    let cannot =
        || ApiError::invalid(format!("This property cannot be expanded ({path}).")).at("expand").before_execution();
    if *field == "line_items" && text(at, "/object") == "checkout.session" {
        at[*field] = line_items::expanded(account, text(at, "/id"));
    }
    let inner = at.get_mut(*field).ok_or_else(cannot)?;
    if let Value::String(id) = inner {
        let absent = || {
            ApiError::invalid(format!("This sandbox does not keep the object {id}: it cannot expand {path}."))
                .at("expand")
                .before_execution()
        };
        let object = account.objects.get(id.as_str()).ok_or_else(absent)?.clone();
        *inner = object;
        versions::render_response(account, inner, version);
    }
    match inner {
        Value::Array(items) => items.iter_mut().try_for_each(|item| expand_one(account, item, rest, path, version)),
        Value::Object(_) => expand_one(account, inner, rest, path, version),
        Value::Null => Ok(()),
        _ => Err(cannot()),
    }
}
