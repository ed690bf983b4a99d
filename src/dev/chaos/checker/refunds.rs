//! Refunds and disputes: Stripe's records against what Paybridge stored, acknowledged and reported.

use std::collections::{BTreeMap, BTreeSet};

use super::result::{CheckResult, describe};
use crate::dev::chaos::evidence::{Evidence, StripeRefund};

/// The payment of each charge.
fn payment_of(evidence: &Evidence) -> BTreeMap<&str, &str> {
    let payments = evidence.charges.iter().filter_map(|charge| {
        charge.metadata.get("payment_id").map(|payment| (charge.charge.as_str(), payment.as_str()))
    });
    payments.collect()
}

/// The refunds in Stripe by a text that identifies them, if they have it.
fn refunds_by<'a>(
    evidence: &'a Evidence,
    text: impl Fn(&'a StripeRefund) -> &'a str,
) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for refund in evidence.stripe_refunds.iter().filter(|refund| !text(refund).is_empty()) {
        found.entry(text(refund)).or_default().push(&refund.id);
    }
    found
}

fn made_twice(refunds: &BTreeMap<&str, Vec<&str>>, what: &str) -> Vec<String> {
    let twice = refunds.iter().filter(|(_, ids)| ids.len() > 1);
    twice.map(|(name, ids)| format!("the {what} {name} was made {} times: {}", ids.len(), ids.join(", "))).collect()
}

/// Every acknowledged refund exists in Stripe once, or has failed for a reason; every refund in Stripe is stored as it
/// is there, and reported; and the stored sum of each payment is the sum refunded.
pub(super) fn refunds(evidence: &Evidence) -> CheckResult {
    let by_refund_id = refunds_by(evidence, |refund| &refund.refund_id);
    let mut violations = made_twice(&by_refund_id, "refund");
    violations.extend(made_twice(&refunds_by(evidence, |refund| &refund.request), "refund request"));
    let known: BTreeSet<&str> = evidence.refunds.iter().map(|row| row.id.as_str()).collect();
    let lost = evidence.external.refunds.iter().filter(|id| !known.contains(id.as_str()));
    violations.extend(lost.map(|id| format!("the refund {id} was acknowledged and does not exist")));

    let reported: BTreeSet<(&str, &str)> = evidence
        .events
        .iter()
        .filter(|event| event.webhook_type == "payment.refund_updated")
        .map(|event| (event.refund.as_str(), event.status.as_str()))
        .collect();
    let in_stripe: BTreeMap<&str, &StripeRefund> =
        evidence.stripe_refunds.iter().map(|refund| (refund.id.as_str(), refund)).collect();
    for row in &evidence.refunds {
        let about = format!("the refund {} ({}) of payment {}", row.id, row.refund, row.payment);
        match in_stripe.get(row.refund.as_str()) {
            Some(refund) if refund.status == row.status && refund.amount == row.amount => {}
            Some(StripeRefund { status, amount, .. }) => violations
                .push(format!("{about} is {} over {}, and {status} over {amount} in Stripe", row.status, row.amount)),
            None if row.status == "failed"
                && !row.failure.is_empty()
                && !by_refund_id.contains_key(row.id.as_str()) => {}
            None => {
                violations.push(format!("{about} is {} ({}), and does not exist in Stripe", row.status, row.failure));
            }
        }
        if !reported.contains(&(&row.id, &row.status)) {
            violations.push(format!("{about} is {}, which was not reported", row.status));
        }
    }
    let recorded: BTreeSet<&str> = evidence.refunds.iter().map(|row| row.refund.as_str()).collect();
    let payments = payment_of(evidence);
    let mut refunded: BTreeMap<&str, i64> = BTreeMap::new();
    for refund in &evidence.stripe_refunds {
        let payment = payments.get(refund.charge.as_str()).copied().unwrap_or_default();
        if !matches!(refund.status.as_str(), "failed" | "canceled") {
            *refunded.entry(payment).or_default() += refund.amount;
        }
        if !recorded.contains(refund.id.as_str()) && !payment.is_empty() {
            violations.push(format!("{} of {} is not recorded (payment {payment})", refund.id, refund.charge));
        }
    }
    for payment in &evidence.payments {
        let in_stripe = refunded.get(payment.id.as_str()).copied().unwrap_or_default();
        if in_stripe != payment.refunded {
            violations.push(format!(
                "{}: {in_stripe} was refunded, {} is recorded",
                describe(payment),
                payment.refunded
            ));
        }
    }
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for row in &evidence.refunds {
        *states.entry(&row.status).or_default() += 1;
    }
    let checked = states.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ");
    CheckResult { property: "refunds are made once and match Stripe", checked, violations }
}

/// Every dispute about our charges has the status that it has in Stripe.
pub(super) fn disputes(evidence: &Evidence) -> CheckResult {
    let payments = payment_of(evidence);
    let mut violations = Vec::new();
    for (id, (charge, status)) in
        evidence.stripe_disputes.iter().filter(|(_, (charge, _))| payments.contains_key(charge.as_str()))
    {
        let recorded = evidence.disputes.get(id).map_or("not recorded", String::as_str);
        if recorded != status {
            violations.push(format!("the dispute {id} of {charge} is {status} in Stripe, and {recorded} here"));
        }
    }
    let checked = format!("{} disputes", evidence.stripe_disputes.len());
    CheckResult { property: "disputes match Stripe", checked, violations }
}
