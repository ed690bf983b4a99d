//! Amount changes: the new amount was collected, or the caller was informed.

use std::collections::BTreeMap;

use super::result::{CheckResult, describe};
use crate::dev::chaos::evidence::{EventRow, Evidence, PaymentRow};

/// Reports that an amount change came too late.
const REFUSED: &str = "payment.amount_change_refused";
/// Reports that more was collected than was due, with the surplus.
const OVERPAID: &str = "payment.overpaid";
/// Reports that less was collected than was due, with the amount collected.
const UNDERPAID: &str = "payment.underpaid";

/// If the amount of an invoice was changed and Stripe collected another one, the caller was informed that the change
/// was refused, and of the surplus or of the lower amount. Invoices with several amount changes are skipped: which one
/// was last is not known outside.
pub(super) fn changes(evidence: &Evidence) -> CheckResult {
    let taken = taken(evidence);
    let mut violations = Vec::new();
    let (mut changed, mut with_session, mut refused) = (0, 0, 0);
    for ((organization, invoice), record) in &evidence.invoices {
        let [wanted] = record.acknowledged_changes[..] else { continue };
        let tenant = evidence.tenants.get(*organization).map_or("", |tenant| tenant.id.as_str());
        let is_it = |payment: &&PaymentRow| payment.organization == tenant && payment.invoice == *invoice;
        let Some(payment) = evidence.payments.iter().find(is_it) else { continue };
        changed += 1;
        with_session += usize::from(record.had_open_session);
        let Some(took) = taken.get(payment.id.as_str()).copied().filter(|took| *took != wanted) else { continue };
        refused += 1;
        let events: Vec<&EventRow> = evidence.events.iter().filter(|event| event.payment == payment.id).collect();
        violations.extend(problem(&events, took, wanted).map(|problem| {
            format!("{}: the change to {wanted} was accepted, {took} was collected, and {problem}", describe(payment))
        }));
    }
    let checked = format!("{changed} changed, {with_session} of them with an open session, {refused} too late");
    CheckResult { property: "an amount change is applied, or its refusal is reported", checked, violations }
}

/// What was not reported of a payment that collected another amount than was requested by then. `events` are its own,
/// by position.
fn problem(events: &[&EventRow], took: i64, wanted: i64) -> Option<String> {
    let is_refusal = |event: &&EventRow| event.webhook_type == REFUSED && event.requested == wanted;
    let Some(refused) = events.iter().position(is_refusal) else {
        return Some(format!("{REFUSED} was not reported"));
    };
    let paid = events.iter().position(|event| event.webhook_type == "payment.succeeded").unwrap_or(events.len());
    // The attempt that could not be canceled has failed in the end: the change is forgotten, and whoever collects the
    // invoice again knows that.
    let failed = |event: &&EventRow| event.webhook_type == "invoice.payment_failure";
    if events.iter().take(paid).skip(refused).any(failed) {
        return None;
    }
    let (kind, amount) = if took > wanted { (OVERPAID, took - wanted) } else { (UNDERPAID, took) };
    let is_reported = events.iter().any(|event| event.webhook_type == kind && event.amount == amount);
    (!is_reported).then(|| format!("{kind} over {amount} was not reported"))
}

/// The amount charged for each payment, without payments made in the Dashboard.
fn taken(evidence: &Evidence) -> BTreeMap<&str, i64> {
    let mut taken: BTreeMap<&str, i64> = BTreeMap::new();
    for charge in evidence.charges.iter().filter(|charge| charge.status == "succeeded") {
        let payment = charge.metadata.get("payment_id").map_or("", String::as_str);
        if !payment.is_empty() && !evidence.external.dashboard_intents.contains(&charge.payment_intent) {
            *taken.entry(payment).or_default() += charge.amount;
        }
    }
    taken
}
