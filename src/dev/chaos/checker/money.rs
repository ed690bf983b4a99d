//! Money: the sandbox's ledger against Paybridge's records.

use std::collections::{BTreeMap, BTreeSet};

use super::result::{CheckResult, by_id, describe, tenant_of};
use crate::dev::chaos::evidence::{EventRow, Evidence, Intent, OverpaymentRow, PaymentRow};
use crate::dev::sandbox::LedgerEntry;

fn metadata<'a>(charge: &'a LedgerEntry, name: &str) -> &'a str {
    charge.metadata.get(name).map_or("", String::as_str)
}

/// Charges that took money, or may still. Later refunds make no difference.
fn live_charges(evidence: &Evidence) -> impl Iterator<Item = &LedgerEntry> {
    let took = |charge: &&LedgerEntry| charge.status != "failed";
    evidence.charges.iter().filter(took).filter(|charge| !metadata(charge, "invoice_id").is_empty())
}

/// Paybridge charges no invoice twice. Payments made in the Dashboard are checked by `overpayments`.
pub(super) fn charged_once(evidence: &Evidence) -> CheckResult {
    let mut charges: BTreeMap<(&str, &str), Vec<&LedgerEntry>> = BTreeMap::new();
    for charge in
        live_charges(evidence).filter(|charge| !evidence.external.dashboard_intents.contains(&charge.payment_intent))
    {
        charges.entry((&charge.account, metadata(charge, "invoice_id"))).or_default().push(charge);
    }
    let violations = charges.iter().filter(|(_, charges)| charges.len() > 1).map(|((account, invoice), charges)| {
        let shown = charges.iter().map(|charge| {
            format!("{} on {} of {} ({})", charge.charge, charge.payment_intent, charge.amount, charge.status)
        });
        let shown = shown.collect::<Vec<_>>().join(", ");
        format!("invoice {invoice} of {} was charged {} times: {shown}", tenant_of(evidence, account), charges.len())
    });
    let violations = violations.collect();
    let checked = format!("{} invoices charged", charges.len());
    CheckResult { property: "no invoice is charged twice", checked, violations }
}

/// The amount charged for a payment is the amount recorded as received.
pub(super) fn recorded(evidence: &Evidence) -> CheckResult {
    let mut charged: BTreeMap<&str, i64> = BTreeMap::new();
    let payments = by_id(evidence);
    let mut violations = Vec::new();
    for charge in evidence.charges.iter().filter(|charge| charge.status == "succeeded") {
        let payment = metadata(charge, "payment_id");
        if payment.is_empty() {
            continue;
        }
        *charged.entry(payment).or_default() += charge.amount;
        if !payments.contains_key(payment) {
            let LedgerEntry { charge, payment_intent, amount, .. } = charge;
            violations.push(format!("{charge} on {payment_intent} took {amount} for {payment}, which does not exist"));
        }
    }
    let (mut taken, mut received) = (0, 0);
    for payment in &evidence.payments {
        let charged = charged.get(payment.id.as_str()).copied().unwrap_or_default();
        taken += charged;
        received += payment.received;
        if charged != payment.received {
            violations.push(format!("{}: {charged} was charged, {} is recorded", describe(payment), payment.received));
        }
    }
    CheckResult {
        property: "the sum charged is the sum recorded",
        checked: format!("{taken} and {received}"),
        violations,
    }
}

/// Money collected by another intent than a payment's own was taken in the Dashboard, is recorded, and was reported
/// once. So was money that Stripe took although a manual payment was recorded, and what a session collected too much or
/// too little because the amount was changed too late.
pub(super) fn overpayments(evidence: &Evidence) -> CheckResult {
    let recorded: BTreeSet<&str> = evidence.overpayments.iter().map(|row| row.intent.as_str()).collect();
    let mut reported: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let is_report = |event: &&EventRow| matches!(event.webhook_type.as_str(), "payment.overpaid" | "payment.underpaid");
    for event in evidence.events.iter().filter(is_report) {
        *reported.entry((&event.payment, &event.intent)).or_default() += 1;
    }
    let mut violations = Vec::new();
    let payments = by_id(evidence);
    for intent in &evidence.external.dashboard_intents {
        let took = evidence.intents.get(intent).is_some_and(|intent| intent.status == "succeeded");
        let is_adopted = evidence.payments.iter().any(|payment| adopted_from_dashboard(evidence, payment, intent));
        if took && !recorded.contains(intent.as_str()) && !is_adopted {
            violations.push(format!("{intent}, created in the Dashboard, took money, which is not recorded"));
        }
    }
    for row in &evidence.overpayments {
        let count = reported.remove(&(row.payment.as_str(), row.intent.as_str())).unwrap_or_default();
        // One that settled its payment is reported only if it was not the amount due.
        let payment = payments.get(row.payment.as_str());
        let settled = payment.is_some_and(|payment| payment.intent == row.intent);
        let is_beside_adopted =
            payment.is_some_and(|payment| adopted_from_dashboard(evidence, payment, &payment.intent));
        if count != 1 && !(settled && count == 0) {
            violations
                .push(format!("the overpayment {} of payment {} was reported {count} times", row.intent, row.payment));
        }
        let is_explained = evidence.external.dashboard_intents.contains(&row.intent)
            || is_beside_adopted
            || (settled && replaced_duplicate(evidence, row));
        if !is_explained {
            violations.push(format!(
                "{} took money twice for payment {}, and was not created in the Dashboard",
                row.intent, row.payment
            ));
        }
    }
    let own = |payment: &str, intent: &Intent| intent.payment == payment && intent.status == "succeeded";
    for payment in evidence.payments.iter().filter(|payment| payment.is_manual) {
        let dashboard_intents = &evidence.external.dashboard_intents;
        let took =
            evidence.intents.iter().find(|(id, intent)| own(&payment.id, intent) && !dashboard_intents.contains(*id));
        let wanted = usize::from(took.is_some());
        let count: usize = reported.iter().filter(|((of, _), _)| *of == payment.id).map(|(_, count)| count).sum();
        reported.retain(|(of, _), _| *of != payment.id);
        if count != wanted {
            let took = took.map_or("nothing", |(id, _)| id.as_str());
            violations.push(format!("{}: {took} took money, too, which was reported {count} times", describe(payment)));
        }
    }
    let with_old_amount = reported.len();
    reported.retain(|(payment, intent), count| {
        let is_own = evidence.intents.get(*intent).is_some_and(|known| own(payment, known));
        let payment = payments.get(payment).filter(|_| is_own && *count == 1);
        !payment.is_some_and(|payment| paid_old_amount(evidence, payment, intent))
    });
    let with_old_amount = with_old_amount - reported.len();
    violations.extend(reported.iter().map(|((payment, intent), count)| {
        format!("an over- or underpayment of {payment} by {intent:?} was reported {count} times, and is not recorded")
    }));
    let checked =
        format!("{} overpayments, {with_old_amount} with the amount before a change", evidence.overpayments.len());
    CheckResult { property: "overpayments come from the Dashboard, are recorded and reported", checked, violations }
}

/// Whether a payment has taken an intent that was paid in the Dashboard, and bears our metadata, for its own. A database
/// that was restored cannot tell them apart. What our own intent collected is then the overpayment.
fn adopted_from_dashboard(evidence: &Evidence, payment: &PaymentRow, intent: &str) -> bool {
    !evidence.lost_periods.is_empty()
        && payment.intent == intent
        && payment.state == "succeeded"
        && evidence.external.dashboard_intents.contains(intent)
}

/// Whether another intent of ours for the payment was canceled in favor of the row's. After a restore of the database two
/// are found if Stripe had stored a 500 for the first one's creation: the one that is listed first is the payment's own,
/// until the other one turns out to be paid.
fn replaced_duplicate(evidence: &Evidence, row: &OverpaymentRow) -> bool {
    evidence.intents.iter().any(|(id, intent)| {
        *id != row.intent
            && intent.payment == row.payment
            && intent.status == "canceled"
            && !evidence.external.dashboard_intents.contains(id)
    })
}

/// Whether a payment's own intent collected more or less than the amount requested by then, and that was reported: the
/// surplus, or all that was collected.
fn paid_old_amount(evidence: &Evidence, payment: &PaymentRow, intent: &str) -> bool {
    let is_own = |charge: &&LedgerEntry| charge.payment_intent == intent && charge.status == "succeeded";
    let took: i64 = evidence.charges.iter().filter(is_own).map(|charge| charge.amount).sum();
    let mut invoices = evidence.invoices.values().filter(|record| record.payments.contains(&payment.id));
    let is_reported = |wanted: i64| {
        let (kind, amount) =
            if took > wanted { ("payment.overpaid", took - wanted) } else { ("payment.underpaid", took) };
        let mut events = evidence.events.iter().filter(|event| event.payment == payment.id);
        events.any(|event| event.webhook_type == kind && event.amount == amount)
    };
    invoices.any(|record| record.amounts.iter().any(|wanted| *wanted != took && is_reported(*wanted)))
}
