//! Money: what the sandbox's ledger holds against what Paybridge has written down.

use std::collections::{BTreeMap, BTreeSet};

use super::{Verdict, by_id, named, tenant_of};
use crate::dev::chaos::evidence::{EventRow, Evidence, Intent, PaymentRow};
use crate::dev::sandbox::LedgerEntry;

fn mark<'a>(charge: &'a LedgerEntry, name: &str) -> &'a str {
    charge.metadata.get(name).map_or("", String::as_str)
}

/// Charges that took money, or are about to. That some was given back later makes no difference.
fn live(evidence: &Evidence) -> impl Iterator<Item = &LedgerEntry> {
    let took = |charge: &&LedgerEntry| charge.status != "failed";
    evidence.charges.iter().filter(took).filter(|charge| !mark(charge, "invoice_id").is_empty())
}

/// No invoice is charged twice by us. What people take by hand beside it is theirs, and another row's matter.
pub(super) fn charged_once(evidence: &Evidence) -> Verdict {
    let mut charges: BTreeMap<(&str, &str), Vec<&LedgerEntry>> = BTreeMap::new();
    for charge in live(evidence).filter(|charge| !evidence.outside.beside.contains(&charge.payment_intent)) {
        charges.entry((&charge.account, mark(charge, "invoice_id"))).or_default().push(charge);
    }
    let breaches = charges.iter().filter(|(_, charges)| charges.len() > 1).map(|((account, invoice), charges)| {
        let shown = charges.iter().map(|charge| {
            format!("{} on {} of {} ({})", charge.charge, charge.payment_intent, charge.amount, charge.status)
        });
        let shown = shown.collect::<Vec<_>>().join(", ");
        format!("invoice {invoice} of {} was charged {} times: {shown}", tenant_of(evidence, account), charges.len())
    });
    let breaches = breaches.collect();
    let looked_at = format!("{} invoices charged", charges.len());
    Verdict { what: "no invoice is charged twice", looked_at, breaches }
}

/// What was charged for a payment is what is written down as received.
pub(super) fn recorded(evidence: &Evidence) -> Verdict {
    let mut charged: BTreeMap<&str, i64> = BTreeMap::new();
    let payments = by_id(evidence);
    let mut breaches = Vec::new();
    for charge in evidence.charges.iter().filter(|charge| charge.status == "succeeded") {
        let payment = mark(charge, "payment_id");
        if payment.is_empty() {
            continue;
        }
        *charged.entry(payment).or_default() += charge.amount;
        if !payments.contains_key(payment) {
            let LedgerEntry { charge, payment_intent, amount, .. } = charge;
            breaches.push(format!("{charge} on {payment_intent} took {amount} for {payment}, which is not there"));
        }
    }
    let (mut taken, mut received) = (0, 0);
    for payment in &evidence.payments {
        let charged = charged.get(payment.id.as_str()).copied().unwrap_or_default();
        taken += charged;
        received += payment.received;
        if charged != payment.received {
            breaches.push(format!("{}: {charged} was charged, {} is recorded", named(payment), payment.received));
        }
    }
    Verdict { what: "the sum charged is the sum recorded", looked_at: format!("{taken} and {received}"), breaches }
}

/// Money that came in beside a payment's own intent was people's doing, is recorded, and was told of once. So was money
/// that Stripe took although somebody had recorded that it was paid elsewhere, and what a page took too much or too little
/// because the amount was changed too late.
pub(super) fn overpayments(evidence: &Evidence) -> Verdict {
    let recorded: BTreeSet<&str> = evidence.overpayments.iter().map(|row| row.intent.as_str()).collect();
    let mut told: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let is_told = |event: &&EventRow| matches!(event.webhook_type.as_str(), "payment.overpaid" | "payment.underpaid");
    for event in evidence.events.iter().filter(is_told) {
        *told.entry((&event.payment, &event.intent)).or_default() += 1;
    }
    let mut breaches = Vec::new();
    for intent in &evidence.outside.beside {
        let took = evidence.intents.get(intent).is_some_and(|intent| intent.status == "succeeded");
        if took && !recorded.contains(intent.as_str()) {
            breaches.push(format!("{intent}, made by hand, took money, and nothing was recorded"));
        }
    }
    for row in &evidence.overpayments {
        let count = told.remove(&(row.payment.as_str(), row.intent.as_str())).unwrap_or_default();
        // What has settled its payment is told only if it was not just what was due.
        let settled = evidence.payments.iter().any(|payment| payment.id == row.payment && payment.intent == row.intent);
        if count != 1 && !(settled && count == 0) {
            breaches.push(format!("the overpayment {} of payment {} was told {count} times", row.intent, row.payment));
        }
        if !evidence.outside.beside.contains(&row.intent) {
            breaches.push(format!(
                "{} took money twice for payment {}, and nobody did it by hand",
                row.intent, row.payment
            ));
        }
    }
    let own = |payment: &str, intent: &Intent| intent.payment == payment && intent.status == "succeeded";
    for payment in evidence.payments.iter().filter(|payment| payment.is_manual) {
        let beside = &evidence.outside.beside;
        let took = evidence.intents.iter().find(|(id, intent)| own(&payment.id, intent) && !beside.contains(*id));
        let wanted = usize::from(took.is_some());
        let count: usize = told.iter().filter(|((of, _), _)| *of == payment.id).map(|(_, count)| count).sum();
        told.retain(|(of, _), _| *of != payment.id);
        if count != wanted {
            let took = took.map_or("nothing", |(id, _)| id.as_str());
            breaches.push(format!("{}: {took} took money, too, which was told {count} times", named(payment)));
        }
    }
    let payments = by_id(evidence);
    let on_old_page = told.len();
    told.retain(|(payment, intent), count| {
        let is_own = evidence.intents.get(*intent).is_some_and(|known| own(payment, known));
        let payment = payments.get(payment).filter(|_| is_own && *count == 1);
        !payment.is_some_and(|payment| paid_old_amount(evidence, payment, intent))
    });
    let on_old_page = on_old_page - told.len();
    breaches.extend(told.iter().map(|((payment, intent), count)| {
        format!("an over- or underpayment of {payment} by {intent:?} was told {count} times, and is not recorded")
    }));
    let looked_at =
        format!("{} overpayments, {on_old_page} by the amount before a change", evidence.overpayments.len());
    Verdict { what: "overpayments are people's, recorded and told", looked_at, breaches }
}

/// Whether an own intent of a payment took more or less than somebody wanted it to be by then, and that was reported: the
/// surplus, or all that came in.
fn paid_old_amount(evidence: &Evidence, payment: &PaymentRow, intent: &str) -> bool {
    let is_own = |charge: &&LedgerEntry| charge.payment_intent == intent && charge.status == "succeeded";
    let took: i64 = evidence.charges.iter().filter(is_own).map(|charge| charge.amount).sum();
    let mut invoices = evidence.invoices.values().filter(|told| told.payments.contains(&payment.id));
    let is_reported = |wanted: i64| {
        let (kind, amount) =
            if took > wanted { ("payment.overpaid", took - wanted) } else { ("payment.underpaid", took) };
        let mut events = evidence.events.iter().filter(|event| event.payment == payment.id);
        events.any(|event| event.webhook_type == kind && event.amount == amount)
    };
    invoices.any(|told| told.amounts.iter().any(|wanted| *wanted != took && is_reported(*wanted)))
}
