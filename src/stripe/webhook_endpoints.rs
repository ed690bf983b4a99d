//! Webhook endpoints. Stripe returns their secret only in the response to their creation, and in a replay of it.

use std::collections::BTreeSet;

use secrecy::SecretString;
use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;

use super::call::Call;
use super::client::{Client, Executed};
use super::error::Error;
use super::form::Form;
use super::object::{Acknowledged, Metadata, metadata_id, null_as_default, seconds};
use super::rate_limit::ApiKey;
use super::{API_VERSION, metadata, signals};
use crate::domain::catch_up::Counter;
use crate::domain::stripe_requests::StripeRequest;
use crate::domain::{IntegrationId, OrganizationId};

const LIST: &str = "/v1/webhook_endpoints";

/// The most pages of 100 that are read (P11). Stripe allows about 16 endpoints.
const PAGES_MAX: usize = 5;

/// A webhook endpoint at Stripe.
#[derive(Clone, Debug, Deserialize)]
pub struct WebhookEndpoint {
    /// `we_…`.
    pub id: String,
    /// The URL that it posts to.
    pub url: String,
    /// `enabled` or `disabled`.
    pub status: String,
    /// The API version in which it renders events; `None` for the account's own.
    pub api_version: Option<String>,
    /// The event types that it posts.
    #[serde(default, deserialize_with = "null_as_default")]
    pub enabled_events: Vec<String>,
    /// When it was created.
    #[serde(deserialize_with = "seconds")]
    pub created: OffsetDateTime,
    /// `whsec_…`; only in the response to the creation.
    #[serde(default, deserialize_with = "secret")]
    pub secret: Option<SecretString>,
    #[serde(default, deserialize_with = "null_as_default")]
    metadata: Metadata,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(SecretString::from))
}

impl WebhookEndpoint {
    /// The integration that it was registered for, if Paybridge registered it.
    pub fn integration_id(&self) -> Option<IntegrationId> {
        metadata_id(&self.metadata, metadata::INTEGRATION_ID).map(IntegrationId)
    }

    /// Whether this installation has registered it for an integration of this organization.
    pub fn is_of(&self, organization: OrganizationId, installation: &str) -> bool {
        metadata_id(&self.metadata, metadata::ORGANIZATION_ID) == Some(organization.0)
            && self.metadata.get(metadata::INSTALLATION).is_some_and(|name| name == installation)
    }

    /// The counter in its metadata, if there is one. Anybody can write there: what cannot be read is no counter.
    pub fn counter(&self) -> Option<Counter> {
        let mut parts = self.metadata.get(metadata::CONTACT_COUNTER)?.split(' ');
        let number = parts.next()?.parse().ok()?;
        let writer = parts.next()?.parse().ok()?;
        let time = OffsetDateTime::from_unix_timestamp(parts.next()?.parse().ok()?).ok()?;
        parts.next().is_none().then_some(Counter { number, writer, time })
    }

    /// Whether it renders events in our API version. This cannot be updated: another version needs another endpoint.
    pub fn has_our_version(&self) -> bool {
        self.api_version.as_deref() == Some(API_VERSION)
    }

    /// What is wrong with it, for people; empty if it posts the events that we handle to `url` in our API version.
    pub fn faults(&self, url: &str) -> Vec<String> {
        let mut faults = Vec::new();
        if self.status != "enabled" {
            faults.push(format!("the endpoint is {}", self.status));
        }
        if self.url != url {
            faults.push("the endpoint posts to another URL".to_owned());
        }
        if !self.has_our_version() {
            let version = self.api_version.as_deref().unwrap_or("the account's own");
            faults.push(format!("the endpoint's API version is {version}, not {API_VERSION}"));
        }
        let enabled: BTreeSet<&str> = self.enabled_events.iter().map(String::as_str).collect();
        let missing: Vec<&str> = signals::handled_types().filter(|name| !enabled.contains(name)).collect();
        if !missing.is_empty() && !enabled.contains("*") {
            faults.push(format!("the endpoint does not post {}", missing.join(", ")));
        }
        faults
    }
}

/// The body that registers an endpoint for exactly the events that we handle, in our API version.
pub fn create_body(
    installation: &str,
    url: &str,
    organization_id: OrganizationId,
    integration_id: IntegrationId,
) -> String {
    Form::new()
        .push("url", url)
        .push("api_version", API_VERSION)
        .push("description", "Paybridge")
        .push_list("enabled_events", signals::handled_types())
        .push_map(
            "metadata",
            &[
                (metadata::INTEGRATION_ID, integration_id.to_string()),
                (metadata::ORGANIZATION_ID, organization_id.to_string()),
                (metadata::INSTALLATION, installation.to_owned()),
            ],
        )
        .into_body()
}

/// The body that repairs an endpoint: enabled, this URL, exactly the events that we handle. Its API version cannot be
/// changed.
pub fn update_body(url: &str) -> String {
    Form::new()
        .push("url", url)
        .push("disabled", false)
        .push_list("enabled_events", signals::handled_types())
        .into_body()
}

/// The body that writes the counter to an endpoint's metadata, and leaves everything else.
pub fn counter_body(counter: &Counter) -> String {
    let value = format!("{} {} {}", counter.number, counter.writer, counter.time.unix_timestamp());
    Form::new().push_map("metadata", &[(metadata::CONTACT_COUNTER, value)]).into_body()
}

impl Client {
    /// Registers an endpoint; the request's body is a stored [`create_body`]. The response and every replay of it contain
    /// the secret.
    pub async fn create_webhook_endpoint(
        &self,
        key: &ApiKey,
        request: &StripeRequest,
    ) -> Result<Executed<WebhookEndpoint>, Error> {
        self.execute::<WebhookEndpoint, _>(key, LIST, None, request).await
    }

    /// Reads an endpoint, without its secret.
    pub async fn webhook_endpoint(&self, key: &ApiKey, id: &str) -> Result<WebhookEndpoint, Error> {
        self.send(key, Call::get("/v1/webhook_endpoints/{id}", Some(id), "")).await
    }

    /// All endpoints of the account in the key's mode.
    pub async fn webhook_endpoints(&self, key: &ApiKey) -> Result<Vec<WebhookEndpoint>, Error> {
        let too_long = "the account has more endpoints than are read";
        self.whole_list::<WebhookEndpoint, _>(key, LIST, &Form::new(), PAGES_MAX, too_long).await
    }

    /// Repairs an endpoint, or writes its counter; `body` is an [`update_body`] or a [`counter_body`].
    pub async fn update_webhook_endpoint(&self, key: &ApiKey, id: &str, body: &str) -> Result<WebhookEndpoint, Error> {
        let idempotency_key = self.unique_key("update");
        self.send(key, Call::post("/v1/webhook_endpoints/{id}", Some(id), &idempotency_key, body)).await
    }

    /// Deletes an endpoint. One that is already deleted counts as success.
    pub async fn delete_webhook_endpoint(&self, key: &ApiKey, id: &str) -> Result<(), Error> {
        match self.send::<Acknowledged>(key, Call::delete("/v1/webhook_endpoints/{id}", id)).await {
            Err(error) if !error.is_missing() => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;
    use uuid::Uuid;

    use super::super::scripted::{ScriptedServer, key, response};
    use super::*;

    const ENDPOINT: &str = r#"{"id":"we_1","object":"webhook_endpoint","url":"https://pay.test/hook","status":"enabled",
        "api_version":"2026-08-26.dahlia","created":1700000000,"secret":"whsec_abc","enabled_events":["*"],
        "metadata":{"integration_id":"00000000-0000-0000-0000-000000000004"}}"#;

    #[test]
    fn an_endpoint_is_registered_for_exactly_the_handled_types() {
        let (organization, integration) = (Uuid::from_u128(2).into(), Uuid::from_u128(4).into());
        let body = create_body("test", "https://pay.test/hook", organization, integration);
        assert!(body.starts_with("url=https%3A%2F%2Fpay.test%2Fhook&api_version=2026-08-26.dahlia"));
        for (index, name) in signals::handled_types().enumerate() {
            assert!(body.contains(&format!("&enabled_events[{index}]={name}&")), "{name}");
        }
        assert_eq!(body.matches("enabled_events").count(), signals::handled_types().count());
        assert!(body.contains("&metadata[integration_id]=00000000-0000-0000-0000-000000000004"));
        assert!(body.ends_with("&metadata[installation]=test"));
    }

    #[test]
    fn a_counter_is_read_as_it_was_written_and_anything_else_is_none() {
        let mut endpoint: WebhookEndpoint = serde_json::from_str(ENDPOINT).unwrap();
        assert_eq!(endpoint.counter(), None);
        let time = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        let counter = Counter { number: 7, writer: Uuid::from_u128(9), time };
        let value = "7 00000000-0000-0000-0000-000000000009 1700000000";
        let mut read = |value: &str| {
            endpoint.metadata.insert(metadata::CONTACT_COUNTER.to_owned(), value.to_owned());
            endpoint.counter()
        };
        assert_eq!(read(value), Some(counter));
        assert_eq!(counter_body(&counter), format!("metadata[contact_counter]={}", value.replace(' ', "%20")));
        for other in ["", "7", "7 9 1700000000", &format!("{value} 1"), &format!(" {value}"), &format!("{value}.5")] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn p9_the_secret_is_parsed_and_never_printed() {
        let endpoint: WebhookEndpoint = serde_json::from_str(ENDPOINT).unwrap();
        assert!(!format!("{endpoint:?}").contains("whsec_"));
        assert_eq!(endpoint.secret.as_ref().unwrap().expose_secret(), "whsec_abc");
        assert_eq!(endpoint.integration_id(), Some(Uuid::from_u128(4).into()));
    }

    #[test]
    fn the_faults_of_an_endpoint_are_listed() {
        let mut endpoint: WebhookEndpoint = serde_json::from_str(ENDPOINT).unwrap();
        assert_eq!(endpoint.faults("https://pay.test/hook"), Vec::<String>::new());
        endpoint.enabled_events = signals::handled_types().skip(1).map(str::to_owned).collect();
        endpoint.status = "disabled".to_owned();
        endpoint.api_version = None;
        let faults = endpoint.faults("https://other.test/hook").join("; ");
        for part in ["disabled", "another URL", "the account's own", "does not post charge.dispute.closed"] {
            assert!(faults.contains(part), "{part} in {faults}");
        }
    }

    #[tokio::test]
    async fn deleting_a_deleted_object_succeeds() {
        let missing = r#"{"error":{"type":"invalid_request_error","code":"resource_missing","message":"No such"}}"#;
        let key = key();
        let missing_object = ScriptedServer::new(move |_| response(404, missing)).await;
        missing_object.client().delete_webhook_endpoint(&key, "we_1").await.unwrap();
        let deleted = ScriptedServer::new(|_| response(200, r#"{"id":"we_1","deleted":true}"#)).await;
        deleted.client().delete_webhook_endpoint(&key, "we_1").await.unwrap();
        assert_eq!(deleted.requests()[0].header("idempotency-key"), None);
        let refused = ScriptedServer::new(move |_| response(403, missing)).await;
        assert!(refused.client().delete_webhook_endpoint(&key, "we_1").await.is_err());
    }
}
