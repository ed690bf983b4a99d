//! The monitor: samples Stripe continuously and records every invoice for which two objects at once have taken money or
//! can (P1). A Checkout session counts only if its URL left Paybridge, which is known at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use crate::clock::pause;
use crate::dev::sandbox::Sandbox;

/// The sampling interval. Real time.
const EVERY: Duration = Duration::from_millis(100);

/// An object in Stripe that has taken money for a payment, or can.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PaymentPath {
    /// A PaymentIntent that is in progress or has succeeded: its id and status.
    Intent(String, String),
    /// An open Checkout session.
    Session(String),
}

/// An invoice, with its organization, and its payment paths at one moment, if there are several.
pub(super) type Overlap = (String, BTreeSet<PaymentPath>);

#[derive(Debug, Default)]
pub(super) struct Monitor {
    overlaps: Mutex<BTreeSet<Overlap>>,
    samples: Mutex<u64>,
}

impl Monitor {
    /// Samples until the task is dropped.
    pub async fn run(self: Arc<Self>, sandbox: Sandbox) {
        loop {
            let paths = open_paths(&sandbox);
            let several = paths.into_iter().filter(|(_, paths)| paths.len() > 1);
            self.overlaps.lock().extend(several);
            *self.samples.lock() += 1;
            pause(EVERY).await;
        }
    }

    /// The overlaps found, and the number of samples.
    pub fn read(&self) -> (BTreeSet<Overlap>, u64) {
        let overlaps = self.overlaps.lock().clone();
        (overlaps, *self.samples.lock())
    }
}

/// The payment paths of every invoice at one moment. An invoice is the same after its payment was lost with the
/// database and made anew.
fn open_paths(sandbox: &Sandbox) -> BTreeMap<String, BTreeSet<PaymentPath>> {
    let mut paths: BTreeMap<String, BTreeSet<PaymentPath>> = BTreeMap::new();
    let mut session_intents = BTreeSet::new();
    let text = |object: &Value, pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned();
    // Sessions come first: an open session and the intent that it created are one path.
    sandbox.visit(&["checkout.session", "payment_intent"], |object| {
        let (id, status) = (text(object, "/id"), text(object, "/status"));
        let invoice = text(object, "/metadata/invoice_id");
        let path = match status.as_str() {
            _ if invoice.is_empty() => return,
            "open" => {
                session_intents.insert(text(object, "/payment_intent"));
                PaymentPath::Session(id)
            }
            "processing" | "requires_action" | "succeeded" if !session_intents.contains(&id) => {
                PaymentPath::Intent(id, status)
            }
            _ => return,
        };
        let about = format!("{invoice} of {}", text(object, "/metadata/organization_id"));
        paths.entry(about).or_default().insert(path);
    });
    paths
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::net::TcpListener;

    use super::*;
    use crate::clock::Clock;
    use crate::dev::sandbox::{DashboardPayment, Options};

    #[tokio::test]
    async fn an_open_session_and_a_succeeded_intent_are_two_paths() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let sandbox = Sandbox::start(listener, Clock::system(), Options::default()).unwrap();
        let key = sandbox.add_account("acct_1", "DE", "eur");
        let customer =
            sandbox.create_customer_in_dashboard("acct_1", "Hooli").unwrap()["id"].as_str().unwrap().to_owned();
        let metadata = |invoice: &str| {
            let named = [("invoice_id", invoice), ("organization_id", "org")];
            BTreeMap::from(named.map(|(name, value)| (name.to_owned(), value.to_owned())))
        };
        let pay = |invoice: &str| DashboardPayment {
            customer: customer.clone(),
            payment_method: "pm_card_visa".to_owned(),
            amount: 500,
            currency: "eur".to_owned(),
            metadata: metadata(invoice),
        };
        sandbox.pay_in_dashboard(&pay("inv-1")).unwrap();
        let form = format!(
            "mode=payment&customer={customer}&payment_method_types[0]=card&line_items[0][quantity]=1\
             &line_items[0][price_data][currency]=eur&line_items[0][price_data][unit_amount]=500\
             &line_items[0][price_data][product_data][name]=Invoice&success_url=https://example.com\
             &metadata[invoice_id]=inv-2&metadata[organization_id]=org\
             &payment_intent_data[metadata][invoice_id]=inv-2&payment_intent_data[metadata][organization_id]=org"
        );
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("{}/v1/checkout/sessions", sandbox.url());
        let request = client.post(url).bearer_auth(&key).header("Stripe-Version", "2026-08-26.dahlia");
        let request = request.header("Content-Type", "application/x-www-form-urlencoded").body(form);
        let response = request.send().await.unwrap();
        let session: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        let session = session["id"].as_str().unwrap().to_owned();
        let count = |invoice: &str| open_paths(&sandbox).get(&format!("{invoice} of org")).map_or(0, BTreeSet::len);
        assert_eq!((count("inv-1"), count("inv-2")), (1, 1), "one each");

        // A card is declined on the page: the session's intent is no second path.
        sandbox.complete_session(&session, "4000000000000002", true).unwrap_err();
        assert_eq!(count("inv-2"), 1);
        sandbox.pay_in_dashboard(&pay("inv-2")).unwrap();
        assert_eq!(count("inv-2"), 2, "the session is open while another intent has succeeded");
        sandbox.expire_session(&session).unwrap();
        assert_eq!(count("inv-2"), 1);
        sandbox.pay_in_dashboard(&pay("inv-1")).unwrap();
        assert_eq!(count("inv-1"), 2);
        sandbox.stop().await;
    }
}
