//! SetupIntents: they authenticate and store a payment method without a charge.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::lists;
use super::mandates;
use super::method_types;
use super::payment_methods;
use super::session_status;
use super::setup_attempts;
use super::state::{new_id, text};
use super::test_methods::Authentication;
use super::transaction::{Call, Transaction, copy_fields, merge_metadata};

/// `POST /v1/setup_intents`
pub(super) fn create(tx: &mut Transaction, call: &Call) -> ApiResult {
    let params = &call.params;
    let confirm = params["confirm"] == true;
    for (param, given) in [("mandate_data", params.get("mandate_data")), ("return_url", params.get("return_url"))] {
        if given.is_some() && !confirm {
            let message = format!("`{param}` can only be given when `confirm` is true.");
            return Err(ApiError::invalid(message).at(param).before_execution());
        }
    }
    let mut intent = blank(tx, params)?;
    let params = &payment_methods::with_data(tx, params)?;
    let given = text(params, "/payment_method");
    if !given.is_empty() {
        let method = usable(tx, &intent, given)?;
        intent["payment_method"] = method["id"].clone();
        intent["status"] = "requires_confirmation".into();
    }
    tx.insert(intent.clone());
    tx.emit("setup_intent.created", &intent);
    if confirm { confirm_intent(tx, &intent, params) } else { Ok(intent) }
}

/// A new intent, not stored yet.
pub(super) fn blank(tx: &Transaction, params: &Value) -> ApiResult {
    let customer = text(params, "/customer");
    if !customer.is_empty() {
        tx.referenced("customer", customer, "customer")?;
    }
    let id = new_id("seti");
    let mut intent = json!({
        "id": id,
        "object": "setup_intent",
        "allowed_payment_method_types": null,
        "application": null,
        "automatic_payment_methods": null,
        "cancellation_reason": null,
        "client_secret": format!("{id}_{}", new_id("secret")),
        "created": tx.now,
        "customer": null,
        "description": null,
        "flow_directions": null,
        "last_setup_error": null,
        "latest_attempt": null,
        "livemode": tx.account.livemode,
        "mandate": null,
        "metadata": {},
        "next_action": null,
        "on_behalf_of": null,
        "payment_method": null,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "single_use_mandate": null,
        "status": "requires_payment_method",
        "usage": "off_session",
    });
    copy_fields(&mut intent, params, &["customer", "description", "usage"]);
    merge_metadata(&mut intent, params)?;
    method_types::choose_for_setup(&mut intent, params)?;
    Ok(intent)
}

/// `GET /v1/setup_intents/{id}`
pub(super) fn retrieve(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.find("setup_intent", call.id())
}

/// `GET /v1/setup_intents`
pub(super) fn list(tx: &mut Transaction, call: &Call) -> ApiResult {
    let (customer, method) = (text(&call.params, "/customer"), text(&call.params, "/payment_method"));
    lists::list(tx, call, "setup_intent", |intent| {
        (customer.is_empty() || text(intent, "/customer") == customer)
            && (method.is_empty() || text(intent, "/payment_method") == method)
    })
}

/// `POST /v1/setup_intents/{id}`
pub(super) fn update(tx: &mut Transaction, call: &Call) -> ApiResult {
    let mut intent = tx.find("setup_intent", call.id())?;
    let settled = matches!(text(&intent, "/status"), "succeeded" | "canceled");
    let moves =
        ["customer", "payment_method", "payment_method_data", "payment_method_types", "allowed_payment_method_types"];
    if settled && moves.iter().any(|field| call.params.get(field).is_some()) {
        return Err(unexpected(&intent, "update"));
    }
    copy_fields(&mut intent, &call.params, &["customer", "description"]);
    method_types::choose_for_setup(&mut intent, &call.params)?;
    merge_metadata(&mut intent, &call.params)?;
    let params = payment_methods::with_data(tx, &call.params)?;
    let given = text(&params, "/payment_method");
    if !given.is_empty() {
        intent["payment_method"] = usable(tx, &intent, given)?["id"].clone();
        intent["status"] = "requires_confirmation".into();
    }
    tx.put(&intent);
    Ok(intent)
}

/// `POST /v1/setup_intents/{id}/confirm`
pub(super) fn confirm(tx: &mut Transaction, call: &Call) -> ApiResult {
    let mut intent = tx.find("setup_intent", call.id())?;
    if is_open(&intent) {
        method_types::choose_for_setup(&mut intent, &call.params)?;
    }
    let params = payment_methods::with_data(tx, &call.params)?;
    confirm_intent(tx, &intent, &params)
}

/// `POST /v1/setup_intents/{id}/cancel`
pub(super) fn cancel(tx: &mut Transaction, call: &Call) -> ApiResult {
    let intent = tx.find("setup_intent", call.id())?;
    if !is_open(&intent) {
        return Err(unexpected(&intent, "cancel"));
    }
    let reason = call.params.get("cancellation_reason").cloned().unwrap_or_default();
    Ok(close(tx, &intent, reason))
}

/// Cancels an open intent.
pub(super) fn close(tx: &mut Transaction, intent: &Value, reason: Value) -> Value {
    let mut intent = intent.clone();
    intent["status"] = "canceled".into();
    intent["cancellation_reason"] = reason;
    intent["next_action"] = Value::Null;
    setup_attempts::abandon(tx, &intent);
    tx.put(&intent);
    tx.emit("setup_intent.canceled", &intent);
    intent
}

/// Whether the intent can still succeed or be canceled.
pub(super) fn is_open(intent: &Value) -> bool {
    text(intent, "/status").starts_with("requires_")
}

fn unexpected(intent: &Value, what: &str) -> ApiError {
    let message = format!(
        "You cannot {what} this SetupIntent because it has a status of {}. Only a SetupIntent with one of the following \
         statuses may be changed so: requires_payment_method, requires_confirmation, requires_action.",
        text(intent, "/status")
    );
    ApiError::invalid(message).code("setup_intent_unexpected_state").with("setup_intent", intent.clone())
}

fn usable(tx: &mut Transaction, intent: &Value, method: &str) -> ApiResult {
    let method = payment_methods::own_or_shared(tx, method, "payment_method")?;
    payment_methods::check_unused(tx, text(&method, "/id"))?;
    let kind = text(&method, "/type");
    let allowed = intent["payment_method_types"].as_array().is_some_and(|types| types.iter().any(|t| t == kind));
    if !allowed {
        let message = format!("The PaymentMethod provided ({kind}) is not allowed for this SetupIntent.");
        return Err(ApiError::invalid(message).at("payment_method"));
    }
    let holder = text(&method, "/customer");
    if !holder.is_empty() && holder != text(intent, "/customer") {
        let message = "The PaymentMethod supplied belongs to another Customer than the SetupIntent.";
        return Err(ApiError::invalid(message).at("payment_method"));
    }
    Ok(method)
}

fn confirm_intent(tx: &mut Transaction, intent: &Value, params: &Value) -> ApiResult {
    if !is_open(intent) {
        return Err(unexpected(intent, "confirm"));
    }
    let given = match text(params, "/payment_method") {
        "" => text(intent, "/payment_method").to_owned(),
        given => given.to_owned(),
    };
    if given.is_empty() {
        let message = "You cannot confirm this SetupIntent because it's missing a payment method. Update the SetupIntent \
                       with a payment method and then confirm it again.";
        let api_error = ApiError::invalid(message).code("setup_intent_unexpected_state");
        return Err(api_error.with("setup_intent", intent.clone()));
    }
    let method = usable(tx, intent, &given)?;
    if let Some(url) = params.get("return_url").and_then(Value::as_str) {
        tx.internals_mut(text(intent, "/id")).return_url = Some(url.to_owned());
    }
    let mandate = mandates::accept(tx, &method, params);
    attempt(tx, intent, &method, mandate)
}

/// Attempts to set up the payment method. `mandate`: the payer accepts a mandate with this attempt.
pub(super) fn attempt(tx: &mut Transaction, intent: &Value, method: &Value, mandate: bool) -> ApiResult {
    let id = text(method, "/id").to_owned();
    let mut intent = intent.clone();
    intent["payment_method"] = id.as_str().into();
    intent["last_setup_error"] = Value::Null;
    setup_attempts::begin(tx, &mut intent, method);
    if text(method, "/type") == "sepa_debit" {
        let known = mandates::active(tx, &id);
        if known.is_none() && !mandate {
            let api_error = ApiError::invalid("This SetupIntent requires a mandate. Please provide `mandate_data`.");
            return Err(failed(tx, &intent, method, api_error.code("setup_intent_mandate_invalid")));
        }
        let mandate = known.unwrap_or_else(|| mandates::create(tx, &id));
        intent["mandate"] = mandate.into();
        return Ok(succeed(tx, intent, method));
    }
    let card = payment_methods::test_card(tx, &id);
    if let Some(decline) = card.filter(|card| card.declines_setup).and_then(|card| card.charge) {
        let api_error = payment_methods::declined(&decline);
        return Err(failed(tx, &intent, method, api_error));
    }
    let authentication = card.map_or(Authentication::Never, |card| card.authentication);
    if matches!(authentication, Authentication::Always | Authentication::UnlessSetUp) {
        intent["status"] = "requires_action".into();
        intent["next_action"] = next_action(tx, text(&intent, "/id"));
        setup_attempts::require_action(tx, &intent);
        tx.put(&intent);
        tx.emit("setup_intent.requires_action", &intent);
        return Ok(intent);
    }
    Ok(succeed(tx, intent, method))
}

/// The `next_action` for the payer's authentication: a redirect, or Stripe.js if there is no `return_url`.
pub(super) fn next_action(tx: &Transaction, intent: &str) -> Value {
    match tx.internals(intent).return_url {
        Some(return_url) => json!({
            "type": "redirect_to_url",
            "redirect_to_url": { "url": format!("{}/3ds/{intent}", tx.settings.url), "return_url": return_url },
        }),
        None => json!({ "type": "use_stripe_sdk", "use_stripe_sdk": { "type": "three_d_secure_redirect" } }),
    }
}

/// Completes or fails the payer's authentication.
pub(super) fn authenticate(tx: &mut Transaction, id: &str, succeeds: bool) -> ApiResult {
    let intent = tx.find("setup_intent", id)?;
    if text(&intent, "/status") != "requires_action" {
        return Err(unexpected(&intent, "authenticate"));
    }
    let method = tx.find("payment_method", text(&intent, "/payment_method"))?;
    if succeeds {
        tx.internals_mut(text(&method, "/id")).set_up = true;
        return Ok(succeed(tx, intent, &method));
    }
    let message = "The latest attempt to set up the payment method has failed because authentication failed.";
    let api_error = ApiError::invalid(message).code("setup_intent_authentication_failure");
    Err(failed(tx, &intent, &method, api_error))
}

fn succeed(tx: &mut Transaction, mut intent: Value, method: &Value) -> Value {
    intent["status"] = "succeeded".into();
    intent["next_action"] = Value::Null;
    let customer = text(&intent, "/customer").to_owned();
    if !customer.is_empty() && text(method, "/customer").is_empty() {
        payment_methods::bind(tx, method, &customer);
    }
    setup_attempts::succeed(tx, &intent);
    tx.put(&intent);
    tx.emit("setup_intent.succeeded", &intent);
    if let Some(session) = tx.internals(text(&intent, "/id")).session {
        session_status::complete(tx, &session, method, "no_payment_required");
    }
    intent
}

/// Records the failure on the intent, and adds the intent to the error.
fn failed(tx: &mut Transaction, intent: &Value, method: &Value, api_error: ApiError) -> ApiError {
    let mut intent = intent.clone();
    let mut error = api_error.error.clone();
    error.insert("payment_method".into(), method.clone());
    intent["last_setup_error"] = Value::Object(error);
    setup_attempts::fail(tx, &intent, intent["last_setup_error"].clone());
    intent["status"] = "requires_payment_method".into();
    intent["payment_method"] = Value::Null;
    intent["next_action"] = Value::Null;
    tx.put(&intent);
    tx.emit("setup_intent.setup_failed", &intent);
    api_error.with("setup_intent", intent)
}
