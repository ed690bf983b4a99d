//! Pending webhook deliveries, in one queue per endpoint: an endpoint that is unavailable does not delay the others.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// The limit of concurrent requests to one endpoint.
const IN_FLIGHT_MAX: usize = 10;

/// One event to be sent to one endpoint.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Delivery {
    /// `evt_…`
    pub event: String,
    /// The event's number within the account.
    pub event_number: u64,
    /// The event's type.
    pub kind: String,
    pub endpoint: String,
    /// The number of attempts so far.
    pub attempt: u32,
    /// When the next attempt is due, in microseconds since 1970.
    pub at: i64,
    /// The HTTP status of the last attempt, or why there was no response.
    pub last_response: String,
}

/// The pending deliveries of one account.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct WebhookQueue {
    /// By delivery number, which is also their order.
    pending: BTreeMap<u64, Delivery>,
    /// The last delivery number assigned.
    last: u64,
    #[serde(skip)]
    queues: BTreeMap<String, Queue>,
}

/// The deliveries of one endpoint.
#[derive(Debug, Default)]
struct Queue {
    /// Time of the next attempt, and delivery number.
    due: BTreeSet<(i64, u64)>,
    in_flight: BTreeSet<u64>,
}

impl WebhookQueue {
    /// Rebuilds the queues after loading a state file. Deliveries that were in flight are sent again.
    pub fn rebuild_queues(&mut self) {
        self.queues.clear();
        for (number, delivery) in &self.pending {
            self.queues.entry(delivery.endpoint.clone()).or_default().due.insert((delivery.at, *number));
        }
    }

    pub fn push(&mut self, delivery: Delivery) {
        self.last += 1;
        self.queues.entry(delivery.endpoint.clone()).or_default().due.insert((delivery.at, self.last));
        self.pending.insert(self.last, delivery);
    }

    /// The due deliveries with their numbers. They are in flight until [`Self::finish`]; [`Self::retry`] follows it.
    pub fn take_due(&mut self, now: i64) -> Vec<(u64, Delivery)> {
        let mut due = Vec::new();
        for queue in self.queues.values_mut() {
            while queue.in_flight.len() < IN_FLIGHT_MAX
                && let Some((at, number)) = queue.due.first().copied().filter(|(at, _)| *at <= now)
            {
                queue.due.remove(&(at, number));
                queue.in_flight.insert(number);
                due.extend(self.pending.get(&number).map(|delivery| (number, delivery.clone())));
            }
        }
        due
    }

    /// When the next delivery is due, among the endpoints below their limit of concurrent requests.
    pub fn next_send_time(&self) -> Option<i64> {
        let free = self.queues.values().filter(|queue| queue.in_flight.len() < IN_FLIGHT_MAX);
        free.filter_map(|queue| queue.due.first()).map(|(at, _)| *at).min()
    }

    /// When the next attempt is due; 0 while one is in flight; `None` if nothing is pending.
    pub fn next_attempt(&self) -> Option<i64> {
        let next = |queue: &Queue| {
            if queue.in_flight.is_empty() { queue.due.first().map(|(at, _)| *at) } else { Some(0) }
        };
        self.queues.values().filter_map(next).min()
    }

    /// Removes a delivery.
    pub fn finish(&mut self, number: u64) -> Option<Delivery> {
        let delivery = self.pending.remove(&number)?;
        if let Some(queue) = self.queues.get_mut(&delivery.endpoint) {
            queue.in_flight.remove(&number);
            queue.due.remove(&(delivery.at, number));
        }
        Some(delivery)
    }

    /// Enqueues a delivery again under its number.
    pub fn retry(&mut self, number: u64, delivery: Delivery) {
        self.queues.entry(delivery.endpoint.clone()).or_default().due.insert((delivery.at, number));
        self.pending.insert(number, delivery);
    }

    /// Drops all deliveries to an endpoint.
    pub fn drop_endpoint(&mut self, endpoint: &str) {
        self.queues.remove(endpoint);
        self.pending.retain(|_, delivery| delivery.endpoint != endpoint);
    }

    /// All deliveries that have not been acknowledged, oldest first.
    pub fn pending(&self) -> impl Iterator<Item = &Delivery> {
        self.pending.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(endpoint: &str, at: i64) -> Delivery {
        Delivery { endpoint: endpoint.to_owned(), at, ..Delivery::default() }
    }

    #[test]
    fn a_slow_endpoint_has_limited_concurrency_and_does_not_delay_others() {
        let mut queue = WebhookQueue::default();
        for _ in 0..50 {
            queue.push(delivery("slow", 1));
        }
        queue.push(delivery("fast", 2));
        let due = queue.take_due(2);
        assert_eq!(due.iter().filter(|(_, due)| due.endpoint == "slow").count(), IN_FLIGHT_MAX);
        assert_eq!(due.iter().filter(|(_, due)| due.endpoint == "fast").count(), 1);
        assert_eq!((queue.take_due(2).len(), queue.next_send_time()), (0, None));
        let number = due.iter().find(|(_, due)| due.endpoint == "slow").unwrap().0;
        let failed = queue.finish(number).unwrap();
        queue.retry(number, Delivery { at: 9, ..failed });
        assert_eq!((queue.take_due(2).len(), queue.pending().count()), (1, 51));
    }

    #[test]
    fn in_flight_deliveries_are_sent_again_after_a_restart() {
        let mut queue = WebhookQueue::default();
        queue.push(delivery("one", 1));
        assert_eq!(queue.take_due(1).len(), 1);
        let mut loaded: WebhookQueue = serde_json::from_str(&serde_json::to_string(&queue).unwrap()).unwrap();
        loaded.rebuild_queues();
        assert_eq!(loaded.take_due(1).len(), 1);
        loaded.drop_endpoint("one");
        assert_eq!(loaded.pending().count(), 0);
    }
}
