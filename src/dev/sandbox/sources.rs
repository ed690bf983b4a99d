//! Cards and sources of the time before PaymentMethods, which older customers still pay with. Each is kept as the
//! PaymentMethod that Stripe shows it as, under the same id (`card_…`, `src_…`); the endpoints here show its old form.

use serde_json::{Value, json};

use super::act::{Act, Call};
use super::customers;
use super::lists;
use super::payment_methods;
use super::refusal::{Answer, Refusal};
use super::state::text;
use super::test_methods::{self, Known};

/// Whether it is the id of an old card or source.
pub(super) fn is_one(id: &str) -> bool {
    id.starts_with("card_") || id.starts_with("src_")
}

/// `POST /v1/sources`
pub(super) fn create(act: &mut Act, call: &Call) -> Answer {
    let params = &call.params;
    let method = if text(params, "/type") == "card" {
        from_token(act, text(params, "/token"), "src", "token")?
    } else {
        let iban = text(params, "/sepa_debit/iban").replace(' ', "").to_uppercase();
        if !test_methods::is_iban(&iban) {
            let message = "The IBAN you entered is invalid.";
            return Err(Refusal::invalid(message).code("invalid_bank_account_iban").at("sepa_debit[iban]"));
        }
        payment_methods::make_as(act, "src", Known::Iban(&iban), &params["owner"])
    };
    Ok(old_form(&method))
}

fn from_token(act: &mut Act, token: &str, prefix: &str, param: &str) -> Answer {
    match test_methods::shared(token) {
        Some(known @ Known::Card(_)) if token.starts_with("tok_") => {
            Ok(payment_methods::make_as(act, prefix, known, &Value::Null))
        }
        _ => Err(Refusal { status: 400, ..Refusal::missing("token", token, param) }),
    }
}

/// `POST /v1/customers/{id}/sources`: a token becomes a card.
pub(super) fn attach(act: &mut Act, call: &Call) -> Answer {
    customers::existing(act, call.id())?;
    Ok(old_form(&attach_to(act, text(&call.params, "/source"), call.id())?))
}

/// Whether a customer could be made with this token or source: nothing is left behind where its bank refuses.
pub(super) fn check(act: &Act, source: &str) -> Result<(), Refusal> {
    if source.starts_with("src_") {
        return act.referenced("payment_method", source, "source").map(|_| ());
    }
    let Some(Known::Card(number)) = test_methods::shared(source).filter(|_| source.starts_with("tok_")) else {
        return Err(Refusal { status: 400, ..Refusal::missing("token", source, "source") });
    };
    let declined = test_methods::card_of(number).filter(|card| card.refuses_setup).and_then(|card| card.charge);
    declined.map_or(Ok(()), |decline| Err(payment_methods::declined(&decline)))
}

/// Gives a customer a card by token, or a source; the first becomes its default.
pub(super) fn attach_to(act: &mut Act, source: &str, customer: &str) -> Answer {
    let method = if source.starts_with("src_") {
        act.referenced("payment_method", source, "source")?
    } else {
        from_token(act, source, "card", "source")?
    };
    let bound = payment_methods::attach_to(act, text(&method, "/id"), customer)?;
    act.emit("customer.source.created", &old_form(&bound));
    let old = customers::existing(act, customer)?;
    if text(&old, "/default_source").is_empty() {
        let mut new = old.clone();
        new["default_source"] = bound["id"].clone();
        act.change("customer.updated", &old, &new);
    }
    Ok(bound)
}

/// A customer's old cards and sources, newest first.
fn of(act: &Act, customer: &str) -> Vec<Value> {
    act.all("payment_method", |method| text(method, "/customer") == customer && is_one(text(method, "/id")))
}

/// `GET /v1/customers/{id}/sources`
pub(super) fn list(act: &mut Act, call: &Call) -> Answer {
    customers::existing(act, call.id())?;
    let wanted = text(&call.params, "/object");
    let mut found = lists::list(act, call, "payment_method", |method| {
        let id = text(method, "/id");
        let kind = if id.starts_with("card_") { "card" } else { "source" };
        text(method, "/customer") == call.id() && is_one(id) && (wanted.is_empty() || wanted == kind)
    })?;
    for method in found["data"].as_array_mut().into_iter().flatten() {
        *method = old_form(method);
    }
    Ok(found)
}

fn own(act: &Act, call: &Call) -> Answer {
    customers::existing(act, call.id())?;
    let id = call.ids.get(1).map_or("", String::as_str);
    let found = act.get("payment_method", id).filter(|method| text(method, "/customer") == call.id() && is_one(id));
    found.ok_or_else(|| Refusal::missing("source", id, "id"))
}

/// `GET /v1/customers/{id}/sources/{id}`
pub(super) fn retrieve(act: &mut Act, call: &Call) -> Answer {
    own(act, call).map(|method| old_form(&method))
}

/// `DELETE /v1/customers/{id}/sources/{id}`
pub(super) fn delete(act: &mut Act, call: &Call) -> Answer {
    let method = own(act, call)?;
    payment_methods::let_go(act, &method);
    if text(&method, "/id").starts_with("src_") {
        return Ok(old_form(&method));
    }
    Ok(json!({ "id": method["id"], "object": "card", "deleted": true }))
}

/// Tells that a customer's old card or source is gone, and lets the newest that is left take the default's place.
pub(super) fn gone(act: &mut Act, method: &Value, customer: &str) {
    let id = text(method, "/id");
    if !is_one(id) {
        return;
    }
    act.emit("customer.source.deleted", &old_form(method));
    if let Ok(old) = customers::existing(act, customer)
        && text(&old, "/default_source") == id
    {
        let mut new = old.clone();
        new["default_source"] = of(act, customer).first().map_or(Value::Null, |next| next["id"].clone());
        act.change("customer.updated", &old, &new);
    }
}

/// Refuses a default that is none of the customer's old cards and sources.
pub(super) fn check_default(act: &Act, source: &str, customer: &str) -> Result<(), Refusal> {
    if of(act, customer).iter().any(|method| text(method, "/id") == source) {
        return Ok(());
    }
    let message = format!("Customer {customer} does not have a linked source with ID {source}.");
    Err(Refusal::invalid(message).code("missing").at("default_source"))
}

/// What the endpoints of the time before PaymentMethods show.
fn old_form(method: &Value) -> Value {
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
