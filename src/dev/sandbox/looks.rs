//! What a run looks at while it lasts and at its end: all objects at one moment, and what is still to happen.

use serde_json::Value;

use super::Sandbox;
use super::state::{Account, text};

impl Sandbox {
    /// The time by its clock, unix seconds.
    pub fn seconds(&self) -> i64 {
        self.0.seconds()
    }

    /// How many requests faults have hit so far.
    pub fn fault_hits(&self) -> u64 {
        self.0.look(|inner| inner.fault_hits)
    }

    /// All objects of a kind (`payment_intent`, say) of every account, as they are now, oldest first within an account.
    pub fn objects(&self, kind: &str) -> Vec<Value> {
        let mut all = Vec::new();
        self.visit(&[kind], |object| all.push(object.clone()));
        all
    }

    /// Shows all objects of some kinds as they are at one moment, kind by kind, without copying them.
    pub fn visit(&self, kinds: &[&str], mut visit: impl FnMut(&Value)) {
        self.0.read(|inner| {
            for kind in kinds {
                for account in inner.state.accounts.values() {
                    let ids = account.order.get(*kind).map_or(&[][..], Vec::as_slice);
                    ids.iter().filter_map(|id| account.objects.get(id)).for_each(&mut visit);
                }
            }
        });
    }

    /// The events that a fault has kept from ever being sent; the list has them.
    pub fn lost_events(&self) -> Vec<String> {
        self.0.look(|inner| inner.lost.clone())
    }

    /// The account's events of which an endpoint has acknowledged a webhook, with the time of the first such answer, in
    /// microseconds since 1970.
    pub fn acknowledged(&self, account: &str) -> Vec<(String, i64)> {
        self.0.look(|inner| {
            let events = inner.state.accounts.get(account).into_iter().flat_map(|account| &account.events);
            events.filter_map(|event| Some((event.id.clone(), event.acknowledged?))).collect()
        })
    }

    /// When a webhook is sent (again) next, in unix seconds, or a time long past while one is just being sent; `None` if
    /// all are acknowledged.
    pub fn next_delivery(&self) -> Option<i64> {
        let next =
            self.0.look(|inner| inner.state.accounts.values().filter_map(|account| account.mail.next_try()).min());
        next.map(|micros| micros.div_euclid(1_000_000))
    }

    /// When something will happen by itself next, in unix seconds: a bank's answer, the end of a session.
    pub fn next_timer(&self) -> Option<i64> {
        self.0.look(|inner| inner.state.accounts.values().filter_map(|account| account.timers.next()).min())
    }

    /// How many debits still wait for a bank's answer.
    pub fn pending_debits(&self) -> usize {
        let is_pending = |account: &Account, id: &String| {
            account.objects.get(id).is_some_and(|charge| text(charge, "/status") == "pending")
        };
        self.0.look(|inner| {
            let accounts = inner.state.accounts.values();
            let of = |account: &Account| {
                let charges = account.order.get("charge").map_or(&[][..], Vec::as_slice);
                charges.iter().filter(|id| is_pending(account, id)).count()
            };
            accounts.map(of).sum()
        })
    }
}
