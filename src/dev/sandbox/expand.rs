//! `expand[]`: replaces ids in a response by their objects.

use serde_json::Value;

use super::api_error::ApiError;
use super::line_items;
use super::state::{Account, text};
use super::versions;

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
pub(super) fn check(params: &Value) -> Result<(), ApiError> {
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
