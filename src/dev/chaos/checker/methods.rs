//! Payment methods: which of them may be charged, and whether the default here is the default at Stripe.

use std::collections::BTreeMap;

use super::{Verdict, tenant_of};
use crate::dev::chaos::evidence::{EventRow, Evidence};

/// What reports that a customer has no default any more, because somebody has unset it at Stripe.
pub(in crate::dev::chaos) const UNSET: &str = "payment_method.unset_as_default";

/// How many defaults of a customer may be meant by a failure: the log has the one that was current when the failure was
/// written, which may have become the default while the payment was being decided.
const MEANT_MAX: usize = 2;

/// No debit was refused here for want of a mandate that is active at Stripe. Mandates never become active again there, so
/// one that is active at the end always was.
pub(super) fn mandates(evidence: &Evidence) -> Verdict {
    let mut defaults: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    let (mut refusals, mut breaches) = (0, Vec::new());
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
        let mut meant = meant.iter().rev().take(MEANT_MAX).peekable();
        if meant.peek().is_none() || meant.all(|method| is_permitted(evidence, method)) {
            let EventRow { position, payment, .. } = event;
            breaches.push(format!(
                "payment {payment} of {organization} failed with mandate_missing at position {position}, and the mandate \
                 of {customer}'s default is active at Stripe"
            ));
        }
    }
    let is_debit = |charge: &&String| evidence.mandates.contains_key(charge.as_str());
    let debits = evidence.charged_methods.values().filter(is_debit).count();
    let looked_at = format!("{debits} debits, {refusals} refused for want of a mandate");
    Verdict { what: "no debit is refused whose mandate is active", looked_at, breaches }
}

/// Whether a mandate of the method is active at Stripe.
fn is_permitted(evidence: &Evidence, method: &str) -> bool {
    let mandates = evidence.mandates.get(method);
    mandates.is_some_and(|mandates| mandates.values().any(|status| status == "active"))
}

/// An imported customer's default at Stripe is charged, whichever field it stands in: a method that nobody has ever chosen
/// is not, nor does it become the default there.
pub(super) fn imported(evidence: &Evidence) -> Verdict {
    let mut breaches = Vec::new();
    let mut charges = 0;
    for charge in &evidence.charges {
        let method = evidence.charged_methods.get(&charge.charge).map_or("", String::as_str);
        let customer = charge.customer.as_deref().unwrap_or_default();
        charges += usize::from(evidence.unchosen_of(customer));
        if evidence.outside.unchosen.contains_key(method) {
            breaches.push(format!(
                "{} of {customer} was made with {method}, which nobody has chosen ({})",
                charge.charge, charge.status
            ));
        }
    }
    for (method, customer) in &evidence.outside.unchosen {
        let at_stripe = evidence.stripe_customers.get(customer);
        let became = evidence.became_default.contains(&(customer.clone(), method.clone()));
        if became || at_stripe.is_some_and(|at_stripe| at_stripe.effective_default() == method) {
            breaches.push(format!("{method} was made the default of {customer} at Stripe, and nobody has chosen it"));
        }
        let here = evidence.customers.iter().find(|row| row.customer == *customer);
        if here.is_some_and(|row| row.default == *method) {
            breaches.push(format!("{method} is the default of {customer} here, and nobody has chosen it"));
        }
    }
    let looked_at = format!("{} customers, {charges} charges", evidence.outside.unchosen.len());
    Verdict { what: "an imported default is charged, and kept", looked_at, breaches }
}

/// Once the billing system had heard that a default was unset at Stripe, no invoice that was given in afterwards was
/// charged to it, until it was chosen again. One that stayed unset was reported.
pub(super) fn unset(evidence: &Evidence) -> Verdict {
    let mut breaches = Vec::new();
    let (mut heard_of, mut failed) = (0, 0);
    for ((organization, external_id), unset) in &evidence.outside.unset {
        let tenant = evidence.tenants.get(*organization).map_or("", |tenant| tenant.id.as_str());
        let about = format!("{} of {external_id} ({}) of {tenant}", unset.method, unset.customer);
        let reports = evidence.events.iter().filter(|event| {
            event.webhook_type == UNSET && event.organization == tenant && event.customer == *external_id
        });
        let has_none = |customer: &str| {
            evidence.stripe_customers.get(customer).is_some_and(|at_stripe| at_stripe.effective_default().is_empty())
        };
        if reports.count() == 0 && unset.until.is_none() && has_none(&unset.customer) {
            breaches.push(format!("{about} was unset as the default at Stripe for good, which was never reported"));
        }
        let Some(heard) = unset.heard else { continue };
        heard_of += 1;
        for charge in evidence.charges.iter().filter(|it| tenant_of(evidence, &it.account) == tenant) {
            let method = evidence.charged_methods.get(&charge.charge);
            let invoice = charge.metadata.get("invoice_id").cloned().unwrap_or_default();
            let Some(told) = evidence.invoices.get(&(*organization, invoice.clone())) else { continue };
            let is_between = charge.created > heard && unset.until.is_none_or(|until| charge.created < until);
            if method == Some(&unset.method) && is_between && told.given_in > heard {
                breaches
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
    let looked_at =
        format!("{} unset, {heard_of} heard of, {failed} invoices found no default", evidence.outside.unset.len());
    Verdict { what: "a default that was unset is not charged", looked_at, breaches }
}

/// At rest, the default here is the default at Stripe, for every linked customer.
pub(super) fn defaults(evidence: &Evidence) -> Verdict {
    let mut breaches = Vec::new();
    let (mut linked, mut without) = (0, 0);
    for row in &evidence.customers {
        let Some(at_stripe) = evidence.stripe_customers.get(&row.customer) else { continue };
        linked += 1;
        without += usize::from(row.default.is_empty());
        if row.default != at_stripe.effective_default() {
            breaches.push(format!(
                "{} ({}) of {}: the default is {:?} here, and {:?} at Stripe",
                row.external_id,
                row.customer,
                row.organization,
                row.default,
                at_stripe.effective_default()
            ));
        }
    }
    let looked_at = format!("{linked} customers, {without} without");
    Verdict { what: "every default is Stripe's", looked_at, breaches }
}

impl Evidence {
    /// Whether a customer at Stripe has a method that nobody has chosen.
    fn unchosen_of(&self, customer: &str) -> bool {
        self.outside.unchosen.values().any(|of| of == customer)
    }
}
