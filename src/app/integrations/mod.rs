//! Integrations: connecting, reading, changing. Connecting and rotating check the key with Stripe within the call
//! (`connect`, `key`); winding down is a job (`disconnect`), and so is looking after the webhook endpoint (`endpoint`); `check`
//! looks and changes nothing.

mod check;
mod connect;
mod disconnect;
mod endpoint;
mod key;

use std::time::Duration;

use secrecy::ExposeSecret;

use super::tell;
use super::work::Work;
use super::{Access, App};
use crate::domain::integrations::{Integration, IntegrationState, IntegrationUpdate};
use crate::domain::jobs::JobKind;
use crate::domain::{Error, IntegrationId, OrganizationId, Page, Result};
use crate::store::integrations::Secret;
use crate::stripe::scopes::is_beside_collecting;
use crate::{store, stripe};

/// What a caller is told when a call to Stripe did not bring a definite answer.
pub(super) fn stripe_unavailable(error: &stripe::Error) -> Error {
    if let Some(retry_after) = error.held_back() {
        return Error::HeldBack { message: error.to_string(), retry_after };
    }
    Error::Unavailable { reason: "STRIPE_UNAVAILABLE", message: error.to_string(), retry_after: Duration::from_secs(5) }
}

/// What a failed call means for a job. It is tried again later in any case, since unknown is not failed (P2); but a
/// refusal that the job did not expect is a failure of its own.
fn job_trouble(action: &str, error: &stripe::Error) -> Error {
    match error.verdict() {
        stripe::Verdict::Refused => Error::internal(anyhow::anyhow!("Stripe refused {action}: {error}")),
        stripe::Verdict::NotDone | stripe::Verdict::Unknown => stripe_unavailable(error),
    }
}

impl App {
    /// An integration.
    pub async fn get_integration(&self, org: OrganizationId, id: IntegrationId) -> Result<Integration> {
        let mut tx = self.read(org).await?;
        let integration = store::integrations::get(&mut tx, org, id).await?;
        // Most who ask call Stripe next (P3).
        tx.close().await?;
        Ok(integration)
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

    /// What a failed call means for a job; besides, a key that must be mended pauses the integration, or, where nothing is
    /// collected with the call, no more than what needs it.
    pub(super) async fn stripe_trouble(&self, access: &Access, action: &str, error: &stripe::Error) -> Error {
        let is_beside = action.split_once('.').is_some_and(|(object, _)| is_beside_collecting(object));
        let told = match error {
            stripe::Error::Forbidden { .. } if is_beside => self.tell_forbidden(access, action, error).await,
            _ if error.is_key_trouble() => self.pause_integration(access, action, error).await,
            _ => Ok(()),
        };
        match told {
            Ok(()) => job_trouble(action, error),
            Err(error) => error,
        }
    }

    /// The key may not make a call without which everything else can go on: told once for each key.
    async fn tell_forbidden(&self, access: &Access, action: &str, error: &stripe::Error) -> Result<()> {
        let (org, id) = (access.org, access.integration);
        let (mut work, integration, is_present) = self.lock_with_key(access).await?;
        if !is_present || !store::upkeep::note_forbidden(&mut work.tx, org, id, action).await? {
            return Ok(());
        }
        let code = error.code().unwrap_or("permission_missing");
        work.tell(tell::provider_error(&integration, action, &error.to_string(), code));
        tracing::warn!(integration.id = %id, %error, action, "what needs a permission waits until the key is mended");
        work.commit().await
    }

    /// Locks an integration, within a new change; whether the key that a call was made with is still its key.
    async fn lock_with_key(&self, access: &Access) -> Result<(Work, Integration, bool)> {
        let (org, id) = (access.org, access.integration);
        let mut work = self.begin(org).await?;
        let integration = store::integrations::lock(&mut work.tx, org, id).await?;
        let present = store::integrations::secret(&mut work.tx, &self.0.sealer, org, id, Secret::Key).await?;
        let is_present = present.is_some_and(|key| key.expose_secret() == access.key.expose_secret());
        Ok((work, integration, is_present))
    }

    /// Stripe does not accept the key, or it lacks a permission: what needs the key waits until it is mended. Told once,
    /// and not at all if another key has taken its place meanwhile.
    pub(super) async fn pause_integration(&self, access: &Access, action: &str, error: &stripe::Error) -> Result<()> {
        let id = access.integration;
        let (mut work, mut integration, is_present) = self.lock_with_key(access).await?;
        if integration.state != IntegrationState::Active || !is_present {
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
}

/// The key of a locked integration is good again: everything that waited for it is looked at.
async fn resume(work: &mut Work, integration: &mut Integration) -> Result<()> {
    let (org, id) = (work.org, integration.id);
    // Listed under the lock: whoever found the integration paused before has committed its wait by now.
    let payments = store::payments::unsettled(&mut work.tx, org, id).await?;
    let customers = store::customers::pending_links(&mut work.tx, org, id).await?;
    store::jobs::hurry(&mut work.tx, org, work.now).await?;
    work.ask(JobKind::CheckEndpoint, id.0);
    if integration.state == IntegrationState::Paused {
        integration.state = IntegrationState::Active;
        integration.pause_reason = None;
        store::integrations::save(&mut work.tx, integration, work.now).await?;
        work.tell(tell::provider("payment_provider.recovered", integration));
        tracing::info!(integration.id = %id, "the integration becomes active again: its key is good");
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
    Ok(())
}
