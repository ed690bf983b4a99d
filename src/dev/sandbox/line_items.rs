//! The line items of payment sessions.

use serde_json::{Value, json};

use super::api_error::{ApiError, ApiResult};
use super::lists;
use super::money;
use super::products;
use super::state::{Account, new_id, number, text};
use super::transaction::{Call, Transaction};

/// The maximum number in a payment session.
const ITEMS_MAX: usize = 100;
/// The number in a session whose `line_items` are expanded.
const EXPANDED_MAX: usize = 10;

/// A checked line item, not stored yet.
struct Line {
    price: Value,
    /// The price was given as `price_data` and exists only for this session.
    inline: bool,
    quantity: i64,
}

/// Creates the items of a payment session. Stores nothing if one of them is invalid.
pub(super) fn create(tx: &mut Transaction, params: &Value, types: &Value) -> Result<Vec<Value>, ApiError> {
    let given = params["line_items"].as_array().map_or(&[][..], Vec::as_slice);
    if given.len() > ITEMS_MAX {
        let message = format!("A Checkout Session in `payment` mode takes at most {ITEMS_MAX} line items.");
        return Err(ApiError::invalid(message).at("line_items").before_execution());
    }
    let lines = given.iter().enumerate().map(|(at, item)| line(tx, item, at)).collect::<Result<Vec<_>, _>>()?;
    check(&lines, types)?;
    Ok(lines.into_iter().map(|line| item(tx, line)).collect())
}

/// The total amount of all items, in minor units.
pub(super) fn total(items: &[Value]) -> i64 {
    items.iter().fold(0, |sum, item| sum.saturating_add(number(item, "/amount_total")))
}

/// The currency of the first item, or else of the session, in lower case; empty if neither has one.
pub(super) fn currency(tx: &Transaction, params: &Value) -> String {
    let price = tx.get("price", text(params, "/line_items/0/price")).unwrap_or_default();
    let candidates =
        [text(&price, "/currency"), text(params, "/line_items/0/price_data/currency"), text(params, "/currency")];
    candidates.into_iter().find(|currency| !currency.is_empty()).unwrap_or_default().to_lowercase()
}

fn line(tx: &Transaction, item: &Value, at: usize) -> Result<Line, ApiError> {
    let place = |param: &str| format!("line_items[{at}]{param}");
    let (price, inline) = match (item.get("price").and_then(Value::as_str), item.get("price_data")) {
        (Some(_), Some(_)) => {
            let message = "You may only specify one of these parameters: price, price_data.";
            return Err(ApiError::invalid(message).at(&place("")).before_execution());
        }
        (Some(id), None) => (tx.referenced("price", id, &place("[price]"))?, false),
        (None, Some(data)) => (products::price(tx, data, &place("[price_data]"))?, true),
        (None, None) => {
            let message = format!("Missing required param: {}.", place("[price_data]"));
            return Err(ApiError::invalid(message)
                .code("parameter_missing")
                .at(&place("[price_data]"))
                .before_execution());
        }
    };
    if price["active"] == false {
        let message = "The price specified is inactive. This field only accepts active prices.";
        return Err(ApiError::invalid(message).at(&place("[price]")).before_execution());
    }
    let Some(quantity) = item.get("quantity").and_then(Value::as_i64) else {
        let message = format!("Quantity is required. Add `quantity` to `{}`", place(""));
        return Err(ApiError::invalid(message).at(&place("[quantity]")).before_execution());
    };
    if quantity < 1 {
        let message = "This value must be greater than or equal to 1.";
        return Err(ApiError::invalid(message)
            .code("parameter_invalid_integer")
            .at(&place("[quantity]"))
            .before_execution());
    }
    Ok(Line { price, inline, quantity })
}

/// Checks the rules for all items together.
fn check(lines: &[Line], types: &Value) -> Result<(), ApiError> {
    let currency = lines.first().map_or("", |line| text(&line.price, "/currency"));
    if lines.iter().any(|line| text(&line.price, "/currency") != currency) {
        let message = "All line items must be in the same currency.";
        return Err(ApiError::invalid(message).at("line_items").before_execution());
    }
    if currency != "eur" && types.as_array().is_some_and(|types| types.iter().any(|kind| kind == "sepa_debit")) {
        let message = "The payment method `sepa_debit` cannot be used with a currency other than eur.";
        return Err(ApiError::invalid(message).at("payment_method_types").before_execution());
    }
    let total = lines.iter().fold(0, |sum: i64, line| sum.saturating_add(amount(line)));
    money::check_amount(total, currency, "line_items")
}

fn amount(line: &Line) -> i64 {
    number(&line.price, "/unit_amount").saturating_mul(line.quantity)
}

fn item(tx: &mut Transaction, line: Line) -> Value {
    let amount = amount(&line);
    let price = if line.inline { products::store(tx, line.price, false) } else { line.price };
    let product = tx.get("product", text(&price, "/product")).unwrap_or_default();
    json!({
        "id": new_id("li"),
        "object": "item",
        "adjustable_quantity": null,
        "amount_discount": 0,
        "amount_subtotal": amount,
        "amount_tax": 0,
        "amount_total": amount,
        "currency": price["currency"],
        "description": product["name"],
        "metadata": null,
        "price": price,
        "quantity": line.quantity,
    })
}

/// The items of a payment session; empty for a setup session.
pub(super) fn of_session<'a>(account: &'a Account, session: &str) -> &'a [Value] {
    let items = account.internals.get(session).and_then(|internals| internals.requested["line_items"].as_array());
    items.map_or(&[], Vec::as_slice)
}

/// `GET /v1/checkout/sessions/{id}/line_items`
pub(super) fn list(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.find("checkout.session", call.id())?;
    lists::page(of_session(tx.account, call.id()), call, "item")
}

/// The expanded `line_items` of a session: the first page.
pub(super) fn expanded(account: &Account, session: &str) -> Value {
    let items = of_session(account, session);
    json!({
        "object": "list",
        "data": items.get(..items.len().min(EXPANDED_MAX)),
        "has_more": items.len() > EXPANDED_MAX,
        "url": format!("/v1/checkout/sessions/{session}/line_items"),
    })
}
