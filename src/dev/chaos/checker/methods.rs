//! Payment methods: which of them may be charged, and whether the default is the default in Stripe.

use std::collections::BTreeMap;

use super::result::{CheckResult, tenant_of};
use crate::dev::chaos::evidence::{EventRow, Evidence};

/// Reports that a customer's default was unset in Stripe.
pub(in crate::dev::chaos) const UNSET: &str = "payment_method.unset_as_default";

/// How many of a customer's last defaults a failure may refer to: the log has the default at the time of the failure,
/// which may have been set while the payment was being decided.
const CANDIDATES_MAX: usize = 2;

/// No debit was refused for a missing mandate that is active in Stripe. Mandates never become active again, so one that
/// is active at the end always was.
pub(super) fn mandates(evidence: &Evidence) -> CheckResult {
    let mut defaults: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    let (mut refusals, mut violations) = (0, Vec::new());
    for event in &evidence.events {
        let EventRow { organization, customer, method, .. } = event;
        let meant = defaults.entry((organization, customer)).or_default();
        if event.webhook_type == "payment_method.set_as_default" {
            meant.push(method);
        }
        if event.webhook_type != "invoice.payment_failure" || event.code != "mandate_missing" {
            continue;
        }
        refusals += 1;
        let mut candidates = meant.iter().rev().take(CANDIDATES_MAX).peekable();
        if candidates.peek().is_none() || candidates.all(|method| has_active_mandate(evidence, method)) {
            let EventRow { position, payment, .. } = event;
            violations.push(format!(
                "payment {payment} of {organization} failed with mandate_missing at position {position}, and the mandate \
                 of {customer}'s default is active in Stripe"
            ));
        }
    }
    let is_debit = |charge: &&String| evidence.mandates.contains_key(charge.as_str());
    let debits = evidence.charged_methods.values().filter(is_debit).count();
    let checked = format!("{debits} debits, {refusals} refused for a missing mandate");
    CheckResult { property: "no debit with an active mandate is refused", checked, violations }
}

/// Whether a mandate of the method is active in Stripe.
fn has_active_mandate(evidence: &Evidence, method: &str) -> bool {
    let mandates = evidence.mandates.get(method);
    mandates.is_some_and(|mandates| mandates.values().any(|status| status == "active"))
}

/// An imported customer's default in Stripe is charged, whichever field holds it: a method that nobody chose is not
/// charged and does not become the default there.
pub(super) fn imported(evidence: &Evidence) -> CheckResult {
    let mut violations = Vec::new();
    let mut charges = 0;
    for charge in &evidence.charges {
        let method = evidence.charged_methods.get(&charge.charge).map_or("", String::as_str);
        let customer = charge.customer.as_deref().unwrap_or_default();
        charges += usize::from(evidence.has_unchosen_method(customer));
        if evidence.external.unchosen_methods.contains_key(method) {
            violations.push(format!(
                "{} of {customer} was made with {method}, which nobody chose ({})",
                charge.charge, charge.status
            ));
        }
    }
    for (method, customer) in &evidence.external.unchosen_methods {
        let in_stripe = evidence.stripe_customers.get(customer);
        let became = evidence.became_default.contains(&(customer.clone(), method.clone()));
        if became || in_stripe.is_some_and(|in_stripe| in_stripe.effective_default() == method) {
            violations.push(format!("{method} was made the default of {customer} in Stripe, and nobody chose it"));
        }
        let here = evidence.customers.iter().find(|row| row.customer == *customer);
        if here.is_some_and(|row| row.default == *method) {
            violations.push(format!("{method} is the default of {customer} here, and nobody chose it"));
        }
    }
    let checked = format!("{} customers, {charges} charges", evidence.external.unchosen_methods.len());
    CheckResult { property: "an imported default is charged and kept", checked, violations }
}

/// Once the billing system received the event that a default was unset in Stripe, no invoice submitted afterwards was
/// charged to it until it was chosen again. A default that stayed unset was reported.
pub(super) fn unset_defaults(evidence: &Evidence) -> CheckResult {
    let mut violations = Vec::new();
    let (mut reported, mut failed) = (0, 0);
    for ((organization, external_id), unset) in &evidence.external.unset_defaults {
        let tenant = evidence.tenants.get(*organization).map_or("", |tenant| tenant.id.as_str());
        let about = format!("{} of {external_id} ({}) of {tenant}", unset.method, unset.customer);
        let reports = evidence.events.iter().filter(|event| {
            event.webhook_type == UNSET && event.organization == tenant && event.customer == *external_id
        });
        let has_none = |customer: &str| {
            evidence.stripe_customers.get(customer).is_some_and(|in_stripe| in_stripe.effective_default().is_empty())
        };
        if reports.count() == 0 && unset.chosen_again_at.is_none() && has_none(&unset.customer) {
            violations
                .push(format!("{about} was unset as the default in Stripe and stayed so, which was not reported"));
        }
        let Some(reported_at) = unset.reported_at else { continue };
        reported += 1;
        for charge in evidence.charges.iter().filter(|it| tenant_of(evidence, &it.account) == tenant) {
            let method = evidence.charged_methods.get(&charge.charge);
            let invoice = charge.metadata.get("invoice_id").cloned().unwrap_or_default();
            let Some(record) = evidence.invoices.get(&(*organization, invoice.clone())) else { continue };
            let is_between =
                charge.created > reported_at && unset.chosen_again_at.is_none_or(|until| charge.created < until);
            if method == Some(&unset.method) && is_between && record.submitted_at > reported_at {
                violations
                    .push(format!("{about} was unset as the default, and {} charged {invoice} to it", charge.charge));
            }
        }
        failed += evidence
            .events
            .iter()
            .filter(|event| event.organization == tenant && event.customer == *external_id)
            .filter(|event| event.code == "no_payment_method")
            .count();
    }
    let checked = format!(
        "{} unset, {reported} reported, {failed} invoices without a default",
        evidence.external.unset_defaults.len()
    );
    CheckResult { property: "an unset default is not charged", checked, violations }
}

/// In the end, every linked customer's default is the default in Stripe.
pub(super) fn defaults(evidence: &Evidence) -> CheckResult {
    let mut violations = Vec::new();
    let (mut linked, mut without) = (0, 0);
    for row in &evidence.customers {
        let Some(in_stripe) = evidence.stripe_customers.get(&row.customer) else { continue };
        linked += 1;
        without += usize::from(row.default.is_empty());
        if row.default != in_stripe.effective_default() {
            violations.push(format!(
                "{} ({}) of {}: the default is {:?} here, and {:?} in Stripe",
                row.external_id,
                row.customer,
                row.organization,
                row.default,
                in_stripe.effective_default()
            ));
        }
    }
    let checked = format!("{linked} customers, {without} without a default");
    CheckResult { property: "every default matches Stripe", checked, violations }
}

impl Evidence {
    /// Whether a Stripe customer has a method that nobody chose.
    fn has_unchosen_method(&self, customer: &str) -> bool {
        self.external.unchosen_methods.values().any(|of| of == customer)
    }
}
