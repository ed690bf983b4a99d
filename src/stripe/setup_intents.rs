//! SetupIntents: how a Checkout session stored a payment method.

use serde::Deserialize;

use super::call::Call;
use super::charges::WireDetails;
use super::client::Client;
use super::error::Error;
use super::form::Form;
use super::object::{Page, null_as_default, reference};
use super::rate_limit::ApiKey;
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
    latest_attempt: Option<WireAttempt>,
}

/// The latest attempt: its id in events, the whole object when it is read.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum WireAttempt {
    Id(#[expect(dead_code, reason = "only the whole object is useful")] String),
    Whole {
        #[serde(default, deserialize_with = "null_as_default")]
        payment_method_details: WireDetails,
    },
}

impl WireSetup {
    /// The stored payment method, if the setup succeeded.
    pub fn success(self) -> Option<SetupSnapshot> {
        if self.status != "succeeded" {
            return None;
        }
        let generated = match self.latest_attempt {
            Some(WireAttempt::Whole { payment_method_details }) => payment_method_details.generated(),
            Some(WireAttempt::Id(_)) | None => None,
        };
        let (method, mandate) = match generated {
            Some((method, mandate)) => (Some(method), mandate),
            None => (self.payment_method, self.mandate),
        };
        Some(SetupSnapshot {
            id: self.id,
            provider_customer_id: self.customer,
            provider_payment_method_id: method,
            provider_mandate_id: mandate,
        })
    }
}

impl Client {
    /// Reads a SetupIntent; `None` unless it has succeeded.
    pub async fn setup_intent(&self, key: &ApiKey, id: &str) -> Result<Option<SetupSnapshot>, Error> {
        let call = Call::get("/v1/setup_intents/{id}", Some(id), "expand[0]=latest_attempt");
        Ok(self.send::<WireSetup>(key, call).await?.success())
    }

    /// A customer's newest 100 SetupIntents that succeeded. They name the mandates of its SEPA methods.
    pub async fn setup_intents_of(
        &self,
        key: &ApiKey,
        provider_customer_id: &str,
    ) -> Result<Vec<SetupSnapshot>, Error> {
        let form = Form::new().push("customer", provider_customer_id).push("limit", 100);
        let query = form.push_list("expand", ["data.latest_attempt"]).into_body();
        let page: Page<WireSetup> = self.send(key, Call::get("/v1/setup_intents", None, &query)).await?;
        Ok(page.data.into_iter().filter_map(WireSetup::success).collect())
    }
}
