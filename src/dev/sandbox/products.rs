//! Products and their one-time prices, as far as payment sessions sell them.

use serde_json::{Value, json};

use super::act::{Act, Call, take_over, take_over_metadata};
use super::money;
use super::refusal::{Answer, Refusal};
use super::state::{new_id, number, text};

/// `POST /v1/products`
pub(super) fn create(act: &mut Act, call: &Call) -> Answer {
    let product = product(act, &call.params)?;
    act.insert(product.clone());
    act.emit("product.created", &product);
    Ok(product)
}

/// `GET /v1/products/{id}`
pub(super) fn retrieve(act: &mut Act, call: &Call) -> Answer {
    act.find("product", call.id())
}

/// `POST /v1/prices`
pub(super) fn create_price(act: &mut Act, call: &Call) -> Answer {
    let price = price(act, &call.params, "")?;
    Ok(keep(act, price, true))
}

/// `GET /v1/prices/{id}`
pub(super) fn retrieve_price(act: &mut Act, call: &Call) -> Answer {
    act.get("price", call.id()).ok_or_else(|| Refusal::missing("price", call.id(), "price"))
}

fn product(act: &Act, params: &Value) -> Answer {
    let mut product = json!({
        "id": new_id("prod"),
        "object": "product",
        "active": true,
        "created": act.now,
        "default_price": null,
        "description": null,
        "images": [],
        "livemode": act.account.livemode,
        "marketing_features": [],
        "metadata": {},
        "name": null,
        "package_dimensions": null,
        "shippable": null,
        "statement_descriptor": null,
        "tax_code": null,
        "type": "service",
        "unit_label": null,
        "updated": act.now,
        "url": null,
    });
    take_over(&mut product, params, &["active", "description", "name"]);
    take_over_metadata(&mut product, params)?;
    Ok(product)
}

/// A price, not stored yet; its `product` is an id, or a whole product that is new, too. `place` is where the parameters
/// stand in the request, `line_items[0][price_data]` for instance, or empty.
pub(super) fn price(act: &Act, params: &Value, place: &str) -> Answer {
    let at = |param: &str| if place.is_empty() { param.to_owned() } else { format!("{place}[{param}]") };
    let missing =
        |message: &str, param: &str| Refusal::invalid(message).code("parameter_missing").at(&at(param)).early();
    let Some(amount) = params.get("unit_amount") else {
        return Err(missing("Missing required param: unit_amount.", "unit_amount"));
    };
    if number(params, "/unit_amount") < 0 {
        let message = "This value must be greater than or equal to 0.";
        return Err(Refusal::invalid(message).code("parameter_invalid_integer").at(&at("unit_amount")).early());
    }
    let product = match (params.get("product").and_then(Value::as_str), params.get("product_data")) {
        (Some(id), None) => act.referenced("product", id, &at("product"))?["id"].clone(),
        (None, Some(data)) => product(act, data)?,
        (None, None) => {
            let message = "You must specify either `product` or `product_data` when creating a price.";
            return Err(missing(message, "product_data"));
        }
        (Some(_), Some(_)) => {
            let message = "You may only specify one of these parameters: product, product_data.";
            return Err(Refusal::invalid(message).at(&at("product")).early());
        }
    };
    let currency = money::currency(text(params, "/currency")).map_err(|refusal| refusal.at(&at("currency")))?;
    let mut price = json!({
        "id": new_id("price"),
        "object": "price",
        "active": true,
        "billing_scheme": "per_unit",
        "created": act.now,
        "currency": currency,
        "custom_unit_amount": null,
        "livemode": act.account.livemode,
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
    take_over(&mut price, params, &["active", "nickname", "tax_behavior"]);
    take_over_metadata(&mut price, params)?;
    Ok(price)
}

/// Stores a price, and its product if that is new, too. One that is not `active` is of no use but to the session that it
/// was made for, and no event is emitted for it.
pub(super) fn keep(act: &mut Act, mut price: Value, active: bool) -> Value {
    if !active {
        price["active"] = false.into();
    }
    if price["product"].is_object() {
        let mut product = price["product"].take();
        price["product"] = product["id"].clone();
        if !active {
            product["active"] = false.into();
        }
        act.insert(product.clone());
        if active {
            act.emit("product.created", &product);
        }
    }
    act.insert(price.clone());
    if active {
        act.emit("price.created", &price);
    }
    price
}
