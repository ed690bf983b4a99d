//! What a payment session sells: its line items, each with the price that it is sold at.

use serde_json::{Value, json};

use super::act::{Act, Call};
use super::lists;
use super::money;
use super::products;
use super::refusal::{Answer, Refusal};
use super::state::{Account, new_id, number, text};

/// As many as a payment session takes.
const MOST: usize = 100;
/// As many as an expanded session shows.
const SHOWN: usize = 10;

/// A line item that has been checked: nothing of it is stored yet.
struct Line {
    price: Value,
    /// The price was given by `price_data`, and is made for this session alone.
    inline: bool,
    quantity: i64,
}

/// Makes the items of a payment session. If one of them cannot be sold, nothing has been stored.
pub(super) fn make(act: &mut Act, params: &Value, types: &Value) -> Result<Vec<Value>, Refusal> {
    let given = params["line_items"].as_array().map_or(&[][..], Vec::as_slice);
    if given.len() > MOST {
        let message = format!("A Checkout Session in `payment` mode takes at most {MOST} line items.");
        return Err(Refusal::invalid(message).at("line_items").early());
    }
    let lines = given.iter().enumerate().map(|(at, item)| line(act, item, at)).collect::<Result<Vec<_>, _>>()?;
    check(&lines, types)?;
    Ok(lines.into_iter().map(|line| item(act, line)).collect())
}

/// What all items cost, in minor units.
pub(super) fn total(items: &[Value]) -> i64 {
    items.iter().fold(0, |sum, item| sum.saturating_add(number(item, "/amount_total")))
}

/// The currency of the first item, in lower case, else that of the session; empty if neither says one.
pub(super) fn currency(act: &Act, params: &Value) -> String {
    let price = act.get("price", text(params, "/line_items/0/price")).unwrap_or_default();
    let said =
        [text(&price, "/currency"), text(params, "/line_items/0/price_data/currency"), text(params, "/currency")];
    said.into_iter().find(|currency| !currency.is_empty()).unwrap_or_default().to_lowercase()
}

fn line(act: &Act, item: &Value, at: usize) -> Result<Line, Refusal> {
    let place = |param: &str| format!("line_items[{at}]{param}");
    let (price, inline) = match (item.get("price").and_then(Value::as_str), item.get("price_data")) {
        (Some(_), Some(_)) => {
            let message = "You may only specify one of these parameters: price, price_data.";
            return Err(Refusal::invalid(message).at(&place("")).early());
        }
        (Some(id), None) => (act.referenced("price", id, &place("[price]"))?, false),
        (None, Some(data)) => (products::price(act, data, &place("[price_data]"))?, true),
        (None, None) => {
            let message = format!("Missing required param: {}.", place("[price_data]"));
            return Err(Refusal::invalid(message).code("parameter_missing").at(&place("[price_data]")).early());
        }
    };
    if price["active"] == false {
        let message = "The price specified is inactive. This field only accepts active prices.";
        return Err(Refusal::invalid(message).at(&place("[price]")).early());
    }
    let Some(quantity) = item.get("quantity").and_then(Value::as_i64) else {
        let message = format!("Quantity is required. Add `quantity` to `{}`", place(""));
        return Err(Refusal::invalid(message).at(&place("[quantity]")).early());
    };
    if quantity < 1 {
        let message = "This value must be greater than or equal to 1.";
        return Err(Refusal::invalid(message).code("parameter_invalid_integer").at(&place("[quantity]")).early());
    }
    Ok(Line { price, inline, quantity })
}

/// The rules that bind all items together.
fn check(lines: &[Line], types: &Value) -> Result<(), Refusal> {
    let currency = lines.first().map_or("", |line| text(&line.price, "/currency"));
    if lines.iter().any(|line| text(&line.price, "/currency") != currency) {
        let message = "All line items must be in the same currency.";
        return Err(Refusal::invalid(message).at("line_items").early());
    }
    if currency != "eur" && types.as_array().is_some_and(|types| types.iter().any(|kind| kind == "sepa_debit")) {
        let message = "The payment method `sepa_debit` cannot be used with a currency other than eur.";
        return Err(Refusal::invalid(message).at("payment_method_types").early());
    }
    let total = lines.iter().fold(0, |sum: i64, line| sum.saturating_add(amount(line)));
    money::check_amount(total, currency, "line_items")
}

fn amount(line: &Line) -> i64 {
    number(&line.price, "/unit_amount").saturating_mul(line.quantity)
}

fn item(act: &mut Act, line: Line) -> Value {
    let amount = amount(&line);
    let price = if line.inline { products::keep(act, line.price, false) } else { line.price };
    let product = act.get("product", text(&price, "/product")).unwrap_or_default();
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

/// The items of a session that sells something; empty for one that sets a method up.
pub(super) fn of<'a>(account: &'a Account, session: &str) -> &'a [Value] {
    let items = account.hidden.get(session).and_then(|hidden| hidden.asked["line_items"].as_array());
    items.map_or(&[], Vec::as_slice)
}

/// `GET /v1/checkout/sessions/{id}/line_items`
pub(super) fn list(act: &mut Act, call: &Call) -> Answer {
    act.find("checkout.session", call.id())?;
    lists::page(of(act.account, call.id()), call, "item")
}

/// What stands in a session whose `line_items` are expanded: the first of them.
pub(super) fn shown(account: &Account, session: &str) -> Value {
    let items = of(account, session);
    json!({
        "object": "list",
        "data": items.get(..items.len().min(SHOWN)),
        "has_more": items.len() > SHOWN,
        "url": format!("/v1/checkout/sessions/{session}/line_items"),
    })
}
