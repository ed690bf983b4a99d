//! Charges: the result of an attempt, and the mandate of a debit. A refunded amount is never read from a charge; it is
//! the sum of its refunds.

use serde::Deserialize;

use super::call::Call;
use super::client::Client;
use super::error::Error;
use super::form::Form;
use super::object::{Page, null_as_default, reference};
use super::rate_limit::ApiKey;
use crate::domain::signals::{ChargeSnapshot, MandateSnapshot};

#[derive(Debug, Deserialize)]
pub(super) struct WireCharge {
    id: String,
    #[serde(default, deserialize_with = "reference")]
    payment_intent: Option<String>,
    #[serde(default, deserialize_with = "reference")]
    payment_method: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    payment_method_details: WireDetails,
}

/// The payment method details of a charge or a setup attempt.
#[derive(Debug, Default, Deserialize)]
pub(super) struct WireDetails {
    #[serde(default)]
    sepa_debit: Option<WireDebit>,
    #[serde(default)]
    ideal: Option<Generated>,
    #[serde(default)]
    bancontact: Option<Generated>,
    #[serde(default)]
    sofort: Option<Generated>,
}

#[derive(Debug, Deserialize)]
struct WireDebit {
    #[serde(default, deserialize_with = "reference")]
    mandate: Option<String>,
}

/// iDEAL, Bancontact and Sofort can be charged once. For later charges Stripe generates a SEPA method from them.
#[derive(Debug, Deserialize)]
struct Generated {
    #[serde(default, deserialize_with = "reference")]
    generated_sepa_debit: Option<String>,
    #[serde(default, deserialize_with = "reference")]
    generated_sepa_debit_mandate: Option<String>,
}

impl WireDetails {
    /// The SEPA method that was generated from another kind, and its mandate.
    pub fn generated(self) -> Option<(String, Option<String>)> {
        let made = [self.ideal, self.bancontact, self.sofort].into_iter().flatten();
        made.into_iter().find_map(|made| Some((made.generated_sepa_debit?, made.generated_sepa_debit_mandate)))
    }
}

impl WireCharge {
    /// The mandate that the charge used or generated. It was active at that time.
    pub fn mandate(self) -> Option<MandateSnapshot> {
        let debited = self.payment_method_details.sepa_debit.as_ref().and_then(|debit| debit.mandate.clone());
        let (method, mandate) = if let Some(mandate) = debited {
            (self.payment_method?, mandate)
        } else {
            let (method, mandate) = self.payment_method_details.generated()?;
            (method, mandate?)
        };
        Some(MandateSnapshot { id: mandate, provider_payment_method_id: method, is_active: true })
    }
}

impl From<WireCharge> for ChargeSnapshot {
    fn from(wire: WireCharge) -> Self {
        Self { id: wire.id, provider_payment_intent_id: wire.payment_intent }
    }
}

impl Client {
    /// The mandates that a customer's newest 100 charges name, newest first. Each was active when its charge was made.
    pub async fn charge_mandates_of(
        &self,
        key: &ApiKey,
        provider_customer_id: &str,
    ) -> Result<Vec<MandateSnapshot>, Error> {
        let query = Form::new().push("customer", provider_customer_id).push("limit", 100).into_body();
        let page: Page<WireCharge> = self.send(key, Call::get("/v1/charges", None, &query)).await?;
        Ok(page.data.into_iter().filter_map(WireCharge::mandate).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mandate(details: &str) -> Option<(String, String)> {
        let json = format!(r#"{{"id":"ch_1","payment_method":"pm_1","payment_method_details":{details}}}"#);
        let found = serde_json::from_str::<WireCharge>(&json).unwrap().mandate();
        found.map(|found| (found.provider_payment_method_id, found.id))
    }

    #[test]
    fn a_charge_names_the_mandate_that_it_used_or_generated() {
        let pair = |method: &str, mandate: &str| Some((method.to_owned(), mandate.to_owned()));
        let debit = r#"{"type":"sepa_debit","sepa_debit":{"last4":"3000","mandate":"mandate_1"}}"#;
        assert_eq!(mandate(debit), pair("pm_1", "mandate_1"));
        for kind in ["ideal", "bancontact", "sofort"] {
            let made = format!(
                r#"{{"type":"{kind}","{kind}":{{"generated_sepa_debit":"pm_2","generated_sepa_debit_mandate":"mandate_2"}}}}"#
            );
            assert_eq!(mandate(&made), pair("pm_2", "mandate_2"), "{kind}");
            let once = format!(r#"{{"type":"{kind}","{kind}":{{"generated_sepa_debit":null}}}}"#);
            assert_eq!(mandate(&once), None, "{kind}");
        }
        assert_eq!(mandate(r#"{"type":"card","card":{"brand":"visa"}}"#), None);
        assert_eq!(mandate("null"), None);
    }
}
