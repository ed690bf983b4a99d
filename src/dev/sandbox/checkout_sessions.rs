//! Checkout Sessions: the endpoints, and the payer's actions on the hosted page.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::api_error::{ApiError, ApiResult};
use super::confirmation::{self, AttemptOptions};
use super::customers;
use super::intent_status;
use super::line_items;
use super::lists;
use super::method_types;
use super::money;
use super::payment_intents;
use super::payment_methods;
use super::setup_intents;
use super::state::{new_id, text};
use super::timers::TimerAction;
use super::transaction::{Call, Transaction, copy_fields, merge_metadata};

const DAY: i64 = 24 * 60 * 60;

/// `POST /v1/checkout/sessions`
pub(super) fn create(tx: &mut Transaction, call: &Call) -> ApiResult {
    let params = &call.params;
    let mode = check(tx, params)?;
    let currency = line_items::currency(tx, params);
    let types = method_types::for_session(&currency, params)?;
    let expires_at = expiry(tx, params)?;
    let items = if mode == "payment" { Some(line_items::create(tx, params, &types)?) } else { None };
    let total = items.as_deref().map(line_items::total);
    let id = new_id(if tx.account.livemode { "cs_live" } else { "cs_test" });
    let mut session = json!({
        "id": id,
        "object": "checkout.session",
        "after_expiration": null,
        "allow_promotion_codes": null,
        "amount_subtotal": total,
        "amount_total": total,
        "automatic_tax": { "enabled": false, "liability": null, "provider": null, "status": null },
        "billing_address_collection": null,
        "cancel_url": null,
        "client_reference_id": null,
        "client_secret": null,
        "created": tx.now,
        "currency": Some(currency).filter(|currency| !currency.is_empty()),
        "custom_fields": [],
        "custom_text": {
            "after_submit": null, "shipping_address": null, "submit": null, "terms_of_service_acceptance": null,
        },
        "customer": null,
        "customer_creation": null,
        "customer_details": null,
        "customer_email": null,
        "expires_at": expires_at,
        "invoice": null,
        "livemode": tx.account.livemode,
        "locale": null,
        "metadata": {},
        "mode": mode,
        "payment_intent": null,
        "payment_link": null,
        "payment_method_collection": if mode == "payment" { json!("if_required") } else { json!("always") },
        "payment_method_configuration_details": null,
        "payment_method_options": {},
        "payment_method_types": types,
        "payment_status": if mode == "setup" { "no_payment_required" } else { "unpaid" },
        "setup_intent": null,
        "shipping_options": [],
        "status": "open",
        "submit_type": null,
        "subscription": null,
        "success_url": null,
        "total_details": null,
        "ui_mode": "hosted_page",
        "url": format!("{}/c/pay/{id}", tx.settings.url),
    });
    session["allowed_payment_method_types"] = params.get("allowed_payment_method_types").cloned().unwrap_or_default();
    fill(&mut session, params)?;
    if total.is_some() {
        session["total_details"] = json!({ "amount_discount": 0, "amount_shipping": 0, "amount_tax": 0 });
    }
    if mode == "setup" {
        session["setup_intent"] = setup_intent(tx, &session, params)?.into();
    } else {
        tx.internals_mut(&id).requested = json!({ "intent": params.get("payment_intent_data"), "line_items": items });
    }
    tx.insert(session.clone());
    tx.schedule(expires_at - tx.now, TimerAction::ExpireSession { session: id });
    Ok(session)
}

/// Copies the parameters that need no conversion.
fn fill(session: &mut Value, params: &Value) -> Result<(), ApiError> {
    let plain = ["cancel_url", "client_reference_id", "customer", "customer_creation", "customer_email", "locale"];
    copy_fields(session, params, &plain);
    copy_fields(session, params, &["submit_type", "success_url"]);
    if let Some(given) = params.get("custom_text") {
        copy_fields(&mut session["custom_text"], given, &["after_submit", "submit"]);
    }
    merge_metadata(session, params)
}

fn expiry(tx: &Transaction, params: &Value) -> Result<i64, ApiError> {
    let expires_at = params.get("expires_at").and_then(Value::as_i64).unwrap_or(tx.now + DAY);
    if (tx.now + 30 * 60..=tx.now + DAY).contains(&expires_at) {
        return Ok(expires_at);
    }
    let message = "The `expires_at` timestamp must be between 30 minutes and 24 hours from Checkout Session creation.";
    Err(ApiError::invalid(message).at("expires_at").before_execution())
}

/// Checks the rules for several parameters together. Returns the mode.
fn check<'a>(tx: &Transaction, params: &'a Value) -> Result<&'a str, ApiError> {
    let missing = |param: &str| {
        let message = format!("Missing required param: {param}.");
        Err(ApiError::invalid(message).code("parameter_missing").at(param).before_execution())
    };
    let clash = |message: &str, param: &str| Err(ApiError::invalid(message).at(param).before_execution());
    let mode = text(params, "/mode");
    let given = |param: &str| params.get(param).is_some();
    if mode.is_empty() {
        return missing("mode");
    }
    if mode == "subscription" {
        return clash("This sandbox does not have subscriptions: mode must be payment or setup.", "mode");
    }
    for param in ["success_url", "cancel_url"] {
        let url = text(params, &format!("/{param}"));
        if given(param) && !(url.starts_with("https://") || url.starts_with("http://")) {
            return Err(ApiError::invalid("Not a valid URL").code("url_invalid").at(param).before_execution());
        }
    }
    if given("customer") && given("customer_email") {
        return clash("You may only specify one of these parameters: customer, customer_email.", "customer");
    }
    if given("customer") {
        tx.referenced("customer", text(params, "/customer"), "customer")?;
    }
    if text(params, "/client_reference_id").chars().count() > 200 {
        return clash("client_reference_id must be at most 200 characters.", "client_reference_id");
    }
    if given("currency") {
        money::currency(text(params, "/currency"))?;
    }
    let has_types = given("payment_method_types") || given("allowed_payment_method_types");
    match mode {
        "setup" if !has_types && !given("currency") => missing("currency"),
        "setup" if given("line_items") => clash("You can not pass `line_items` in `setup` mode.", "line_items"),
        "setup" if given("payment_intent_data") => {
            clash("You can not pass `payment_intent_data` in `setup` mode.", "payment_intent_data")
        }
        "setup" if given("customer_creation") => {
            clash("`customer_creation` can only be used in `payment` mode.", "customer_creation")
        }
        "payment" if given("setup_intent_data") => {
            clash("You can not pass `setup_intent_data` in `payment` mode.", "setup_intent_data")
        }
        "payment" if params["line_items"].as_array().is_none_or(Vec::is_empty) => missing("line_items"),
        mode => Ok(mode),
    }
}

/// Creates the SetupIntent of a setup session, which exists from the start.
fn setup_intent(tx: &mut Transaction, session: &Value, params: &Value) -> Result<String, ApiError> {
    let mut intent_params = json!({ "payment_method_types": session["payment_method_types"] });
    if let Some(customer) = params.get("customer") {
        intent_params["customer"] = customer.clone();
    }
    if let Some(data) = params.get("setup_intent_data") {
        for (field, value) in data.as_object().into_iter().flatten() {
            intent_params[field] = value.clone();
        }
    }
    let intent = setup_intents::blank(tx, &intent_params)?;
    let id = text(&intent, "/id").to_owned();
    tx.internals_mut(&id).session = Some(text(session, "/id").to_owned());
    tx.internals_mut(&id).return_url = Some(format!("{}/c/pay/{}", tx.settings.url, text(session, "/id")));
    tx.insert(intent.clone());
    tx.emit("setup_intent.created", &intent);
    Ok(id)
}

/// `GET /v1/checkout/sessions/{id}`
pub(super) fn retrieve(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.find("checkout.session", call.id())
}

/// `GET /v1/checkout/sessions`
pub(super) fn list(tx: &mut Transaction, call: &Call) -> ApiResult {
    let requested = |field: &str| text(&call.params, &format!("/{field}")).to_owned();
    let filters = ["customer", "payment_intent", "status"].map(|field| (field, requested(field)));
    lists::list(tx, call, "checkout.session", |session| {
        filters.iter().all(|(field, requested)| requested.is_empty() || session[field] == requested.as_str())
    })
}

/// `POST /v1/checkout/sessions/{id}/expire`
pub(super) fn expire(tx: &mut Transaction, call: &Call) -> ApiResult {
    let session = tx.find("checkout.session", call.id())?;
    if text(&session, "/status") != "open" {
        let message = format!(
            "Only Checkout Sessions with a status in [\"open\"] can be expired. This Checkout Session has a status of \
             {}.",
            text(&session, "/status")
        );
        return Err(ApiError::invalid(message));
    }
    Ok(close(tx, &session))
}

/// Expires an open session and cancels its intent.
pub(super) fn close(tx: &mut Transaction, session: &Value) -> Value {
    let mut session = session.clone();
    session["status"] = "expired".into();
    session["url"] = Value::Null;
    tx.put(&session);
    if let Some(intent) = tx.get("setup_intent", text(&session, "/setup_intent")).filter(setup_intents::is_open) {
        setup_intents::close(tx, &intent, Value::Null);
    }
    if let Some(intent) = tx.get("payment_intent", text(&session, "/payment_intent")).filter(intent_status::is_open) {
        intent_status::close(tx, &intent, "automatic".into());
    }
    tx.emit("checkout.session.expired", &session);
    session
}

/// What a payer enters on the hosted page.
#[derive(Debug, Clone, Default)]
pub(super) struct Payer {
    /// The card number; empty if `iban` is given.
    pub card: String,
    /// The card's expiry as entered, such as `12 / 34`. May be empty.
    pub expiry: String,
    pub iban: String,
    pub name: String,
    pub email: String,
}

/// Submits the hosted page. Returns the intent, which has succeeded, is processing, or requires authentication.
pub(super) fn submit(tx: &mut Transaction, session: &str, payer: &Payer) -> ApiResult {
    let session = tx.find("checkout.session", session)?;
    let kind = if payer.iban.is_empty() { "card" } else { "sepa_debit" };
    check_payable(tx, &session, kind)?;
    let filled = |value: &str| Some(value.to_owned()).filter(|value| !value.is_empty());
    let details = json!({ "name": filled(&payer.name), "email": filled(&payer.email) });
    let mut method = match kind {
        "card" => card(tx, payer)?,
        _ => payment_methods::from_iban(tx, &payer.iban, &details)?,
    };
    copy_fields(&mut method["billing_details"], &details, &["name", "email"]);
    tx.put(&method);
    attempt(tx, &session, &method)
}

/// Confirms a session with an existing payment method.
pub(super) fn confirm(tx: &mut Transaction, session: &str, method: &Value) -> ApiResult {
    let session = tx.find("checkout.session", session)?;
    check_payable(tx, &session, text(method, "/type"))?;
    attempt(tx, &session, method)
}

/// Checks that a session is open and accepts this type of payment method.
fn check_payable(tx: &Transaction, session: &Value, kind: &str) -> Result<(), ApiError> {
    if text(session, "/status") != "open" {
        return Err(ApiError::invalid(format!("This Checkout Session is {}.", text(session, "/status"))));
    }
    if !session["payment_method_types"].as_array().is_some_and(|types| types.iter().any(|known| known == kind)) {
        return Err(ApiError::invalid(format!("This Checkout Session doesn't take {kind}.")));
    }
    let customer = text(session, "/customer");
    if !customer.is_empty() && tx.existing("customer", customer).is_err() {
        return Err(ApiError::invalid("The customer of this Checkout Session has been deleted."));
    }
    Ok(())
}

fn attempt(tx: &mut Transaction, session: &Value, method: &Value) -> ApiResult {
    if text(session, "/mode") == "setup" {
        let intent = tx.find("setup_intent", text(session, "/setup_intent"))?;
        return setup_intents::attempt(tx, &intent, method, true);
    }
    let intent = payment_intent(tx, session, method)?;
    confirmation::attempt(tx, intent, method, AttemptOptions { mandate: true, ..AttemptOptions::default() })
}

/// Creates the card that a payer entered.
fn card(tx: &mut Transaction, payer: &Payer) -> ApiResult {
    let invalid = |code: &str, what: &str| {
        let message = format!("Your card's expiration date is {what}.");
        Err(ApiError::new(402, "card_error", message).code(code).at("exp_year"))
    };
    if payer.expiry.is_empty() {
        return payment_methods::from_card_entry(tx, &payer.card);
    }
    let typed = payer.expiry.split_once('/').map(|(month, year)| (month.trim().parse(), year.trim().parse::<i64>()));
    let Some((Ok(month @ 1..=12), Ok(year @ (0..=99 | 2000..=2099)))) = typed else {
        return invalid("incomplete_expiry", "incomplete: write it as 12 / 34");
    };
    let year = if year < 100 { 2000 + year } else { year };
    let today = OffsetDateTime::from_unix_timestamp(tx.now).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    if (year, month) < (i64::from(today.year()), i64::from(u8::from(today.month()))) {
        return invalid("expired_card", "in the past");
    }
    let mut method = payment_methods::from_card_entry(tx, &payer.card)?;
    method["card"]["exp_month"] = month.into();
    method["card"]["exp_year"] = year.into();
    Ok(method)
}

/// The PaymentIntent of a payment session, created when the payer first confirms.
fn payment_intent(tx: &mut Transaction, session: &Value, method: &Value) -> ApiResult {
    if let Some(intent) = tx.get("payment_intent", text(session, "/payment_intent")) {
        return Ok(intent);
    }
    let id = text(session, "/id").to_owned();
    let requested = tx.internals(&id).requested;
    let mut intent_params =
        requested.get("intent").filter(|intent| intent.is_object()).cloned().unwrap_or_else(|| json!({}));
    intent_params["amount"] = session["amount_total"].clone();
    intent_params["currency"] = session["currency"].clone();
    intent_params["payment_method_types"] = session["payment_method_types"].clone();
    let mut session = session.clone();
    let creates_customer =
        text(&session, "/customer_creation") == "always" || !text(&intent_params, "/setup_future_usage").is_empty();
    if creates_customer && text(&session, "/customer").is_empty() {
        let details = &method["billing_details"];
        let params = json!({ "name": details["name"], "email": details["email"], "phone": details["phone"] });
        let customer = customers::create(tx, &Call { ids: Vec::new(), path: String::new(), params })?;
        session["customer"] = customer["id"].clone();
    }
    if !text(&session, "/customer").is_empty() {
        intent_params["customer"] = session["customer"].clone();
    }
    let intent = payment_intents::blank(tx, &intent_params)?;
    tx.insert(intent.clone());
    tx.emit("payment_intent.created", &intent);
    let page = format!("{}/c/pay/{id}", tx.settings.url);
    let internals = tx.internals_mut(text(&intent, "/id"));
    internals.session = Some(id);
    internals.return_url = Some(page);
    session["payment_intent"] = intent["id"].clone();
    tx.put(&session);
    Ok(intent)
}

/// Expires a session, if it is still open, when its time is over.
pub(super) fn expire_if_open(tx: &mut Transaction, session: &str) {
    if let Some(session) = tx.get("checkout.session", session).filter(|session| text(session, "/status") == "open") {
        close(tx, &session);
    }
}
