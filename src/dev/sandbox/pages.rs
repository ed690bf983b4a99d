//! The hosted pages: Checkout (`/c/pay/…`), the bank's 3-D Secure page (`/3ds/…`), and a page to return to (`/thanks`).
//! They load nothing from elsewhere: no script, image or font.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State as Extract};
use axum::http::{HeaderValue, Response, StatusCode};
use serde_json::Value;
use time::OffsetDateTime;
use time::macros::format_description;

use super::checkout_sessions::{self, Payer};
use super::form;
use super::handle::authenticate;
use super::line_items;
use super::money;
use super::shared::Shared;
use super::state::{number, text};
use super::transaction::Transaction;
use super::unsupported;

const FRAME: &str = include_str!("pages/frame.html");
const CHECKOUT: &str = include_str!("pages/checkout.html");
const CARD: &str = include_str!("pages/card.html");
const IBAN: &str = include_str!("pages/iban.html");
const NOTICE: &str = include_str!("pages/notice.html");
const AUTHENTICATION: &str = include_str!("pages/authentication.html");
const HOME: &str = include_str!("pages/home.html");

/// Replaces each `{{name}}`. Values must be escaped already.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(template.to_owned(), |page, (name, value)| page.replace(&format!("{{{{{name}}}}}"), value))
}

fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, letter| {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // A brace could be mistaken for a placeholder.
            '{' => out.push_str("&#123;"),
            letter => out.push(letter),
        }
        out
    })
}

fn html(status: StatusCode, title: &str, body: &str) -> Response<Body> {
    let page = fill(FRAME, &[("title", &escape(title)), ("body", body)]);
    let mut response = Response::new(Body::from(page));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert("cache-control", HeaderValue::from_static("no-store"));
    response
}

fn redirect(to: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    if let Ok(to) = HeaderValue::from_str(to) {
        response.headers_mut().insert("location", to);
    }
    response
}

/// A page with only a message. `kind`: `success`, `expired` or `missing`.
fn notice(status: StatusCode, kind: &str, title: &str, message: &str) -> Response<Body> {
    let sign = match kind {
        "success" => "<path d=\"M5 12.5 10 17.5 19 7\"/>",
        "expired" => "<circle cx=\"12\" cy=\"12\" r=\"9\"/><path d=\"M12 7v5l3.5 2\"/>",
        _ => "<circle cx=\"11\" cy=\"11\" r=\"6.5\"/><path d=\"m16 16 4.5 4.5\"/>",
    };
    let values = [("kind", kind), ("sign", sign), ("title", &escape(title)), ("message", &escape(message))];
    html(status, title, &fill(NOTICE, &values))
}

fn not_found() -> Response<Body> {
    let message = "This sandbox has no page at this address. A link stops working if the sandbox loses its data.";
    notice(StatusCode::NOT_FOUND, "missing", "Page not found", message)
}

/// `GET /thanks`. Payers return here if the intent has no `return_url`.
pub(super) async fn thanks() -> Response<Body> {
    notice(StatusCode::OK, "success", "Thank you", "You are all set. You can close this page.")
}

/// `GET /c/pay/{session}`
pub(super) async fn checkout(Extract(shared): Extract<Arc<Shared>>, Path(session): Path<String>) -> Response<Body> {
    shared
        .transact_on(&session, |tx| {
            let found = tx.get("checkout.session", &session)?;
            let last_error = ["setup_intent", "payment_intent"].iter().find_map(|kind| {
                let intent = tx.get(kind, text(&found, &format!("/{kind}")))?;
                let error = if *kind == "setup_intent" { "/last_setup_error" } else { "/last_payment_error" };
                intent.pointer(error).and_then(|error| error["message"].as_str()).map(str::to_owned)
            });
            Some(page(tx, &found, &last_error.unwrap_or_default(), &Payer::default()))
        })
        .flatten()
        .unwrap_or_else(not_found)
}

/// `POST /c/pay/{session}`. The payer submits the form.
pub(super) async fn pay(
    Extract(shared): Extract<Arc<Shared>>,
    Path(session): Path<String>,
    body: Bytes,
) -> Response<Body> {
    let pairs = form::pairs(&String::from_utf8_lossy(&body));
    let given = |name: &str| {
        let found = pairs.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let payer = Payer {
        card: given("card"),
        expiry: given("expiry"),
        iban: given("iban"),
        name: given("name"),
        email: given("email"),
    };
    shared
        .transact_on(&session, |tx| {
            let found = tx.get("checkout.session", &session)?;
            if text(&found, "/status") != "open" {
                return Some(page(tx, &found, "", &payer));
            }
            Some(match checkout_sessions::submit(tx, &session, &payer) {
                Ok(intent) if text(&intent, "/status") == "requires_action" => {
                    redirect(&format!("{}/3ds/{}", tx.settings.url, text(&intent, "/id")))
                }
                Ok(_) => redirect(&success_url(&found)),
                Err(api_error) => {
                    let message = api_error.error["message"].as_str().unwrap_or_default().to_owned();
                    let found = tx.get("checkout.session", &session)?;
                    page(tx, &found, &message, &payer)
                }
            })
        })
        .flatten()
        .unwrap_or_else(not_found)
}

fn success_url(session: &Value) -> String {
    text(session, "/success_url").replace("{CHECKOUT_SESSION_ID}", text(session, "/id"))
}

/// The page for a session in any status.
fn page(tx: &Transaction, session: &Value, error: &str, payer: &Payer) -> Response<Body> {
    match text(session, "/status") {
        "complete" => {
            let message = match text(session, "/payment_status") {
                "paid" => "Your payment was successful. You can close this page.",
                "unpaid" => "Your payment is being processed. Your bank needs a few days. You can close this page.",
                _ => "Your payment method has been saved. You can close this page.",
            };
            notice(StatusCode::OK, "success", "All done", message)
        }
        "expired" => {
            let message = "Ask the sender for a new link.";
            notice(StatusCode::GONE, "expired", "This link has expired", message)
        }
        _ => open_page(tx, session, error, payer),
    }
}

fn open_page(tx: &Transaction, session: &Value, error: &str, payer: &Payer) -> Response<Body> {
    let is_setup = text(session, "/mode") == "setup";
    let currency = text(session, "/currency").to_uppercase();
    let amount = money::format_amount(number(session, "/amount_total"), text(session, "/currency"));
    let (heading, button) = if is_setup {
        ("Save a payment method".to_owned(), "Save payment method".to_owned())
    } else {
        (format!("{amount} {currency}"), format!("Pay {amount} {currency}"))
    };
    let kicker = if is_setup { "Set up future payments" } else { "Amount to pay" };
    let customer = tx.get("customer", text(session, "/customer")).unwrap_or_default();
    let name = if payer.name.is_empty() { text(&customer, "/name") } else { &payer.name };
    let email = match payer.email.as_str() {
        "" if !text(session, "/customer_email").is_empty() => text(session, "/customer_email"),
        "" => text(&customer, "/email"),
        given => given,
    };
    let values = [
        ("name", escape(name)),
        ("email", escape(email)),
        ("card", escape(&payer.card)),
        ("expiry", escape(&payer.expiry)),
        ("iban", escape(&payer.iban)),
        ("button", escape(&button)),
        ("submit_text", custom_text(session, "submit")),
        ("after_submit_text", custom_text(session, "after_submit")),
    ];
    let values: Vec<(&str, &str)> = values.iter().map(|(field, value)| (*field, value.as_str())).collect();
    let forms = forms(session, payer, &values);
    let error = if error.is_empty() {
        String::new()
    } else {
        format!("<p class=\"error\" role=\"alert\">{}</p>", escape(error))
    };
    let cancel = match text(session, "/cancel_url") {
        "" => String::new(),
        url => format!("<a class=\"cancel\" href=\"{}\">&larr; Cancel and go back</a>", escape(url)),
    };
    let sentence = if is_setup {
        "We store your payment method for future invoices. You pay nothing now."
    } else {
        "This is a one-time payment. We charge nothing until you press the button."
    };
    let body = fill(
        CHECKOUT,
        &[
            ("kicker", kicker),
            ("heading", &escape(&heading)),
            ("sentence", sentence),
            ("account", &escape(&tx.account.id)),
            ("details", &details(tx, session, &customer)),
            ("error", &error),
            ("forms", &forms),
            ("cancel", &cancel),
        ],
    );
    html(StatusCode::OK, &heading, &body)
}

/// The session's custom text for this position.
fn custom_text(session: &Value, position: &str) -> String {
    match text(session, &format!("/custom_text/{position}/message")) {
        "" => String::new(),
        message => format!("<p class=\"custom\">{}</p>", escape(message)),
    }
}

/// One form for each payment method type, with tabs if there are several.
fn forms(session: &Value, payer: &Payer, values: &[(&str, &str)]) -> String {
    let kinds: Vec<&str> =
        session["payment_method_types"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let first = if payer.iban.is_empty() { kinds.first().copied().unwrap_or("card") } else { "sepa_debit" };
    let mut page = String::new();
    if kinds.len() > 1 {
        let radio = |kind: &&str| {
            let checked = if *kind == first { " checked" } else { "" };
            format!("<input type=\"radio\" name=\"kind\" id=\"kind-{kind}\"{checked}>")
        };
        let tab = |kind: &&str| {
            let label = if *kind == "card" { "Card" } else { "SEPA Direct Debit" };
            format!("<label for=\"kind-{kind}\">{label}</label>")
        };
        page.extend(kinds.iter().map(radio));
        page.push_str("<div class=\"tabs\">");
        page.extend(kinds.iter().map(tab));
        page.push_str("</div>");
    }
    for kind in &kinds {
        page.push_str(&fill(if *kind == "card" { CARD } else { IBAN }, values));
    }
    page
}

/// The rows on the left: the customer, the line items and the expiry.
fn details(tx: &Transaction, session: &Value, customer: &Value) -> String {
    let mut rows = Vec::new();
    let who = [text(customer, "/name"), text(customer, "/email")];
    let who: Vec<&str> = who.into_iter().filter(|part| !part.is_empty()).collect();
    if !who.is_empty() {
        rows.push(("Customer", who.join(" · ")));
    }
    for item in line_items::of_session(tx.account, text(session, "/id")) {
        let (price, currency) =
            (money::format_amount(number(item, "/amount_total"), text(item, "/currency")), text(item, "/currency"));
        let (quantity, name) = (number(item, "/quantity"), text(item, "/description"));
        rows.push(("Item", format!("{quantity} × {name}, {price} {}", currency.to_uppercase())));
    }
    let until =
        OffsetDateTime::from_unix_timestamp(number(session, "/expires_at")).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let formatted =
        until.format(format_description!("[day padding:none] [month repr:short] [year], [hour]:[minute] UTC"));
    rows.push(("Link works until", formatted.unwrap_or_default()));
    let row = |(label, value): &(&str, String)| format!("<dt>{label}</dt><dd>{}</dd>", escape(value));
    rows.iter().map(row).collect()
}

/// `GET /3ds/{intent}`. The bank asks the payer to authenticate.
pub(super) async fn authentication(
    Extract(shared): Extract<Arc<Shared>>,
    Path(intent): Path<String>,
) -> Response<Body> {
    let page = shared.transact_on(&intent, |tx| {
        let found = tx.get("payment_intent", &intent).or_else(|| tx.get("setup_intent", &intent))?;
        if text(&found, "/status") != "requires_action" {
            let message = "This request was answered or canceled. You can close this page.";
            return Some(notice(StatusCode::GONE, "expired", "Nothing to confirm", message));
        }
        let method = tx.get("payment_method", text(&found, "/payment_method")).unwrap_or_default();
        let what = match text(&found, "/object") {
            "payment_intent" => {
                let currency = text(&found, "/currency");
                format!(
                    "a payment of {} {}",
                    money::format_amount(number(&found, "/amount"), currency),
                    currency.to_uppercase()
                )
            }
            _ => "saving this card for future payments".to_owned(),
        };
        let card = format!("{} ending in {}", capital(text(&method, "/card/brand")), text(&method, "/card/last4"));
        let values = [("what", escape(&what)), ("card", escape(&card)), ("account", escape(&tx.account.id))];
        let values: Vec<(&str, &str)> = values.iter().map(|(field, value)| (*field, value.as_str())).collect();
        Some(html(StatusCode::OK, "Confirm with your bank", &fill(AUTHENTICATION, &values)))
    });
    page.flatten().unwrap_or_else(not_found)
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// `POST /3ds/{intent}`. Completes or fails the authentication, and redirects to the `return_url`.
pub(super) async fn submit_authentication(
    Extract(shared): Extract<Arc<Shared>>,
    Path(intent): Path<String>,
    body: Bytes,
) -> Response<Body> {
    let succeeds = form::pairs(&String::from_utf8_lossy(&body)).iter().any(|(_, value)| value == "complete");
    let redirected = shared.transact_on(&intent, |tx| {
        let is_authenticated = authenticate(tx, &intent, succeeds).is_ok();
        let internals = tx.internals(&intent);
        if let Some(session) = internals.session.and_then(|session| tx.get("checkout.session", &session)) {
            let complete = text(&session, "/status") == "complete";
            let page = format!("{}/c/pay/{}", tx.settings.url, text(&session, "/id"));
            return redirect(&if complete { success_url(&session) } else { page });
        }
        match internals.return_url {
            Some(url) => {
                let status = if is_authenticated { "succeeded" } else { "failed" };
                let kind = if intent.starts_with("pi_") { "payment_intent" } else { "setup_intent" };
                let separator = if url.contains('?') { '&' } else { '?' };
                redirect(&format!("{url}{separator}{kind}={intent}&redirect_status={status}"))
            }
            None => redirect(&format!("{}/thanks", tx.settings.url)),
        }
    });
    redirected.unwrap_or_else(not_found)
}

/// `GET /`. Describes the sandbox, and lists what it does not support.
pub(super) async fn home(Extract(shared): Extract<Arc<Shared>>) -> Response<Body> {
    let code = |text: &str| format!("<code>{}</code>", escape(text));
    let endpoints: Vec<String> =
        unsupported::endpoints().map(|endpoint| format!("<li>{}</li>", code(&endpoint))).collect();
    let row = |(endpoint, words): (&str, Vec<String>)| {
        let words: Vec<String> = words.iter().map(|word| code(word)).collect();
        format!("<dt>{}</dt><dd>{}</dd>", code(endpoint), words.join(", "))
    };
    let parameters: Vec<String> = unsupported::parameters().map(row).collect();
    let (url, endpoints, parameters) = (escape(&shared.settings.url), endpoints.concat(), parameters.concat());
    let values = [("url", &*url), ("endpoints", &*endpoints), ("parameters", &*parameters)];
    html(StatusCode::OK, "Paybridge's Stripe sandbox", &fill(HOME, &values))
}
