//! Those of one process who wait to call Stripe for one account, and who of them goes next.

use std::collections::{BTreeMap, HashMap};

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::budget::Held;
use super::{Priority, Slots, WHOLE_ACCOUNT};

/// Of so many turns, one goes to whoever has waited longest, whatever its priority: so that reads starve under no
/// backlog.
const TURNS_WITH_PRIORITY: u64 = 10;

/// More calls at a time than a process has: from here on nothing is held back any more.
const IN_FLIGHT_MAX: f64 = 100.0;

/// A call in line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// How much it matters.
    pub priority: Priority,
    /// The organization that it is for; those of the same priority take turns.
    pub owner: Uuid,
    /// The endpoint that it goes to.
    pub endpoint: String,
}

/// What a call in line does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It goes, and has left the line.
    Now,
    /// Asks again at this time, or when the line has changed.
    At(OffsetDateTime),
    /// Asks again when the line has changed.
    Wait,
}

/// The line of one account in one process.
#[derive(Debug, Default)]
pub struct Line {
    counts_endpoints: bool,
    waiting: BTreeMap<u64, Waiting>,
    buckets: BTreeMap<String, Bucket>,
    joined: u64,
    turns: u64,
    /// The turn that an organization had last.
    last_turns: HashMap<Uuid, u64>,
    in_flight: u32,
    /// Calls at a time, since when; it grows by one a second.
    in_flight_max: Option<(f64, OffsetDateTime)>,
    /// Where the next of an organization's calls that did not get a turn is sent to.
    next_places: HashMap<Uuid, OffsetDateTime>,
}

#[derive(Debug, Default)]
struct Bucket {
    held: Held,
    was_refused: bool,
}

impl Line {
    /// An empty line; `counts_endpoints` where an endpoint's limit can be met before the account's.
    pub fn new(counts_endpoints: bool) -> Self {
        Self { counts_endpoints, ..Self::default() }
    }

    /// Joins the line; the number is needed to ask for a turn.
    pub fn join(&mut self, waiting: Waiting) -> u64 {
        self.buckets.entry(WHOLE_ACCOUNT.to_owned()).or_default();
        if self.counts_endpoints {
            self.buckets.entry(waiting.endpoint.clone()).or_default();
        }
        self.joined += 1;
        self.waiting.insert(self.joined, waiting);
        self.joined
    }

    /// Leaves the line without a turn.
    pub fn leave(&mut self, number: u64) {
        self.waiting.remove(&number);
    }

    /// Whether it is the turn of `number`.
    pub fn turn(&mut self, number: u64, now: OffsetDateTime) -> Turn {
        for bucket in self.buckets.values_mut() {
            bucket.held.lapse(now);
        }
        if self.most_in_flight(now).is_some_and(|most| f64::from(self.in_flight) >= most) {
            return Turn::At(now + Duration::SECOND);
        }
        let ready = self.waiting.iter().filter(|(_, call)| self.slot(call).is_some_and(|slot| slot <= now));
        let next = if self.turns % TURNS_WITH_PRIORITY == TURNS_WITH_PRIORITY - 1 {
            ready.min_by_key(|(number, _)| **number)
        } else {
            ready.min_by_key(|(number, call)| (call.priority, self.last_turns.get(&call.owner), **number))
        };
        match next.map(|(next, _)| *next) {
            Some(next) if next == number => {}
            Some(_) => return Turn::Wait,
            None => {
                let slot = self.waiting.get(&number).and_then(|call| self.slot(call));
                return slot.map_or(Turn::Wait, Turn::At);
            }
        }
        if let Some(call) = self.waiting.remove(&number) {
            for bucket in [WHOLE_ACCOUNT, call.endpoint.as_str()] {
                if let Some(bucket) = self.buckets.get_mut(bucket) {
                    bucket.held.pop();
                }
            }
            self.turns += 1;
            self.last_turns.insert(call.owner, self.turns);
            self.in_flight += 1;
        }
        Turn::Now
    }

    /// The first moment at which all buckets of a call have a slot.
    fn slot(&self, call: &Waiting) -> Option<OffsetDateTime> {
        let account = self.buckets.get(WHOLE_ACCOUNT)?.held.first()?;
        if !self.counts_endpoints {
            return Some(account);
        }
        Some(account.max(self.buckets.get(&call.endpoint)?.held.first()?))
    }

    /// A call that had its turn has ended.
    pub fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// How many slots each bucket lacks, and whether Stripe has refused a call of it since the last look; empty if nothing
    /// is lacking. Buckets that lack none are named too: where nobody else needs their slots, some are taken in advance.
    pub fn lacks(&mut self) -> Vec<(String, u32, bool)> {
        let mut lacks = Vec::new();
        for (name, bucket) in &mut self.buckets {
            let is_in = |call: &&Waiting| name == WHOLE_ACCOUNT || call.endpoint == *name;
            let waiting = u32::try_from(self.waiting.values().filter(is_in).count()).unwrap_or(u32::MAX);
            lacks.push((name.clone(), waiting.saturating_sub(bucket.held.count())));
        }
        let is_refused = self.buckets.values().any(|bucket| bucket.was_refused);
        if !is_refused && lacks.iter().all(|(_, lacking)| *lacking == 0) {
            return Vec::new();
        }
        let refused = self.buckets.values_mut().map(|bucket| std::mem::take(&mut bucket.was_refused));
        lacks.into_iter().zip(refused).map(|((name, lacking), refused)| (name, lacking, refused)).collect()
    }

    /// Slots have come for a bucket.
    pub fn supply(&mut self, bucket: &str, slots: Slots) {
        if let Some(bucket) = self.buckets.get_mut(bucket) {
            bucket.held.add(slots);
        }
    }

    /// Stripe has refused a call to `bucket` for its rate. What is held of it was cut at a rate that is too high.
    pub fn refused(&mut self, bucket: &str) {
        let name = if self.buckets.contains_key(bucket) { bucket } else { WHOLE_ACCOUNT };
        if let Some(bucket) = self.buckets.get_mut(name) {
            bucket.held.clear();
            bucket.was_refused = true;
        }
    }

    /// Stripe has refused a call because too many were under way: half as many at a time from now on.
    pub fn crowded(&mut self, now: OffsetDateTime) {
        self.in_flight_max = Some(((f64::from(self.in_flight) / 2.0).floor().max(1.0), now));
    }

    fn most_in_flight(&mut self, now: OffsetDateTime) -> Option<f64> {
        let (most, since) = self.in_flight_max?;
        let most = (most + (now - since).as_seconds_f64().max(0.0)).floor();
        if most >= IN_FLIGHT_MAX {
            self.in_flight_max = None;
        }
        Some(most)
    }

    /// When a call that got no turn may come again, not before `from`: an organization's calls come back one `interval`
    /// after the other, so that thousands of them do not all come in vain.
    pub fn place(&mut self, owner: Uuid, from: OffsetDateTime, interval: Duration) -> OffsetDateTime {
        // Those whose places are over need none.
        self.next_places.retain(|_, next| *next > from);
        let place = self.next_places.get(&owner).copied().unwrap_or(from).max(from);
        self.next_places.insert(owner, place + interval);
        place
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

    fn call(priority: Priority, owner: Uuid) -> Waiting {
        Waiting { priority, owner, endpoint: format!("{priority:?}") }
    }

    fn slots(first: i64, count: u32) -> Slots {
        Slots { first: at(first), interval: Duration::milliseconds(40), count }
    }

    /// The numbers of those who go, in this order.
    fn drain(line: &mut Line) -> Vec<u64> {
        let mut gone = Vec::new();
        loop {
            let numbers: Vec<u64> = line.waiting.keys().copied().collect();
            let Some(next) = numbers.into_iter().find(|number| line.turn(*number, at(0)) == Turn::Now) else { break };
            gone.push(next);
        }
        gone
    }

    #[test]
    fn confirms_go_first_then_creations_then_people_then_reads() {
        let mut line = Line::new(false);
        let order = [Priority::Read, Priority::Interactive, Priority::Create, Priority::Confirm];
        for priority in order {
            line.join(call(priority, ONE));
        }
        assert_eq!(line.turn(1, at(0)), Turn::Wait, "there is no slot");
        line.supply(WHOLE_ACCOUNT, slots(-300, 8));
        assert_eq!(drain(&mut line), [4, 3, 2, 1]);
    }

    #[test]
    fn one_turn_in_ten_goes_to_whoever_has_waited_longest() {
        let mut line = Line::new(false);
        line.join(call(Priority::Read, ONE));
        for _ in 0..20 {
            line.join(call(Priority::Confirm, ONE));
        }
        line.supply(WHOLE_ACCOUNT, Slots { interval: Duration::MILLISECOND, ..slots(-300, 30) });
        assert_eq!(drain(&mut line).iter().position(|number| *number == 1), Some(9));
    }

    #[test]
    fn organizations_of_one_account_take_turns() {
        let mut line = Line::new(false);
        for _ in 0..5 {
            line.join(call(Priority::Create, ONE));
        }
        line.supply(WHOLE_ACCOUNT, slots(-300, 2));
        assert_eq!(drain(&mut line), [1, 2]);
        let late = line.join(call(Priority::Create, OTHER));
        line.supply(WHOLE_ACCOUNT, slots(-200, 6));
        assert_eq!(drain(&mut line)[0], late);
    }

    #[test]
    fn a_call_needs_a_slot_of_the_account_and_one_of_its_endpoint() {
        let mut line = Line::new(true);
        let confirm = line.join(call(Priority::Confirm, ONE));
        let read = line.join(call(Priority::Read, ONE));
        line.supply(WHOLE_ACCOUNT, slots(0, 2));
        assert_eq!(line.turn(confirm, at(0)), Turn::Wait, "its endpoint has none");
        line.supply("Confirm", slots(80, 1));
        line.supply("Read", slots(0, 1));
        assert_eq!(line.turn(confirm, at(0)), Turn::Wait, "the read is ready, and goes");
        assert_eq!(line.turn(read, at(0)), Turn::Now);
        assert_eq!(line.turn(confirm, at(0)), Turn::At(at(80)));
        assert_eq!(line.turn(confirm, at(80)), Turn::Now);
    }

    #[test]
    fn what_is_lacking_is_told_and_a_refusal_once() {
        let mut line = Line::new(true);
        assert!(line.lacks().is_empty());
        for _ in 0..3 {
            line.join(call(Priority::Create, ONE));
        }
        line.supply("Create", slots(0, 1));
        let named = |name: &str, lacking, refused| (name.to_owned(), lacking, refused);
        assert_eq!(line.lacks(), [named("", 3, false), named("Create", 2, false)]);
        line.refused("Create");
        assert_eq!(line.lacks(), [named("", 3, false), named("Create", 3, true)], "what was held is let go");
        assert_eq!(line.lacks(), [named("", 3, false), named("Create", 3, false)]);
    }

    #[test]
    fn too_many_at_a_time_become_half_as_many_and_one_more_each_second() {
        let mut line = Line::new(false);
        for _ in 0..10 {
            line.join(call(Priority::Read, ONE));
        }
        line.supply(WHOLE_ACCOUNT, Slots { interval: Duration::MILLISECOND, ..slots(-300, 300) });
        let go = |line: &mut Line, milliseconds| {
            let numbers: Vec<u64> = line.waiting.keys().copied().collect();
            line.supply(WHOLE_ACCOUNT, slots(milliseconds - 300, 8));
            numbers.into_iter().filter(|number| line.turn(*number, at(milliseconds)) == Turn::Now).count()
        };
        assert_eq!(line.turn(1, at(0)), Turn::Now);
        assert_eq!(line.turn(2, at(0)), Turn::Now);
        line.crowded(at(0));
        assert_eq!(go(&mut line, 1), 0, "two are under way, one may be");
        line.end();
        line.end();
        assert_eq!(go(&mut line, 2), 1);
        assert_eq!(go(&mut line, 1_000), 1);
        assert_eq!(go(&mut line, 3_000), 2);
    }

    #[test]
    fn those_who_got_no_turn_come_back_one_after_the_other_and_nobody_waits_behind_another_organization() {
        let mut line = Line::new(false);
        let interval = Duration::milliseconds(40);
        let places = [0; 3].map(|_| line.place(ONE, at(0), interval));
        assert_eq!(places, [at(0), at(40), at(80)]);
        assert_eq!(line.place(OTHER, at(0), interval), at(0));
        assert_eq!(line.place(ONE, at(60_000), interval), at(60_000));
    }
}
