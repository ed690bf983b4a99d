//! Customers.

use serde_json::{Value, json};

use super::act::{Act, Call, take_over, take_over_metadata};
use super::lists;
use super::payment_methods;
use super::refusal::{Answer, Refusal};
use super::sources;
use super::state::{flag, new_id, text};

const PLAIN: &[&str] = &["name", "email", "phone", "description", "address", "shipping", "balance"];

/// `POST /v1/customers`
pub(super) fn create(act: &mut Act, call: &Call) -> Answer {
    check(&call.params)?;
    let id = new_id("cus");
    let mut customer = json!({
        "id": id,
        "object": "customer",
        "address": null,
        "balance": 0,
        "created": act.now,
        "currency": null,
        "default_source": null,
        "delinquent": false,
        "description": null,
        "email": null,
        "invoice_prefix": id[4..12].to_uppercase(),
        "invoice_settings": {
            "custom_fields": null, "default_payment_method": null, "footer": null, "rendering_options": null,
        },
        "livemode": act.account.livemode,
        "metadata": {},
        "name": null,
        "next_invoice_sequence": 1,
        "phone": null,
        "preferred_locales": [],
        "shipping": null,
        "tax_exempt": "none",
        "test_clock": null,
    });
    take_over(&mut customer, &call.params, PLAIN);
    take_over(&mut customer, &call.params, &["preferred_locales", "tax_exempt"]);
    take_over_metadata(&mut customer, &call.params)?;
    if !text(&call.params, "/invoice_settings/default_payment_method").is_empty()
        && text(&call.params, "/payment_method") != text(&call.params, "/invoice_settings/default_payment_method")
    {
        return Err(not_attached(text(&call.params, "/invoice_settings/default_payment_method")));
    }
    let source = text(&call.params, "/source");
    if !source.is_empty() {
        sources::check(act, source)?;
    }
    act.insert(customer.clone());
    let given = text(&call.params, "/payment_method");
    if !given.is_empty() {
        let method = match payment_methods::attach_to(act, given, &id) {
            Ok(method) => method,
            Err(refusal) => {
                act.account.objects.remove(&id);
                act.account.order.entry("customer".to_owned()).or_default().pop();
                return Err(refusal);
            }
        };
        if !text(&call.params, "/invoice_settings/default_payment_method").is_empty() {
            customer["invoice_settings"]["default_payment_method"] = method["id"].clone();
            act.put(&customer);
        }
    }
    act.emit("customer.created", &customer);
    if !source.is_empty() {
        sources::attach_to(act, source, &id)?;
    }
    act.find("customer", &id)
}

/// `GET /v1/customers/{id}`; a deleted one is still there, as a stub.
pub(super) fn retrieve(act: &mut Act, call: &Call) -> Answer {
    act.find("customer", call.id())
}

/// `GET /v1/customers`
pub(super) fn list(act: &mut Act, call: &Call) -> Answer {
    let email = text(&call.params, "/email");
    lists::list(act, call, "customer", |customer| {
        !flag(customer, "/deleted") && (email.is_empty() || text(customer, "/email") == email)
    })
}

/// `POST /v1/customers/{id}`
pub(super) fn update(act: &mut Act, call: &Call) -> Answer {
    let old = existing(act, call.id())?;
    check(&call.params)?;
    let mut customer = old.clone();
    take_over(&mut customer, &call.params, PLAIN);
    take_over(&mut customer, &call.params, &["preferred_locales"]);
    take_over_metadata(&mut customer, &call.params)?;
    if let Some(exempt) = call.params.get("tax_exempt") {
        customer["tax_exempt"] = if exempt.is_null() { "none".into() } else { exempt.clone() };
    }
    if let Some(settings) = call.params.get("invoice_settings") {
        take_over(&mut customer["invoice_settings"], settings, &["footer"]);
        if let Some(method) = settings.get("default_payment_method") {
            check_attached(act, method, call.id())?;
            customer["invoice_settings"]["default_payment_method"] = method.clone();
        }
    }
    if let Some(source) = call.params.get("default_source").and_then(Value::as_str) {
        sources::check_default(act, source, call.id())?;
        customer["default_source"] = source.into();
    }
    act.change("customer.updated", &old, &customer);
    Ok(customer)
}

/// Sets the default method as someone in the dashboard would; `null` for none.
pub(super) fn set_default(act: &mut Act, customer: &str, method: &Value) -> Answer {
    let old = existing(act, customer)?;
    check_attached(act, method, customer)?;
    let mut new = old.clone();
    new["invoice_settings"]["default_payment_method"] = method.clone();
    act.change("customer.updated", &old, &new);
    Ok(new)
}

/// `DELETE /v1/customers/{id}`: detaches its payment methods, and leaves a stub.
pub(super) fn delete(act: &mut Act, call: &Call) -> Answer {
    let customer = existing(act, call.id())?;
    for method in act.all("payment_method", |method| text(method, "/customer") == call.id()) {
        payment_methods::let_go(act, &method);
    }
    let stub = json!({ "id": call.id(), "object": "customer", "deleted": true });
    act.put(&stub);
    act.emit("customer.deleted", &customer);
    Ok(stub)
}

/// `GET /v1/customers/{id}/payment_methods`
pub(super) fn list_payment_methods(act: &mut Act, call: &Call) -> Answer {
    existing(act, call.id())?;
    let kind = text(&call.params, "/type");
    lists::list(act, call, "payment_method", |method| {
        text(method, "/customer") == call.id() && (kind.is_empty() || text(method, "/type") == kind)
    })
}

/// `GET /v1/customers/{id}/payment_methods/{id}`
pub(super) fn retrieve_payment_method(act: &mut Act, call: &Call) -> Answer {
    existing(act, call.id())?;
    let id = call.ids.get(1).map_or("", String::as_str);
    let method =
        act.get("payment_method", id).ok_or_else(|| Refusal::missing("payment_method", id, "payment_method"))?;
    if text(&method, "/customer") != call.id() {
        return Err(Refusal::new(404, "invalid_request_error", "Invalid request").at("customer"));
    }
    Ok(method)
}

/// A customer that has not been deleted.
pub(super) fn existing(act: &Act, id: &str) -> Answer {
    let customer = act.find("customer", id)?;
    if flag(&customer, "/deleted") { Err(Refusal::missing("customer", id, "id")) } else { Ok(customer) }
}

fn check(params: &Value) -> Result<(), Refusal> {
    let email = text(params, "/email");
    let plausible = |email: &str| {
        let split = email.split_once('@');
        split.is_some_and(|(name, host)| !name.is_empty() && host.contains('.') && !email.contains(' '))
    };
    if !email.is_empty() && !plausible(email) {
        return Err(Refusal::invalid(format!("Invalid email address: {email}"))
            .code("email_invalid")
            .at("email")
            .early());
    }
    for (field, longest) in [("name", 256), ("email", 512), ("phone", 20), ("description", 5000)] {
        let length = params.get(field).and_then(Value::as_str).map_or(0, |value| value.chars().count());
        if length > longest {
            let message = format!("Invalid string: {field} must be at most {longest} characters");
            return Err(Refusal::invalid(message).code("parameter_invalid_string").at(field).early());
        }
    }
    Ok(())
}

fn check_attached(act: &Act, method: &Value, customer: &str) -> Result<(), Refusal> {
    match method.as_str() {
        None => Ok(()),
        Some(id) => match act.get("payment_method", id) {
            Some(method) if text(&method, "/customer") == customer => Ok(()),
            _ => Err(not_attached(id)),
        },
    }
}

fn not_attached(method: &str) -> Refusal {
    let message = format!(
        "The customer does not have a payment method with the ID {method}. The payment method must be attached to the \
         customer."
    );
    Refusal::invalid(message).code("resource_missing").at("invoice_settings[default_payment_method]")
}
