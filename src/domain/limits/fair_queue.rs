//! The queue of calls that one process makes to one Stripe account, and which of them is sent next.

use std::collections::{BTreeMap, HashMap};

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::budget::HeldSlots;
use super::{Priority, Slots, WHOLE_ACCOUNT};

/// One in this many grants goes to the longest-waiting call, whatever its priority, so that low priorities never
/// starve.
const GRANTS_PER_FIFO_GRANT: u64 = 10;

/// More concurrent calls than one process makes. When the limit has recovered to this, it is dropped.
const IN_FLIGHT_MAX: f64 = 100.0;

/// A call that waits to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedCall {
    /// Its class of priority.
    pub priority: Priority,
    /// The organization that it is for. Organizations take turns within a priority.
    pub organization: Uuid,
    /// The endpoint that is called, by method and route.
    pub endpoint: String,
}

/// The result of an attempt to acquire a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Send the call now; it has left the queue.
    Now,
    /// Retry at this time, or when the queue has changed.
    At(OffsetDateTime),
    /// Retry when the queue has changed.
    Wait,
}

/// A fair queue for one account in one process.
#[derive(Debug, Default)]
pub struct FairQueue {
    counts_endpoints: bool,
    waiting: BTreeMap<u64, QueuedCall>,
    buckets: BTreeMap<String, Bucket>,
    enqueued: u64,
    grants: u64,
    /// The number of the last grant to each organization.
    last_grants: HashMap<Uuid, u64>,
    in_flight: u32,
    /// The concurrency limit after a 429, and when that was; the limit grows by one a second.
    in_flight_max: Option<(f64, OffsetDateTime)>,
    /// When the next waiting call of each organization is to retry.
    next_retry_times: HashMap<Uuid, OffsetDateTime>,
}

#[derive(Debug, Default)]
struct Bucket {
    held: HeldSlots,
    was_rate_limited: bool,
}

impl FairQueue {
    /// An empty queue. `counts_endpoints`: whether the limit of an endpoint can be reached before that of the account.
    pub fn new(counts_endpoints: bool) -> Self {
        Self { counts_endpoints, ..Self::default() }
    }

    /// Adds a call; returns the number to acquire a slot with.
    pub fn enqueue(&mut self, waiting: QueuedCall) -> u64 {
        self.buckets.entry(WHOLE_ACCOUNT.to_owned()).or_default();
        if self.counts_endpoints {
            self.buckets.entry(waiting.endpoint.clone()).or_default();
        }
        self.enqueued += 1;
        self.waiting.insert(self.enqueued, waiting);
        self.enqueued
    }

    /// Removes a call that has not been granted a slot.
    pub fn remove(&mut self, number: u64) {
        self.waiting.remove(&number);
    }

    /// Tries to acquire a slot for call `number`.
    pub fn acquire(&mut self, number: u64, now: OffsetDateTime) -> Admission {
        for bucket in self.buckets.values_mut() {
            bucket.held.expire(now);
        }
        if self.in_flight_limit(now).is_some_and(|limit| f64::from(self.in_flight) >= limit) {
            return Admission::At(now + Duration::SECOND);
        }
        let ready = self.waiting.iter().filter(|(_, call)| self.slot(call).is_some_and(|slot| slot <= now));
        let next = if self.grants % GRANTS_PER_FIFO_GRANT == GRANTS_PER_FIFO_GRANT - 1 {
            ready.min_by_key(|(number, _)| **number)
        } else {
            ready.min_by_key(|(number, call)| (call.priority, self.last_grants.get(&call.organization), **number))
        };
        match next.map(|(next, _)| *next) {
            Some(next) if next == number => {}
            Some(_) => return Admission::Wait,
            None => {
                let slot = self.waiting.get(&number).and_then(|call| self.slot(call));
                return slot.map_or(Admission::Wait, Admission::At);
            }
        }
        if let Some(call) = self.waiting.remove(&number) {
            for bucket in [WHOLE_ACCOUNT, call.endpoint.as_str()] {
                if let Some(bucket) = self.buckets.get_mut(bucket) {
                    bucket.held.pop();
                }
            }
            self.grants += 1;
            self.last_grants.insert(call.organization, self.grants);
            self.in_flight += 1;
        }
        Admission::Now
    }

    /// The first time at which all buckets of the call have a slot.
    fn slot(&self, call: &QueuedCall) -> Option<OffsetDateTime> {
        let account = self.buckets.get(WHOLE_ACCOUNT)?.held.first()?;
        if !self.counts_endpoints {
            return Some(account);
        }
        Some(account.max(self.buckets.get(&call.endpoint)?.held.first()?))
    }

    /// A call that was granted a slot has ended.
    pub fn release(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// How many slots each bucket is missing, and whether Stripe has rejected a call for its rate since the last
    /// report. Empty if no slots are missing and nothing was rejected; otherwise lists all buckets, because idle ones
    /// may reserve slots in advance.
    pub fn demand(&mut self) -> Vec<(String, u32, bool)> {
        let mut demand = Vec::new();
        for (name, bucket) in &mut self.buckets {
            let uses_bucket = |call: &&QueuedCall| name == WHOLE_ACCOUNT || call.endpoint == *name;
            let waiting = u32::try_from(self.waiting.values().filter(uses_bucket).count()).unwrap_or(u32::MAX);
            demand.push((name.clone(), waiting.saturating_sub(bucket.held.count())));
        }
        let is_rate_limited = self.buckets.values().any(|bucket| bucket.was_rate_limited);
        if !is_rate_limited && demand.iter().all(|(_, missing)| *missing == 0) {
            return Vec::new();
        }
        let refused = self.buckets.values_mut().map(|bucket| std::mem::take(&mut bucket.was_rate_limited));
        demand.into_iter().zip(refused).map(|((name, missing), refused)| (name, missing, refused)).collect()
    }

    /// Adds reserved slots to a bucket.
    pub fn supply(&mut self, bucket: &str, slots: Slots) {
        if let Some(bucket) = self.buckets.get_mut(bucket) {
            bucket.held.add(slots);
        }
    }

    /// Stripe has answered a call counted in `bucket` with 429. The slots held were spaced for a rate that is too high,
    /// so they are dropped.
    pub fn rate_limited(&mut self, bucket: &str) {
        let name = if self.buckets.contains_key(bucket) { bucket } else { WHOLE_ACCOUNT };
        if let Some(bucket) = self.buckets.get_mut(name) {
            bucket.held.clear();
            bucket.was_rate_limited = true;
        }
    }

    /// Stripe has answered a call with 429 because too many were in flight: halves the limit.
    pub fn too_many_in_flight(&mut self, now: OffsetDateTime) {
        self.in_flight_max = Some(((f64::from(self.in_flight) / 2.0).floor().max(1.0), now));
    }

    fn in_flight_limit(&mut self, now: OffsetDateTime) -> Option<f64> {
        let (limit, since) = self.in_flight_max?;
        let limit = (limit + (now - since).as_seconds_f64().max(0.0)).floor();
        if limit >= IN_FLIGHT_MAX {
            self.in_flight_max = None;
        }
        Some(limit)
    }

    /// When a call that was granted no slot may retry, at `from` or later. The calls of an organization retry one
    /// `interval` apart, so that thousands of them do not all fail at once.
    pub fn retry_time(&mut self, organization: Uuid, from: OffsetDateTime, interval: Duration) -> OffsetDateTime {
        // Times that have passed reserve nothing.
        self.next_retry_times.retain(|_, next| *next > from);
        let time = self.next_retry_times.get(&organization).copied().unwrap_or(from).max(from);
        self.next_retry_times.insert(organization, time + interval);
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn at(milliseconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::milliseconds(milliseconds)
    }

    fn call(priority: Priority, organization: Uuid) -> QueuedCall {
        QueuedCall { priority, organization, endpoint: format!("{priority:?}") }
    }

    fn slots(first: i64, count: u32) -> Slots {
        Slots { first: at(first), interval: Duration::milliseconds(40), count }
    }

    /// The numbers of the calls that are admitted, in order.
    fn drain(queue: &mut FairQueue) -> Vec<u64> {
        let mut admitted = Vec::new();
        loop {
            let numbers: Vec<u64> = queue.waiting.keys().copied().collect();
            let Some(next) = numbers.into_iter().find(|number| queue.acquire(*number, at(0)) == Admission::Now) else {
                break;
            };
            admitted.push(next);
        }
        admitted
    }

    #[test]
    fn confirms_precede_creations_then_interactive_calls_then_reads() {
        let mut queue = FairQueue::default();
        let order = [Priority::Read, Priority::Interactive, Priority::Create, Priority::Confirm];
        for priority in order {
            queue.enqueue(call(priority, ONE));
        }
        assert_eq!(queue.acquire(1, at(0)), Admission::Wait, "no slot yet");
        queue.supply(WHOLE_ACCOUNT, slots(-300, 8));
        assert_eq!(drain(&mut queue), [4, 3, 2, 1]);
    }

    #[test]
    fn one_grant_in_ten_goes_to_the_call_that_has_waited_longest() {
        let mut queue = FairQueue::default();
        queue.enqueue(call(Priority::Read, ONE));
        for _ in 0..20 {
            queue.enqueue(call(Priority::Confirm, ONE));
        }
        queue.supply(WHOLE_ACCOUNT, Slots { interval: Duration::MILLISECOND, ..slots(-300, 30) });
        assert_eq!(drain(&mut queue).iter().position(|number| *number == 1), Some(9));
    }

    #[test]
    fn a_call_that_is_given_up_delays_no_other() {
        let mut queue = FairQueue::default();
        let first = queue.enqueue(call(Priority::Confirm, ONE));
        let second = queue.enqueue(call(Priority::Read, ONE));
        queue.supply(WHOLE_ACCOUNT, slots(-300, 1));
        assert_eq!(queue.acquire(second, at(0)), Admission::Wait);
        queue.remove(first);
        assert_eq!(queue.acquire(second, at(0)), Admission::Now);
    }

    #[test]
    fn organizations_of_one_account_take_turns() {
        let mut queue = FairQueue::default();
        for _ in 0..5 {
            queue.enqueue(call(Priority::Create, ONE));
        }
        queue.supply(WHOLE_ACCOUNT, slots(-300, 2));
        assert_eq!(drain(&mut queue), [1, 2]);
        let other = queue.enqueue(call(Priority::Create, OTHER));
        queue.supply(WHOLE_ACCOUNT, slots(-200, 6));
        assert_eq!(drain(&mut queue)[0], other);
    }

    #[test]
    fn a_call_needs_a_slot_of_the_account_and_one_of_its_endpoint() {
        let mut queue = FairQueue { counts_endpoints: true, ..FairQueue::default() };
        let confirm = queue.enqueue(call(Priority::Confirm, ONE));
        let read = queue.enqueue(call(Priority::Read, ONE));
        queue.supply(WHOLE_ACCOUNT, slots(0, 2));
        assert_eq!(queue.acquire(confirm, at(0)), Admission::Wait, "its endpoint has no slot");
        queue.supply("Confirm", slots(80, 1));
        queue.supply("Read", slots(0, 1));
        assert_eq!(queue.acquire(confirm, at(0)), Admission::Wait, "the read is ready and goes first");
        assert_eq!(queue.acquire(read, at(0)), Admission::Now);
        assert_eq!(queue.acquire(confirm, at(0)), Admission::At(at(80)));
        assert_eq!(queue.acquire(confirm, at(80)), Admission::Now);
    }

    #[test]
    fn demand_reports_missing_slots_and_a_rejection_once() {
        let mut queue = FairQueue { counts_endpoints: true, ..FairQueue::default() };
        assert!(queue.demand().is_empty());
        for _ in 0..3 {
            queue.enqueue(call(Priority::Create, ONE));
        }
        queue.supply("Create", slots(0, 1));
        let named = |name: &str, missing, refused| (name.to_owned(), missing, refused);
        assert_eq!(queue.demand(), [named("", 3, false), named("Create", 2, false)]);
        queue.rate_limited("Create");
        assert_eq!(queue.demand(), [named("", 3, false), named("Create", 3, true)], "the slots held are dropped");
        assert_eq!(queue.demand(), [named("", 3, false), named("Create", 3, false)]);
    }

    #[test]
    fn too_many_calls_in_flight_halve_the_limit_which_grows_by_one_a_second() {
        let mut queue = FairQueue::default();
        for _ in 0..10 {
            queue.enqueue(call(Priority::Read, ONE));
        }
        queue.supply(WHOLE_ACCOUNT, Slots { interval: Duration::MILLISECOND, ..slots(-300, 300) });
        let admit_all = |queue: &mut FairQueue, milliseconds| {
            let numbers: Vec<u64> = queue.waiting.keys().copied().collect();
            queue.supply(WHOLE_ACCOUNT, slots(milliseconds - 300, 8));
            numbers.into_iter().filter(|number| queue.acquire(*number, at(milliseconds)) == Admission::Now).count()
        };
        assert_eq!(queue.acquire(1, at(0)), Admission::Now);
        assert_eq!(queue.acquire(2, at(0)), Admission::Now);
        queue.too_many_in_flight(at(0));
        assert_eq!(queue.acquire(3, at(0)), Admission::At(at(1_000)), "the limit may have grown by then");
        assert_eq!(admit_all(&mut queue, 1), 0, "two are in flight, one is allowed");
        queue.release();
        queue.release();
        assert_eq!(admit_all(&mut queue, 2), 1);
        assert_eq!(admit_all(&mut queue, 1_000), 1);
        assert_eq!(admit_all(&mut queue, 3_000), 2);
    }

    #[test]
    fn calls_without_a_slot_retry_one_after_the_other_and_never_wait_for_another_organization() {
        let mut queue = FairQueue::default();
        let interval = Duration::milliseconds(40);
        let times = [0; 3].map(|_| queue.retry_time(ONE, at(0), interval));
        assert_eq!(times, [at(0), at(40), at(80)]);
        assert_eq!(queue.retry_time(OTHER, at(0), interval), at(0));
        assert_eq!(queue.retry_time(ONE, at(60_000), interval), at(60_000));
    }
}
