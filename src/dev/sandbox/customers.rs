//! Customers, and the payment methods of a customer.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::detachment;
use super::lists;
use super::payment_methods;
use super::sources;
use super::state::{flag, new_id, text};
use super::transaction::{Call, Transaction, copy_fields, merge_metadata};

/// The fields that are copied from parameters unchanged.
const PLAIN: &[&str] = &["name", "email", "phone", "description", "address", "shipping", "balance"];

/// `POST /v1/customers`
pub(super) fn create(tx: &mut Transaction, call: &Call) -> ApiResult {
    check(&call.params)?;
    let id = new_id("cus");
    let mut customer = json!({
        "id": id,
        "object": "customer",
        "address": null,
        "balance": 0,
        "created": tx.now,
        "currency": null,
        "default_source": null,
        "delinquent": false,
        "description": null,
        "email": null,
        "invoice_prefix": id[4..12].to_uppercase(),
        "invoice_settings": {
            "custom_fields": null, "default_payment_method": null, "footer": null, "rendering_options": null,
        },
        "livemode": tx.account.livemode,
        "metadata": {},
        "name": null,
        "next_invoice_sequence": 1,
        "phone": null,
        "preferred_locales": [],
        "shipping": null,
        "tax_exempt": "none",
        "test_clock": null,
    });
    copy_fields(&mut customer, &call.params, PLAIN);
    copy_fields(&mut customer, &call.params, &["preferred_locales", "tax_exempt"]);
    merge_metadata(&mut customer, &call.params)?;
    if !text(&call.params, "/invoice_settings/default_payment_method").is_empty()
        && text(&call.params, "/payment_method") != text(&call.params, "/invoice_settings/default_payment_method")
    {
        return Err(not_attached(text(&call.params, "/invoice_settings/default_payment_method")));
    }
    let source = text(&call.params, "/source");
    if !source.is_empty() {
        sources::check(tx, source)?;
    }
    tx.insert(customer.clone());
    let given = text(&call.params, "/payment_method");
    if !given.is_empty() {
        let method = match payment_methods::attach_to(tx, given, &id) {
            Ok(method) => method,
            Err(api_error) => {
                tx.account.objects.remove(&id);
                tx.account.order.entry("customer".to_owned()).or_default().pop();
                return Err(api_error);
            }
        };
        if !text(&call.params, "/invoice_settings/default_payment_method").is_empty() {
            customer["invoice_settings"]["default_payment_method"] = method["id"].clone();
            tx.put(&customer);
        }
    }
    tx.emit("customer.created", &customer);
    if !source.is_empty() {
        sources::attach_to(tx, source, &id)?;
    }
    tx.find("customer", &id)
}

/// `GET /v1/customers/{id}`. Returns a stub for a deleted customer.
pub(super) fn retrieve(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.find("customer", call.id())
}

/// `GET /v1/customers`
pub(super) fn list(tx: &mut Transaction, call: &Call) -> ApiResult {
    let email = text(&call.params, "/email");
    lists::list(tx, call, "customer", |customer| {
        !flag(customer, "/deleted") && (email.is_empty() || text(customer, "/email") == email)
    })
}

/// `POST /v1/customers/{id}`
pub(super) fn update(tx: &mut Transaction, call: &Call) -> ApiResult {
    let old = tx.existing("customer", call.id())?;
    check(&call.params)?;
    let mut customer = old.clone();
    copy_fields(&mut customer, &call.params, PLAIN);
    copy_fields(&mut customer, &call.params, &["preferred_locales"]);
    merge_metadata(&mut customer, &call.params)?;
    if let Some(exempt) = call.params.get("tax_exempt") {
        customer["tax_exempt"] = if exempt.is_null() { "none".into() } else { exempt.clone() };
    }
    if let Some(settings) = call.params.get("invoice_settings") {
        copy_fields(&mut customer["invoice_settings"], settings, &["footer"]);
        if let Some(method) = settings.get("default_payment_method") {
            check_attached(tx, method, call.id())?;
            customer["invoice_settings"]["default_payment_method"] = method.clone();
        }
    }
    if let Some(source) = call.params.get("default_source").and_then(Value::as_str) {
        sources::check_default(tx, source, call.id())?;
        customer["default_source"] = source.into();
    }
    tx.change("customer.updated", &old, &customer);
    Ok(customer)
}

/// Sets the default payment method, as the Dashboard does; `null` clears it.
pub(super) fn set_default(tx: &mut Transaction, customer: &str, method: &Value) -> ApiResult {
    let old = tx.existing("customer", customer)?;
    check_attached(tx, method, customer)?;
    let mut new = old.clone();
    new["invoice_settings"]["default_payment_method"] = method.clone();
    tx.change("customer.updated", &old, &new);
    Ok(new)
}

/// `DELETE /v1/customers/{id}`. Detaches the payment methods and leaves a stub.
pub(super) fn delete(tx: &mut Transaction, call: &Call) -> ApiResult {
    let customer = tx.existing("customer", call.id())?;
    for method in tx.all("payment_method", |method| text(method, "/customer") == call.id()) {
        detachment::detach_method(tx, &method);
    }
    let stub = json!({ "id": call.id(), "object": "customer", "deleted": true });
    tx.put(&stub);
    tx.emit("customer.deleted", &customer);
    Ok(stub)
}

/// `GET /v1/customers/{id}/payment_methods`
pub(super) fn list_payment_methods(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.existing("customer", call.id())?;
    let kind = text(&call.params, "/type");
    lists::list(tx, call, "payment_method", |method| {
        text(method, "/customer") == call.id() && (kind.is_empty() || text(method, "/type") == kind)
    })
}

/// `GET /v1/customers/{id}/payment_methods/{id}`
pub(super) fn retrieve_payment_method(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.existing("customer", call.id())?;
    let id = call.ids.get(1).map_or("", String::as_str);
    let method =
        tx.get("payment_method", id).ok_or_else(|| ApiError::missing("payment_method", id, "payment_method"))?;
    if text(&method, "/customer") != call.id() {
        return Err(ApiError::new(404, "invalid_request_error", "Invalid request").at("customer"));
    }
    Ok(method)
}

fn check(params: &Value) -> Result<(), ApiError> {
    let email = text(params, "/email");
    let plausible = |email: &str| {
        let split = email.split_once('@');
        split.is_some_and(|(name, host)| !name.is_empty() && host.contains('.') && !email.contains(' '))
    };
    if !email.is_empty() && !plausible(email) {
        return Err(ApiError::invalid(format!("Invalid email address: {email}"))
            .code("email_invalid")
            .at("email")
            .before_execution());
    }
    for (field, longest) in [("name", 256), ("email", 512), ("phone", 20), ("description", 5000)] {
        let length = params.get(field).and_then(Value::as_str).map_or(0, |value| value.chars().count());
        if length > longest {
            let message = format!("Invalid string: {field} must be at most {longest} characters");
            return Err(ApiError::invalid(message).code("parameter_invalid_string").at(field).before_execution());
        }
    }
    Ok(())
}

fn check_attached(tx: &Transaction, method: &Value, customer: &str) -> Result<(), ApiError> {
    match method.as_str() {
        None => Ok(()),
        Some(id) => match tx.get("payment_method", id) {
            Some(method) if text(&method, "/customer") == customer => Ok(()),
            _ => Err(not_attached(id)),
        },
    }
}

fn not_attached(method: &str) -> ApiError {
    let message = format!(
        "The customer does not have a payment method with the ID {method}. The payment method must be attached to the \
         customer."
    );
    ApiError::invalid(message).code("resource_missing").at("invoice_settings[default_payment_method]")
}
