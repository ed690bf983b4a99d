//! Mandates: whether a SEPA method may be debited.

use serde::Deserialize;

use super::call::Call;
use super::client::Client;
use super::error::Error;
use super::object::reference;
use super::rate_limit::ApiKey;
use crate::domain::signals::MandateSnapshot;

#[derive(Debug, Deserialize)]
pub(super) struct WireMandate {
    id: String,
    status: String,
    #[serde(default, deserialize_with = "reference")]
    payment_method: Option<String>,
}

impl WireMandate {
    /// The snapshot, if the mandate names its method. A pending mandate counts as active: it is about to become active.
    pub fn snapshot(self) -> Option<MandateSnapshot> {
        let is_active = self.status != "inactive";
        self.payment_method.map(|method| MandateSnapshot { id: self.id, provider_payment_method_id: method, is_active })
    }
}

impl Client {
    /// Reads whether a mandate permits debits.
    pub async fn is_mandate_active(&self, key: &ApiKey, id: &str) -> Result<bool, Error> {
        let mandate: WireMandate = self.send(key, Call::get("/v1/mandates/{id}", Some(id), "")).await?;
        Ok(mandate.status != "inactive")
    }
}
