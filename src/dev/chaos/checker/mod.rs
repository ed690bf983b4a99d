//! The judge: compares what the witnesses say, and names every breach with the ids that it takes to look into it. It
//! shares no code with `app`, so that a mistake made there is not made here again.

mod amounts;
mod log;
pub(super) mod methods;
mod money;
mod refunds;
#[cfg(test)]
mod tests;
mod ways;

use std::collections::BTreeMap;

use super::evidence::{Evidence, PaymentRow};

/// A row of the verdict.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    /// What has to hold.
    pub what: &'static str,
    /// How much was looked at.
    pub looked_at: String,
    /// Where it does not hold.
    pub breaches: Vec<String>,
}

/// A job that is late by more than this, in seconds of the clock, counts as due: others are just being done. What nobody
/// does is late by hours at the end, for the clock was moved by days.
const LATE: f64 = 600.0;

/// All rows.
pub(super) fn judge(evidence: &Evidence) -> Vec<Verdict> {
    vec![
        money::charged_once(evidence),
        money::recorded(evidence),
        money::overpayments(evidence),
        amounts::changes(evidence),
        refunds::refunds(evidence),
        refunds::disputes(evidence),
        ways::one_at_a_time(evidence),
        ways::ended(evidence),
        methods::mandates(evidence),
        methods::imported(evidence),
        methods::unset(evidence),
        methods::defaults(evidence),
        states(evidence),
        acknowledged(evidence),
        log::told(evidence),
        log::dense(evidence),
        log::readers(evidence),
        log::stripe_events(evidence),
        rest(evidence),
        secrets(evidence),
    ]
}

/// The organization's id of an account.
fn tenant_of<'a>(evidence: &'a Evidence, account: &str) -> &'a str {
    let found = evidence.tenants.iter().find(|tenant| tenant.account == account);
    found.map_or("", |tenant| tenant.id.as_str())
}

/// Payments by their id.
fn by_id(evidence: &Evidence) -> BTreeMap<&str, &PaymentRow> {
    evidence.payments.iter().map(|payment| (payment.id.as_str(), payment)).collect()
}

fn named(payment: &PaymentRow) -> String {
    let PaymentRow { organization, id, invoice, state, intent, failure, .. } = payment;
    let why = if failure.is_empty() { String::new() } else { format!(" ({failure})") };
    format!("invoice {invoice} of {organization}: payment {id} is {state}{why}, intent {intent:?}")
}

/// Every payment's state is what its intents are at Stripe: those that bear its mark, and that nobody made by hand. At
/// most one of them takes money, or can.
fn states(evidence: &Evidence) -> Verdict {
    let mut open: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for (id, intent) in evidence.intents.iter().filter(|(id, _)| !evidence.outside.beside.contains(*id)) {
        if matches!(intent.status.as_str(), "succeeded" | "processing" | "requires_action") {
            open.entry(&intent.payment).or_default().push((&intent.status, id));
        }
    }
    let mut breaches = Vec::new();
    for payment in &evidence.payments {
        let open = open.get(payment.id.as_str()).map_or(&[][..], Vec::as_slice);
        let of_row = evidence.intents.get(&payment.intent).map_or("none", |intent| intent.status.as_str());
        let agrees = match (payment.state.as_str(), open) {
            // Nothing was due, or it was paid elsewhere.
            ("succeeded", []) => {
                let by_hand = evidence.outside.beside.contains(&payment.intent) && of_row == "succeeded";
                payment.amount == 0 || payment.is_manual || by_hand
            }
            (state @ ("succeeded" | "processing" | "requires_action"), [(status, _)]) => state == *status,
            // An intent that is left open after a cancellation could still be confirmed.
            ("canceled", []) => matches!(of_row, "canceled" | "none"),
            ("failed" | "pending", []) => true,
            _ => false,
        };
        if !agrees {
            let shown = open.iter().map(|(status, id)| format!("{id} is {status}")).collect::<Vec<_>>().join(", ");
            let at_stripe = if shown.is_empty() { format!("it is {of_row}") } else { shown };
            breaches.push(format!("{}; at Stripe {at_stripe}", named(payment)));
        }
    }
    let looked_at = format!("{} payments, {} intents", evidence.payments.len(), evidence.intents.len());
    Verdict { what: "every payment's state is Stripe's", looked_at, breaches }
}

/// Whatever was acknowledged is there, once, and settled, or it says why not.
fn acknowledged(evidence: &Evidence) -> Verdict {
    let mut breaches = Vec::new();
    let known: BTreeMap<(&str, &str), &PaymentRow> = evidence
        .payments
        .iter()
        .map(|payment| ((payment.organization.as_str(), payment.invoice.as_str()), payment))
        .collect();
    for ((organization, invoice), told) in &evidence.invoices {
        let organization = evidence.tenants.get(*organization).map_or("", |tenant| tenant.id.as_str());
        let about = format!("{invoice} of {organization}");
        breaches.extend(told.refusals.iter().map(|refusal| format!("{about} was refused: {refusal}")));
        if told.payments.len() > 1 {
            breaches.push(format!("{about}: callers were told several payments: {:?}", told.payments));
        }
        let Some(id) = told.payments.first() else {
            if told.refusals.is_empty() {
                breaches.push(format!("{about}: no caller was ever answered"));
            }
            continue;
        };
        let Some(payment) = known.get(&(organization, invoice.as_str())).filter(|payment| payment.id == *id) else {
            breaches.push(format!("{about}: the payment {id} was acknowledged and is not there"));
            continue;
        };
        let objection = match payment.state.as_str() {
            _ if !told.amounts.contains(&payment.amount) => Some("it is for another amount"),
            _ if payment.is_manual && !told.manual_asked => Some("nobody has recorded that it was paid elsewhere"),
            state if told.manual && !(state == "succeeded" && payment.is_manual) => {
                Some("that it was paid elsewhere was acknowledged, and is lost")
            }
            "succeeded" => None,
            _ if told.must_be_paid => Some("nothing stands in the way of its being paid"),
            "failed" if payment.failure.is_empty() => Some("it does not say why"),
            "canceled" if !told.is_withdrawn => Some("nobody has asked for that"),
            "pending" if payment.pending_reason.is_empty() => Some("it does not say what for"),
            "failed" | "canceled" | "pending" => None,
            _ => Some("it has not come to rest"),
        };
        breaches.extend(objection.map(|objection| format!("{}: {objection}", named(payment))));
    }
    let asked: usize = evidence.invoices.values().filter(|told| !told.payments.is_empty()).count();
    if evidence.payments.len() > asked {
        breaches.push(format!("there are {} payments, and only {asked} were asked for", evidence.payments.len()));
    }
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for payment in &evidence.payments {
        *states.entry(&payment.state).or_default() += 1;
    }
    let looked_at = states.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ");
    Verdict { what: "what was acknowledged is settled or explained", looked_at, breaches }
}

/// Nothing is left to be done.
fn rest(evidence: &Evidence) -> Verdict {
    let mut breaches = evidence.unrest.clone();
    for job in &evidence.jobs {
        let trouble = if job.is_held {
            "is held".to_owned()
        } else if job.is_parked {
            format!("is parked: {}", job.last_error)
        } else if job.failures > 0 {
            format!("has failed {} times: {}", job.failures, job.last_error)
        } else if job.overdue > LATE {
            format!("is due since {:.0} s", job.overdue)
        } else {
            continue;
        };
        breaches.push(format!("the job {} {} {trouble}", job.kind, job.object));
    }
    breaches.extend(evidence.undelivered.iter().map(|webhook| format!("a webhook was not acknowledged: {webhook}")));
    let looked_at = format!("{} jobs are for later", evidence.jobs.len());
    Verdict { what: "no job is left, no lease held, no webhook waits", looked_at, breaches }
}

fn secrets(evidence: &Evidence) -> Verdict {
    let breaches = evidence.secrets.clone();
    Verdict { what: "nothing secret is in any log", looked_at: "logs at level debug".to_owned(), breaches }
}
