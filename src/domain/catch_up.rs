//! Catching up: after its database was restored, failed over or copied, an integration reads back from Stripe what the
//! database has forgotten (P8). Until that is done, nothing is created or moved at Stripe for it.
//!
//! Stripe's webhook endpoint holds a counter that only the database in use raises. It works like a lease: a database
//! may collect for [`Contact::is_stale`]'s period after it last raised the counter, and another one may take over once
//! the counter has rested for longer than that ([`Counter::may_be_taken_over`]).

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// By how much the clocks of two copies may differ.
const CLOCK_DIFFERENCE: Duration = Duration::MINUTE;

/// How far lists reach back before the last contact: what was under way then may have been created earlier.
const OVERLAP: Duration = Duration::HOUR;

/// Stripe lists events for 30 days (<https://docs.stripe.com/api/events>). A day is left for the catching up itself.
const EVENTS_REACH: Duration = Duration::days(29);

/// What an integration's database knows of its contact with Stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// When Stripe last confirmed that this database is the one in use.
    pub time: OffsetDateTime,
    /// The counter, as this database has raised it.
    pub number: i64,
    /// Set while the integration catches up.
    pub catch_up: Option<CatchUp>,
}

impl Contact {
    /// Whether the last contact is older than `max`. The database may have been restored to a state before later ones,
    /// or another copy may have taken over.
    pub fn is_stale(&self, now: OffsetDateTime, max: Duration) -> bool {
        now - self.time > max
    }

    /// From when on Stripe's lists are read. The time may come from a clock that was ahead.
    pub fn list_from(&self, now: OffsetDateTime) -> OffsetDateTime {
        self.time.min(now) - OVERLAP
    }

    /// Whether Stripe's events list still reaches back to the last contact.
    pub fn is_within_events(&self, now: OffsetDateTime) -> bool {
        now - self.time < EVENTS_REACH
    }
}

/// Why an integration catches up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum CatchUpReason {
    /// The database has another identity: it was restored, failed over or copied.
    DatabaseChanged,
    /// The last contact with Stripe is too old.
    Silence,
    /// The counter at Stripe is ahead of this database's.
    CounterAhead,
}

impl CatchUpReason {
    /// The name in the database.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What is done next. Nothing is read before no other copy can change it any more. Then ways to take money are closed
/// first, and objects are read before those that belong to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Stage {
    /// Waits until no other copy can be in use.
    OtherCopies,
    /// Expires open Checkout sessions that are not known.
    CheckoutSessions,
    /// Reads customers.
    Customers,
    /// Reads PaymentIntents.
    PaymentIntents,
    /// Reads how PaymentIntents were created, from the events list: their metadata may have been edited since.
    CreatedIntents,
    /// Reads refunds.
    Refunds,
    /// Reads disputes.
    Disputes,
    /// Reads every unfinished payment and every customer's payment methods, if events do not reach back far enough.
    Walk,
    /// Reads the events list.
    Events,
    /// Waits until the events that were found are applied.
    Deliveries,
    /// Takes over the counter, unless another copy has raised it meanwhile.
    Takeover,
}

impl Stage {
    /// The name in the database and in the API.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether events can be applied: the objects that they are about are known again.
    pub fn applies_events(self) -> bool {
        !matches!(
            self,
            Self::OtherCopies | Self::CheckoutSessions | Self::Customers | Self::PaymentIntents | Self::CreatedIntents
        )
    }

    /// The stage that follows; `None` after the last.
    pub fn next(self) -> Option<Self> {
        match self {
            Self::OtherCopies => Some(Self::CheckoutSessions),
            Self::CheckoutSessions => Some(Self::Customers),
            Self::Customers => Some(Self::PaymentIntents),
            Self::PaymentIntents => Some(Self::CreatedIntents),
            Self::CreatedIntents => Some(Self::Refunds),
            Self::Refunds => Some(Self::Disputes),
            Self::Disputes => Some(Self::Walk),
            Self::Walk => Some(Self::Events),
            Self::Events => Some(Self::Deliveries),
            Self::Deliveries => Some(Self::Takeover),
            Self::Takeover => None,
        }
    }
}

/// The progress of catching up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatchUp {
    /// Why it became necessary.
    pub reason: CatchUpReason,
    /// When it began; `None` before its job has run.
    pub start_time: Option<OffsetDateTime>,
    /// What is done next.
    pub stage: Stage,
    /// The position in the list that the stage reads; `None` at its beginning.
    pub after: Option<String>,
    /// How many objects were read from Stripe's lists so far.
    pub objects_read: i64,
    /// The counter at Stripe, with the time at which this database first saw that number.
    pub seen: Option<Counter>,
    /// What an operator has to repair before this can go on. It was reported.
    pub fault: Option<String>,
}

impl CatchUp {
    /// Catching up that has not begun.
    pub fn new(reason: CatchUpReason) -> Self {
        let stage = Stage::OtherCopies;
        Self { reason, start_time: None, stage, after: None, objects_read: 0, seen: None, fault: None }
    }

    /// Moves on to `stage`.
    pub fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.after = None;
    }
}

/// The counter in the metadata of a webhook endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Raised by the database in use.
    pub number: i64,
    /// The incarnation of the database that has raised it.
    pub writer: Uuid,
    /// When it was raised, by the writer's clock.
    pub time: OffsetDateTime,
}

/// Whether a database may take over the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// No other copy can be in use.
    Now,
    /// The writer of the counter may still be in use. Ask again at this time.
    Wait(OffsetDateTime),
    /// The counter has risen since it was last seen: another copy is in use.
    OtherCopyInUse,
}

impl Counter {
    /// Whether another database than the one of `own` has written it, or this one before it was set back.
    pub fn is_foreign_to(&self, own: &Self) -> bool {
        self.writer != own.writer || self.number > own.number
    }

    /// Whether a database may take over the counter from `self`, which is what Stripe holds. `own` is the counter as the
    /// database itself has last raised it; `seen` is the counter at Stripe, with the time at which the database first saw
    /// that number. A database may collect for `contact_max` after it has raised the counter.
    pub fn may_be_taken_over(&self, own: &Self, seen: &Self, contact_max: Duration, now: OffsetDateTime) -> Takeover {
        if !self.is_foreign_to(own) {
            return Takeover::Now;
        }
        if self.number > seen.number || self.writer != seen.writer {
            return Takeover::OtherCopyInUse;
        }
        // The writer's clock may be far ahead.
        let until = self.time.min(seen.time) + contact_max + CLOCK_DIFFERENCE;
        if now < until { Takeover::Wait(until) } else { Takeover::Now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::minutes(10);

    fn at(minutes: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::days(20_000) + Duration::minutes(minutes)
    }

    fn counter(number: i64, writer: u128, minutes: i64) -> Counter {
        Counter { number, writer: Uuid::from_u128(writer), time: at(minutes) }
    }

    #[test]
    fn every_stage_is_reached_from_the_first_and_has_a_name_of_its_own() {
        let mut names = Vec::new();
        let mut stage = Some(CatchUp::new(CatchUpReason::Silence).stage);
        while let Some(now) = stage {
            assert_eq!(now.as_str().parse(), Ok(now));
            names.push(now.as_str());
            stage = now.next();
        }
        let expected = [
            "other_copies",
            "checkout_sessions",
            "customers",
            "payment_intents",
            "created_intents",
            "refunds",
            "disputes",
            "walk",
            "events",
            "deliveries",
            "takeover",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn p8_events_are_applied_once_customers_and_intents_are_known_and_before_that_is_waited_for() {
        assert!(!CatchUp::new(CatchUpReason::Silence).stage.applies_events());
        assert!(!Stage::CreatedIntents.applies_events());
        let mut stage = Some(Stage::Refunds);
        while let Some(now) = stage {
            assert!(now.applies_events(), "{now:?}");
            stage = now.next();
        }
    }

    #[test]
    fn another_stage_begins_at_the_start_of_its_list() {
        let mut catch_up = CatchUp { after: Some("pi_1".to_owned()), ..CatchUp::new(CatchUpReason::DatabaseChanged) };
        catch_up.enter(Stage::Refunds);
        assert_eq!((catch_up.stage, catch_up.after), (Stage::Refunds, None));
    }

    #[test]
    fn p8_a_contact_is_stale_after_its_period_and_lists_begin_an_hour_before_it() {
        let contact = Contact { time: at(0), number: 1, catch_up: None };
        assert!(!contact.is_stale(at(10), MAX));
        assert!(contact.is_stale(at(10) + Duration::SECOND, MAX));
        assert_eq!((contact.list_from(at(5)), contact.list_from(at(-9))), (at(-60), at(-69)));
        assert!(contact.is_within_events(at(0) + Duration::days(29) - Duration::SECOND));
        assert!(!contact.is_within_events(at(0) + Duration::days(29)));
    }

    #[test]
    fn p8_the_counter_is_taken_over_when_no_other_copy_can_be_in_use() {
        let own = counter(7, 1, 0);
        for (theirs, seen, minutes, expected) in [
            // Nobody else has written since.
            (counter(7, 1, 0), counter(7, 1, 0), 0, Takeover::Now),
            (counter(6, 1, -8), counter(6, 1, 0), 0, Takeover::Now),
            // A copy of the same incarnation, or this database before it was restored.
            (counter(8, 1, 4), counter(8, 1, 5), 5, Takeover::Wait(at(15))),
            (counter(8, 1, 4), counter(8, 1, 5), 15, Takeover::Now),
            // Another incarnation, even with a lower number.
            (counter(7, 2, 0), counter(7, 2, 3), 3, Takeover::Wait(at(11))),
            (counter(5, 2, 0), counter(5, 2, 3), 11, Takeover::Now),
            // Its clock is ahead.
            (counter(8, 2, 900), counter(8, 2, 3), 13, Takeover::Wait(at(14))),
            (counter(8, 2, 900), counter(8, 2, 3), 14, Takeover::Now),
            // Somebody else has written it.
            (counter(8, 3, 8), counter(8, 2, 3), 9, Takeover::OtherCopyInUse),
            // It rises.
            (counter(9, 2, 8), counter(8, 2, 3), 9, Takeover::OtherCopyInUse),
            (counter(9, 2, 8), counter(8, 2, 3), 900, Takeover::OtherCopyInUse),
        ] {
            let takeover = theirs.may_be_taken_over(&own, &seen, MAX, at(minutes));
            assert_eq!(takeover, expected, "{theirs:?} seen as {seen:?} after {minutes} minutes");
        }
    }
}
