//! Line items of payment sessions, and their products and prices.

use serde_json::Value;

use super::{Caller, event_types, id, sandbox};

const SALE: [(&str, &str); 2] = [("mode", "payment"), ("success_url", "https://example.com/done")];

async fn product(caller: &Caller) -> String {
    let form = [("name", "T-shirt"), ("description", "Comfortable cotton")];
    id(&caller.post("/v1/products", &form).await.ok())
}

async fn price(caller: &Caller, product: &str, amount: &str) -> String {
    let form = [("product", product), ("unit_amount", amount), ("currency", "eur")];
    id(&caller.post("/v1/prices", &form).await.ok())
}

async fn sell(caller: &Caller, items: &[(&str, &str)]) -> super::Response {
    let mut form = SALE.to_vec();
    form.extend(items);
    caller.post("/v1/checkout/sessions", &form).await
}

#[tokio::test]
async fn a_session_lists_its_line_items() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let shirt = product(&caller).await;
    let shirt_price = price(&caller, &shirt, "1500").await;
    let items = [
        ("line_items[0][price]", &*shirt_price),
        ("line_items[0][quantity]", "2"),
        ("line_items[1][price_data][currency]", "eur"),
        ("line_items[1][price_data][unit_amount]", "250"),
        ("line_items[1][price_data][product_data][name]", "Postage"),
        ("line_items[1][quantity]", "1"),
    ];
    let session = sell(&caller, &items).await.ok();
    assert_eq!((&session["amount_subtotal"], &session["amount_total"]), (&3250.into(), &3250.into()));
    assert!(session.get("line_items").is_none(), "they are returned only if expanded: {session}");

    let path = format!("/v1/checkout/sessions/{}/line_items", id(&session));
    let listed = caller.get(&path, &[]).await.ok();
    assert_eq!((&listed["object"], &listed["url"]), (&"list".into(), &path.as_str().into()));
    assert_eq!((&listed["has_more"], listed["data"].as_array().map(Vec::len)), (&false.into(), Some(2)));
    let (one, two) = (&listed["data"][0], &listed["data"][1]);
    assert_eq!((&one["object"], &one["description"], &one["quantity"]), (&"item".into(), &"T-shirt".into(), &2.into()));
    assert_eq!((&one["amount_subtotal"], &one["amount_total"]), (&3000.into(), &3000.into()));
    assert_eq!((&one["price"]["id"], &one["price"]["product"]), (&shirt_price.into(), &shirt.as_str().into()));
    assert_eq!((&two["description"], &two["amount_total"]), (&"Postage".into(), &250.into()));
    assert!(id(one).starts_with("li_"));
    // A price that was created for one session is inactive.
    assert_eq!(two["price"]["active"], false);

    let first = caller.get(&path, &[("limit", "1")]).await.ok();
    assert_eq!((&first["data"][0]["id"], &first["has_more"]), (&one["id"], &true.into()));
    let rest = caller.get(&path, &[("starting_after", &id(one))]).await.ok();
    assert_eq!((&rest["data"][0]["id"], &rest["has_more"]), (&two["id"], &false.into()));

    let expand = [("expand[]", "line_items.data.price.product")];
    let read = caller.get(&format!("/v1/checkout/sessions/{}", id(&session)), &expand).await.ok();
    assert_eq!(read["line_items"]["url"], path);
    assert_eq!(read["line_items"]["data"][0]["price"]["product"]["name"], "T-shirt");
    assert_eq!(read["line_items"]["data"][1]["price"]["product"]["name"], "Postage");
    let all = caller.get("/v1/checkout/sessions", &[("expand[]", "data.line_items")]).await.ok();
    assert_eq!(all["data"][0]["line_items"]["data"].as_array().map(Vec::len), Some(2));
    caller.get("/v1/checkout/sessions/cs_none/line_items", &[]).await.error(404, "resource_missing");
}

#[tokio::test]
async fn a_setup_session_has_no_line_items() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let form = [("mode", "setup"), ("currency", "eur"), ("success_url", "https://example.com/done")];
    let session = caller.post("/v1/checkout/sessions", &form).await.ok();
    let listed = caller.get(&format!("/v1/checkout/sessions/{}/line_items", id(&session)), &[]).await.ok();
    assert_eq!(listed["data"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn invalid_line_items_are_rejected() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let shirt = product(&caller).await;
    let good = price(&caller, &shirt, "1500").await;
    let form = [("product", &*shirt), ("unit_amount", "1500"), ("currency", "eur"), ("active", "false")];
    let inactive = id(&caller.post("/v1/prices", &form).await.ok());
    let form = [("product", &*shirt), ("unit_amount", "1500"), ("currency", "usd")];
    let dollars = id(&caller.post("/v1/prices", &form).await.ok());
    let priced = |price| vec![("line_items[0][price]", price), ("line_items[0][quantity]", "1")];
    let cases = [
        (priced("price_none"), "resource_missing", "line_items[0][price]"),
        (priced(&inactive), "", "line_items[0][price]"),
        (vec![("line_items[0][price]", &*good)], "", "line_items[0][quantity]"),
        (
            vec![("line_items[0][price]", &*good), ("line_items[0][quantity]", "0")],
            "parameter_invalid_integer",
            "line_items[0][quantity]",
        ),
        (
            [
                priced(&good),
                vec![
                    ("line_items[0][price_data][currency]", "eur"),
                    ("line_items[0][price_data][unit_amount]", "1"),
                    ("line_items[0][price_data][product]", &shirt),
                ],
            ]
            .concat(),
            "",
            "line_items[0]",
        ),
        (
            [priced(&good), vec![("line_items[1][price]", &dollars), ("line_items[1][quantity]", "1")]].concat(),
            "",
            "line_items",
        ),
        (vec![("line_items[0][quantity]", "1")], "parameter_missing", "line_items[0][price_data]"),
        (
            vec![
                ("line_items[0][quantity]", "1"),
                ("line_items[0][price_data][currency]", "eur"),
                ("line_items[0][price_data][unit_amount]", "100"),
            ],
            "parameter_missing",
            "line_items[0][price_data][product_data]",
        ),
    ];
    let created = event_types(&sandbox);
    for (items, code, param) in cases {
        let response = sell(&caller, &items).await;
        assert_eq!(response.error(400, code)["param"], param, "{items:?}");
    }
    assert_eq!(event_types(&sandbox), created, "a rejected session creates nothing");
    caller.post("/v1/prices", &[("currency", "eur"), ("unit_amount", "1")]).await.error(400, "parameter_missing");
    let missing = [("currency", "eur"), ("unit_amount", "1"), ("product", "prod_none")];
    assert_eq!(caller.post("/v1/prices", &missing).await.error(400, "resource_missing")["param"], "product");
}

#[tokio::test]
async fn products_and_prices_are_read_back() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let shirt = product(&caller).await;
    let created = price(&caller, &shirt, "1500").await;
    assert_eq!(event_types(&sandbox), ["product.created", "price.created"]);
    let read = caller.get(&format!("/v1/prices/{created}"), &[("expand[]", "product")]).await.ok();
    assert_eq!((&read["type"], &read["unit_amount_decimal"]), (&"one_time".into(), &"1500".into()));
    assert_eq!(read["product"]["description"], "Comfortable cotton");
    let read = caller.get(&format!("/v1/products/{shirt}"), &[]).await.ok();
    assert_eq!((&read["name"], &read["active"]), (&"T-shirt".into(), &true.into()));
    caller.get("/v1/products/prod_none", &[]).await.error(404, "resource_missing");
    caller.get("/v1/prices/price_none", &[]).await.error(404, "resource_missing");
    let free = [("product_data[name]", "Free"), ("unit_amount", "0"), ("currency", "eur")];
    let read = caller.post("/v1/prices", &free).await.ok();
    assert_eq!(sandbox.object(read["product"].as_str().unwrap()).unwrap()["name"], "Free");
}

/// The requests with which Stripe's CLI completes a session as its payer.
#[tokio::test]
async fn a_session_is_completed_through_the_api() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let created = price(&caller, &product(&caller).await, "1500").await;
    let shipping = "payment_intent_data[shipping]";
    let (name, line) = (format!("{shipping}[name]"), format!("{shipping}[address][line1]"));
    let items = [
        ("line_items[0][price]", &*created),
        ("line_items[0][quantity]", "2"),
        (&*name, "Jenny Rosen"),
        (&*line, "510 Townsend St"),
    ];
    let session = id(&sell(&caller, &items).await.ok());
    let path = format!("/v1/payment_pages/{session}");
    let page = caller.get(&path, &[]).await.ok();
    assert_eq!((&page["object"], &page["session_id"]), (&"checkout.session".into(), &session.as_str().into()));
    assert!(id(&page).starts_with("ppage_"));
    let card = [("type", "card"), ("card[token]", "tok_visa"), ("billing_details[email]", "stripe@example.com")];
    let card = id(&caller.post("/v1/payment_methods", &card).await.ok());
    let confirm = format!("{path}/confirm");
    let wrong = [("payment_method", &*card), ("expected_amount", "2999")];
    caller.post(&confirm, &wrong).await.error(400, "checkout_amount_mismatch");
    let right = [("payment_method", &*card), ("expected_amount", "3000")];
    let done = caller.post(&confirm, &right).await.ok();
    assert_eq!((&done["status"], &done["payment_status"]), (&"complete".into(), &"paid".into()));
    let complete = sandbox.object(&session).unwrap();
    assert_eq!(complete["customer_details"]["email"], "stripe@example.com");
    let intent = sandbox.object(complete["payment_intent"].as_str().unwrap()).unwrap();
    assert_eq!((&intent["status"], &intent["shipping"]["name"]), (&"succeeded".into(), &"Jenny Rosen".into()));
    caller.post(&confirm, &right).await.error(400, "");
    caller.get("/v1/payment_pages/cs_none", &[]).await.error(404, "resource_missing");
}

#[tokio::test]
async fn a_payer_becomes_a_customer_if_the_session_requests_it() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let created = price(&caller, &product(&caller).await, "1500").await;
    let items = |more| [vec![("line_items[0][price]", &*created), ("line_items[0][quantity]", "1")], more].concat();
    for (more, becomes) in [
        (vec![], false),
        (vec![("customer_creation", "if_required")], false),
        (vec![("customer_creation", "always")], true),
        (vec![("payment_intent_data[setup_future_usage]", "off_session")], true),
    ] {
        let session = id(&sell(&caller, &items(more.clone())).await.ok());
        let done = sandbox.complete_session(&session, "4242424242424242", true).unwrap();
        let intent = sandbox.object(done["payment_intent"].as_str().unwrap()).unwrap();
        assert_eq!((done["customer"].is_string(), &intent["customer"]), (becomes, &done["customer"]), "{more:?}");
        if becomes {
            let customer = sandbox.object(done["customer"].as_str().unwrap()).unwrap();
            assert_eq!(customer["name"], "Jenny Rosen");
        }
    }
}
