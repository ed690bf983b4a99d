//! Products and their one-time prices, for the line items of payment sessions.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::money;
use super::state::{new_id, number, text};
use super::transaction::{Call, Transaction, copy_fields, merge_metadata};

/// `POST /v1/products`
pub(super) fn create(tx: &mut Transaction, call: &Call) -> ApiResult {
    let product = product(tx, &call.params)?;
    tx.insert(product.clone());
    tx.emit("product.created", &product);
    Ok(product)
}

/// `GET /v1/products/{id}`
pub(super) fn retrieve(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.find("product", call.id())
}

/// `POST /v1/prices`
pub(super) fn create_price(tx: &mut Transaction, call: &Call) -> ApiResult {
    let price = price(tx, &call.params, "")?;
    Ok(store(tx, price, true))
}

/// `GET /v1/prices/{id}`
pub(super) fn retrieve_price(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.get("price", call.id()).ok_or_else(|| ApiError::missing("price", call.id(), "price"))
}

fn product(tx: &Transaction, params: &Value) -> ApiResult {
    let mut product = json!({
        "id": new_id("prod"),
        "object": "product",
        "active": true,
        "created": tx.now,
        "default_price": null,
        "description": null,
        "images": [],
        "livemode": tx.account.livemode,
        "marketing_features": [],
        "metadata": {},
        "name": null,
        "package_dimensions": null,
        "shippable": null,
        "statement_descriptor": null,
        "tax_code": null,
        "type": "service",
        "unit_label": null,
        "updated": tx.now,
        "url": null,
    });
    copy_fields(&mut product, params, &["active", "description", "name"]);
    merge_metadata(&mut product, params)?;
    Ok(product)
}

/// A new price, not stored yet. Its `product` is an id, or a new product. `place` is the parameter that holds `params`,
/// such as `line_items[0][price_data]`, or empty.
pub(super) fn price(tx: &Transaction, params: &Value, place: &str) -> ApiResult {
    let at = |param: &str| if place.is_empty() { param.to_owned() } else { format!("{place}[{param}]") };
    let missing = |message: &str, param: &str| {
        ApiError::invalid(message).code("parameter_missing").at(&at(param)).before_execution()
    };
    let Some(amount) = params.get("unit_amount") else {
        return Err(missing("Missing required param: unit_amount.", "unit_amount"));
    };
    if number(params, "/unit_amount") < 0 {
        let message = "This value must be greater than or equal to 0.";
        return Err(ApiError::invalid(message)
            .code("parameter_invalid_integer")
            .at(&at("unit_amount"))
            .before_execution());
    }
    let product = match (params.get("product").and_then(Value::as_str), params.get("product_data")) {
        (Some(id), None) => tx.referenced("product", id, &at("product"))?["id"].clone(),
        (None, Some(data)) => product(tx, data)?,
        (None, None) => {
            let message = "You must specify either `product` or `product_data` when creating a price.";
            return Err(missing(message, "product_data"));
        }
        (Some(_), Some(_)) => {
            let message = "You may only specify one of these parameters: product, product_data.";
            return Err(ApiError::invalid(message).at(&at("product")).before_execution());
        }
    };
    let currency = money::currency(text(params, "/currency")).map_err(|api_error| api_error.at(&at("currency")))?;
    let mut price = json!({
        "id": new_id("price"),
        "object": "price",
        "active": true,
        "billing_scheme": "per_unit",
        "created": tx.now,
        "currency": currency,
        "custom_unit_amount": null,
        "livemode": tx.account.livemode,
        "lookup_key": null,
        "metadata": {},
        "nickname": null,
        "product": product,
        "recurring": null,
        "tax_behavior": "unspecified",
        "tiers_mode": null,
        "transform_quantity": null,
        "type": "one_time",
        "unit_amount": amount,
        "unit_amount_decimal": amount.to_string(),
    });
    copy_fields(&mut price, params, &["active", "nickname", "tax_behavior"]);
    merge_metadata(&mut price, params)?;
    Ok(price)
}

/// Stores a price, and its product if that is new. An inactive price serves only the session that it was created for,
/// and emits no event.
pub(super) fn store(tx: &mut Transaction, mut price: Value, active: bool) -> Value {
    if !active {
        price["active"] = false.into();
    }
    if price["product"].is_object() {
        let mut product = price["product"].take();
        price["product"] = product["id"].clone();
        if !active {
            product["active"] = false.into();
        }
        tx.insert(product.clone());
        if active {
            tx.emit("product.created", &product);
        }
    }
    tx.insert(price.clone());
    if active {
        tx.emit("price.created", &price);
    }
    price
}
