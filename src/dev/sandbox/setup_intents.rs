//! SetupIntents: a method is proved and stored, and no money moves.

use serde_json::{Value, json};

use super::act::{Act, Call, take_over, take_over_metadata};
use super::checkout_sessions;
use super::lists;
use super::mandates;
use super::method_types;
use super::payment_methods;
use super::refusal::{Answer, Refusal};
use super::setup_attempts;
use super::state::{new_id, text};
use super::test_methods::Authentication;

/// `POST /v1/setup_intents`
pub(super) fn create(act: &mut Act, call: &Call) -> Answer {
    let params = &call.params;
    let confirm = params["confirm"] == true;
    for (param, given) in [("mandate_data", params.get("mandate_data")), ("return_url", params.get("return_url"))] {
        if given.is_some() && !confirm {
            let message = format!("`{param}` can only be given when `confirm` is true.");
            return Err(Refusal::invalid(message).at(param).early());
        }
    }
    let mut intent = blank(act, params)?;
    let params = &payment_methods::with_data(act, params)?;
    let given = text(params, "/payment_method");
    if !given.is_empty() {
        let method = usable(act, &intent, given)?;
        intent["payment_method"] = method["id"].clone();
        intent["status"] = "requires_confirmation".into();
    }
    act.insert(intent.clone());
    act.emit("setup_intent.created", &intent);
    if confirm { confirm_intent(act, &intent, params) } else { Ok(intent) }
}

/// A new intent, not stored yet.
pub(super) fn blank(act: &Act, params: &Value) -> Answer {
    let customer = text(params, "/customer");
    if !customer.is_empty() {
        act.referenced("customer", customer, "customer")?;
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
        "created": act.now,
        "customer": null,
        "description": null,
        "flow_directions": null,
        "last_setup_error": null,
        "latest_attempt": null,
        "livemode": act.account.livemode,
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
    take_over(&mut intent, params, &["customer", "description", "usage"]);
    take_over_metadata(&mut intent, params)?;
    method_types::choose_for_setup(&mut intent, params)?;
    Ok(intent)
}

/// `GET /v1/setup_intents/{id}`
pub(super) fn retrieve(act: &mut Act, call: &Call) -> Answer {
    act.find("setup_intent", call.id())
}

/// `GET /v1/setup_intents`
pub(super) fn list(act: &mut Act, call: &Call) -> Answer {
    let (customer, method) = (text(&call.params, "/customer"), text(&call.params, "/payment_method"));
    lists::list(act, call, "setup_intent", |intent| {
        (customer.is_empty() || text(intent, "/customer") == customer)
            && (method.is_empty() || text(intent, "/payment_method") == method)
    })
}

/// `POST /v1/setup_intents/{id}`
pub(super) fn update(act: &mut Act, call: &Call) -> Answer {
    let mut intent = act.find("setup_intent", call.id())?;
    let settled = matches!(text(&intent, "/status"), "succeeded" | "canceled");
    let moves =
        ["customer", "payment_method", "payment_method_data", "payment_method_types", "allowed_payment_method_types"];
    if settled && moves.iter().any(|field| call.params.get(field).is_some()) {
        return Err(unexpected(&intent, "update"));
    }
    take_over(&mut intent, &call.params, &["customer", "description"]);
    method_types::choose_for_setup(&mut intent, &call.params)?;
    take_over_metadata(&mut intent, &call.params)?;
    let params = payment_methods::with_data(act, &call.params)?;
    let given = text(&params, "/payment_method");
    if !given.is_empty() {
        intent["payment_method"] = usable(act, &intent, given)?["id"].clone();
        intent["status"] = "requires_confirmation".into();
    }
    act.put(&intent);
    Ok(intent)
}

/// `POST /v1/setup_intents/{id}/confirm`
pub(super) fn confirm(act: &mut Act, call: &Call) -> Answer {
    let mut intent = act.find("setup_intent", call.id())?;
    if is_open(&intent) {
        method_types::choose_for_setup(&mut intent, &call.params)?;
    }
    let params = payment_methods::with_data(act, &call.params)?;
    confirm_intent(act, &intent, &params)
}

/// `POST /v1/setup_intents/{id}/cancel`
pub(super) fn cancel(act: &mut Act, call: &Call) -> Answer {
    let intent = act.find("setup_intent", call.id())?;
    if !is_open(&intent) {
        return Err(unexpected(&intent, "cancel"));
    }
    let reason = call.params.get("cancellation_reason").cloned().unwrap_or_default();
    Ok(close(act, &intent, reason))
}

/// Cancels an open intent.
pub(super) fn close(act: &mut Act, intent: &Value, reason: Value) -> Value {
    let mut intent = intent.clone();
    intent["status"] = "canceled".into();
    intent["cancellation_reason"] = reason;
    intent["next_action"] = Value::Null;
    setup_attempts::abandon(act, &intent);
    act.put(&intent);
    act.emit("setup_intent.canceled", &intent);
    intent
}

/// Whether it can still succeed or be canceled.
pub(super) fn is_open(intent: &Value) -> bool {
    text(intent, "/status").starts_with("requires_")
}

fn unexpected(intent: &Value, what: &str) -> Refusal {
    let message = format!(
        "You cannot {what} this SetupIntent because it has a status of {}. Only a SetupIntent with one of the following \
         statuses may be changed so: requires_payment_method, requires_confirmation, requires_action.",
        text(intent, "/status")
    );
    Refusal::invalid(message).code("setup_intent_unexpected_state").with("setup_intent", intent.clone())
}

fn usable(act: &mut Act, intent: &Value, method: &str) -> Answer {
    let method = payment_methods::own_or_shared(act, method, "payment_method")?;
    payment_methods::check_unused(act, text(&method, "/id"))?;
    let kind = text(&method, "/type");
    let allowed = intent["payment_method_types"].as_array().is_some_and(|types| types.iter().any(|t| t == kind));
    if !allowed {
        let message = format!("The PaymentMethod provided ({kind}) is not allowed for this SetupIntent.");
        return Err(Refusal::invalid(message).at("payment_method"));
    }
    let holder = text(&method, "/customer");
    if !holder.is_empty() && holder != text(intent, "/customer") {
        let message = "The PaymentMethod supplied belongs to another Customer than the SetupIntent.";
        return Err(Refusal::invalid(message).at("payment_method"));
    }
    Ok(method)
}

fn confirm_intent(act: &mut Act, intent: &Value, params: &Value) -> Answer {
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
        let refusal = Refusal::invalid(message).code("setup_intent_unexpected_state");
        return Err(refusal.with("setup_intent", intent.clone()));
    }
    let method = usable(act, intent, &given)?;
    if let Some(url) = params.get("return_url").and_then(Value::as_str) {
        act.hidden(text(intent, "/id")).return_url = Some(url.to_owned());
    }
    let mandate = mandates::accept(act, &method, params);
    attempt(act, intent, &method, mandate)
}

/// Tries to set the method up. `mandate`: the payer has just agreed to one.
pub(super) fn attempt(act: &mut Act, intent: &Value, method: &Value, mandate: bool) -> Answer {
    let id = text(method, "/id").to_owned();
    let mut intent = intent.clone();
    intent["payment_method"] = id.as_str().into();
    intent["last_setup_error"] = Value::Null;
    setup_attempts::begin(act, &mut intent, method);
    if text(method, "/type") == "sepa_debit" {
        let known = mandates::of(act, &id);
        if known.is_none() && !mandate {
            let refusal = Refusal::invalid("This SetupIntent requires a mandate. Please provide `mandate_data`.");
            return Err(failed(act, &intent, method, refusal.code("setup_intent_mandate_invalid")));
        }
        let mandate = known.unwrap_or_else(|| mandates::make(act, &id));
        intent["mandate"] = mandate.into();
        return Ok(succeed(act, intent, method));
    }
    let card = payment_methods::test_card(act, &id);
    if let Some(decline) = card.filter(|card| card.refuses_setup).and_then(|card| card.charge) {
        let refusal = payment_methods::declined(&decline);
        return Err(failed(act, &intent, method, refusal));
    }
    let authentication = card.map_or(Authentication::Never, |card| card.authentication);
    if matches!(authentication, Authentication::Always | Authentication::UnlessSetUp) {
        intent["status"] = "requires_action".into();
        intent["next_action"] = next_action(act, text(&intent, "/id"));
        setup_attempts::wait(act, &intent);
        act.put(&intent);
        act.emit("setup_intent.requires_action", &intent);
        return Ok(intent);
    }
    Ok(succeed(act, intent, method))
}

/// Where the payer proves who they are; without a `return_url` only Stripe's script could do it.
pub(super) fn next_action(act: &Act, intent: &str) -> Value {
    match act.hidden_of(intent).return_url {
        Some(return_url) => json!({
            "type": "redirect_to_url",
            "redirect_to_url": { "url": format!("{}/3ds/{intent}", act.settings.url), "return_url": return_url },
        }),
        None => json!({ "type": "use_stripe_sdk", "use_stripe_sdk": { "type": "three_d_secure_redirect" } }),
    }
}

/// The payer has, or hasn't, proved who they are.
pub(super) fn authenticate(act: &mut Act, id: &str, succeeds: bool) -> Answer {
    let intent = act.find("setup_intent", id)?;
    if text(&intent, "/status") != "requires_action" {
        return Err(unexpected(&intent, "authenticate"));
    }
    let method = act.find("payment_method", text(&intent, "/payment_method"))?;
    if succeeds {
        act.hidden(text(&method, "/id")).set_up = true;
        return Ok(succeed(act, intent, &method));
    }
    let message = "The latest attempt to set up the payment method has failed because authentication failed.";
    let refusal = Refusal::invalid(message).code("setup_intent_authentication_failure");
    Err(failed(act, &intent, &method, refusal))
}

fn succeed(act: &mut Act, mut intent: Value, method: &Value) -> Value {
    intent["status"] = "succeeded".into();
    intent["next_action"] = Value::Null;
    let customer = text(&intent, "/customer").to_owned();
    if !customer.is_empty() && text(method, "/customer").is_empty() {
        payment_methods::bind(act, method, &customer);
    }
    setup_attempts::succeed(act, &intent);
    act.put(&intent);
    act.emit("setup_intent.succeeded", &intent);
    if let Some(session) = act.hidden_of(text(&intent, "/id")).session {
        checkout_sessions::finish(act, &session, method, "no_payment_required");
    }
    intent
}

/// Records the failure on the intent; the refusal that the caller gets carries the intent.
fn failed(act: &mut Act, intent: &Value, method: &Value, refusal: Refusal) -> Refusal {
    let mut intent = intent.clone();
    let mut error = refusal.error.clone();
    error.insert("payment_method".into(), method.clone());
    intent["last_setup_error"] = Value::Object(error);
    setup_attempts::fail(act, &intent, intent["last_setup_error"].clone());
    intent["status"] = "requires_payment_method".into();
    intent["payment_method"] = Value::Null;
    intent["next_action"] = Value::Null;
    act.put(&intent);
    act.emit("setup_intent.setup_failed", &intent);
    refusal.with("setup_intent", intent)
}
