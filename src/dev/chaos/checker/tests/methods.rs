//! Forged evidence about payment methods and amounts.

use super::*;
use crate::dev::chaos::book::Unset;
use crate::dev::chaos::checker::methods::UNSET;
use crate::dev::chaos::evidence::{CustomerRow, StripeCustomer};

const CUSTOMER: &str = "customer-1";

/// One more event at the log's end, which every subscriber has seen.
fn add_event(evidence: &mut Evidence, event: EventRow) {
    let position = i64::try_from(evidence.events.len()).unwrap() + 1;
    let event = EventRow { position, id: Uuid::from_u128(position.unsigned_abs().into()).to_string(), ..event };
    let seen = Seen { id: event.id.parse().unwrap(), webhook_type: event.webhook_type.clone() };
    evidence.readers[0].seen.insert(position, seen);
    evidence.heads.insert(ORG.to_owned(), position);
    evidence.events.push(event);
}

fn of_method(webhook_type: &str, method: &str) -> EventRow {
    EventRow { customer: CUSTOMER.to_owned(), method: method.to_owned(), ..event(0, webhook_type, "", "") }
}

fn failure(code: &str) -> EventRow {
    EventRow { customer: CUSTOMER.to_owned(), code: code.to_owned(), ..event(0, "invoice.payment_failure", "p2", "") }
}

/// Doctors an honest book with both, and expects no breach from the first one alone.
#[track_caller]
fn expect_between(row: &str, honest_too: impl Fn(&mut Evidence), doctor: impl FnOnce(&mut Evidence)) {
    let mut evidence = honest();
    honest_too(&mut evidence);
    assert_eq!(broken(&evidence), [""; 0], "before it was doctored");
    expect(row, |it| {
        honest_too(it);
        doctor(it);
    });
}

#[test]
fn a_debit_that_was_refused_though_its_mandate_is_active_is_found() {
    let row = "no debit is refused whose mandate is active";
    let refused = |it: &mut Evidence| {
        let mandate = |id: &str, status: &str| BTreeMap::from([(id.to_owned(), status.to_owned())]);
        it.mandates.insert("pm_ended".to_owned(), mandate("mandate_1", "inactive"));
        it.mandates.insert("pm_active".to_owned(), mandate("mandate_2", "active"));
        add_event(it, of_method("payment_method.set_as_default", "pm_ended"));
        add_event(it, failure("mandate_missing"));
    };
    let set_to = |it: &mut Evidence, at: usize, method: &str| method.clone_into(&mut it.events[at].method);
    expect_between(row, refused, |it| set_to(it, 4, "pm_active"));
    // A new mandate of the same account counts.
    expect_between(row, refused, |it| {
        let of_method = it.mandates.get_mut("pm_ended").unwrap();
        of_method.insert("mandate_3".to_owned(), "active".to_owned());
    });
    // The default changed while the payment was decided: the one before may be meant.
    let mut evidence = honest();
    refused(&mut evidence);
    add_event(&mut evidence, of_method("payment_method.set_as_default", "pm_active"));
    add_event(&mut evidence, failure("mandate_missing"));
    assert_eq!(broken(&evidence), [""; 0]);
    add_event(&mut evidence, of_method("payment_method.set_as_default", "pm_active"));
    add_event(&mut evidence, failure("mandate_missing"));
    assert_eq!(broken(&evidence), [row]);
    // Nobody has a default: then no mandate is missing.
    expect(row, |it| add_event(it, failure("mandate_missing")));
}

fn customer_with(default: &str, at_stripe: StripeCustomer) -> impl Fn(&mut Evidence) {
    move |it| {
        let (external_id, customer) = (CUSTOMER.to_owned(), "cus_1".to_owned());
        let organization = ORG.to_owned();
        it.stripe_customers.insert(customer.clone(), at_stripe.clone());
        it.customers.push(CustomerRow { organization, external_id, customer, default: default.to_owned() });
    }
}

fn source(source: &str) -> StripeCustomer {
    StripeCustomer { source: source.to_owned(), ..StripeCustomer::default() }
}

#[test]
fn an_imported_default_that_was_displaced_is_found() {
    let row = "an imported default is charged, and kept";
    let imported = |it: &mut Evidence| {
        customer_with("card_1", source("card_1"))(it);
        it.outside.unchosen.insert("pm_new".to_owned(), "cus_1".to_owned());
        it.became_default.insert(("cus_1".to_owned(), String::new()));
        it.charged_methods.insert("ch_1".to_owned(), "card_1".to_owned());
    };
    let charged = |it: &mut Evidence, charge: &str| it.charged_methods.insert(charge.to_owned(), "pm_new".to_owned());
    expect_between(row, imported, |it| _ = charged(it, "ch_1"));
    // A try that was refused was one all the same.
    expect_between(row, imported, |it| _ = charged(it, "ch_3"));
    expect_between(row, imported, |it| _ = it.became_default.insert(("cus_1".to_owned(), "pm_new".to_owned())));
    expect_between(row, imported, |it| it.stripe_customers.get_mut("cus_1").unwrap().chosen = "pm_new".to_owned());
    expect_between(row, imported, |it| it.customers[0].default = "pm_new".to_owned());
}

#[test]
fn a_default_that_is_not_stripes_is_found() {
    let row = "every default is Stripe's";
    expect_between(row, customer_with("card_1", source("card_1")), |it| it.customers[0].default.clear());
    let both = StripeCustomer { chosen: "pm_1".to_owned(), source: "card_1".to_owned() };
    expect_between(row, customer_with("pm_1", both), |it| it.customers[0].default = "card_1".to_owned());
    expect_between(row, customer_with("", StripeCustomer::default()), |it| it.customers[0].default = "pm_1".to_owned());
    // One that is not linked has none at Stripe.
    let mut evidence = honest();
    evidence.customers.push(CustomerRow { organization: ORG.to_owned(), ..CustomerRow::default() });
    assert_eq!(broken(&evidence), [""; 0]);
}

/// A default was unset, which was heard at 100; the invoice that was paid by its method at 50 was given in before.
fn unset(it: &mut Evidence) {
    customer_with("", StripeCustomer::default())(it);
    let unset =
        Unset { customer: "cus_1".to_owned(), method: "pm_old".to_owned(), heard: Some(100), ..Unset::default() };
    it.outside.unset.insert((0, CUSTOMER.to_owned()), unset);
    add_event(it, of_method(UNSET, "pm_old"));
    it.charged_methods.insert("ch_1".to_owned(), "pm_old".to_owned());
    charged_at(it, 50, 50);
}

/// The paid invoice was given in, and charged, at these times.
fn charged_at(it: &mut Evidence, given_in: i64, charged: i64) {
    it.invoices.get_mut(&(0, "inv-1".to_owned())).unwrap().given_in = given_in;
    it.charges[0].created = charged;
}

#[test]
fn a_charge_to_a_default_that_was_unset_is_found() {
    let row = "a default that was unset is not charged";
    let whose = (0, CUSTOMER.to_owned());
    expect_between(row, unset, |it| charged_at(it, 110, 120));
    // What was under way goes on, and what is charged to another method, or before, or after it was chosen again, is well.
    for (given_in, charged) in [(90, 120), (100, 120)] {
        let mut evidence = honest();
        unset(&mut evidence);
        charged_at(&mut evidence, given_in, charged);
        assert_eq!(broken(&evidence), [""; 0], "{given_in} {charged}");
    }
    let mut evidence = honest();
    unset(&mut evidence);
    charged_at(&mut evidence, 110, 120);
    evidence.outside.unset.get_mut(&whose).unwrap().until = Some(120);
    assert_eq!(broken(&evidence), [""; 0]);
    evidence.outside.unset.get_mut(&whose).unwrap().until = Some(121);
    assert_eq!(broken(&evidence), [row]);
    // It was never reported, although it stayed unset.
    expect_between(row, unset, |it| it.events.last_mut().unwrap().webhook_type = "payment_method.created".to_owned());
    let mut evidence = honest();
    unset(&mut evidence);
    evidence.events.last_mut().unwrap().webhook_type = "payment_method.created".to_owned();
    evidence.readers[0].seen.last_entry().unwrap().get_mut().webhook_type = "payment_method.created".to_owned();
    // It was chosen again before anybody could notice.
    evidence.outside.unset.get_mut(&whose).unwrap().until = Some(99);
    assert_eq!(broken(&evidence), [""; 0]);
}

/// The first invoice was changed to `wanted` while a page of 500 was open, which was paid.
fn changed_to(wanted: i64) -> impl Fn(&mut Evidence) {
    move |it| {
        let told = it.invoices.get_mut(&(0, "inv-1".to_owned())).unwrap();
        told.amounts.insert(wanted);
        told.changes.push(wanted);
        told.had_page = true;
        if wanted == 500 {
            return;
        }
        add_event(it, EventRow { requested: wanted, ..event(0, "payment.amount_change_refused", "p1", "pi_1") });
        let (kind, amount) = if wanted < 500 { ("payment.overpaid", 500 - wanted) } else { ("payment.underpaid", 500) };
        add_event(it, EventRow { amount, ..event(0, kind, "p1", "pi_1") });
    }
}

#[test]
fn p12_a_change_that_came_too_late_and_was_not_reported_is_found() {
    let row = "a change of the amount holds, or is refused aloud";
    let unsaid = |it: &mut Evidence, nth_last: usize| {
        let at = it.events.len() - nth_last;
        it.events[at].webhook_type = "payment.processing".to_owned();
    };
    for wanted in [300, 600] {
        expect_between(row, changed_to(wanted), |it| unsaid(it, 1));
        expect_between(row, changed_to(wanted), |it| unsaid(it, 2));
        expect_between(row, changed_to(wanted), |it| it.events.last_mut().unwrap().amount += 1);
        expect_between(row, changed_to(wanted), |it| {
            let refused = it.events.len() - 2;
            it.events[refused].requested += 1;
        });
    }
    // The debit that could not be closed has failed, and another one took the old amount: the change was forgotten.
    let mut evidence = honest();
    changed_to(600)(&mut evidence);
    let succeeded = evidence.events.remove(0);
    evidence.events.retain(|event| event.webhook_type != "payment.underpaid");
    evidence.events.push(event(0, "invoice.payment_failure", "p1", ""));
    evidence.events.push(succeeded);
    assert!(!broken(&evidence).contains(&row));
    evidence.events.retain(|event| event.webhook_type != "invoice.payment_failure");
    assert!(broken(&evidence).contains(&row));
    // The new amount was taken: nothing is to be said. Several changes are left out.
    expect_between(row, changed_to(500), |it| it.charges[0].amount = 501);
    let mut evidence = honest();
    let told = evidence.invoices.get_mut(&(0, "inv-1".to_owned())).unwrap();
    told.changes.extend([300, 500]);
    assert_eq!(broken(&evidence), [""; 0]);
    // Money that came in by the own intent beyond what was due, and that nobody wanted changed, is no such thing.
    expect("overpayments are people's, recorded and told", |it| {
        add_event(it, EventRow { amount: 200, ..event(0, "payment.overpaid", "p1", "pi_1") });
    });
    // It was reported twice.
    expect_between("overpayments are people's, recorded and told", changed_to(300), |it| {
        add_event(it, EventRow { amount: 200, ..event(0, "payment.overpaid", "p1", "pi_1") });
    });
}
