//! A deterministic simulation: the domain's decisions under far more schedules than real processes could run.
//!
//! One *schedule* is one payment in a world of its own ([`world`]): an in-memory store, a model of Stripe ([`stripe`]),
//! workers and callers as futures that yield between any two steps ([`worker`], [`intents`], [`reconciliation`]), and a
//! seeded scheduler that picks the next event: a step of a worker, a caller's request, an act of the payer, the bank or
//! a dashboard user, a webhook delivery, the passing of time, or a crash of a worker. In every fourth schedule the
//! database is also restored from a backup ([`loss`]). Then faults stop, and the world must become quiescent. Safety (P1, P2, P7) is checked after every step; P6, P8 and P12 are checked at quiescence.
//!
//! A failing seed is run again with a trace. Write the sequence that it shows as a unit test.

mod accounting;
mod calls;
mod ids;
mod intents;
mod loss;
mod reconciliation;
mod schedule;
mod stripe;
mod worker;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use self::ids::index;
use self::schedule::Schedule;
use self::world::World;
use super::integrations::IntegrationState;
use super::payments::{
    Attempt, AttemptState, Failure, Notice, PaymentInput, PaymentState, PendingOperation, State, Step,
};
use super::signals::{IntentStatus, SessionStatus};
use super::stripe_requests::Purpose;
use crate::domain::fixtures::{self, START};

/// The number of schedules in a normal test run.
const SCHEDULES: u64 = 100_000;

fn catch_panic(body: impl FnOnce()) -> Option<String> {
    let failed = catch_unwind(AssertUnwindSafe(body)).err()?;
    let text = failed.downcast_ref::<String>().cloned();
    Some(text.or_else(|| failed.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default())
}

/// Runs a seed. If it fails, runs it again with a trace of every step.
fn run(seed: u64) {
    let Some(failure) = catch_panic(|| Schedule::new(seed).run()) else { return };
    let traced = Schedule::new(seed).traced();
    let world = traced.world.clone();
    let _ = catch_panic(|| traced.run());
    let trace = world.borrow_mut().trace.take().unwrap_or_default();
    panic!("seed {seed}: {failure}\n{}", trace.join("\n"));
}

fn run_all(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        run(seed);
    }
}

/// Split in two halves that run in parallel.
#[test]
fn p1_p2_p6_p7_p8_every_schedule_settles_with_what_stripe_has_first_half() {
    run_all(0..SCHEDULES / 2);
}

#[test]
fn p1_p2_p6_p7_p8_every_schedule_settles_with_what_stripe_has_second_half() {
    run_all(SCHEDULES / 2..SCHEDULES);
}

/// The model must be able to take money through every payment path, or it would prove nothing.
#[test]
fn schedules_reach_every_state_and_payment_path() {
    let mut reached = std::collections::BTreeSet::new();
    for seed in 0..3_000 {
        let schedule = Schedule::new(seed);
        let world = schedule.world.clone();
        schedule.run();
        let world = world.borrow();
        for state in &world.reported_states {
            reached.insert(state.as_str().to_owned());
        }
        for attempt in &world.attempts {
            let kind = if attempt.link().is_some() { "link" } else { "confirm" };
            let is_paid = attempt.state == AttemptState::Succeeded;
            reached.insert(format!("{kind} {}", if is_paid { "paid" } else { "not paid" }));
            if attempt.state == AttemptState::Superseded {
                reached.insert("new key".to_owned());
            }
            if world.restores > 0 && is_paid {
                reached.insert("paid after a restore".to_owned());
            }
        }
        if world.payment.manual().is_some() {
            reached.insert("manual".to_owned());
        }
        let own = world.payment.provider_payment_intent_id.as_deref().map(index);
        if world.payment.state() == PaymentState::Succeeded
            && own.is_some_and(|own| world.stripe.intents[own].is_from_dashboard)
        {
            reached.insert("paid in dashboard".to_owned());
        }
        if world.notices.iter().any(|notice| matches!(notice, Notice::AmountChangeRefused { .. })) {
            reached.insert("amount change refused".to_owned());
        }
        let has_session = |status| world.stripe.sessions.iter().any(|session| session.status == status);
        if has_session(SessionStatus::Expired) {
            reached.insert("session expired".to_owned());
        }
        if world.stripe.intents.iter().any(|intent| intent.status == IntentStatus::Canceled) {
            reached.insert("intent canceled".to_owned());
        }
    }
    for wanted in [
        "pending",
        "processing",
        "requires_action",
        "succeeded",
        "failed",
        "canceled",
        "confirm paid",
        "link paid",
        "link not paid",
        "new key",
        "manual",
        "paid in dashboard",
        "amount change refused",
        "session expired",
        "intent canceled",
        "paid after a restore",
    ] {
        assert!(reached.contains(wanted), "{wanted} is never reached: {reached:?}");
    }
}

/// A link paid at an integration that is being disconnected would not be reported, so a link that is not handed out yet
/// never is.
#[test]
fn p1_a_link_not_yet_created_is_withdrawn_when_its_integration_is_disconnected() {
    let mut world = World::new(1);
    world.payment.state = State::Failed(Failure::default());
    let request = fixtures::request(Purpose::PaymentLink, 1, "", START);
    world.attempts.push(Attempt::new_link(&world.payment, request));
    world.payment.attempt_number = 1;
    for intent in [None, Some("pi_1".to_owned())] {
        world.payment.provider_payment_intent_id = intent;
        world.integration.state = IntegrationState::Active;
        assert!(matches!(world.plan(), Step::CreateLink | Step::CloseIntent));
        for state in [IntegrationState::Disconnecting, IntegrationState::Disconnected] {
            world.integration.state = state;
            assert_eq!(world.plan(), Step::Apply(Box::new(PaymentInput::Withdrawn)));
        }
    }
    world.apply(PaymentInput::Withdrawn);
    assert_eq!(
        world.payment.pending_operation,
        Some(PendingOperation::Cancel),
        "executed once its intent is closed, too"
    );
    world.payment.provider_payment_intent_id = None;
    world.apply(PaymentInput::Withdrawn);
    assert_eq!((world.payment.state(), world.newest().map(Attempt::is_open)), (PaymentState::Canceled, Some(false)));
}
