//! The watcher: looks at Stripe all the time, and writes down every invoice for which two objects at once have taken money
//! or can (P1). A Checkout page counts only once it has left Paybridge, which is known at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::pause;
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
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).extend(several);
            *self.looks.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            pause(EVERY).await;
        }
    }

    /// What was seen, and how often it looked.
    pub fn read(&self) -> (BTreeSet<Sighting>, u64) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (seen, *self.looks.lock().unwrap_or_else(PoisonError::into_inner))
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
