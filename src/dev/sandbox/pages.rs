//! The hosted pages, for a person in a browser: Checkout (`/c/pay/…`), the bank's question (`/3ds/…`), and a place to
//! come back to (`/thanks`). Everything is in the page: no script, picture or font comes from elsewhere.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State as Extract};
use axum::http::{HeaderValue, Response, StatusCode};
use serde_json::Value;
use time::OffsetDateTime;
use time::macros::format_description;

use super::act::Act;
use super::checkout_sessions::{self, Payer};
use super::form;
use super::handle::authenticate;
use super::lacking;
use super::line_items;
use super::money;
use super::shared::Shared;
use super::state::{number, text};

const FRAME: &str = include_str!("pages/frame.html");
const CHECKOUT: &str = include_str!("pages/checkout.html");
const CARD: &str = include_str!("pages/card.html");
const IBAN: &str = include_str!("pages/iban.html");
const NOTICE: &str = include_str!("pages/notice.html");
const PROOF: &str = include_str!("pages/proof.html");
const HOME: &str = include_str!("pages/home.html");

/// Fills `{{name}}` places. Values must be escaped already.
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
            // Braces could be taken for a place to fill.
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

/// A page that only tells something. `kind`: `good`, `over` or `lost`.
fn notice(status: StatusCode, kind: &str, title: &str, message: &str) -> Response<Body> {
    let sign = match kind {
        "good" => "<path d=\"M5 12.5 10 17.5 19 7\"/>",
        "over" => "<circle cx=\"12\" cy=\"12\" r=\"9\"/><path d=\"M12 7v5l3.5 2\"/>",
        _ => "<circle cx=\"11\" cy=\"11\" r=\"6.5\"/><path d=\"m16 16 4.5 4.5\"/>",
    };
    let values = [("kind", kind), ("sign", sign), ("title", &escape(title)), ("message", &escape(message))];
    html(status, title, &fill(NOTICE, &values))
}

fn nothing_here() -> Response<Body> {
    let message = "No session of this sandbox has this address. Links end when the sandbox starts over.";
    notice(StatusCode::NOT_FOUND, "lost", "Nothing here", message)
}

/// `GET /thanks`: where a payer comes back to if nobody has a better place.
pub(super) async fn thanks() -> Response<Body> {
    notice(StatusCode::OK, "good", "Thank you", "Everything is done. You can close this page.")
}

/// `GET /c/pay/{session}`
pub(super) async fn checkout(Extract(shared): Extract<Arc<Shared>>, Path(session): Path<String>) -> Response<Body> {
    shared
        .by_hand_at(&session, |act| {
            let found = act.get("checkout.session", &session)?;
            let last_error = ["setup_intent", "payment_intent"].iter().find_map(|kind| {
                let intent = act.get(kind, text(&found, &format!("/{kind}")))?;
                let error = if *kind == "setup_intent" { "/last_setup_error" } else { "/last_payment_error" };
                intent.pointer(error).and_then(|error| error["message"].as_str()).map(str::to_owned)
            });
            Some(page(act, &found, &last_error.unwrap_or_default(), &Payer::default()))
        })
        .flatten()
        .unwrap_or_else(nothing_here)
}

/// `POST /c/pay/{session}`: the payer presses the button.
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
        .by_hand_at(&session, |act| {
            let found = act.get("checkout.session", &session)?;
            if text(&found, "/status") != "open" {
                return Some(page(act, &found, "", &payer));
            }
            Some(match checkout_sessions::submit(act, &session, &payer) {
                Ok(intent) if text(&intent, "/status") == "requires_action" => {
                    redirect(&format!("{}/3ds/{}", act.settings.url, text(&intent, "/id")))
                }
                Ok(_) => redirect(&success_url(&found)),
                Err(refusal) => {
                    let message = refusal.error["message"].as_str().unwrap_or_default().to_owned();
                    let found = act.get("checkout.session", &session)?;
                    page(act, &found, &message, &payer)
                }
            })
        })
        .flatten()
        .unwrap_or_else(nothing_here)
}

fn success_url(session: &Value) -> String {
    text(session, "/success_url").replace("{CHECKOUT_SESSION_ID}", text(session, "/id"))
}

/// The page for a session in whatever state it is.
fn page(act: &Act, session: &Value, error: &str, payer: &Payer) -> Response<Body> {
    match text(session, "/status") {
        "complete" => {
            let message = match text(session, "/payment_status") {
                "paid" => "This payment has been made. You can close this page.",
                "unpaid" => "This payment is on its way: the bank needs a few days. You can close this page.",
                _ => "Your payment method has been saved. You can close this page.",
            };
            notice(StatusCode::OK, "good", "All done", message)
        }
        "expired" => {
            let message = "Ask whoever sent it to you for a new one.";
            notice(StatusCode::GONE, "over", "This link has expired", message)
        }
        _ => open_page(act, session, error, payer),
    }
}

fn open_page(act: &Act, session: &Value, error: &str, payer: &Payer) -> Response<Body> {
    let setup = text(session, "/mode") == "setup";
    let currency = text(session, "/currency").to_uppercase();
    let amount = money::shown(number(session, "/amount_total"), text(session, "/currency"));
    let (heading, button) = if setup {
        ("Save a payment method".to_owned(), "Save payment method".to_owned())
    } else {
        (format!("{amount} {currency}"), format!("Pay {amount} {currency}"))
    };
    let kicker = if setup { "Set up future payments" } else { "Amount to pay" };
    let customer = act.get("customer", text(session, "/customer")).unwrap_or_default();
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
    let sentence = if setup {
        "Your payment method is stored for later invoices. No money moves now."
    } else {
        "You pay this once. Nothing is charged until you press the button."
    };
    let body = fill(
        CHECKOUT,
        &[
            ("kicker", kicker),
            ("heading", &escape(&heading)),
            ("sentence", sentence),
            ("account", &escape(&act.account.id)),
            ("facts", &facts(act, session, &customer)),
            ("error", &error),
            ("forms", &forms),
            ("cancel", &cancel),
        ],
    );
    html(StatusCode::OK, &heading, &body)
}

/// The text that the session has for this place of the page.
fn custom_text(session: &Value, place: &str) -> String {
    match text(session, &format!("/custom_text/{place}/message")) {
        "" => String::new(),
        message => format!("<p class=\"custom\">{}</p>", escape(message)),
    }
}

/// The forms of the allowed kinds; with two of them, the payer chooses.
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

/// The lines on the left: who pays, for what, until when.
fn facts(act: &Act, session: &Value, customer: &Value) -> String {
    let mut rows = Vec::new();
    let who = [text(customer, "/name"), text(customer, "/email")];
    let who: Vec<&str> = who.into_iter().filter(|part| !part.is_empty()).collect();
    if !who.is_empty() {
        rows.push(("Customer", who.join(" · ")));
    }
    for item in line_items::of(act.account, text(session, "/id")) {
        let (price, currency) =
            (money::shown(number(item, "/amount_total"), text(item, "/currency")), text(item, "/currency"));
        let (quantity, name) = (number(item, "/quantity"), text(item, "/description"));
        rows.push(("For", format!("{quantity} × {name}, {price} {}", currency.to_uppercase())));
    }
    let until =
        OffsetDateTime::from_unix_timestamp(number(session, "/expires_at")).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let shown = until.format(format_description!("[day padding:none] [month repr:short] [year], [hour]:[minute] UTC"));
    rows.push(("Link works until", shown.unwrap_or_default()));
    let row = |(label, value): &(&str, String)| format!("<dt>{label}</dt><dd>{}</dd>", escape(value));
    rows.iter().map(row).collect()
}

/// `GET /3ds/{intent}`: the bank's question.
pub(super) async fn proof(Extract(shared): Extract<Arc<Shared>>, Path(intent): Path<String>) -> Response<Body> {
    let shown = shared.by_hand_at(&intent, |act| {
        let found = act.get("payment_intent", &intent).or_else(|| act.get("setup_intent", &intent))?;
        if text(&found, "/status") != "requires_action" {
            let message = "This question has been answered already, or is no longer asked. You can close this page.";
            return Some(notice(StatusCode::GONE, "over", "Nothing to confirm", message));
        }
        let method = act.get("payment_method", text(&found, "/payment_method")).unwrap_or_default();
        let what = match text(&found, "/object") {
            "payment_intent" => {
                let currency = text(&found, "/currency");
                format!("take {} {}", money::shown(number(&found, "/amount"), currency), currency.to_uppercase())
            }
            _ => "store this card for later payments".to_owned(),
        };
        let card = format!("{} ending in {}", capital(text(&method, "/card/brand")), text(&method, "/card/last4"));
        let values = [("what", escape(&what)), ("card", escape(&card)), ("account", escape(&act.account.id))];
        let values: Vec<(&str, &str)> = values.iter().map(|(field, value)| (*field, value.as_str())).collect();
        Some(html(StatusCode::OK, "Confirm with your bank", &fill(PROOF, &values)))
    });
    shown.flatten().unwrap_or_else(nothing_here)
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// `POST /3ds/{intent}`: the payer's answer; then back to where the payer came from.
pub(super) async fn prove(
    Extract(shared): Extract<Arc<Shared>>,
    Path(intent): Path<String>,
    body: Bytes,
) -> Response<Body> {
    let succeeds = form::pairs(&String::from_utf8_lossy(&body)).iter().any(|(_, value)| value == "complete");
    let answered = shared.by_hand_at(&intent, |act| {
        let proved = authenticate(act, &intent, succeeds).is_ok();
        let hidden = act.hidden_of(&intent);
        if let Some(session) = hidden.session.and_then(|session| act.get("checkout.session", &session)) {
            let complete = text(&session, "/status") == "complete";
            let page = format!("{}/c/pay/{}", act.settings.url, text(&session, "/id"));
            return redirect(&if complete { success_url(&session) } else { page });
        }
        match hidden.return_url {
            Some(url) => {
                let status = if proved { "succeeded" } else { "failed" };
                let kind = if intent.starts_with("pi_") { "payment_intent" } else { "setup_intent" };
                let joint = if url.contains('?') { '&' } else { '?' };
                redirect(&format!("{url}{joint}{kind}={intent}&redirect_status={status}"))
            }
            None => redirect(&format!("{}/thanks", act.settings.url)),
        }
    });
    answered.unwrap_or_else(nothing_here)
}

/// `GET /`: what this is, and what it lacks.
pub(super) async fn home(Extract(shared): Extract<Arc<Shared>>) -> Response<Body> {
    let code = |text: &str| format!("<code>{}</code>", escape(text));
    let endpoints: Vec<String> = lacking::endpoints().map(|endpoint| format!("<li>{}</li>", code(&endpoint))).collect();
    let row = |(endpoint, words): (&str, Vec<String>)| {
        let words: Vec<String> = words.iter().map(|word| code(word)).collect();
        format!("<dt>{}</dt><dd>{}</dd>", code(endpoint), words.join(", "))
    };
    let parameters: Vec<String> = lacking::parameters().map(row).collect();
    let (url, endpoints, parameters) = (escape(&shared.settings.url), endpoints.concat(), parameters.concat());
    let values = [("url", &*url), ("endpoints", &*endpoints), ("parameters", &*parameters)];
    html(StatusCode::OK, "Paybridge's Stripe sandbox", &fill(HOME, &values))
}
