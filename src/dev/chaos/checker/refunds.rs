//! Money that went back: what Stripe has against what Paybridge has written down, acknowledged and told.

use std::collections::{BTreeMap, BTreeSet};

use super::{Verdict, named};
use crate::dev::chaos::evidence::{Evidence, StripeRefund};

/// The payments whose money charges have taken, by charge.
fn payment_of(evidence: &Evidence) -> BTreeMap<&str, &str> {
    let marks = evidence.charges.iter().filter_map(|charge| {
        charge.metadata.get("payment_id").map(|payment| (charge.charge.as_str(), payment.as_str()))
    });
    marks.collect()
}

/// Every refund that was acknowledged is at Stripe once, or has failed for a reason; every refund at Stripe is recorded as
/// it is there, and told; and what went back of a payment is what is recorded.
pub(super) fn refunds(evidence: &Evidence) -> Verdict {
    let mut breaches = Vec::new();
    let mut by_mark: BTreeMap<&str, Vec<&StripeRefund>> = BTreeMap::new();
    for refund in evidence.stripe_refunds.iter().filter(|refund| !refund.mark.is_empty()) {
        by_mark.entry(&refund.mark).or_default().push(refund);
    }
    for (mark, refunds) in by_mark.iter().filter(|(_, refunds)| refunds.len() > 1) {
        let ids: Vec<&str> = refunds.iter().map(|refund| refund.id.as_str()).collect();
        breaches.push(format!("the refund {mark} was made {} times: {}", ids.len(), ids.join(", ")));
    }
    let known: BTreeSet<&str> = evidence.refunds.iter().map(|row| row.id.as_str()).collect();
    let lost = evidence.outside.refunds.iter().filter(|id| !known.contains(id.as_str()));
    breaches.extend(lost.map(|id| format!("the refund {id} was acknowledged and is not there")));

    let told: BTreeSet<(&str, &str)> = evidence
        .events
        .iter()
        .filter(|event| event.webhook_type == "payment.refund_updated")
        .map(|event| (event.refund.as_str(), event.status.as_str()))
        .collect();
    let at_stripe: BTreeMap<&str, &StripeRefund> =
        evidence.stripe_refunds.iter().map(|refund| (refund.id.as_str(), refund)).collect();
    for row in &evidence.refunds {
        let about = format!("the refund {} ({}) of payment {}", row.id, row.refund, row.payment);
        match at_stripe.get(row.refund.as_str()) {
            Some(refund) if refund.status == row.status && refund.amount == row.amount => {}
            Some(StripeRefund { status, amount, .. }) => breaches
                .push(format!("{about} is {} over {}, and {status} over {amount} at Stripe", row.status, row.amount)),
            None if row.status == "failed" && !row.failure.is_empty() && !by_mark.contains_key(row.id.as_str()) => {}
            None => breaches.push(format!("{about} is {} ({}), and not at Stripe", row.status, row.failure)),
        }
        if !told.contains(&(&row.id, &row.status)) {
            breaches.push(format!("{about} is {}, and nobody was told", row.status));
        }
    }
    let recorded: BTreeSet<&str> = evidence.refunds.iter().map(|row| row.refund.as_str()).collect();
    let payments = payment_of(evidence);
    let mut went_back: BTreeMap<&str, i64> = BTreeMap::new();
    for refund in &evidence.stripe_refunds {
        let payment = payments.get(refund.charge.as_str()).copied().unwrap_or_default();
        if !matches!(refund.status.as_str(), "failed" | "canceled") {
            *went_back.entry(payment).or_default() += refund.amount;
        }
        if !recorded.contains(refund.id.as_str()) && !payment.is_empty() {
            breaches.push(format!("{} of {} is not recorded (payment {payment})", refund.id, refund.charge));
        }
    }
    for payment in &evidence.payments {
        let at_stripe = went_back.get(payment.id.as_str()).copied().unwrap_or_default();
        if at_stripe != payment.refunded {
            breaches.push(format!("{}: {at_stripe} went back, {} is recorded", named(payment), payment.refunded));
        }
    }
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for row in &evidence.refunds {
        *states.entry(&row.status).or_default() += 1;
    }
    let looked_at = states.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ");
    Verdict { what: "refunds are made once, and are Stripe's", looked_at, breaches }
}

/// Every dispute about money of ours stands as Stripe has it.
pub(super) fn disputes(evidence: &Evidence) -> Verdict {
    let payments = payment_of(evidence);
    let mut breaches = Vec::new();
    for (id, (charge, status)) in
        evidence.stripe_disputes.iter().filter(|(_, (charge, _))| payments.contains_key(charge.as_str()))
    {
        let recorded = evidence.disputes.get(id).map_or("not recorded", String::as_str);
        if recorded != status {
            breaches.push(format!("the dispute {id} of {charge} is {status} at Stripe, and {recorded} here"));
        }
    }
    let looked_at = format!("{} disputes", evidence.stripe_disputes.len());
    Verdict { what: "disputes are Stripe's", looked_at, breaches }
}
