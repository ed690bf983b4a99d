//! Checkout sessions: the API, and what the payer does on the hosted page.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::act::{Act, Call, take_over, take_over_metadata};
use super::confirmation::{self, Mode};
use super::customers;
use super::line_items;
use super::lists;
use super::method_types;
use super::money;
use super::payment_intents;
use super::payment_methods;
use super::refusal::{Answer, Refusal};
use super::setup_intents;
use super::state::{new_id, text};
use super::timers::Due;

const DAY: i64 = 24 * 60 * 60;

/// `POST /v1/checkout/sessions`
pub(super) fn create(act: &mut Act, call: &Call) -> Answer {
    let params = &call.params;
    let mode = check(act, params)?;
    let currency = line_items::currency(act, params);
    let types = method_types::of_session(&currency, params)?;
    let expires_at = expiry(act, params)?;
    let items = if mode == "payment" { Some(line_items::make(act, params, &types)?) } else { None };
    let total = items.as_deref().map(line_items::total);
    let id = new_id(if act.account.livemode { "cs_live" } else { "cs_test" });
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
        "created": act.now,
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
        "livemode": act.account.livemode,
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
        "url": format!("{}/c/pay/{id}", act.settings.url),
    });
    session["allowed_payment_method_types"] = params.get("allowed_payment_method_types").cloned().unwrap_or_default();
    fill(&mut session, params)?;
    if total.is_some() {
        session["total_details"] = json!({ "amount_discount": 0, "amount_shipping": 0, "amount_tax": 0 });
    }
    if mode == "setup" {
        session["setup_intent"] = setup_intent(act, &session, params)?.into();
    } else {
        act.hidden(&id).asked = json!({ "intent": params.get("payment_intent_data"), "line_items": items });
    }
    act.insert(session.clone());
    act.later(expires_at - act.now, Due::ExpireSession { session: id });
    Ok(session)
}

/// Takes over what the parameters say as it is.
fn fill(session: &mut Value, params: &Value) -> Result<(), Refusal> {
    let plain = ["cancel_url", "client_reference_id", "customer", "customer_creation", "customer_email", "locale"];
    take_over(session, params, &plain);
    take_over(session, params, &["submit_type", "success_url"]);
    if let Some(given) = params.get("custom_text") {
        take_over(&mut session["custom_text"], given, &["after_submit", "submit"]);
    }
    take_over_metadata(session, params)
}

fn expiry(act: &Act, params: &Value) -> Result<i64, Refusal> {
    let expires_at = params.get("expires_at").and_then(Value::as_i64).unwrap_or(act.now + DAY);
    if (act.now + 30 * 60..=act.now + DAY).contains(&expires_at) {
        return Ok(expires_at);
    }
    let message = "The `expires_at` timestamp must be between 30 minutes and 24 hours from Checkout Session creation.";
    Err(Refusal::invalid(message).at("expires_at").early())
}

/// The rules that bind several parameters; gives the mode.
fn check<'a>(act: &Act, params: &'a Value) -> Result<&'a str, Refusal> {
    let missing = |param: &str| {
        let message = format!("Missing required param: {param}.");
        Err(Refusal::invalid(message).code("parameter_missing").at(param).early())
    };
    let clash = |message: &str, param: &str| Err(Refusal::invalid(message).at(param).early());
    let mode = text(params, "/mode");
    let given = |param: &str| params.get(param).is_some();
    if mode.is_empty() {
        return missing("mode");
    }
    if mode == "subscription" {
        return clash("This sandbox has no subscriptions: mode must be payment or setup.", "mode");
    }
    for param in ["success_url", "cancel_url"] {
        let url = text(params, &format!("/{param}"));
        if given(param) && !(url.starts_with("https://") || url.starts_with("http://")) {
            return Err(Refusal::invalid("Not a valid URL").code("url_invalid").at(param).early());
        }
    }
    if given("customer") && given("customer_email") {
        return clash("You may only specify one of these parameters: customer, customer_email.", "customer");
    }
    if given("customer") {
        act.referenced("customer", text(params, "/customer"), "customer")?;
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

/// A setup session has its intent from the start.
fn setup_intent(act: &mut Act, session: &Value, params: &Value) -> Result<String, Refusal> {
    let mut wanted = json!({ "payment_method_types": session["payment_method_types"] });
    if let Some(customer) = params.get("customer") {
        wanted["customer"] = customer.clone();
    }
    if let Some(data) = params.get("setup_intent_data") {
        for (field, value) in data.as_object().into_iter().flatten() {
            wanted[field] = value.clone();
        }
    }
    let intent = setup_intents::blank(act, &wanted)?;
    let id = text(&intent, "/id").to_owned();
    act.hidden(&id).session = Some(text(session, "/id").to_owned());
    act.hidden(&id).return_url = Some(format!("{}/c/pay/{}", act.settings.url, text(session, "/id")));
    act.insert(intent.clone());
    act.emit("setup_intent.created", &intent);
    Ok(id)
}

/// `GET /v1/checkout/sessions/{id}`
pub(super) fn retrieve(act: &mut Act, call: &Call) -> Answer {
    act.find("checkout.session", call.id())
}

/// `GET /v1/checkout/sessions`
pub(super) fn list(act: &mut Act, call: &Call) -> Answer {
    let wanted = |field: &str| text(&call.params, &format!("/{field}")).to_owned();
    let filters = ["customer", "payment_intent", "status"].map(|field| (field, wanted(field)));
    lists::list(act, call, "checkout.session", |session| {
        filters.iter().all(|(field, wanted)| wanted.is_empty() || session[field] == wanted.as_str())
    })
}

/// `POST /v1/checkout/sessions/{id}/expire`
pub(super) fn expire(act: &mut Act, call: &Call) -> Answer {
    let session = act.find("checkout.session", call.id())?;
    if text(&session, "/status") != "open" {
        let message = format!(
            "Only Checkout Sessions with a status in [\"open\"] can be expired. This Checkout Session has a status of \
             {}.",
            text(&session, "/status")
        );
        return Err(Refusal::invalid(message));
    }
    Ok(close(act, &session))
}

/// Expires an open session, and with it the intent that nobody can confirm any more.
pub(super) fn close(act: &mut Act, session: &Value) -> Value {
    let mut session = session.clone();
    session["status"] = "expired".into();
    session["url"] = Value::Null;
    act.put(&session);
    if let Some(intent) = act.get("setup_intent", text(&session, "/setup_intent")).filter(setup_intents::is_open) {
        setup_intents::close(act, &intent, Value::Null);
    }
    if let Some(intent) = act.get("payment_intent", text(&session, "/payment_intent")).filter(payment_intents::is_open)
    {
        payment_intents::close(act, &intent, "automatic".into());
    }
    act.emit("checkout.session.expired", &session);
    session
}

/// What a payer enters on the page.
#[derive(Debug, Clone, Default)]
pub(super) struct Payer {
    /// A card number; else `iban` is given.
    pub card: String,
    /// The card's month and year as typed, `12 / 34`; may be empty.
    pub expiry: String,
    pub iban: String,
    pub name: String,
    pub email: String,
}

/// The payer presses the button. Gives the intent: succeeded, processing, or waiting for the payer's proof.
pub(super) fn submit(act: &mut Act, session: &str, payer: &Payer) -> Answer {
    let session = act.find("checkout.session", session)?;
    let kind = if payer.iban.is_empty() { "card" } else { "sepa_debit" };
    check_payable(act, &session, kind)?;
    let filled = |value: &str| Some(value.to_owned()).filter(|value| !value.is_empty());
    let details = json!({ "name": filled(&payer.name), "email": filled(&payer.email) });
    let mut method = match kind {
        "card" => card(act, payer)?,
        _ => payment_methods::by_iban(act, &payer.iban, &details)?,
    };
    take_over(&mut method["billing_details"], &details, &["name", "email"]);
    act.put(&method);
    attempt(act, &session, &method)
}

/// The payer confirms with a method that is there already.
pub(super) fn confirm(act: &mut Act, session: &str, method: &Value) -> Answer {
    let session = act.find("checkout.session", session)?;
    check_payable(act, &session, text(method, "/type"))?;
    attempt(act, &session, method)
}

/// Whether a session can be completed, and by this kind of method.
fn check_payable(act: &Act, session: &Value, kind: &str) -> Result<(), Refusal> {
    if text(session, "/status") != "open" {
        return Err(Refusal::invalid(format!("This Checkout Session is {}.", text(session, "/status"))));
    }
    if !session["payment_method_types"].as_array().is_some_and(|types| types.iter().any(|known| known == kind)) {
        return Err(Refusal::invalid(format!("This Checkout Session doesn't take {kind}.")));
    }
    let customer = text(session, "/customer");
    if !customer.is_empty() && customers::existing(act, customer).is_err() {
        return Err(Refusal::invalid("The customer of this Checkout Session has been deleted."));
    }
    Ok(())
}

fn attempt(act: &mut Act, session: &Value, method: &Value) -> Answer {
    if text(session, "/mode") == "setup" {
        let intent = act.find("setup_intent", text(session, "/setup_intent"))?;
        return setup_intents::attempt(act, &intent, method, true);
    }
    let intent = payment_intent(act, session, method)?;
    confirmation::attempt(act, intent, method, Mode { mandate: true, ..Mode::default() })
}

/// The card that a payer typed.
fn card(act: &mut Act, payer: &Payer) -> Answer {
    let refuse = |code: &str, what: &str| {
        let message = format!("Your card's expiration date is {what}.");
        Err(Refusal::new(402, "card_error", message).code(code).at("exp_year"))
    };
    if payer.expiry.is_empty() {
        return payment_methods::from_card_entry(act, &payer.card);
    }
    let typed = payer.expiry.split_once('/').map(|(month, year)| (month.trim().parse(), year.trim().parse::<i64>()));
    let Some((Ok(month @ 1..=12), Ok(year @ (0..=99 | 2000..=2099)))) = typed else {
        return refuse("incomplete_expiry", "incomplete: write it as 12 / 34");
    };
    let year = if year < 100 { 2000 + year } else { year };
    let today = OffsetDateTime::from_unix_timestamp(act.now).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    if (year, month) < (i64::from(today.year()), i64::from(u8::from(today.month()))) {
        return refuse("expired_card", "in the past");
    }
    let mut method = payment_methods::from_card_entry(act, &payer.card)?;
    method["card"]["exp_month"] = month.into();
    method["card"]["exp_year"] = year.into();
    Ok(method)
}

/// A payment session's intent is made when the payer first confirms.
fn payment_intent(act: &mut Act, session: &Value, method: &Value) -> Answer {
    if let Some(intent) = act.get("payment_intent", text(session, "/payment_intent")) {
        return Ok(intent);
    }
    let id = text(session, "/id").to_owned();
    let asked = act.hidden_of(&id).asked;
    let mut wanted = asked.get("intent").filter(|intent| intent.is_object()).cloned().unwrap_or_else(|| json!({}));
    wanted["amount"] = session["amount_total"].clone();
    wanted["currency"] = session["currency"].clone();
    wanted["payment_method_types"] = session["payment_method_types"].clone();
    let mut session = session.clone();
    let keeps = text(&session, "/customer_creation") == "always" || !text(&wanted, "/setup_future_usage").is_empty();
    if keeps && text(&session, "/customer").is_empty() {
        let details = &method["billing_details"];
        let params = json!({ "name": details["name"], "email": details["email"], "phone": details["phone"] });
        let customer = customers::create(act, &Call { ids: Vec::new(), path: String::new(), params })?;
        session["customer"] = customer["id"].clone();
    }
    if !text(&session, "/customer").is_empty() {
        wanted["customer"] = session["customer"].clone();
    }
    let intent = payment_intents::blank(act, &wanted)?;
    act.insert(intent.clone());
    act.emit("payment_intent.created", &intent);
    let page = format!("{}/c/pay/{id}", act.settings.url);
    let hidden = act.hidden(text(&intent, "/id"));
    hidden.session = Some(id);
    hidden.return_url = Some(page);
    session["payment_intent"] = intent["id"].clone();
    act.put(&session);
    Ok(intent)
}

/// The payer is through; `payment_status` says whether the money is there.
pub(super) fn finish(act: &mut Act, session: &str, method: &Value, payment_status: &str) {
    let Some(mut session) = act.get("checkout.session", session) else { return };
    session["status"] = "complete".into();
    session["payment_status"] = payment_status.into();
    session["url"] = Value::Null;
    session["customer_details"] = json!({
        "address": method["billing_details"]["address"],
        "email": method["billing_details"]["email"],
        "name": method["billing_details"]["name"],
        "phone": null,
        "tax_exempt": "none",
        "tax_ids": [],
    });
    act.put(&session);
    act.emit("checkout.session.completed", &session);
}

/// The money is there: at once, or days after the payer was through.
pub(super) fn paid(act: &mut Act, session: &str, method: &Value) {
    let Some(mut found) = act.get("checkout.session", session) else { return };
    if text(&found, "/status") != "complete" {
        finish(act, session, method, "paid");
        return;
    }
    found["payment_status"] = "paid".into();
    act.put(&found);
    act.emit("checkout.session.async_payment_succeeded", &found);
}

/// The bank refused days later.
pub(super) fn not_paid(act: &mut Act, session: &str) {
    if let Some(found) = act.get("checkout.session", session) {
        act.emit("checkout.session.async_payment_failed", &found);
    }
}

/// A session's time is over.
pub(super) fn time_over(act: &mut Act, session: &str) {
    if let Some(session) = act.get("checkout.session", session).filter(|session| text(session, "/status") == "open") {
        close(act, &session);
    }
}
