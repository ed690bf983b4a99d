//! Payment methods: cards by token, or by number on the hosted pages, bank accounts by IBAN, and Stripe's shared test ids.

use serde_json::{Value, json};

use super::act::{Act, Call, take_over, take_over_metadata};
use super::customers;
use super::lists;
use super::refusal::{Answer, Refusal};
use super::sources;
use super::state::{Hidden, new_id, text};
use super::test_methods::{self, Card, Decline, Known};

/// `POST /v1/payment_methods`
pub(super) fn create(act: &mut Act, call: &Call) -> Answer {
    let params = &call.params;
    let method = if text(params, "/type") == "sepa_debit" {
        bank_account(act, params, "")?
    } else if let Some(token) = params.pointer("/card/token").and_then(Value::as_str) {
        match test_methods::shared(token) {
            Some(known @ Known::Card(_)) if token.starts_with("tok_") => make(act, known, &Value::Null),
            _ => return Err(Refusal { status: 400, ..Refusal::missing("token", token, "card[token]") }),
        }
    } else {
        return Err(no_token(act, params));
    };
    complete(act, method, params)
}

/// A bank account; the data are the value of `parent`, or the request's own parameters.
fn bank_account(act: &mut Act, data: &Value, parent: &str) -> Answer {
    for param in ["sepa_debit", "billing_details[name]", "billing_details[email]"] {
        let pointer = format!("/{}", param.replace('[', "/").replace(']', ""));
        if data.pointer(&pointer).is_none() {
            return Err(missing(&within(parent, param)));
        }
    }
    let iban = text(data, "/sepa_debit/iban");
    by_iban(act, iban, &Value::Null).map_err(|refusal| refusal.at(&within(parent, "sepa_debit[iban]")))
}

/// `billing_details[name]` within `a` is `a[billing_details][name]`.
fn within(parent: &str, param: &str) -> String {
    if parent.is_empty() {
        return param.to_owned();
    }
    let (head, rest) = param.split_once('[').map_or((param, ""), |(head, _)| (head, &param[head.len()..]));
    format!("{parent}[{head}]{rest}")
}

/// Takes over what every kind of method has.
fn complete(act: &mut Act, mut method: Value, params: &Value) -> Answer {
    if let Some(details) = params.get("billing_details") {
        take_over(&mut method["billing_details"], details, &["address", "email", "name", "phone"]);
    }
    take_over(&mut method, params, &["allow_redisplay"]);
    take_over_metadata(&mut method, params)?;
    act.put(&method);
    Ok(method)
}

/// The parameters of an intent's call, with the method that its `payment_method_data` describe made and named in
/// `payment_method`.
pub(super) fn with_data(act: &mut Act, params: &Value) -> Answer {
    const DATA: &str = "payment_method_data";
    let Some(data) = params.get(DATA) else { return Ok(params.clone()) };
    if params.get("payment_method").is_some() {
        let message = format!("You may only specify one of these parameters: payment_method, {DATA}.");
        return Err(Refusal::invalid(message).at(DATA).early());
    }
    if text(data, "/type") != "sepa_debit" {
        let message = format!("This sandbox takes no {DATA} of the type {}, only of sepa_debit.", text(data, "/type"));
        return Err(Refusal::invalid(message).at("payment_method_data[type]").early());
    }
    let method = bank_account(act, data, DATA)?;
    let method = complete(act, method, data)?;
    let mut params = params.clone();
    params["payment_method"] = method["id"].clone();
    Ok(params)
}

fn missing(param: &str) -> Refusal {
    Refusal::invalid(format!("Missing required param: {param}.")).code("parameter_missing").at(param).early()
}

/// A card without a token: Stripe takes raw numbers only from accounts that it has allowed to send them, and ours are not.
fn no_token(act: &Act, params: &Value) -> Refusal {
    if params.pointer("/card/number").is_none() {
        return missing(if params.get("card").is_some() { "card[number]" } else { "card" });
    }
    let message = if act.account.livemode {
        "Sending credit card numbers directly to the Stripe API is generally unsafe. To continue processing use Stripe.js, \
         the Stripe mobile bindings, or Stripe Elements. For more information, see \
         https://dashboard.stripe.com/account/integration/settings. If you are qualified to handle card data directly, see \
         https://support.stripe.com/questions/enabling-access-to-raw-card-data-apis."
    } else {
        "Sending credit card numbers directly to the Stripe API is generally unsafe. We suggest you use test tokens that map \
         to the test card you are using, see https://stripe.com/docs/testing. To enable testing raw card data APIs, see \
         https://support.stripe.com/questions/enabling-access-to-raw-card-data-apis."
    };
    Refusal::new(402, "invalid_request_error", message).early()
}

/// A method for a card number as a payer types it.
pub(super) fn from_card_entry(act: &mut Act, number: &str) -> Answer {
    let number: String = number.chars().filter(char::is_ascii_digit).collect();
    if test_methods::card_of(&number).is_none() {
        let message = if number.len() < 12 {
            "Your card number is incomplete."
        } else {
            "Your card was declined. Your request was in test mode, but used a non test card. For a list of valid test \
             cards, visit: https://docs.stripe.com/testing."
        };
        let code = if number.len() < 12 { "incomplete_number" } else { "card_declined" };
        return Err(Refusal::new(402, "card_error", message).code(code).at("number"));
    }
    Ok(make(act, Known::Card(&number), &Value::Null))
}

/// A method for an IBAN as a payer types it.
pub(super) fn by_iban(act: &mut Act, iban: &str, billing_details: &Value) -> Answer {
    let iban: String = iban.chars().filter(|letter| !letter.is_whitespace()).collect::<String>().to_uppercase();
    if !test_methods::is_iban(&iban) {
        let message = "The IBAN you entered is invalid.";
        return Err(Refusal::invalid(message).code("invalid_bank_account_iban").at("sepa_debit[iban]"));
    }
    Ok(make(act, Known::Iban(&iban), billing_details))
}

/// Makes a method; it belongs to nobody yet.
pub(super) fn make(act: &mut Act, known: Known, billing_details: &Value) -> Value {
    make_as(act, "pm", known, billing_details)
}

/// Makes a method whose id begins so.
pub(super) fn make_as(act: &mut Act, prefix: &str, known: Known, billing_details: &Value) -> Value {
    let id = new_id(prefix);
    let mut method = json!({
        "id": id,
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": {
            "address": {
                "city": null, "country": null, "line1": null, "line2": null, "postal_code": null, "state": null,
            },
            "email": null, "name": null, "phone": null, "tax_id": null,
        },
        "created": act.now,
        "customer": null,
        "livemode": act.account.livemode,
        "metadata": {},
    });
    let number = match known {
        Known::Card(number) => {
            method["type"] = "card".into();
            method["card"] = card_details(act, number);
            number
        }
        Known::Iban(iban) => {
            method["type"] = "sepa_debit".into();
            method["sepa_debit"] = json!({
                "bank_code": iban.get(4..12).unwrap_or_default(),
                "branch_code": "",
                "country": iban.get(..2).unwrap_or_default(),
                "fingerprint": fingerprint(&act.account.id, iban),
                "generated_from": { "charge": null, "setup_attempt": null },
                "last4": iban.get(iban.len().saturating_sub(4)..).unwrap_or_default(),
            });
            iban
        }
    };
    if billing_details.is_object() {
        take_over(&mut method["billing_details"], billing_details, &["address", "email", "name", "phone"]);
    }
    *act.hidden(&id) = Hidden { number: number.to_owned(), ..Hidden::default() };
    act.insert(method.clone());
    method
}

fn card_details(act: &Act, number: &str) -> Value {
    let card = test_methods::card_of(number);
    let number = card.map_or(number, |card| card.number);
    let brand = card.map_or("visa", |card| card.brand);
    json!({
        "brand": brand,
        "checks": { "address_line1_check": null, "address_postal_code_check": null, "cvc_check": "pass" },
        "country": card.map_or("US", |card| card.country),
        "display_brand": brand,
        "exp_month": 12,
        "exp_year": 2034,
        "fingerprint": fingerprint(&act.account.id, number),
        "funding": card.map_or("credit", |card| card.funding),
        "generated_from": null,
        "last4": number.get(number.len().saturating_sub(4)..).unwrap_or_default(),
        "networks": { "available": [brand], "preferred": null },
        "three_d_secure_usage": { "supported": true },
        "wallet": null,
    })
}

/// The same number has the same fingerprint, within an account.
fn fingerprint(account: &str, number: &str) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(format!("{account} {number}")))[..16].to_owned()
}

/// `GET /v1/payment_methods/{id}`
pub(super) fn retrieve(act: &mut Act, call: &Call) -> Answer {
    existing(act, call.id())
}

/// `GET /v1/payment_methods`: without a customer there is nothing to see.
pub(super) fn list(act: &mut Act, call: &Call) -> Answer {
    let (customer, kind) = (text(&call.params, "/customer"), text(&call.params, "/type"));
    if !customer.is_empty() {
        act.referenced("customer", customer, "customer")?;
    }
    lists::list(act, call, "payment_method", |method| {
        !customer.is_empty()
            && text(method, "/customer") == customer
            && (kind.is_empty() || text(method, "/type") == kind)
    })
}

/// `POST /v1/payment_methods/{id}`
pub(super) fn update(act: &mut Act, call: &Call) -> Answer {
    let old = existing(act, call.id())?;
    if text(&old, "/customer").is_empty() {
        let message = "You must save this PaymentMethod to a customer before you can update it.";
        return Err(Refusal::invalid(message));
    }
    let mut method = old.clone();
    if let Some(details) = call.params.get("billing_details") {
        take_over(&mut method["billing_details"], details, &["address", "email", "name", "phone"]);
    }
    if let Some(card) = call.params.get("card") {
        if text(&method, "/type") != "card" {
            return Err(unknown_here("card"));
        }
        take_over(&mut method["card"], card, &["exp_month", "exp_year"]);
    }
    take_over(&mut method, &call.params, &["allow_redisplay"]);
    take_over_metadata(&mut method, &call.params)?;
    act.change("payment_method.updated", &old, &method);
    Ok(method)
}

fn unknown_here(param: &str) -> Refusal {
    Refusal::invalid(format!("Received unknown parameter: {param}")).code("parameter_unknown").at(param)
}

/// `POST /v1/payment_methods/{id}/attach`
pub(super) fn attach(act: &mut Act, call: &Call) -> Answer {
    let customer = text(&call.params, "/customer");
    act.referenced("customer", customer, "customer")?;
    attach_to(act, call.id(), customer)
}

/// Attaches a method, or a copy of a shared test id, to a customer, unless its bank refuses.
pub(super) fn attach_to(act: &mut Act, id: &str, customer: &str) -> Answer {
    let method = own_or_shared(act, id, "payment_method").map_err(|refusal| Refusal { status: 404, ..refusal })?;
    let hidden = act.hidden_of(text(&method, "/id"));
    if hidden.used_up {
        let message = "This PaymentMethod was previously used without being attached to a Customer or was detached from \
                       a Customer, and may not be used again.";
        return Err(Refusal::invalid(message));
    }
    match text(&method, "/customer") {
        "" => {}
        holder if holder == customer => return Ok(method),
        _ => {
            let message = "The payment method you provided has already been attached to a customer.";
            return Err(Refusal::invalid(message).code("payment_method_unexpected_state"));
        }
    }
    if let Some(decline) =
        test_methods::card_of(&hidden.number).filter(|card| card.refuses_setup).and_then(|card| card.charge)
    {
        return Err(declined(&decline));
    }
    Ok(bind(act, &method, customer))
}

/// Ties a method to a customer, and tells of it.
pub(super) fn bind(act: &mut Act, method: &Value, customer: &str) -> Value {
    let mut method = method.clone();
    method["customer"] = customer.into();
    if text(&method, "/billing_details/name").is_empty() {
        method["billing_details"]["name"] =
            act.get("customer", customer).map_or(Value::Null, |customer| customer["name"].clone());
    }
    act.put(&method);
    act.emit("payment_method.attached", &method);
    method
}

/// `POST /v1/payment_methods/{id}/detach`
pub(super) fn detach(act: &mut Act, call: &Call) -> Answer {
    let method = existing(act, call.id())?;
    if text(&method, "/customer").is_empty() {
        let message = "The payment method you provided is not attached to a customer so detachment is impossible.";
        return Err(Refusal::invalid(message));
    }
    Ok(let_go(act, &method))
}

/// Detaches for good: its mandate ends, and a customer whose default it was has none.
pub(super) fn let_go(act: &mut Act, method: &Value) -> Value {
    let (id, customer) = (text(method, "/id").to_owned(), text(method, "/customer").to_owned());
    let mut new = method.clone();
    new["customer"] = Value::Null;
    act.put(&new);
    act.emit("payment_method.detached", &new);
    let hidden = act.hidden(&id);
    hidden.used_up = true;
    if let Some(mandate) = hidden.mandate.take() {
        super::mandates::end(act, &mandate);
    }
    if let Ok(old) = customers::existing(act, &customer)
        && text(&old, "/invoice_settings/default_payment_method") == id
    {
        let mut new = old.clone();
        new["invoice_settings"]["default_payment_method"] = Value::Null;
        act.change("customer.updated", &old, &new);
    }
    sources::gone(act, method, &customer);
    new
}

/// The method that a path names.
fn existing(act: &mut Act, id: &str) -> Answer {
    if act.get("payment_method", id).is_none() && test_methods::shared(id).is_some() {
        return own_or_shared(act, id, "payment_method");
    }
    act.get("payment_method", id).ok_or_else(|| Refusal::missing("payment_method", id, "payment_method"))
}

/// The method with this id, or a new copy of a shared test id.
pub(super) fn own_or_shared(act: &mut Act, id: &str, param: &str) -> Answer {
    match (act.get("payment_method", id), test_methods::shared(id)) {
        (Some(method), _) => Ok(method),
        (None, Some(known)) if !act.account.livemode => Ok(make(act, known, &Value::Null)),
        _ => Err(Refusal { status: 400, ..Refusal::missing("payment_method", id, param) }),
    }
}

/// Refuses a method that was detached, or that has had its one use, for an intent.
pub(super) fn check_unused(act: &Act, id: &str) -> Result<(), Refusal> {
    if !act.hidden_of(id).used_up {
        return Ok(());
    }
    let message = "The provided PaymentMethod was previously used with a PaymentIntent without Customer attachment, shared \
                   with a connected account without Customer attachment, or was detached from a Customer. It may not be \
                   used again. To use a PaymentMethod multiple times, you must attach it to a Customer first.";
    Err(Refusal::invalid(message).at("payment_method"))
}

/// The test card behind a method.
pub(super) fn test_card(act: &Act, method: &str) -> Option<&'static Card> {
    test_methods::card_of(&act.hidden_of(method).number)
}

/// A card error, 402.
pub(super) fn declined(decline: &Decline) -> Refusal {
    let refusal = Refusal::new(402, "card_error", decline.message).code(decline.code);
    let mut refusal = refusal.with("decline_code", decline.bank_code);
    if !decline.advice.is_empty() {
        refusal = refusal.with("advice_code", decline.advice);
    }
    if !decline.param.is_empty() {
        refusal = refusal.at(decline.param);
    }
    refusal
}
