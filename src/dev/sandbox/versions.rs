//! API versions: the published ones, what newer ones accept, and how older ones render objects. The events list is
//! rendered in the account's default version, whatever the request's version (Stripe's documentation of
//! `GET /v1/events`).

use serde_json::{Value, json};

use super::api_error::ApiError;
use super::api_request::API_VERSION;
use super::endpoints::Endpoint;
use super::parameters;
use super::state::{Account, text};

/// The last version in which PaymentIntents have `charges`. From 2022-11-15 on they have `latest_charge`.
const WITH_CHARGES: &str = "2022-08-01";
/// The last version that names payment methods sources. 2019-02-11 renamed them.
const WITH_SOURCES: &str = "2018-11-08";
/// The first version in which intents accept `allowed_payment_method_types`.
const WITH_ALLOWED_TYPES: &str = "2026-07-29.dahlia";
/// The first version that rejects `payment_method_types`.
const ENDIVE: &str = "2026-09-30.endive";

/// Every version that Stripe's SDKs name (the type of `api_version` in stripe-node 23.1), oldest first.
const PUBLISHED: &str = "
    2011-01-01 2011-06-21 2011-06-28 2011-08-01 2011-09-15 2011-11-17 2012-02-23 2012-03-25 2012-06-18
    2012-06-28 2012-07-09 2012-09-24 2012-10-26 2012-11-07 2013-02-11 2013-02-13 2013-07-05 2013-08-12
    2013-08-13 2013-10-29 2013-12-03 2014-01-31 2014-03-13 2014-03-28 2014-05-19 2014-06-13 2014-06-17
    2014-07-22 2014-07-26 2014-08-04 2014-08-20 2014-09-08 2014-10-07 2014-11-05 2014-11-20 2014-12-08
    2014-12-17 2014-12-22 2015-01-11 2015-01-26 2015-02-10 2015-02-16 2015-02-18 2015-03-24 2015-04-07
    2015-06-15 2015-07-07 2015-07-13 2015-07-28 2015-08-07 2015-08-19 2015-09-03 2015-09-08 2015-09-23
    2015-10-01 2015-10-12 2015-10-16 2016-02-03 2016-02-19 2016-02-22 2016-02-23 2016-02-29 2016-03-07
    2016-06-15 2016-07-06 2016-10-19 2017-01-27 2017-02-14 2017-04-06 2017-05-25 2017-06-05 2017-08-15
    2017-12-14 2018-01-23 2018-02-05 2018-02-06 2018-02-28 2018-05-21 2018-07-27 2018-08-23 2018-09-06
    2018-09-24 2018-10-31 2018-11-08 2019-02-11 2019-02-19 2019-03-14 2019-05-16 2019-08-14 2019-09-09
    2019-10-08 2019-10-17 2019-11-05 2019-12-03 2020-03-02 2020-08-27 2022-08-01 2022-11-15 2023-08-16
    2023-10-16 2024-04-10 2024-06-20 2024-09-30.acacia 2024-10-28.acacia 2024-11-20.acacia 2024-12-18.acacia
    2025-01-27.acacia 2025-02-24.acacia 2025-03-01.dashboard 2025-03-31.basil 2025-04-30.basil 2025-05-28.basil
    2025-06-30.basil 2025-07-30.basil 2025-08-27.basil 2025-09-30.clover 2025-10-29.clover 2025-11-17.clover
    2025-12-15.clover 2026-01-28.clover 2026-02-25.clover 2026-03-25.dahlia 2026-04-22.dahlia 2026-05-27.dahlia
    2026-06-24.dahlia 2026-07-29.dahlia 2026-08-26.dahlia 2026-09-30.endive 2026-10-28.endive
";

/// Rejects a version that Stripe has not published: 400, without `code` and `param`.
pub(super) fn check_published(version: &str) -> Result<(), ApiError> {
    if PUBLISHED.split_whitespace().any(|published| published == version) {
        return Ok(());
    }
    let message = if version.ends_with(".preview") {
        format!("This sandbox does not have preview versions of the API: {version}. Name a released one.")
    } else {
        format!("Invalid Stripe API version: {version}")
    };
    Err(ApiError::invalid(message).before_execution())
}

/// Rejects parameters that the version does not have yet, or no longer has.
pub(super) fn check_parameters(version: &str, endpoint: &Endpoint, params: &Value) -> Result<(), ApiError> {
    if version >= ENDIVE && params.get("payment_method_types").is_some() {
        if endpoint.path.starts_with("/v1/checkout/") {
            return Err(parameters::unknown("payment_method_types").before_execution());
        }
        let message = "`payment_method_types` is no longer supported in this API version. Use `allowed_payment_method_types` \
                       to limit the payment methods, or leave it out to use those of your Dashboard.";
        let api_error = ApiError::invalid(message).code("payment_method_types_no_longer_supported");
        return Err(api_error.at("payment_method_types").before_execution());
    }
    if version < WITH_ALLOWED_TYPES && params.get("allowed_payment_method_types").is_some() {
        return Err(parameters::unknown("allowed_payment_method_types").before_execution());
    }
    Ok(())
}

/// Renders an event in the account's default version.
pub(super) fn render(account: &Account, mut event: Value) -> Value {
    let Some(version) = account.api_version.as_deref().filter(|version| *version != API_VERSION) else { return event };
    event["api_version"] = version.into();
    render_object(account, &mut event["data"]["object"], version);
    event
}

/// Renders a response in the request's version: an object, the objects of a list, or the intent in an error.
pub(super) fn render_response(account: &Account, result: &mut Value, version: &str) {
    match text(result, "/object") {
        "list" => {
            let objects = result["data"].as_array_mut().into_iter().flatten();
            objects.for_each(|object| render_object(account, object, version));
        }
        _ => render_object(account, result, version),
    }
}

fn render_object(account: &Account, object: &mut Value, version: &str) {
    match text(object, "/object") {
        "payment_intent" if version <= WITH_CHARGES => {
            list_charges(account, object);
            if version <= WITH_SOURCES {
                name_sources(object);
            }
        }
        "charge" if version <= WITH_CHARGES => {
            let id = text(object, "/id").to_owned();
            let refunds = newest_first(account, "refund", |refund| text(refund, "/charge") == id);
            object["refunds"] = list(&refunds, &format!("/v1/charges/{id}/refunds"));
        }
        _ => {}
    }
}

fn list_charges(account: &Account, intent: &mut Value) {
    let id = text(intent, "/id").to_owned();
    let latest = text(intent, "/latest_charge").to_owned();
    let mut charges = newest_first(account, "charge", |charge| text(charge, "/payment_intent") == id);
    // Leaves out charges that are newer than the intent's state, which may be part of an old event.
    let known = charges.iter().position(|charge| text(charge, "/id") == latest).unwrap_or(charges.len());
    charges.drain(..known);
    if let Some(fields) = intent.as_object_mut() {
        fields.remove("latest_charge");
    }
    intent["charges"] = list(&charges, &format!("/v1/charges?payment_intent={id}"));
}

fn name_sources(intent: &mut Value) {
    match text(intent, "/status") {
        "requires_payment_method" => intent["status"] = "requires_source".into(),
        "requires_action" => intent["status"] = "requires_source_action".into(),
        _ => {}
    }
    let moves = [("payment_method_types", "allowed_source_types"), ("next_action", "next_source_action")];
    let Some(fields) = intent.as_object_mut() else { return };
    for (new, old) in moves {
        if let Some(value) = fields.remove(new) {
            fields.insert(old.to_owned(), value);
        }
    }
    if let Some(action) = fields.get_mut("next_source_action").and_then(Value::as_object_mut)
        && let Some(link) = action.remove("redirect_to_url")
    {
        action.insert("type".to_owned(), "authorize_with_url".into());
        action.insert("authorize_with_url".to_owned(), link);
    }
}

fn newest_first(account: &Account, kind: &str, matches: impl Fn(&Value) -> bool) -> Vec<Value> {
    let ids = account.order.get(kind).map_or(&[][..], Vec::as_slice);
    ids.iter().rev().filter_map(|id| account.objects.get(id)).filter(|object| matches(object)).cloned().collect()
}

fn list(data: &[Value], url: &str) -> Value {
    json!({ "object": "list", "data": data, "has_more": false, "url": url })
}
