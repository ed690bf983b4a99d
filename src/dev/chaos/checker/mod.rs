//! The checker: compares the evidence and reports every violation with the ids needed to investigate it. It shares no
//! code with `app`, so that it does not repeat a mistake made there.

mod amounts;
mod log;
pub(super) mod methods;
mod money;
mod payment_paths;
mod refunds;
mod result;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub(super) use self::result::CheckResult;
use self::result::describe;
use super::evidence::{Evidence, PaymentRow, StripeEvent};

/// A job that is overdue by more than this, in seconds of the run's clock, is left over; others are in progress. What
/// nobody runs is overdue by hours at the end, because the clock was moved by days.
const LATE: f64 = 600.0;

/// Checks all properties.
pub(super) fn check(evidence: &Evidence) -> Vec<CheckResult> {
    vec![
        money::charged_once(evidence),
        money::recorded(evidence),
        money::overpayments(evidence),
        amounts::changes(evidence),
        refunds::refunds(evidence),
        refunds::disputes(evidence),
        payment_paths::one_at_a_time(evidence),
        payment_paths::none_unknown(evidence),
        payment_paths::none_open(evidence),
        methods::mandates(evidence),
        methods::imported(evidence),
        methods::unset_defaults(evidence),
        methods::defaults(evidence),
        states(evidence),
        acknowledged(evidence),
        log::outcomes(evidence),
        log::positions(evidence),
        log::subscribers(evidence),
        log::stripe_events(evidence),
        nothing_left(evidence),
        secrets(evidence),
    ]
}

/// Every payment's state matches its PaymentIntents in Stripe: those with its metadata that were not created in the
/// Dashboard. At most one of them has taken money, or can.
fn states(evidence: &Evidence) -> CheckResult {
    let mut open: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for (id, intent) in evidence.intents.iter().filter(|(id, _)| !evidence.external.dashboard_intents.contains(*id)) {
        if matches!(intent.status.as_str(), "succeeded" | "processing" | "requires_action") {
            open.entry(&intent.payment).or_default().push((&intent.status, id));
        }
    }
    let mut violations = Vec::new();
    for payment in &evidence.payments {
        let open = open.get(payment.id.as_str()).map_or(&[][..], Vec::as_slice);
        let of_row = evidence.intents.get(&payment.intent).map_or("none", |intent| intent.status.as_str());
        let agrees = match (payment.state.as_str(), open) {
            // Nothing was due, or it was paid elsewhere.
            ("succeeded", []) => {
                let is_paid_in_dashboard =
                    evidence.external.dashboard_intents.contains(&payment.intent) && of_row == "succeeded";
                payment.amount == 0 || payment.is_manual || is_paid_in_dashboard
            }
            (state @ ("succeeded" | "processing" | "requires_action"), [(status, _)]) => state == *status,
            // An intent that stays open after a cancellation could still be confirmed.
            ("canceled", []) => matches!(of_row, "canceled" | "none"),
            ("failed" | "pending", []) => true,
            _ => false,
        };
        if !agrees {
            let shown = open.iter().map(|(status, id)| format!("{id} is {status}")).collect::<Vec<_>>().join(", ");
            let in_stripe = if shown.is_empty() { format!("it is {of_row}") } else { shown };
            violations.push(format!("{}; in Stripe {in_stripe}", describe(payment)));
        }
    }
    let checked = format!("{} payments, {} intents", evidence.payments.len(), evidence.intents.len());
    CheckResult { property: "every payment's state matches Stripe", checked, violations }
}

/// Everything acknowledged exists, once, and is settled or has a reason.
fn acknowledged(evidence: &Evidence) -> CheckResult {
    let mut violations = Vec::new();
    let known: BTreeMap<(&str, &str), &PaymentRow> = evidence
        .payments
        .iter()
        .map(|payment| ((payment.organization.as_str(), payment.invoice.as_str()), payment))
        .collect();
    for ((organization, invoice), record) in &evidence.invoices {
        let organization = evidence.tenants.get(*organization).map_or("", |tenant| tenant.id.as_str());
        let about = format!("{invoice} of {organization}");
        violations
            .extend(record.unexpected_errors.iter().map(|error| format!("{about} got an unexpected error: {error}")));
        if record.payments.len() > 1 {
            violations.push(format!("{about}: callers got several payment ids: {:?}", record.payments));
        }
        let Some(id) = record.payments.first() else {
            if record.unexpected_errors.is_empty() {
                violations.push(format!("{about}: no caller ever got a response"));
            }
            continue;
        };
        let Some(payment) = known.get(&(organization, invoice.as_str())).filter(|payment| payment.id == *id) else {
            violations.push(format!("{about}: the payment {id} was acknowledged and does not exist"));
            continue;
        };
        let problem = match payment.state.as_str() {
            _ if !record.amounts.contains(&payment.amount) => Some("it is for another amount"),
            _ if payment.is_manual && !record.is_manual_requested => Some("nobody requested a manual payment"),
            state if record.is_manual_acknowledged && !(state == "succeeded" && payment.is_manual) => {
                Some("the acknowledged manual payment is lost")
            }
            "succeeded" => None,
            _ if record.must_be_paid => Some("it must be paid"),
            "failed" if payment.failure.is_empty() => Some("it has no failure code"),
            "canceled" if !record.is_cancel_requested && !closed_for_lost_request(evidence, payment) => {
                Some("nobody requested the cancellation")
            }
            "pending" if payment.pending_reason.is_empty() => Some("it has no pending reason"),
            "failed" | "canceled" | "pending" => None,
            _ => Some("it is not settled"),
        };
        violations.extend(problem.map(|problem| format!("{}: {problem}", describe(payment))));
    }
    let requested: usize = evidence.invoices.values().filter(|record| !record.payments.is_empty()).count();
    if evidence.payments.len() > requested {
        violations
            .push(format!("there are {} payments, and only {requested} were acknowledged", evidence.payments.len()));
    }
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for payment in &evidence.payments {
        *states.entry(&payment.state).or_default() += 1;
    }
    let checked = states.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ");
    CheckResult { property: "every acknowledged invoice is settled or has a reason", checked, violations }
}

/// Whether Paybridge canceled the payment's intent for a request that a restoration has lost: a link, a change of the
/// amount. The payment is as Stripe shows it, canceled.
fn closed_for_lost_request(evidence: &Evidence, payment: &PaymentRow) -> bool {
    let canceled = |event: &StripeEvent| event.kind == "payment_intent.canceled" && event.object == payment.intent;
    evidence.stripe_events.iter().any(|event| canceled(event) && evidence.is_lost(event.created))
}

/// No work is left.
fn nothing_left(evidence: &Evidence) -> CheckResult {
    let mut violations = evidence.incomplete.clone();
    for job in &evidence.jobs {
        let problem = if job.is_leased {
            "is leased".to_owned()
        } else if job.is_parked {
            format!("is parked: {}", job.last_error)
        } else if job.failures > 0 {
            format!("has failed {} times: {}", job.failures, job.last_error)
        } else if job.overdue > LATE {
            format!("is overdue by {:.0} s", job.overdue)
        } else {
            continue;
        };
        violations.push(format!("the job {} {} {problem}", job.kind, job.object));
    }
    violations.extend(evidence.undelivered.iter().map(|webhook| format!("a webhook was not acknowledged: {webhook}")));
    let checked = format!("{} scheduled jobs", evidence.jobs.len());
    CheckResult { property: "no job, lease or webhook is left", checked, violations }
}

fn secrets(evidence: &Evidence) -> CheckResult {
    let violations = evidence.secrets.clone();
    CheckResult { property: "no log contains a secret", checked: "debug logs".to_owned(), violations }
}
