//! The watcher: looks at Stripe all the time, and writes down every invoice for which two objects at once have taken money
//! or can (P1). A Checkout page counts only once it has left Paybridge, which is known at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::{lock, pause};
use crate::dev::sandbox::Sandbox;

/// How often it looks, real time.
const EVERY: Duration = Duration::from_millis(100);

/// Something that has taken money for a payment, or can.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// A PaymentIntent that is under way, or has taken the money: its id and status.
    Intent(String, String),
    /// A Checkout page that is open.
    Page(String),
}

/// The ways of one payment at one moment, where there are several.
pub(super) type Sighting = (String, BTreeSet<Way>);

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    seen: Mutex<BTreeSet<Sighting>>,
    looks: Mutex<u64>,
}

impl Watcher {
    /// Looks for ever.
    pub async fn watch(self: Arc<Self>, sandbox: Sandbox) {
        loop {
            let ways = open_ways(&sandbox);
            let several = ways.into_iter().filter(|(_, ways)| ways.len() > 1);
            lock(&self.seen).extend(several);
            *lock(&self.looks) += 1;
            pause(EVERY).await;
        }
    }

    /// What was seen, and how often it looked.
    pub fn read(&self) -> (BTreeSet<Sighting>, u64) {
        let seen = lock(&self.seen).clone();
        (seen, *lock(&self.looks))
    }
}

/// The ways of every payment, all at one moment.
fn open_ways(sandbox: &Sandbox) -> BTreeMap<String, BTreeSet<Way>> {
    let mut ways: BTreeMap<String, BTreeSet<Way>> = BTreeMap::new();
    let mut of_pages = BTreeSet::new();
    let text = |object: &Value, pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned();
    // Pages come first: an open page and the intent that it has made are one way.
    sandbox.visit(&["checkout.session", "payment_intent"], |object| {
        let (id, status, payment) =
            (text(object, "/id"), text(object, "/status"), text(object, "/metadata/payment_id"));
        let way = match status.as_str() {
            _ if payment.is_empty() => return,
            "open" => {
                of_pages.insert(text(object, "/payment_intent"));
                Way::Page(id)
            }
            "processing" | "requires_action" | "succeeded" if !of_pages.contains(&id) => Way::Intent(id, status),
            _ => return,
        };
        ways.entry(payment).or_default().insert(way);
    });
    ways
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::net::TcpListener;

    use super::*;
    use crate::clock::Clock;
    use crate::dev::sandbox::{HandPayment, Options};

    #[tokio::test]
    async fn an_open_page_beside_an_intent_that_took_money_is_seen() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let sandbox = Sandbox::start(listener, Clock::system(), Options::default()).unwrap();
        let key = sandbox.add_account("acct_1", "DE", "eur");
        let customer = sandbox.create_customer_by_hand("acct_1", "Hooli").unwrap()["id"].as_str().unwrap().to_owned();
        let pay = |payment: &str| HandPayment {
            customer: customer.clone(),
            payment_method: "pm_card_visa".to_owned(),
            amount: 500,
            currency: "eur".to_owned(),
            metadata: BTreeMap::from([("payment_id".to_owned(), payment.to_owned())]),
        };
        sandbox.pay_by_hand(&pay("p1")).unwrap();
        let form = format!(
            "mode=payment&customer={customer}&payment_method_types[0]=card&line_items[0][quantity]=1\
             &line_items[0][price_data][currency]=eur&line_items[0][price_data][unit_amount]=500\
             &line_items[0][price_data][product_data][name]=Invoice&success_url=https://example.com\
             &metadata[payment_id]=p2&payment_intent_data[metadata][payment_id]=p2"
        );
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("{}/v1/checkout/sessions", sandbox.url());
        let request = client.post(url).bearer_auth(&key).header("Stripe-Version", "2026-08-26.dahlia");
        let request = request.header("Content-Type", "application/x-www-form-urlencoded").body(form);
        let answer = request.send().await.unwrap();
        let session: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        let session = session["id"].as_str().unwrap().to_owned();
        let count = |payment: &str| open_ways(&sandbox).get(payment).map_or(0, BTreeSet::len);
        assert_eq!((count("p1"), count("p2")), (1, 1), "one each");

        // A card is declined on the page: the intent that this has made is no way beside the page.
        sandbox.complete_session(&session, "4000000000000002", true).unwrap_err();
        assert_eq!(count("p2"), 1);
        sandbox.pay_by_hand(&pay("p2")).unwrap();
        assert_eq!(count("p2"), 2, "the page is open beside a payment by hand");
        sandbox.expire_session(&session).unwrap();
        assert_eq!(count("p2"), 1);
        sandbox.pay_by_hand(&pay("p1")).unwrap();
        assert_eq!(count("p1"), 2);
        sandbox.stop().await;
    }
}
