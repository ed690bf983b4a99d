//! Tests of the checks of payment methods and amount changes.

use super::*;
use crate::dev::chaos::checker::methods::UNSET;
use crate::dev::chaos::evidence::{CustomerRow, StripeCustomer};
use crate::dev::chaos::history::UnsetDefault;

const CUSTOMER: &str = "customer-1";

/// Appends an event to the log, received by every subscriber.
fn add_event(evidence: &mut Evidence, event: EventRow) {
    let position = i64::try_from(evidence.events.len()).unwrap() + 1;
    let event = EventRow { position, id: Uuid::from_u128(position.unsigned_abs().into()).to_string(), ..event };
    let seen = SeenEvent { id: event.id.parse().unwrap(), webhook_type: event.webhook_type.clone() };
    evidence.subscribers[0].events.insert(position, seen);
    evidence.heads.insert(ORG.to_owned(), position);
    evidence.events.push(event);
}

fn of_method(webhook_type: &str, method: &str) -> EventRow {
    EventRow { customer: CUSTOMER.to_owned(), method: method.to_owned(), ..event(0, webhook_type, "", "") }
}

fn failure(code: &str) -> EventRow {
    EventRow { customer: CUSTOMER.to_owned(), code: code.to_owned(), ..event(0, "invoice.payment_failure", "p2", "") }
}

/// Prepares consistent evidence, expects no violation, then changes it and expects a violation of a property.
#[track_caller]
fn expect_violation_after(row: &str, prepare: impl Fn(&mut Evidence), tamper: impl FnOnce(&mut Evidence)) {
    let mut evidence = consistent();
    prepare(&mut evidence);
    assert_eq!(violated(&evidence), [""; 0], "before the change");
    expect_violation(row, |it| {
        prepare(it);
        tamper(it);
    });
}

#[test]
fn a_refused_debit_with_an_active_mandate_is_found() {
    let row = "no debit with an active mandate is refused";
    let refused = |it: &mut Evidence| {
        let mandate = |id: &str, status: &str| BTreeMap::from([(id.to_owned(), status.to_owned())]);
        it.mandates.insert("pm_ended".to_owned(), mandate("mandate_1", "inactive"));
        it.mandates.insert("pm_active".to_owned(), mandate("mandate_2", "active"));
        add_event(it, of_method("payment_method.set_as_default", "pm_ended"));
        add_event(it, failure("mandate_missing"));
    };
    let set_to = |it: &mut Evidence, at: usize, method: &str| method.clone_into(&mut it.events[at].method);
    expect_violation_after(row, refused, |it| set_to(it, 4, "pm_active"));
    // A new mandate of the same account counts.
    expect_violation_after(row, refused, |it| {
        let of_method = it.mandates.get_mut("pm_ended").unwrap();
        of_method.insert("mandate_3".to_owned(), "active".to_owned());
    });
    // The default changed while the payment was decided: the previous one may be meant.
    let mut evidence = consistent();
    refused(&mut evidence);
    add_event(&mut evidence, of_method("payment_method.set_as_default", "pm_active"));
    add_event(&mut evidence, failure("mandate_missing"));
    assert_eq!(violated(&evidence), [""; 0]);
    add_event(&mut evidence, of_method("payment_method.set_as_default", "pm_active"));
    add_event(&mut evidence, failure("mandate_missing"));
    assert_eq!(violated(&evidence), [row]);
    // Nobody has a default: then no mandate is missing.
    expect_violation(row, |it| add_event(it, failure("mandate_missing")));
}

fn customer_with(default: &str, in_stripe: StripeCustomer) -> impl Fn(&mut Evidence) {
    move |it| {
        let (external_id, customer) = (CUSTOMER.to_owned(), "cus_1".to_owned());
        let organization = ORG.to_owned();
        it.stripe_customers.insert(customer.clone(), in_stripe.clone());
        it.customers.push(CustomerRow { organization, external_id, customer, default: default.to_owned() });
    }
}

fn source(source: &str) -> StripeCustomer {
    StripeCustomer { source: source.to_owned(), ..StripeCustomer::default() }
}

#[test]
fn a_displaced_imported_default_is_found() {
    let row = "an imported default is charged and kept";
    let imported = |it: &mut Evidence| {
        customer_with("card_1", source("card_1"))(it);
        it.external.unchosen_methods.insert("pm_new".to_owned(), "cus_1".to_owned());
        it.became_default.insert(("cus_1".to_owned(), String::new()));
        it.charged_methods.insert("ch_1".to_owned(), "card_1".to_owned());
    };
    let charged = |it: &mut Evidence, charge: &str| it.charged_methods.insert(charge.to_owned(), "pm_new".to_owned());
    expect_violation_after(row, imported, |it| _ = charged(it, "ch_1"));
    // A declined attempt counts, too.
    expect_violation_after(row, imported, |it| _ = charged(it, "ch_3"));
    expect_violation_after(row, imported, |it| _ = it.became_default.insert(("cus_1".to_owned(), "pm_new".to_owned())));
    expect_violation_after(row, imported, |it| {
        it.stripe_customers.get_mut("cus_1").unwrap().chosen = "pm_new".to_owned();
    });
    expect_violation_after(row, imported, |it| it.customers[0].default = "pm_new".to_owned());
}

#[test]
fn a_default_that_differs_from_stripe_is_found() {
    let row = "every default matches Stripe";
    expect_violation_after(row, customer_with("card_1", source("card_1")), |it| it.customers[0].default.clear());
    let both = StripeCustomer { chosen: "pm_1".to_owned(), source: "card_1".to_owned() };
    expect_violation_after(row, customer_with("pm_1", both), |it| it.customers[0].default = "card_1".to_owned());
    expect_violation_after(row, customer_with("", StripeCustomer::default()), |it| {
        it.customers[0].default = "pm_1".to_owned();
    });
    // An unlinked customer has no default in Stripe.
    let mut evidence = consistent();
    evidence.customers.push(CustomerRow { organization: ORG.to_owned(), ..CustomerRow::default() });
    assert_eq!(violated(&evidence), [""; 0]);
}

/// A default was unset, which was reported at 100. The invoice paid with its method at 50 had been submitted before.
fn unset(it: &mut Evidence) {
    customer_with("", StripeCustomer::default())(it);
    let unset = UnsetDefault {
        customer: "cus_1".to_owned(),
        method: "pm_old".to_owned(),
        reported_at: Some(100),
        ..UnsetDefault::default()
    };
    it.external.unset_defaults.insert((0, CUSTOMER.to_owned()), unset);
    add_event(it, of_method(UNSET, "pm_old"));
    it.charged_methods.insert("ch_1".to_owned(), "pm_old".to_owned());
    charged_at(it, 50, 50);
}

/// The times at which the paid invoice was submitted and charged.
fn charged_at(it: &mut Evidence, submitted_at: i64, charged: i64) {
    it.invoices.get_mut(&(0, "inv-1".to_owned())).unwrap().submitted_at = submitted_at;
    it.charges[0].created = charged;
}

#[test]
fn a_charge_to_an_unset_default_is_found() {
    let row = "an unset default is not charged";
    let whose = (0, CUSTOMER.to_owned());
    expect_violation_after(row, unset, |it| charged_at(it, 110, 120));
    // What was in progress continues. A charge to another method, or earlier, or after it was chosen again, is fine.
    for (submitted_at, charged) in [(90, 120), (100, 120)] {
        let mut evidence = consistent();
        unset(&mut evidence);
        charged_at(&mut evidence, submitted_at, charged);
        assert_eq!(violated(&evidence), [""; 0], "{submitted_at} {charged}");
    }
    let mut evidence = consistent();
    unset(&mut evidence);
    charged_at(&mut evidence, 110, 120);
    evidence.external.unset_defaults.get_mut(&whose).unwrap().chosen_again_at = Some(120);
    assert_eq!(violated(&evidence), [""; 0]);
    evidence.external.unset_defaults.get_mut(&whose).unwrap().chosen_again_at = Some(121);
    assert_eq!(violated(&evidence), [row]);
    // It was never reported, although it stayed unset.
    expect_violation_after(row, unset, |it| {
        it.events.last_mut().unwrap().webhook_type = "payment_method.created".to_owned();
    });
    let mut evidence = consistent();
    unset(&mut evidence);
    evidence.events.last_mut().unwrap().webhook_type = "payment_method.created".to_owned();
    evidence.subscribers[0].events.last_entry().unwrap().get_mut().webhook_type = "payment_method.created".to_owned();
    // It was chosen again before anybody could notice.
    evidence.external.unset_defaults.get_mut(&whose).unwrap().chosen_again_at = Some(99);
    assert_eq!(violated(&evidence), [""; 0]);
}

/// The first invoice was changed to `wanted` while a session over 500 was open, which was paid.
fn changed_to(wanted: i64) -> impl Fn(&mut Evidence) {
    move |it| {
        let record = it.invoices.get_mut(&(0, "inv-1".to_owned())).unwrap();
        record.amounts.insert(wanted);
        record.acknowledged_changes.push(wanted);
        record.had_open_session = true;
        if wanted == 500 {
            return;
        }
        add_event(it, EventRow { requested: wanted, ..event(0, "payment.amount_change_refused", "p1", "pi_1") });
        let (kind, amount) = if wanted < 500 { ("payment.overpaid", 500 - wanted) } else { ("payment.underpaid", 500) };
        add_event(it, EventRow { amount, ..event(0, kind, "p1", "pi_1") });
    }
}

#[test]
fn p12_an_unreported_late_amount_change_is_found() {
    let row = "an amount change is applied, or its refusal is reported";
    let remove_report = |it: &mut Evidence, nth_last: usize| {
        let at = it.events.len() - nth_last;
        it.events[at].webhook_type = "payment.processing".to_owned();
    };
    for wanted in [300, 600] {
        expect_violation_after(row, changed_to(wanted), |it| remove_report(it, 1));
        expect_violation_after(row, changed_to(wanted), |it| remove_report(it, 2));
        expect_violation_after(row, changed_to(wanted), |it| it.events.last_mut().unwrap().amount += 1);
        expect_violation_after(row, changed_to(wanted), |it| {
            let refused = it.events.len() - 2;
            it.events[refused].requested += 1;
        });
    }
    // The debit that could not be canceled has failed, and another one collected the old amount: the change was
    // forgotten.
    let mut evidence = consistent();
    changed_to(600)(&mut evidence);
    let succeeded = evidence.events.remove(0);
    evidence.events.retain(|event| event.webhook_type != "payment.underpaid");
    evidence.events.push(event(0, "invoice.payment_failure", "p1", ""));
    evidence.events.push(succeeded);
    assert!(!violated(&evidence).contains(&row));
    evidence.events.retain(|event| event.webhook_type != "invoice.payment_failure");
    assert!(violated(&evidence).contains(&row));
    // The new amount was collected: nothing is reported. Several changes are skipped.
    expect_violation_after(row, changed_to(500), |it| it.charges[0].amount = 501);
    let mut evidence = consistent();
    let record = evidence.invoices.get_mut(&(0, "inv-1".to_owned())).unwrap();
    record.acknowledged_changes.extend([300, 500]);
    assert_eq!(violated(&evidence), [""; 0]);
    // A surplus by the payment's own intent without an amount change is a violation.
    expect_violation("overpayments come from the Dashboard, are recorded and reported", |it| {
        add_event(it, EventRow { amount: 200, ..event(0, "payment.overpaid", "p1", "pi_1") });
    });
    // It was reported twice.
    expect_violation_after("overpayments come from the Dashboard, are recorded and reported", changed_to(300), |it| {
        add_event(it, EventRow { amount: 200, ..event(0, "payment.overpaid", "p1", "pi_1") });
    });
}
