//! Confirmation of PaymentIntents: the only place that charges. Cards succeed, are declined, or require authentication
//! at once. Bank debits become `processing`, and the bank responds days later.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::captures;
use super::charges;
use super::disputes;
use super::intent_status::{close, is_manual, is_open, save_method, succeed, unexpected};
use super::mandates;
use super::money::DEBIT_MAX;
use super::payment_methods;
use super::session_status;
use super::setup_intents::next_action;
use super::state::{flag, number, text};
use super::test_methods::{self, AUTHENTICATION_NOT_HANDLED, AUTHENTICATION_REQUIRED, Authentication, Debit, Decline};
use super::timers::TimerAction;
use super::transaction::{Transaction, copy_fields};

/// The number of confirmations after which Stripe cancels an intent.
const CONFIRMS_MAX: u32 = 30;

/// Checks a confirmation and returns its payment method. Changes nothing if the confirmation is invalid.
pub(super) fn check(tx: &mut Transaction, intent: &Value, params: &Value) -> ApiResult {
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
        return Err(ApiError::invalid(message).at("off_session"));
    }
    if flag(params, "/off_session") && flag(params, "/error_on_requires_action") {
        let message = "You may only specify one of these parameters: off_session, error_on_requires_action.";
        return Err(ApiError::invalid(message).at("error_on_requires_action"));
    }
    let redirects = text(intent, "/automatic_payment_methods/allow_redirects") == "always";
    if redirects && !flag(params, "/off_session") && text(params, "/return_url").is_empty() {
        let message = "This PaymentIntent is configured to accept payment methods enabled in your Dashboard. Because some \
                       of these payment methods might redirect your customer off of your page, you must provide a \
                       `return_url`.";
        return Err(ApiError::invalid(message).at("return_url"));
    }
    let method = usable(tx, intent, given)?;
    if text(&method, "/type") == "sepa_debit" && number(intent, "/amount") > DEBIT_MAX {
        let message = "Amount must be no more than 10,000.00 eur for sepa_debit.";
        return Err(ApiError::invalid(message).code("amount_too_large").at("amount"));
    }
    Ok(method)
}

/// The payment method, if it can pay this intent.
pub(super) fn usable(tx: &mut Transaction, intent: &Value, method: &str) -> ApiResult {
    let method = payment_methods::own_or_shared(tx, method, "payment_method")?;
    let (kind, id) = (text(&method, "/type"), text(&method, "/id"));
    let (holder, customer) = (text(&method, "/customer"), text(intent, "/customer"));
    if kind == "sepa_debit" && id.starts_with("src_") {
        let message = "Using a SEPA Debit Source in the `payment_method` field has been deprecated and is no longer a \
                       valid integration path. Migrate your SEPA Debit Sources to PaymentMethods.";
        return Err(ApiError::invalid(message).at("payment_method"));
    }
    payment_methods::check_unused(tx, id)?;
    if !holder.is_empty() && customer.is_empty() {
        let message = format!(
            "The PaymentMethod {id} belongs to a Customer. Please include the Customer in the `customer` parameter on the \
             PaymentIntent."
        );
        return Err(ApiError::invalid(message).at("payment_method"));
    }
    if !holder.is_empty() && holder != customer {
        let message = format!("The PaymentMethod {id} does not belong to the Customer {customer}.");
        return Err(ApiError::invalid(message).at("payment_method"));
    }
    let allowed = intent["payment_method_types"].as_array().is_some_and(|types| types.iter().any(|t| t == kind));
    if !allowed {
        let message = format!(
            "The PaymentMethod provided ({kind}) is not allowed for this PaymentIntent. Please attach a PaymentMethod of \
             one of the following types: {}.",
            intent["payment_method_types"]
        );
        let api_error = ApiError::invalid(message).code("payment_intent_incompatible_payment_method");
        return Err(api_error.at("payment_method").with("payment_intent", intent.clone()));
    }
    if kind == "sepa_debit" && text(intent, "/currency") != "eur" {
        let message = format!("The currency {} cannot be paid with sepa_debit: only eur.", text(intent, "/currency"));
        return Err(ApiError::invalid(message).code("payment_method_currency_mismatch").at("payment_method"));
    }
    Ok(method)
}

/// Confirms a stored intent with the payment method that [`check`] returned.
pub(super) fn confirm(tx: &mut Transaction, intent: &Value, params: &Value, method: &Value) -> ApiResult {
    let (mut intent, id) = (intent.clone(), text(intent, "/id").to_owned());
    tx.internals_mut(&id).confirms += 1;
    if tx.internals_mut(&id).confirms > CONFIRMS_MAX {
        let intent = close(tx, &intent, "automatic".into());
        let message = "This PaymentIntent was confirmed too many times and has been canceled.";
        return Err(unexpected(&intent, message.to_owned()));
    }
    intent["payment_method"] = method["id"].clone();
    copy_fields(&mut intent, params, &["setup_future_usage", "receipt_email"]);
    if let Some(url) = params.get("return_url").and_then(Value::as_str) {
        tx.internals_mut(&id).return_url = Some(url.to_owned());
    }
    let options = AttemptOptions {
        off_session: flag(params, "/off_session"),
        error_on_action: flag(params, "/error_on_requires_action"),
        mandate: mandates::accept(tx, method, params),
    };
    if let Some(mandate) = params.get("mandate").and_then(Value::as_str) {
        tx.referenced("mandate", mandate, "mandate")?;
    }
    attempt(tx, intent, method, options)
}

/// The options of an attempt.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AttemptOptions {
    /// The payer is not present.
    pub off_session: bool,
    /// Fail if authentication is required.
    pub error_on_action: bool,
    /// The payer accepts a mandate with this attempt.
    pub mandate: bool,
}

/// Attempts to charge the payment method.
pub(super) fn attempt(tx: &mut Transaction, mut intent: Value, method: &Value, options: AttemptOptions) -> ApiResult {
    intent["payment_method"] = method["id"].clone();
    intent["next_action"] = Value::Null;
    if text(method, "/type") == "sepa_debit" {
        return debit(tx, intent, method, options);
    }
    let id = text(method, "/id");
    let card = payment_methods::test_card(tx, id);
    let set_up = tx.internals(id).set_up;
    let authenticated = tx.internals_mut(text(&intent, "/id")).authenticated.take().is_some_and(|method| method == id);
    let authentication = card.map_or(Authentication::Never, |card| card.authentication);
    let is_required = match (authentication, options.off_session) {
        _ if authenticated => false,
        (Authentication::Never, _) | (Authentication::OnSession, true) => false,
        (Authentication::UnlessSetUp, true) => !set_up,
        _ => true,
    };
    if is_required && options.off_session {
        return Err(declined(tx, intent, method, &AUTHENTICATION_REQUIRED));
    }
    if is_required && options.error_on_action {
        let api_error = payment_methods::declined(&AUTHENTICATION_NOT_HANDLED);
        return Err(failed(tx, intent, method, api_error));
    }
    if is_required {
        intent["status"] = "requires_action".into();
        intent["next_action"] = next_action(tx, text(&intent, "/id"));
        tx.put(&intent);
        tx.emit("payment_intent.requires_action", &intent);
        return Ok(intent);
    }
    charge_card(tx, intent, method)
}

/// Charges or authorizes a card, after any authentication.
fn charge_card(tx: &mut Transaction, intent: Value, method: &Value) -> ApiResult {
    let card = payment_methods::test_card(tx, text(method, "/id"));
    if let Some(decline) = card.and_then(|card| card.charge) {
        return Err(declined(tx, intent, method, &decline));
    }
    if is_manual(&intent) {
        return Ok(captures::hold(tx, intent, method));
    }
    let charge = charges::create(tx, &intent, method, "succeeded");
    tx.emit("charge.succeeded", &charge);
    let intent = succeed(tx, intent, method, &charge);
    if let Some(card) = card {
        disputes::after_charge(tx, &charge, card.follow_up);
    }
    Ok(intent)
}

/// Records a decline by the card's bank.
fn declined(tx: &mut Transaction, mut intent: Value, method: &Value, decline: &Decline) -> ApiError {
    let mut charge = charges::create(tx, &intent, method, "failed");
    charges::set_decline(&mut charge, decline);
    tx.put(&charge);
    tx.emit("charge.failed", &charge);
    intent["latest_charge"] = charge["id"].clone();
    let api_error = payment_methods::declined(decline).with("charge", charge["id"].clone());
    failed(tx, intent, method, api_error)
}

/// Records the failure on the intent, which then requires another payment method, and adds the intent to the error.
fn failed(tx: &mut Transaction, mut intent: Value, method: &Value, api_error: ApiError) -> ApiError {
    let mut error = api_error.error.clone();
    error.insert("payment_method".into(), method.clone());
    intent["last_payment_error"] = Value::Object(error);
    intent["status"] = "requires_payment_method".into();
    intent["payment_method"] = Value::Null;
    intent["next_action"] = Value::Null;
    intent["processing"] = Value::Null;
    tx.put(&intent);
    tx.emit("payment_intent.payment_failed", &intent);
    api_error.with("payment_intent", intent).with("payment_method", method.clone())
}

/// Completes or fails the payer's authentication.
pub(super) fn authenticate(tx: &mut Transaction, id: &str, succeeds: bool) -> ApiResult {
    let mut intent = tx.find("payment_intent", id)?;
    if text(&intent, "/status") != "requires_action" {
        let message = format!(
            "This PaymentIntent has a status of {}: it does not require authentication.",
            text(&intent, "/status")
        );
        return Err(unexpected(&intent, message));
    }
    let method = tx.find("payment_method", text(&intent, "/payment_method"))?;
    if succeeds {
        tx.internals_mut(text(&method, "/id")).set_up = true;
        if text(&intent, "/confirmation_method") != "manual" {
            return charge_card(tx, intent, &method);
        }
        tx.internals_mut(id).authenticated = Some(text(&method, "/id").to_owned());
        intent["status"] = "requires_confirmation".into();
        intent["next_action"] = Value::Null;
        tx.put(&intent);
        return Ok(intent);
    }
    let message = "The provided PaymentMethod has failed authentication. You can provide payment_method_data or a new \
                   PaymentMethod to attempt to fulfill this PaymentIntent again.";
    let api_error = ApiError::invalid(message).code("payment_intent_authentication_failure");
    Err(failed(tx, intent, &method, api_error))
}

/// Submits a bank debit, which needs a mandate and settles days later.
fn debit(tx: &mut Transaction, mut intent: Value, method: &Value, options: AttemptOptions) -> ApiResult {
    let id = text(method, "/id").to_owned();
    if mandates::active(tx, &id).is_none() {
        if !options.mandate {
            let message = "The payment method has no mandate: provide `mandate_data`, or set it up with a SetupIntent or a \
                           Checkout Session first.";
            let api_error = ApiError::invalid(message).code("payment_intent_mandate_invalid").at("payment_method");
            return Err(failed(tx, intent, method, api_error));
        }
        mandates::create(tx, &id);
    }
    let debit = test_methods::debit_outcome(&tx.internals(&id).number);
    if let Debit::Exceeds(code) = debit {
        let message = "The payment exceeds the limit of this account for bank debits.";
        return Err(failed(tx, intent, method, ApiError::invalid(message).code(code)));
    }
    save_method(tx, &intent, method);
    let charge = charges::create(tx, &intent, method, "pending");
    tx.emit("charge.pending", &charge);
    intent["status"] = "processing".into();
    intent["latest_charge"] = charge["id"].clone();
    intent["last_payment_error"] = Value::Null;
    tx.put(&intent);
    tx.emit("payment_intent.processing", &intent);
    let is_late = matches!(debit, Debit::SucceedsLate | Debit::FailsLate(_));
    let settle_after = tx.settings.settle_after * if is_late { 2 } else { 1 };
    tx.schedule(settle_after, TimerAction::Settle { charge: text(&charge, "/id").to_owned() });
    if let Some(session) = tx.internals(text(&intent, "/id")).session {
        session_status::complete(tx, &session, method, "unpaid");
    }
    Ok(intent)
}

/// Applies the bank's response to a debit.
pub(super) fn settle(tx: &mut Transaction, charge: &str) {
    let Some(mut charge) = tx.get("charge", charge).filter(|charge| text(charge, "/status") == "pending") else {
        return;
    };
    let Some(intent) = tx.get("payment_intent", text(&charge, "/payment_intent")) else { return };
    let Some(method) = tx.get("payment_method", text(&charge, "/payment_method")) else { return };
    let debit = test_methods::debit_outcome(&tx.internals(text(&method, "/id")).number);
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
        tx.put(&charge);
        tx.emit("charge.failed", &charge);
        let message = format!("The payment failed because the bank refused the debit: {code}.");
        let api_error = ApiError::invalid(message).code("payment_intent_payment_attempt_failed");
        failed(tx, intent.clone(), &method, api_error.with("charge", charge["id"].clone()));
        if let Some(mandate) = tx.internals(text(&method, "/id")).mandate.filter(|_| code != "insufficient_funds") {
            mandates::end(tx, &mandate);
        }
        if let Some(session) = tx.internals(text(&intent, "/id")).session {
            session_status::fail_payment(tx, &session);
        }
        return;
    }
    charge["status"] = "succeeded".into();
    charge["paid"] = true.into();
    charge["outcome"] = charges::authorized();
    tx.put(&charge);
    tx.emit("charge.succeeded", &charge);
    succeed(tx, intent, &method, &charge);
    if debit == Debit::Disputed {
        disputes::reversed_by_bank(tx, &charge);
    }
}
