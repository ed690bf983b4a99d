//! Integrations: connecting, reading, changing. Connecting and rotating check the key with Stripe within the call
//! (`connect`); winding down is a job (`disconnect`); `check` looks and changes nothing.

mod check;
mod connect;
mod disconnect;

use std::time::Duration;

use super::App;
use super::tell;
use crate::domain::integrations::{Integration, IntegrationState, IntegrationUpdate};
use crate::domain::jobs::JobKind;
use crate::domain::{Error, IntegrationId, OrganizationId, Page, Result};
use crate::{store, stripe};

/// What a caller is told when a call to Stripe did not bring a definite answer.
pub(super) fn stripe_unavailable(error: &stripe::Error) -> Error {
    Error::Unavailable { reason: "STRIPE_UNAVAILABLE", message: error.to_string(), retry_after: Duration::from_secs(5) }
}

impl App {
    /// An integration.
    pub async fn get_integration(&self, org: OrganizationId, id: IntegrationId) -> Result<Integration> {
        store::integrations::get(&mut *self.read(org).await?, org, id).await
    }

    /// A page of integrations, newest first, disconnected ones too.
    pub async fn list_integrations(&self, org: OrganizationId, page: Page) -> Result<Vec<Integration>> {
        store::integrations::list(&mut *self.read(org).await?, org, page).await
    }

    /// Changes what may be changed without Stripe. `version` is the etag, if the caller gave one.
    pub async fn update_integration(
        &self,
        org: OrganizationId,
        id: IntegrationId,
        version: Option<i64>,
        update: IntegrationUpdate,
    ) -> Result<Integration> {
        let mut work = self.begin(org).await?;
        let mut integration = store::integrations::lock(&mut work.tx, org, id).await?;
        if version.is_some_and(|version| version != integration.version) {
            return Err(Error::EtagMismatch { kind: "integration", id: id.to_string() });
        }
        if integration.state == IntegrationState::Disconnected {
            let message = "the integration is disconnected; connect the Stripe account anew";
            return Err(Error::precondition("INTEGRATION_DISCONNECTED", format!("integration/{id}"), message));
        }
        if let Some(name) = update.name {
            integration.name = name;
        }
        if let Some(url) = update.success_redirect_url {
            integration.success_redirect_url = url;
        }
        if let Some(supports) = update.supports_3ds {
            integration.supports_3ds = supports;
        }
        if let Some(relay) = update.relay_provider_events {
            integration.relay_provider_events = relay;
        }
        store::integrations::save(&mut work.tx, &mut integration, work.now).await?;
        work.commit().await?;
        Ok(integration)
    }

    /// Stripe does not accept the key, or it lacks a permission: what needs the key waits until it is mended. Told once.
    pub(super) async fn pause_integration(
        &self,
        org: OrganizationId,
        id: IntegrationId,
        action: &str,
        error: &stripe::Error,
    ) -> Result<()> {
        let mut work = self.begin(org).await?;
        let mut integration = store::integrations::lock(&mut work.tx, org, id).await?;
        if integration.state != IntegrationState::Active {
            return Ok(());
        }
        integration.state = IntegrationState::Paused;
        integration.pause_reason = Some(error.to_string());
        store::integrations::save(&mut work.tx, &mut integration, work.now).await?;
        let code = error.code().unwrap_or(if matches!(error, stripe::Error::Unauthorized(_)) {
            "unauthorized"
        } else {
            "permission_missing"
        });
        work.tell(tell::provider_error(&integration, action, &error.to_string(), code));
        tracing::warn!(integration.id = %id, %error, action, "the integration is paused until its key is mended");
        work.commit().await
    }

    /// The key is good again: everything that waited for it is looked at.
    async fn resume_integration(&self, org: OrganizationId, id: IntegrationId) -> Result<Integration> {
        let mut work = self.begin(org).await?;
        let payments = store::payments::unsettled(&mut work.tx, org, id).await?;
        let customers = store::customers::pending_links(&mut work.tx, org, id).await?;
        let mut integration = store::integrations::lock(&mut work.tx, org, id).await?;
        if integration.state == IntegrationState::Paused {
            integration.state = IntegrationState::Active;
            integration.pause_reason = None;
            store::integrations::save(&mut work.tx, &mut integration, work.now).await?;
        }
        for (payment, _) in payments {
            work.ask(JobKind::SubmitPayment, payment);
        }
        for customer in customers {
            work.ask(JobKind::SyncCustomer, customer);
        }
        if integration.state == IntegrationState::Disconnecting {
            work.ask(JobKind::DisconnectIntegration, id.0);
        }
        work.commit().await?;
        Ok(integration)
    }
}
