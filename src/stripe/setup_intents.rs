//! SetupIntents: how a page's method came to be stored.

use serde::Deserialize;

use super::client::{Call, Client};
use super::error::Error;
use super::form::Form;
use super::object::{Page, reference};
use super::pace::ApiKey;
use crate::domain::signals::SetupSnapshot;

#[derive(Debug, Deserialize)]
pub(super) struct WireSetup {
    id: String,
    status: String,
    #[serde(default, deserialize_with = "reference")]
    customer: Option<String>,
    #[serde(default, deserialize_with = "reference")]
    payment_method: Option<String>,
    #[serde(default, deserialize_with = "reference")]
    mandate: Option<String>,
}

impl WireSetup {
    /// What it brought, if it has succeeded.
    pub fn success(self) -> Option<SetupSnapshot> {
        (self.status == "succeeded").then_some(SetupSnapshot {
            id: self.id,
            provider_customer_id: self.customer,
            provider_payment_method_id: self.payment_method,
            provider_mandate_id: self.mandate,
        })
    }
}

impl Client {
    /// Reads a SetupIntent; `None` while it has not succeeded.
    pub async fn setup_intent(&self, key: &ApiKey, id: &str) -> Result<Option<SetupSnapshot>, Error> {
        let call = Call::get("/v1/setup_intents/{id}", Some(id), "");
        Ok(self.send::<WireSetup>(key, call).await?.success())
    }

    /// A customer's newest SetupIntents that succeeded, at most 100: they know the mandates of its SEPA methods.
    pub async fn setup_intents_of(
        &self,
        key: &ApiKey,
        provider_customer_id: &str,
    ) -> Result<Vec<SetupSnapshot>, Error> {
        let query = Form::new().push("customer", provider_customer_id).push("limit", 100).into_body();
        let page: Page<WireSetup> = self.send(key, Call::get("/v1/setup_intents", None, &query)).await?;
        Ok(page.data.into_iter().filter_map(WireSetup::success).collect())
    }
}
