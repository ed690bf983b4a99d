//! The result of a check, and what the checks share.

use std::collections::BTreeMap;

use crate::dev::chaos::evidence::{Evidence, PaymentRow};

/// The result of checking one property.
#[derive(Clone, Debug)]
pub(in crate::dev::chaos) struct CheckResult {
    /// The property.
    pub property: &'static str,
    /// How much evidence was checked.
    pub checked: String,
    /// The violations of the property.
    pub violations: Vec<String>,
}

/// The id of the organization of a Stripe account.
pub(super) fn tenant_of<'a>(evidence: &'a Evidence, account: &str) -> &'a str {
    let found = evidence.tenants.iter().find(|tenant| tenant.account == account);
    found.map_or("", |tenant| tenant.id.as_str())
}

/// The payments by id.
pub(super) fn by_id(evidence: &Evidence) -> BTreeMap<&str, &PaymentRow> {
    evidence.payments.iter().map(|payment| (payment.id.as_str(), payment)).collect()
}

pub(super) fn describe(payment: &PaymentRow) -> String {
    let PaymentRow { organization, id, invoice, state, intent, failure, .. } = payment;
    let why = if failure.is_empty() { String::new() } else { format!(" ({failure})") };
    format!("invoice {invoice} of {organization}: payment {id} is {state}{why}, intent {intent:?}")
}
