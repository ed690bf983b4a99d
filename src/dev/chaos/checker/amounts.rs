//! Amounts that were changed: what was taken is the new amount, or the caller was informed.

use std::collections::BTreeMap;

use super::{Verdict, named};
use crate::dev::chaos::evidence::{EventRow, Evidence, PaymentRow};

/// What reports that a change of the amount came too late.
const REFUSED: &str = "payment.amount_change_refused";
/// What reports that more came in than was due, and by how much.
const OVERPAID: &str = "payment.overpaid";
/// What reports that less came in than was due, and how much that is.
const UNDERPAID: &str = "payment.underpaid";

/// Where the amount of an invoice was changed and Stripe took another one all the same, the caller was informed that the
/// change was refused, and of what came in too much, or of how little it was. Invoices whose amount was changed several
/// times are left out: which change was the last one is not known outside.
pub(super) fn changes(evidence: &Evidence) -> Verdict {
    let taken = taken(evidence);
    let mut breaches = Vec::new();
    let (mut changed, mut on_pages, mut refused) = (0, 0, 0);
    for ((organization, invoice), told) in &evidence.invoices {
        let [wanted] = told.changes[..] else { continue };
        let tenant = evidence.tenants.get(*organization).map_or("", |tenant| tenant.id.as_str());
        let is_it = |payment: &&PaymentRow| payment.organization == tenant && payment.invoice == *invoice;
        let Some(payment) = evidence.payments.iter().find(is_it) else { continue };
        changed += 1;
        on_pages += usize::from(told.had_page);
        let Some(took) = taken.get(payment.id.as_str()).copied().filter(|took| *took != wanted) else { continue };
        refused += 1;
        let events: Vec<&EventRow> = evidence.events.iter().filter(|event| event.payment == payment.id).collect();
        breaches.extend(objection(&events, took, wanted).map(|objection| {
            format!("{}: the change to {wanted} was accepted, {took} was taken, and {objection}", named(payment))
        }));
    }
    let looked_at = format!("{changed} changed, {on_pages} of them on open pages, {refused} too late");
    Verdict { what: "a change of the amount holds, or is refused aloud", looked_at, breaches }
}

/// What was not reported of a payment that took another amount than was wanted by then. `events` are its own, in the order
/// of their positions.
fn objection(events: &[&EventRow], took: i64, wanted: i64) -> Option<String> {
    let is_refusal = |event: &&EventRow| event.webhook_type == REFUSED && event.requested == wanted;
    let Some(refused) = events.iter().position(is_refusal) else {
        return Some(format!("{REFUSED} was never reported"));
    };
    let paid = events.iter().position(|event| event.webhook_type == "payment.succeeded").unwrap_or(events.len());
    // What could not be closed has failed in the end: the change is forgotten, and whoever collects it anew knows that.
    let failed = |event: &&EventRow| event.webhook_type == "invoice.payment_failure";
    if events.iter().take(paid).skip(refused).any(failed) {
        return None;
    }
    let (kind, amount) = if took > wanted { (OVERPAID, took - wanted) } else { (UNDERPAID, took) };
    let is_named = events.iter().any(|event| event.webhook_type == kind && event.amount == amount);
    (!is_named).then(|| format!("{kind} over {amount} was never reported"))
}

/// What was charged for each payment, apart from what people have taken by hand.
fn taken(evidence: &Evidence) -> BTreeMap<&str, i64> {
    let mut taken: BTreeMap<&str, i64> = BTreeMap::new();
    for charge in evidence.charges.iter().filter(|charge| charge.status == "succeeded") {
        let payment = charge.metadata.get("payment_id").map_or("", String::as_str);
        if !payment.is_empty() && !evidence.outside.beside.contains(&charge.payment_intent) {
            *taken.entry(payment).or_default() += charge.amount;
        }
    }
    taken
}
