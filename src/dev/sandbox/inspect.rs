//! Consistent reads for long test runs: all objects at one time, and what is still pending.

use serde_json::Value;

use super::shared::Sandbox;
use super::state::{Account, text};

impl Sandbox {
    /// The clock's time in Unix seconds.
    pub fn seconds(&self) -> i64 {
        self.0.seconds()
    }

    /// The number of requests that a fault has hit.
    pub fn fault_hits(&self) -> u64 {
        self.0.with_lock(|inner| inner.fault_hits)
    }

    /// All objects of a type, such as `payment_intent`, of every account, oldest first within an account.
    pub fn objects(&self, kind: &str) -> Vec<Value> {
        let mut all = Vec::new();
        self.visit(&[kind], |object| all.push(object.clone()));
        all
    }

    /// Visits all objects of these types at one time, type by type, without copying them.
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

    /// The events that a fault kept from being sent. The events list contains them.
    pub fn lost_events(&self) -> Vec<String> {
        self.0.with_lock(|inner| inner.lost.clone())
    }

    /// The account's events that an endpoint has acknowledged, with the time of the first acknowledgement in
    /// microseconds since 1970.
    pub fn acknowledged(&self, account: &str) -> Vec<(String, i64)> {
        self.0.with_lock(|inner| {
            let events = inner.state.accounts.get(account).into_iter().flat_map(|account| &account.events);
            events.filter_map(|event| Some((event.id.clone(), event.acknowledged?))).collect()
        })
    }

    /// When the next webhook is due, in Unix seconds; 0 while one is in flight; `None` if all are acknowledged.
    pub fn next_delivery(&self) -> Option<i64> {
        let next = self.0.with_lock(|inner| {
            inner.state.accounts.values().filter_map(|account| account.webhooks.next_attempt()).min()
        });
        next.map(|micros| micros.div_euclid(1_000_000))
    }

    /// When the next timer is due, in Unix seconds: a bank's response or a session's expiry, for example.
    pub fn next_timer(&self) -> Option<i64> {
        self.0.with_lock(|inner| inner.state.accounts.values().filter_map(|account| account.timers.next()).min())
    }

    /// The number of debits that wait for a bank's response.
    pub fn pending_debits(&self) -> usize {
        let is_pending = |account: &Account, id: &String| {
            account.objects.get(id).is_some_and(|charge| text(charge, "/status") == "pending")
        };
        self.0.with_lock(|inner| {
            let accounts = inner.state.accounts.values();
            let count = |account: &Account| {
                let charges = account.order.get("charge").map_or(&[][..], Vec::as_slice);
                charges.iter().filter(|id| is_pending(account, id)).count()
            };
            accounts.map(count).sum()
        })
    }
}
