//! What happens when a PaymentIntent is confirmed: the only place where money is taken. Cards settle at once, are
//! declined or want their holder; bank debits go to `processing`, and the bank answers days later.

use serde_json::{Value, json};

use super::act::{Act, take_over};
use super::captures;
use super::charges;
use super::checkout_sessions;
use super::disputes;
use super::mandates;
use super::money::MOST_BY_DEBIT;
use super::payment_intents::{is_open, unexpected, usable};
use super::payment_methods;
use super::refusal::{Answer, Refusal};
use super::setup_intents::next_action;
use super::state::{flag, number, text};
use super::test_methods::{self, AUTHENTICATION_NOT_HANDLED, AUTHENTICATION_REQUIRED, Authentication, Debit, Decline};
use super::timers::Due;

/// Confirms on one intent before Stripe gives it up.
const MOST_CONFIRMS: u32 = 30;

/// Whether a confirmation makes sense, and the method that it would use; nothing has been changed if it doesn't.
pub(super) fn check(act: &mut Act, intent: &Value, params: &Value) -> Answer {
    if !is_open(intent) {
        let message = match text(intent, "/status") {
            "succeeded" => {
                "You cannot confirm this PaymentIntent because it has already succeeded after being previously \
                            confirmed."
                    .to_owned()
            }
            status => format!(
                "You cannot confirm this PaymentIntent because it has a status of {status}. Only a PaymentIntent with one \
                 of the following statuses may be confirmed: requires_confirmation, requires_action, \
                 requires_payment_method."
            ),
        };
        return Err(unexpected(intent, message));
    }
    let given = match text(intent, "/payment_method") {
        own if text(params, "/payment_method").is_empty() => own,
        _ => text(params, "/payment_method"),
    };
    if given.is_empty() {
        let message = "You cannot confirm this PaymentIntent because it's missing a payment method. You can either update \
                       the PaymentIntent with a payment method and then confirm it again, or confirm it again directly \
                       with a payment method or ConfirmationToken.";
        return Err(unexpected(intent, message.to_owned()));
    }
    if flag(params, "/off_session") && text(params, "/setup_future_usage") == "on_session" {
        let message = "You cannot pass `off_session` with a `setup_future_usage` of `on_session`.";
        return Err(Refusal::invalid(message).at("off_session"));
    }
    if flag(params, "/off_session") && flag(params, "/error_on_requires_action") {
        let message = "You may only specify one of these parameters: off_session, error_on_requires_action.";
        return Err(Refusal::invalid(message).at("error_on_requires_action"));
    }
    let redirects = text(intent, "/automatic_payment_methods/allow_redirects") == "always";
    if redirects && !flag(params, "/off_session") && text(params, "/return_url").is_empty() {
        let message = "This PaymentIntent is configured to accept payment methods enabled in your Dashboard. Because some \
                       of these payment methods might redirect your customer off of your page, you must provide a \
                       `return_url`.";
        return Err(Refusal::invalid(message).at("return_url"));
    }
    let method = usable(act, intent, given)?;
    if text(&method, "/type") == "sepa_debit" && number(intent, "/amount") > MOST_BY_DEBIT {
        let message = "Amount must be no more than 10,000.00 eur for sepa_debit.";
        return Err(Refusal::invalid(message).code("amount_too_large").at("amount"));
    }
    Ok(method)
}

/// Confirms an intent that has been stored and checked, with the method that the check found.
pub(super) fn confirm(act: &mut Act, intent: &Value, params: &Value, method: &Value) -> Answer {
    let (mut intent, id) = (intent.clone(), text(intent, "/id").to_owned());
    act.hidden(&id).confirms += 1;
    if act.hidden(&id).confirms > MOST_CONFIRMS {
        let intent = super::payment_intents::close(act, &intent, "automatic".into());
        let message = "This PaymentIntent was confirmed too many times and has been canceled.";
        return Err(unexpected(&intent, message.to_owned()));
    }
    intent["payment_method"] = method["id"].clone();
    take_over(&mut intent, params, &["setup_future_usage", "receipt_email"]);
    if let Some(url) = params.get("return_url").and_then(Value::as_str) {
        act.hidden(&id).return_url = Some(url.to_owned());
    }
    let mode = Mode {
        off_session: flag(params, "/off_session"),
        error_on_action: flag(params, "/error_on_requires_action"),
        mandate: mandates::accept(act, method, params),
    };
    if let Some(mandate) = params.get("mandate").and_then(Value::as_str) {
        act.referenced("mandate", mandate, "mandate")?;
    }
    attempt(act, intent, method, mode)
}

/// The circumstances of an attempt.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mode {
    /// The payer is not there.
    pub off_session: bool,
    /// Refuse rather than ask the payer.
    pub error_on_action: bool,
    /// The payer has just agreed to a mandate.
    pub mandate: bool,
}

/// Tries to take the money.
pub(super) fn attempt(act: &mut Act, mut intent: Value, method: &Value, mode: Mode) -> Answer {
    intent["payment_method"] = method["id"].clone();
    intent["next_action"] = Value::Null;
    if text(method, "/type") == "sepa_debit" {
        return debit(act, intent, method, mode);
    }
    let id = text(method, "/id");
    let card = payment_methods::test_card(act, id);
    let set_up = act.hidden_of(id).set_up;
    let proved = act.hidden(text(&intent, "/id")).proved.take().is_some_and(|proved| proved == id);
    let authentication = card.map_or(Authentication::Never, |card| card.authentication);
    let wanted = match (authentication, mode.off_session) {
        _ if proved => false,
        (Authentication::Never, _) | (Authentication::OnSession, true) => false,
        (Authentication::UnlessSetUp, true) => !set_up,
        _ => true,
    };
    if wanted && mode.off_session {
        return Err(declined(act, intent, method, &AUTHENTICATION_REQUIRED));
    }
    if wanted && mode.error_on_action {
        let refusal = payment_methods::declined(&AUTHENTICATION_NOT_HANDLED);
        return Err(failed(act, intent, method, refusal));
    }
    if wanted {
        intent["status"] = "requires_action".into();
        intent["next_action"] = next_action(act, text(&intent, "/id"));
        act.put(&intent);
        act.emit("payment_intent.requires_action", &intent);
        return Ok(intent);
    }
    take(act, intent, method)
}

/// Nothing is left to be asked: the bank decides.
fn take(act: &mut Act, intent: Value, method: &Value) -> Answer {
    let card = payment_methods::test_card(act, text(method, "/id"));
    if let Some(decline) = card.and_then(|card| card.charge) {
        return Err(declined(act, intent, method, &decline));
    }
    if captures::is_manual(&intent) {
        return Ok(captures::hold(act, intent, method));
    }
    let charge = charges::make(act, &intent, method, "succeeded");
    act.emit("charge.succeeded", &charge);
    let intent = succeed(act, intent, method, &charge);
    if let Some(card) = card {
        disputes::after_charge(act, &charge, card.aftermath);
    }
    Ok(intent)
}

/// The money is there.
pub(super) fn succeed(act: &mut Act, mut intent: Value, method: &Value, charge: &Value) -> Value {
    keep_method(act, &intent, method);
    intent["status"] = "succeeded".into();
    intent["amount_received"] = charge["amount_captured"].clone();
    intent["latest_charge"] = charge["id"].clone();
    intent["last_payment_error"] = Value::Null;
    intent["next_action"] = Value::Null;
    intent["processing"] = Value::Null;
    act.put(&intent);
    act.emit("payment_intent.succeeded", &intent);
    if let Some(session) = act.hidden_of(text(&intent, "/id")).session {
        checkout_sessions::paid(act, &session, method);
    }
    intent
}

/// Attaches the method if it is to be used again; else it has had its one use.
pub(super) fn keep_method(act: &mut Act, intent: &Value, method: &Value) {
    let (id, customer) = (text(method, "/id"), text(intent, "/customer").to_owned());
    if !text(method, "/customer").is_empty() {
        return;
    }
    if text(intent, "/setup_future_usage").is_empty() || customer.is_empty() {
        act.hidden(id).used_up = true;
    } else if act.get("payment_method", id).is_some_and(|method| text(&method, "/customer").is_empty()) {
        payment_methods::bind(act, method, &customer);
    }
}

/// The bank refuses a card.
fn declined(act: &mut Act, mut intent: Value, method: &Value, decline: &Decline) -> Refusal {
    let mut charge = charges::make(act, &intent, method, "failed");
    charges::explain(&mut charge, decline);
    act.put(&charge);
    act.emit("charge.failed", &charge);
    intent["latest_charge"] = charge["id"].clone();
    let refusal = payment_methods::declined(decline).with("charge", charge["id"].clone());
    failed(act, intent, method, refusal)
}

/// Records the failure on the intent, which waits for another method; the refusal carries it.
fn failed(act: &mut Act, mut intent: Value, method: &Value, refusal: Refusal) -> Refusal {
    let mut error = refusal.error.clone();
    error.insert("payment_method".into(), method.clone());
    intent["last_payment_error"] = Value::Object(error);
    intent["status"] = "requires_payment_method".into();
    intent["payment_method"] = Value::Null;
    intent["next_action"] = Value::Null;
    intent["processing"] = Value::Null;
    act.put(&intent);
    act.emit("payment_intent.payment_failed", &intent);
    refusal.with("payment_intent", intent).with("payment_method", method.clone())
}

/// The payer has, or hasn't, proved who they are.
pub(super) fn authenticate(act: &mut Act, id: &str, succeeds: bool) -> Answer {
    let mut intent = act.find("payment_intent", id)?;
    if text(&intent, "/status") != "requires_action" {
        let message = format!("This PaymentIntent has a status of {}: nothing to prove.", text(&intent, "/status"));
        return Err(unexpected(&intent, message));
    }
    let method = act.find("payment_method", text(&intent, "/payment_method"))?;
    if succeeds {
        act.hidden(text(&method, "/id")).set_up = true;
        if text(&intent, "/confirmation_method") != "manual" {
            return take(act, intent, &method);
        }
        act.hidden(id).proved = Some(text(&method, "/id").to_owned());
        intent["status"] = "requires_confirmation".into();
        intent["next_action"] = Value::Null;
        act.put(&intent);
        return Ok(intent);
    }
    let message = "The provided PaymentMethod has failed authentication. You can provide payment_method_data or a new \
                   PaymentMethod to attempt to fulfill this PaymentIntent again.";
    let refusal = Refusal::invalid(message).code("payment_intent_authentication_failure");
    Err(failed(act, intent, &method, refusal))
}

/// A bank debit: needs a mandate, is submitted, and settles days later.
fn debit(act: &mut Act, mut intent: Value, method: &Value, mode: Mode) -> Answer {
    let id = text(method, "/id").to_owned();
    if mandates::of(act, &id).is_none() {
        if !mode.mandate {
            let message = "The payment method has no mandate: provide `mandate_data`, or set it up with a SetupIntent or a \
                           Checkout Session first.";
            let refusal = Refusal::invalid(message).code("payment_intent_mandate_invalid").at("payment_method");
            return Err(failed(act, intent, method, refusal));
        }
        mandates::make(act, &id);
    }
    let debit = test_methods::debit_of(&act.hidden_of(&id).number);
    if let Debit::Exceeds(code) = debit {
        let message = "The payment exceeds the limit of this account for bank debits.";
        return Err(failed(act, intent, method, Refusal::invalid(message).code(code)));
    }
    keep_method(act, &intent, method);
    let charge = charges::make(act, &intent, method, "pending");
    act.emit("charge.pending", &charge);
    intent["status"] = "processing".into();
    intent["latest_charge"] = charge["id"].clone();
    intent["last_payment_error"] = Value::Null;
    act.put(&intent);
    act.emit("payment_intent.processing", &intent);
    let late = matches!(debit, Debit::SucceedsLate | Debit::FailsLate(_));
    let settle_after = act.settings.settle_after * if late { 2 } else { 1 };
    act.later(settle_after, Due::Settle { charge: text(&charge, "/id").to_owned() });
    if let Some(session) = act.hidden_of(text(&intent, "/id")).session {
        checkout_sessions::finish(act, &session, method, "unpaid");
    }
    Ok(intent)
}

/// The bank's answer to a debit.
pub(super) fn settle(act: &mut Act, charge: &str) {
    let Some(mut charge) = act.get("charge", charge).filter(|charge| text(charge, "/status") == "pending") else {
        return;
    };
    let Some(intent) = act.get("payment_intent", text(&charge, "/payment_intent")) else { return };
    let Some(method) = act.get("payment_method", text(&charge, "/payment_method")) else { return };
    let debit = test_methods::debit_of(&act.hidden_of(text(&method, "/id")).number);
    if let Debit::Fails(code) | Debit::FailsLate(code) = debit {
        charge["status"] = "failed".into();
        charge["failure_code"] = code.into();
        charge["failure_message"] = "The bank refused the debit.".into();
        charge["paid"] = false.into();
        charge["captured"] = false.into();
        charge["amount_captured"] = 0.into();
        charge["outcome"] = json!({
            "advice_code": null, "network_advice_code": null, "network_decline_code": null,
            "network_status": "declined_by_network", "reason": code, "seller_message": "The bank refused the debit.",
            "type": "issuer_declined",
        });
        act.put(&charge);
        act.emit("charge.failed", &charge);
        let message = format!("The payment failed because the bank refused the debit: {code}.");
        let refusal = Refusal::invalid(message).code("payment_intent_payment_attempt_failed");
        failed(act, intent.clone(), &method, refusal.with("charge", charge["id"].clone()));
        if let Some(mandate) = act.hidden_of(text(&method, "/id")).mandate.filter(|_| code != "insufficient_funds") {
            mandates::end(act, &mandate);
        }
        if let Some(session) = act.hidden_of(text(&intent, "/id")).session {
            checkout_sessions::not_paid(act, &session);
        }
        return;
    }
    charge["status"] = "succeeded".into();
    charge["paid"] = true.into();
    charge["outcome"] = charges::authorized();
    act.put(&charge);
    act.emit("charge.succeeded", &charge);
    succeed(act, intent, &method, &charge);
    if debit == Debit::Disputed {
        disputes::by_bank(act, &charge);
    }
}
