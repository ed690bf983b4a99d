//! Payment methods: cards by token, or by number on the hosted pages; bank accounts by IBAN; and Stripe's shared test
//! ids.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::lists;
use super::state::{Internals, new_id, text};
use super::test_methods::{self, Card, Decline, TestMethod};
use super::transaction::{Call, Transaction, copy_fields, merge_metadata};

/// `POST /v1/payment_methods`
pub(super) fn create(tx: &mut Transaction, call: &Call) -> ApiResult {
    let params = &call.params;
    let method = if text(params, "/type") == "sepa_debit" {
        bank_account(tx, params, "")?
    } else if let Some(token) = params.pointer("/card/token").and_then(Value::as_str) {
        match test_methods::shared(token) {
            Some(known @ TestMethod::Card(_)) if token.starts_with("tok_") => new(tx, known, &Value::Null),
            _ => return Err(ApiError { status: 400, ..ApiError::missing("token", token, "card[token]") }),
        }
    } else {
        return Err(no_token(tx, params));
    };
    complete(tx, method, params)
}

/// Creates a bank account. `data` is the value of the parameter `parent`, or all parameters if `parent` is empty.
fn bank_account(tx: &mut Transaction, data: &Value, parent: &str) -> ApiResult {
    for param in ["sepa_debit", "billing_details[name]", "billing_details[email]"] {
        let pointer = format!("/{}", param.replace('[', "/").replace(']', ""));
        if data.pointer(&pointer).is_none() {
            return Err(missing(&within(parent, param)));
        }
    }
    let iban = text(data, "/sepa_debit/iban");
    from_iban(tx, iban, &Value::Null).map_err(|api_error| api_error.at(&within(parent, "sepa_debit[iban]")))
}

/// Prefixes a parameter's name: `billing_details[name]` within `a` is `a[billing_details][name]`.
fn within(parent: &str, param: &str) -> String {
    if parent.is_empty() {
        return param.to_owned();
    }
    let (head, rest) = param.split_once('[').map_or((param, ""), |(head, _)| (head, &param[head.len()..]));
    format!("{parent}[{head}]{rest}")
}

/// Sets what all types of payment methods have in common.
fn complete(tx: &mut Transaction, mut method: Value, params: &Value) -> ApiResult {
    if let Some(details) = params.get("billing_details") {
        copy_fields(&mut method["billing_details"], details, &["address", "email", "name", "phone"]);
    }
    copy_fields(&mut method, params, &["allow_redisplay"]);
    merge_metadata(&mut method, params)?;
    tx.put(&method);
    Ok(method)
}

/// Creates the payment method of `payment_method_data`, and returns the parameters with its id in `payment_method`.
pub(super) fn with_data(tx: &mut Transaction, params: &Value) -> ApiResult {
    const DATA: &str = "payment_method_data";
    let Some(data) = params.get(DATA) else { return Ok(params.clone()) };
    if params.get("payment_method").is_some() {
        let message = format!("You may only specify one of these parameters: payment_method, {DATA}.");
        return Err(ApiError::invalid(message).at(DATA).before_execution());
    }
    if text(data, "/type") != "sepa_debit" {
        let message =
            format!("This sandbox does not take {DATA} of the type {}, only of sepa_debit.", text(data, "/type"));
        return Err(ApiError::invalid(message).at("payment_method_data[type]").before_execution());
    }
    let method = bank_account(tx, data, DATA)?;
    let method = complete(tx, method, data)?;
    let mut params = params.clone();
    params["payment_method"] = method["id"].clone();
    Ok(params)
}

fn missing(param: &str) -> ApiError {
    ApiError::invalid(format!("Missing required param: {param}."))
        .code("parameter_missing")
        .at(param)
        .before_execution()
}

/// The error for a card without a token. Stripe accepts raw card numbers only from accounts that it has approved, which
/// the sandbox's accounts are not.
fn no_token(tx: &Transaction, params: &Value) -> ApiError {
    if params.pointer("/card/number").is_none() {
        return missing(if params.get("card").is_some() { "card[number]" } else { "card" });
    }
    let message = if tx.account.livemode {
        "Sending credit card numbers directly to the Stripe API is generally unsafe. To continue processing use Stripe.js, \
         the Stripe mobile bindings, or Stripe Elements. For more information, see \
         https://dashboard.stripe.com/account/integration/settings. If you are qualified to handle card data directly, see \
         https://support.stripe.com/questions/enabling-access-to-raw-card-data-apis."
    } else {
        "Sending credit card numbers directly to the Stripe API is generally unsafe. We suggest you use test tokens that map \
         to the test card you are using, see https://stripe.com/docs/testing. To enable testing raw card data APIs, see \
         https://support.stripe.com/questions/enabling-access-to-raw-card-data-apis."
    };
    ApiError::new(402, "invalid_request_error", message).before_execution()
}

/// Creates the card with a number that a payer entered.
pub(super) fn from_card_entry(tx: &mut Transaction, number: &str) -> ApiResult {
    let number: String = number.chars().filter(char::is_ascii_digit).collect();
    if test_methods::card_by_number(&number).is_none() {
        let message = if number.len() < 12 {
            "Your card number is incomplete."
        } else {
            "Your card was declined. Your request was in test mode, but used a non test card. For a list of valid test \
             cards, visit: https://docs.stripe.com/testing."
        };
        let code = if number.len() < 12 { "incomplete_number" } else { "card_declined" };
        return Err(ApiError::new(402, "card_error", message).code(code).at("number"));
    }
    Ok(new(tx, TestMethod::Card(&number), &Value::Null))
}

/// Creates the bank account with an IBAN that a payer entered.
pub(super) fn from_iban(tx: &mut Transaction, iban: &str, billing_details: &Value) -> ApiResult {
    let iban: String = iban.chars().filter(|letter| !letter.is_whitespace()).collect::<String>().to_uppercase();
    if !test_methods::is_iban(&iban) {
        let message = "The IBAN you entered is invalid.";
        return Err(ApiError::invalid(message).code("invalid_bank_account_iban").at("sepa_debit[iban]"));
    }
    Ok(new(tx, TestMethod::Iban(&iban), billing_details))
}

/// Creates a payment method without a customer.
pub(super) fn new(tx: &mut Transaction, known: TestMethod, billing_details: &Value) -> Value {
    new_with_prefix(tx, "pm", known, billing_details)
}

/// Creates a payment method without a customer, with this prefix of its id.
pub(super) fn new_with_prefix(tx: &mut Transaction, prefix: &str, known: TestMethod, billing_details: &Value) -> Value {
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
        "created": tx.now,
        "customer": null,
        "livemode": tx.account.livemode,
        "metadata": {},
    });
    let number = match known {
        TestMethod::Card(number) => {
            method["type"] = "card".into();
            method["card"] = card_details(tx, number);
            number
        }
        TestMethod::Iban(iban) => {
            method["type"] = "sepa_debit".into();
            method["sepa_debit"] = json!({
                "bank_code": iban.get(4..12).unwrap_or_default(),
                "branch_code": "",
                "country": iban.get(..2).unwrap_or_default(),
                "fingerprint": fingerprint(&tx.account.id, iban),
                "generated_from": { "charge": null, "setup_attempt": null },
                "last4": iban.get(iban.len().saturating_sub(4)..).unwrap_or_default(),
            });
            iban
        }
    };
    if billing_details.is_object() {
        copy_fields(&mut method["billing_details"], billing_details, &["address", "email", "name", "phone"]);
    }
    *tx.internals_mut(&id) = Internals { number: number.to_owned(), ..Internals::default() };
    tx.insert(method.clone());
    method
}

fn card_details(tx: &Transaction, number: &str) -> Value {
    let card = test_methods::card_by_number(number);
    let number = card.map_or(number, |card| card.number);
    let brand = card.map_or("visa", |card| card.brand);
    json!({
        "brand": brand,
        "checks": { "address_line1_check": null, "address_postal_code_check": null, "cvc_check": "pass" },
        "country": card.map_or("US", |card| card.country),
        "display_brand": brand,
        "exp_month": 12,
        "exp_year": 2034,
        "fingerprint": fingerprint(&tx.account.id, number),
        "funding": card.map_or("credit", |card| card.funding),
        "generated_from": null,
        "last4": number.get(number.len().saturating_sub(4)..).unwrap_or_default(),
        "networks": { "available": [brand], "preferred": null },
        "three_d_secure_usage": { "supported": true },
        "wallet": null,
    })
}

/// The fingerprint of a number, unique within an account.
fn fingerprint(account: &str, number: &str) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(format!("{account} {number}")))[..16].to_owned()
}

/// `GET /v1/payment_methods/{id}`
pub(super) fn retrieve(tx: &mut Transaction, call: &Call) -> ApiResult {
    existing(tx, call.id())
}

/// `GET /v1/payment_methods`. The list is empty without a customer.
pub(super) fn list(tx: &mut Transaction, call: &Call) -> ApiResult {
    let (customer, kind) = (text(&call.params, "/customer"), text(&call.params, "/type"));
    if !customer.is_empty() {
        tx.referenced("customer", customer, "customer")?;
    }
    lists::list(tx, call, "payment_method", |method| {
        !customer.is_empty()
            && text(method, "/customer") == customer
            && (kind.is_empty() || text(method, "/type") == kind)
    })
}

/// `POST /v1/payment_methods/{id}`
pub(super) fn update(tx: &mut Transaction, call: &Call) -> ApiResult {
    let old = existing(tx, call.id())?;
    if text(&old, "/customer").is_empty() {
        let message = "You must save this PaymentMethod to a customer before you can update it.";
        return Err(ApiError::invalid(message));
    }
    let mut method = old.clone();
    if let Some(details) = call.params.get("billing_details") {
        copy_fields(&mut method["billing_details"], details, &["address", "email", "name", "phone"]);
    }
    if let Some(card) = call.params.get("card") {
        if text(&method, "/type") != "card" {
            return Err(unknown_here("card"));
        }
        copy_fields(&mut method["card"], card, &["exp_month", "exp_year"]);
    }
    copy_fields(&mut method, &call.params, &["allow_redisplay"]);
    merge_metadata(&mut method, &call.params)?;
    tx.change("payment_method.updated", &old, &method);
    Ok(method)
}

fn unknown_here(param: &str) -> ApiError {
    ApiError::invalid(format!("Received unknown parameter: {param}")).code("parameter_unknown").at(param)
}

/// `POST /v1/payment_methods/{id}/attach`
pub(super) fn attach(tx: &mut Transaction, call: &Call) -> ApiResult {
    let customer = text(&call.params, "/customer");
    tx.referenced("customer", customer, "customer")?;
    attach_to(tx, call.id(), customer)
}

/// Attaches a payment method, or a copy of a shared test id, to a customer, unless the bank declines.
pub(super) fn attach_to(tx: &mut Transaction, id: &str, customer: &str) -> ApiResult {
    let method = own_or_shared(tx, id, "payment_method").map_err(|api_error| ApiError { status: 404, ..api_error })?;
    let internals = tx.internals(text(&method, "/id"));
    if internals.used_up {
        let message = "This PaymentMethod was previously used without being attached to a Customer or was detached from \
                       a Customer, and may not be used again.";
        return Err(ApiError::invalid(message));
    }
    match text(&method, "/customer") {
        "" => {}
        holder if holder == customer => return Ok(method),
        _ => {
            let message = "The payment method you provided has already been attached to a customer.";
            return Err(ApiError::invalid(message).code("payment_method_unexpected_state"));
        }
    }
    if let Some(decline) =
        test_methods::card_by_number(&internals.number).filter(|card| card.declines_setup).and_then(|card| card.charge)
    {
        return Err(declined(&decline));
    }
    Ok(bind(tx, &method, customer))
}

/// Attaches a payment method without further checks.
pub(super) fn bind(tx: &mut Transaction, method: &Value, customer: &str) -> Value {
    let mut method = method.clone();
    method["customer"] = customer.into();
    if text(&method, "/billing_details/name").is_empty() {
        method["billing_details"]["name"] =
            tx.get("customer", customer).map_or(Value::Null, |customer| customer["name"].clone());
    }
    tx.put(&method);
    tx.emit("payment_method.attached", &method);
    method
}

/// The payment method that a path names.
pub(super) fn existing(tx: &mut Transaction, id: &str) -> ApiResult {
    if tx.get("payment_method", id).is_none() && test_methods::shared(id).is_some() {
        return own_or_shared(tx, id, "payment_method");
    }
    tx.get("payment_method", id).ok_or_else(|| ApiError::missing("payment_method", id, "payment_method"))
}

/// The payment method with this id, or a new copy of a shared test id.
pub(super) fn own_or_shared(tx: &mut Transaction, id: &str, param: &str) -> ApiResult {
    match (tx.get("payment_method", id), test_methods::shared(id)) {
        (Some(method), _) => Ok(method),
        (None, Some(known)) if !tx.account.livemode => Ok(new(tx, known, &Value::Null)),
        _ => Err(ApiError { status: 400, ..ApiError::missing("payment_method", id, param) }),
    }
}

/// Rejects a payment method that was detached, or used without a customer.
pub(super) fn check_unused(tx: &Transaction, id: &str) -> Result<(), ApiError> {
    if !tx.internals(id).used_up {
        return Ok(());
    }
    let message = "The provided PaymentMethod was previously used with a PaymentIntent without Customer attachment, shared \
                   with a connected account without Customer attachment, or was detached from a Customer. It may not be \
                   used again. To use a PaymentMethod multiple times, you must attach it to a Customer first.";
    Err(ApiError::invalid(message).at("payment_method"))
}

/// The test card of a payment method.
pub(super) fn test_card(tx: &Transaction, method: &str) -> Option<&'static Card> {
    test_methods::card_by_number(&tx.internals(method).number)
}

/// The 402 for a decline.
pub(super) fn declined(decline: &Decline) -> ApiError {
    let api_error = ApiError::new(402, "card_error", decline.message).code(decline.code);
    let mut api_error = api_error.with("decline_code", decline.bank_code);
    if !decline.advice.is_empty() {
        api_error = api_error.with("advice_code", decline.advice);
    }
    if !decline.param.is_empty() {
        api_error = api_error.at(decline.param);
    }
    api_error
}

/// The payment method for an id, a shared test id, a card number or an IBAN.
pub(super) fn resolve(tx: &mut Transaction, method: &str) -> ApiResult {
    if method.starts_with("pm_") {
        own_or_shared(tx, method, "payment_method")
    } else if method.starts_with(|letter: char| letter.is_ascii_digit()) {
        from_card_entry(tx, method)
    } else {
        from_iban(tx, method, &json!({ "name": "Jenny Rosen", "email": "jenny@example.com" }))
    }
}
