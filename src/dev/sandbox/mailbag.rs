//! The webhooks that still have to be delivered, in a queue for each endpoint, so that one that is down for long holds
//! up nobody else and costs nothing but its own tries.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::state::Delivery;

/// How many webhooks one endpoint is sent at once.
const AT_ONCE: usize = 10;

/// See the module's text.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Mailbag {
    waiting: BTreeMap<u64, Delivery>,
    /// The last number given.
    last: u64,
    #[serde(skip)]
    queues: BTreeMap<String, Queue>,
}

/// What one endpoint is still to be sent, and what it is being sent.
#[derive(Debug, Default)]
struct Queue {
    due: BTreeSet<(i64, u64)>,
    in_flight: BTreeSet<u64>,
}

impl Mailbag {
    /// Makes the queues that a state file doesn't hold; what was in flight is sent again.
    pub fn sort_in(&mut self) {
        self.queues.clear();
        for (number, delivery) in &self.waiting {
            self.queues.entry(delivery.endpoint.clone()).or_default().due.insert((delivery.at, *number));
        }
    }

    /// Adds a delivery.
    pub fn put(&mut self, delivery: Delivery) {
        self.last += 1;
        self.queues.entry(delivery.endpoint.clone()).or_default().due.insert((delivery.at, self.last));
        self.waiting.insert(self.last, delivery);
    }

    /// Takes what is to be sent now, with its number; it is in flight until it is ended or put off.
    pub fn take_due(&mut self, now: i64) -> Vec<(u64, Delivery)> {
        let mut taken = Vec::new();
        for queue in self.queues.values_mut() {
            while queue.in_flight.len() < AT_ONCE
                && let Some((at, number)) = queue.due.first().copied().filter(|(at, _)| *at <= now)
            {
                queue.due.remove(&(at, number));
                queue.in_flight.insert(number);
                taken.extend(self.waiting.get(&number).map(|delivery| (number, delivery.clone())));
            }
        }
        taken
    }

    /// When the next one is due, of the endpoints that can be sent more.
    pub fn next(&self) -> Option<i64> {
        let free = self.queues.values().filter(|queue| queue.in_flight.len() < AT_ONCE);
        free.filter_map(|queue| queue.due.first()).map(|(at, _)| *at).min()
    }

    /// When anything is sent next, or 0 while something is just being sent; `None` if nothing waits.
    pub fn next_try(&self) -> Option<i64> {
        let of = |queue: &Queue| {
            if queue.in_flight.is_empty() { queue.due.first().map(|(at, _)| *at) } else { Some(0) }
        };
        self.queues.values().filter_map(of).min()
    }

    /// Ends a delivery.
    pub fn end(&mut self, number: u64) -> Option<Delivery> {
        let delivery = self.waiting.remove(&number)?;
        if let Some(queue) = self.queues.get_mut(&delivery.endpoint) {
            queue.in_flight.remove(&number);
            queue.due.remove(&(delivery.at, number));
        }
        Some(delivery)
    }

    /// Puts a delivery off.
    pub fn again(&mut self, number: u64, delivery: Delivery) {
        self.queues.entry(delivery.endpoint.clone()).or_default().due.insert((delivery.at, number));
        self.waiting.insert(number, delivery);
    }

    /// Drops everything for an endpoint.
    pub fn drop_endpoint(&mut self, endpoint: &str) {
        self.queues.remove(endpoint);
        self.waiting.retain(|_, delivery| delivery.endpoint != endpoint);
    }

    /// Everything that has not been acknowledged, oldest first.
    pub fn waiting(&self) -> impl Iterator<Item = &Delivery> {
        self.waiting.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(endpoint: &str, at: i64) -> Delivery {
        Delivery { endpoint: endpoint.to_owned(), at, ..Delivery::default() }
    }

    #[test]
    fn a_slow_endpoint_is_sent_a_few_at_once_and_holds_up_nobody() {
        let mut bag = Mailbag::default();
        for _ in 0..50 {
            bag.put(delivery("slow", 1));
        }
        bag.put(delivery("quick", 2));
        let taken = bag.take_due(2);
        assert_eq!(taken.iter().filter(|(_, taken)| taken.endpoint == "slow").count(), AT_ONCE);
        assert_eq!(taken.iter().filter(|(_, taken)| taken.endpoint == "quick").count(), 1);
        assert_eq!((bag.take_due(2).len(), bag.next()), (0, None));
        let number = taken.iter().find(|(_, taken)| taken.endpoint == "slow").unwrap().0;
        let refused = bag.end(number).unwrap();
        bag.again(number, Delivery { at: 9, ..refused });
        assert_eq!((bag.take_due(2).len(), bag.waiting().count()), (1, 51));
    }

    #[test]
    fn what_was_in_flight_at_the_end_is_sent_again() {
        let mut bag = Mailbag::default();
        bag.put(delivery("one", 1));
        assert_eq!(bag.take_due(1).len(), 1);
        let mut kept: Mailbag = serde_json::from_str(&serde_json::to_string(&bag).unwrap()).unwrap();
        kept.sort_in();
        assert_eq!(kept.take_due(1).len(), 1);
        kept.drop_endpoint("one");
        assert_eq!(kept.waiting().count(), 0);
    }
}
