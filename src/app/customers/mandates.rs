//! Reads of the mandates of payment methods that need one. A mandate may come from a SetupIntent or from a charge. A
//! key may lack the permission to read either; then the mandate is unknown, which blocks nothing.

use crate::app::{App, StripeAccount, if_allowed};
use crate::domain::signals::MandateSnapshot;
use crate::stripe;

/// How many mandates of a method are read, newest first (P11).
const READS_MAX: usize = 3;

impl App {
    /// The mandates of these methods of a customer, as far as the key may read them.
    pub(in crate::app) async fn mandates_of(
        &self,
        account: &StripeAccount,
        provider_customer: &str,
        methods: &[&str],
    ) -> Result<Vec<MandateSnapshot>, stripe::Error> {
        if methods.is_empty() {
            return Ok(Vec::new());
        }
        let (stripe, key) = (&self.0.stripe, &account.key);
        let setups = if_allowed(stripe.setup_intents_of(key, provider_customer).await)?.unwrap_or_default();
        let from_setup = setups.into_iter().filter_map(|setup| {
            let (id, method) = (setup.provider_mandate_id?, setup.provider_payment_method_id?);
            Some(MandateSnapshot { id, provider_payment_method_id: method, is_active: true })
        });
        let charges = if_allowed(stripe.charge_mandates_of(key, provider_customer).await)?.unwrap_or_default();
        let named: Vec<MandateSnapshot> = from_setup.chain(charges).collect();
        let mut found = Vec::new();
        for method in methods {
            let mut own: Vec<&str> = Vec::new();
            for mandate in named.iter().filter(|mandate| mandate.provider_payment_method_id == *method) {
                if !own.contains(&mandate.id.as_str()) {
                    own.push(&mandate.id);
                }
            }
            for id in own.into_iter().take(READS_MAX) {
                // It was active when it was named. Its present state is read if the key may.
                let is_active = match if_allowed(stripe.is_mandate_active(key, id).await) {
                    Ok(is_active) => is_active.unwrap_or(true),
                    Err(error) if error.is_missing() => false,
                    Err(error) => return Err(error),
                };
                found.push(MandateSnapshot {
                    id: id.to_owned(),
                    provider_payment_method_id: (*method).to_owned(),
                    is_active,
                });
                if is_active {
                    break;
                }
            }
        }
        Ok(found)
    }
}
