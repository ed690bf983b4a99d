//! Legacy cards and sources, which predate PaymentMethods. Each is stored as a PaymentMethod with the same id
//! (`card_…`, `src_…`), as Stripe returns it from the newer endpoints. The endpoints here return the legacy form.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::lists;
use super::payment_methods;
use super::state::text;
use super::test_methods::{self, TestMethod};
use super::transaction::{Call, Transaction};

/// Whether this is the id of a legacy card or source.
pub(super) fn is_legacy(id: &str) -> bool {
    id.starts_with("card_") || id.starts_with("src_")
}

/// `POST /v1/sources`
pub(super) fn create(tx: &mut Transaction, call: &Call) -> ApiResult {
    let params = &call.params;
    let method = if text(params, "/type") == "card" {
        from_token(tx, text(params, "/token"), "src", "token")?
    } else {
        let iban = text(params, "/sepa_debit/iban").replace(' ', "").to_uppercase();
        if !test_methods::is_iban(&iban) {
            let message = "The IBAN you entered is invalid.";
            return Err(ApiError::invalid(message).code("invalid_bank_account_iban").at("sepa_debit[iban]"));
        }
        payment_methods::new_with_prefix(tx, "src", TestMethod::Iban(&iban), &params["owner"])
    };
    Ok(legacy_form(&method))
}

fn from_token(tx: &mut Transaction, token: &str, prefix: &str, param: &str) -> ApiResult {
    match test_methods::shared(token) {
        Some(known @ TestMethod::Card(_)) if token.starts_with("tok_") => {
            Ok(payment_methods::new_with_prefix(tx, prefix, known, &Value::Null))
        }
        _ => Err(ApiError { status: 400, ..ApiError::missing("token", token, param) }),
    }
}

/// `POST /v1/customers/{id}/sources`. A token becomes a card.
pub(super) fn attach(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.existing("customer", call.id())?;
    Ok(legacy_form(&attach_to(tx, text(&call.params, "/source"), call.id())?))
}

/// Checks that a customer can be created with this token or source, before anything is stored.
pub(super) fn check(tx: &Transaction, source: &str) -> Result<(), ApiError> {
    if source.starts_with("src_") {
        return tx.referenced("payment_method", source, "source").map(|_| ());
    }
    let Some(TestMethod::Card(number)) = test_methods::shared(source).filter(|_| source.starts_with("tok_")) else {
        return Err(ApiError { status: 400, ..ApiError::missing("token", source, "source") });
    };
    let declined = test_methods::card_by_number(number).filter(|card| card.declines_setup).and_then(|card| card.charge);
    declined.map_or(Ok(()), |decline| Err(payment_methods::declined(&decline)))
}

/// Adds a card by token, or a source, to a customer. The first becomes its default.
pub(super) fn attach_to(tx: &mut Transaction, source: &str, customer: &str) -> ApiResult {
    let method = if source.starts_with("src_") {
        tx.referenced("payment_method", source, "source")?
    } else {
        from_token(tx, source, "card", "source")?
    };
    let bound = payment_methods::attach_to(tx, text(&method, "/id"), customer)?;
    tx.emit("customer.source.created", &legacy_form(&bound));
    let old = tx.existing("customer", customer)?;
    if text(&old, "/default_source").is_empty() {
        let mut new = old.clone();
        new["default_source"] = bound["id"].clone();
        tx.change("customer.updated", &old, &new);
    }
    Ok(bound)
}

/// A customer's legacy cards and sources, newest first.
fn of_customer(tx: &Transaction, customer: &str) -> Vec<Value> {
    tx.all("payment_method", |method| text(method, "/customer") == customer && is_legacy(text(method, "/id")))
}

/// `GET /v1/customers/{id}/sources`
pub(super) fn list(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.existing("customer", call.id())?;
    let requested = text(&call.params, "/object");
    let mut found = lists::list(tx, call, "payment_method", |method| {
        let id = text(method, "/id");
        let kind = if id.starts_with("card_") { "card" } else { "source" };
        text(method, "/customer") == call.id() && is_legacy(id) && (requested.is_empty() || requested == kind)
    })?;
    for method in found["data"].as_array_mut().into_iter().flatten() {
        *method = legacy_form(method);
    }
    Ok(found)
}

/// The legacy card or source that the path names.
pub(super) fn own(tx: &Transaction, call: &Call) -> ApiResult {
    tx.existing("customer", call.id())?;
    let id = call.ids.get(1).map_or("", String::as_str);
    let found = tx.get("payment_method", id).filter(|method| text(method, "/customer") == call.id() && is_legacy(id));
    found.ok_or_else(|| ApiError::missing("source", id, "id"))
}

/// `GET /v1/customers/{id}/sources/{id}`
pub(super) fn retrieve(tx: &mut Transaction, call: &Call) -> ApiResult {
    own(tx, call).map(|method| legacy_form(&method))
}

/// Emits `customer.source.deleted` for a detached card or source. If it was the default, the newest remaining one
/// becomes the default.
pub(super) fn after_detach(tx: &mut Transaction, method: &Value, customer: &str) {
    let id = text(method, "/id");
    if !is_legacy(id) {
        return;
    }
    tx.emit("customer.source.deleted", &legacy_form(method));
    if let Ok(old) = tx.existing("customer", customer)
        && text(&old, "/default_source") == id
    {
        let mut new = old.clone();
        new["default_source"] = of_customer(tx, customer).first().map_or(Value::Null, |next| next["id"].clone());
        tx.change("customer.updated", &old, &new);
    }
}

/// Rejects a default that is none of the customer's legacy cards and sources.
pub(super) fn check_default(tx: &Transaction, source: &str, customer: &str) -> Result<(), ApiError> {
    if of_customer(tx, customer).iter().any(|method| text(method, "/id") == source) {
        return Ok(());
    }
    let message = format!("Customer {customer} does not have a linked source with ID {source}.");
    Err(ApiError::invalid(message).code("missing").at("default_source"))
}

/// The form that the legacy endpoints return.
pub(super) fn legacy_form(method: &Value) -> Value {
    let (id, kind) = (text(method, "/id"), text(method, "/type"));
    if id.starts_with("card_") {
        let card = &method["card"];
        return json!({
            "id": id, "object": "card", "brand": card["brand"], "country": card["country"],
            "customer": method["customer"], "exp_month": card["exp_month"], "exp_year": card["exp_year"],
            "fingerprint": card["fingerprint"], "funding": card["funding"], "last4": card["last4"],
            "metadata": method["metadata"], "name": method["billing_details"]["name"],
        });
    }
    let mut source = json!({
        "id": id, "object": "source", "created": method["created"], "customer": method["customer"],
        "livemode": method["livemode"], "metadata": method["metadata"], "owner": method["billing_details"],
        "status": "chargeable", "type": kind, "usage": "reusable",
    });
    source[kind] = method[kind].clone();
    source
}
