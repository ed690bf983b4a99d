//! Integrations: connect, read, change. Connecting and rotating check the key with Stripe within the call (`connect`,
//! `key`). Jobs disconnect (`disconnect`) and maintain the webhook endpoint (`endpoint`). `check` reports problems.

mod check;
mod connect;
mod disconnect;
mod endpoint;
mod key;

use std::collections::BTreeSet;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::event_payloads;
use super::unit_of_work::UnitOfWork;
use super::{App, StripeAccount};
use crate::domain::events::EventType;
use crate::domain::integrations::{Integration, IntegrationState, IntegrationUpdate};
use crate::domain::jobs::JobKind;
use crate::domain::{Error, IntegrationId, OrganizationId, Page, Result};
use crate::store::integrations::Secret;
use crate::stripe::{Operation, UnsentCause};
use crate::{store, stripe};

/// The error for a call to Stripe without a definite response.
pub(super) fn stripe_unavailable(error: &stripe::Error) -> Error {
    if let stripe::Error::NotSent { cause: UnsentCause::CatchingUp, retry_after, .. } = error {
        let (reason, retry_after) = ("INTEGRATION_CATCHING_UP", *retry_after);
        return Error::Unavailable { reason, message: error.to_string(), retry_after };
    }
    if let Some(retry_after) = error.retry_delay() {
        return Error::Throttled { message: error.to_string(), retry_after };
    }
    Error::Unavailable { reason: "STRIPE_UNAVAILABLE", message: error.to_string(), retry_after: Duration::from_secs(5) }
}

/// What a failed call means for a job: it is retried in any case, since unknown is not failed (P2). An unexpected
/// refusal counts as the job's own failure.
fn map_job_error(operation: Operation, error: &stripe::Error) -> Error {
    match error.disposition() {
        stripe::Disposition::Refused => {
            Error::internal(anyhow::anyhow!("Stripe refused {}: {error}", operation.as_str()))
        }
        stripe::Disposition::NotDone | stripe::Disposition::Unknown => stripe_unavailable(error),
    }
}

/// The result of a read, or `None` if the object does not exist at Stripe.
pub(super) fn if_found<T>(read: Result<T, stripe::Error>) -> Result<Option<T>, stripe::Error> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The result of a read, or `None` if the key lacks the permission.
pub(super) fn if_allowed<T>(read: Result<T, stripe::Error>) -> Result<Option<T>, stripe::Error> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(stripe::Error::Forbidden { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl App {
    /// Reads an integration. Disconnected ones are kept, too.
    pub async fn get_integration(&self, org: OrganizationId, id: IntegrationId) -> Result<Integration> {
        let mut tx = self.read(org).await?;
        let integration = store::integrations::get(&mut tx, org, id).await?;
        // Most callers call Stripe next (P3).
        tx.close().await?;
        Ok(integration)
    }

    /// A page of integrations, newest first, including disconnected ones.
    pub async fn list_integrations(&self, org: OrganizationId, page: Page) -> Result<Vec<Integration>> {
        store::integrations::list(&mut *self.read(org).await?, org, page).await
    }

    /// Changes the settings, which needs no call to Stripe. `version` is the etag, if the caller gave one.
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
            let message = "the integration is disconnected; connect the Stripe account again";
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

    /// The result of a call to Stripe, with its failure as [`map_stripe_error`](Self::map_stripe_error) maps it.
    pub(super) async fn checked<T>(
        &self,
        account: &StripeAccount,
        operation: Operation,
        result: Result<T, stripe::Error>,
    ) -> Result<T> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => Err(self.map_stripe_error(account, operation, &error).await),
        }
    }

    /// What a failed call means for a job. A rejected key also pauses the integration. A missing permission that
    /// collecting does not need pauses only what needs it.
    pub(super) async fn map_stripe_error(
        &self,
        account: &StripeAccount,
        operation: Operation,
        error: &stripe::Error,
    ) -> Error {
        let reported = match error {
            stripe::Error::Forbidden { .. } if operation.is_optional() => {
                self.report_forbidden(account, operation, error).await
            }
            _ if error.is_api_key_error() => self.pause_integration(account, operation, error).await,
            _ => Ok(()),
        };
        match reported {
            Ok(()) => map_job_error(operation, error),
            Err(error) => error,
        }
    }

    /// The key lacks a permission that collecting does not need: reported once per key.
    async fn report_forbidden(
        &self,
        account: &StripeAccount,
        operation: Operation,
        error: &stripe::Error,
    ) -> Result<()> {
        let (org, id, action) = (account.org, account.integration_id, operation.as_str());
        let (mut work, integration, is_present) = self.lock_with_key(account).await?;
        if !is_present || !store::integration_health::record_forbidden_action(&mut work.tx, org, id, action).await? {
            return Ok(());
        }
        let code = error.code().unwrap_or("permission_missing");
        work.record_event(event_payloads::provider_error(&integration, operation, &error.to_string(), code));
        tracing::warn!(integration.id = %id, %error, action, "API key lacks a permission; what needs it is suspended");
        work.commit().await
    }

    /// Begins a change and locks an integration. Returns whether the key that a call was made with is still its key.
    async fn lock_with_key(&self, account: &StripeAccount) -> Result<(UnitOfWork, Integration, bool)> {
        let (org, id) = (account.org, account.integration_id);
        let mut work = self.begin(org).await?;
        let integration = store::integrations::lock(&mut work.tx, org, id).await?;
        let present = store::integrations::secret(&mut work.tx, &self.0.sealer, org, id, Secret::Key).await?;
        let is_present = present.is_some_and(|key| key.expose_secret() == account.key.expose_secret());
        Ok((work, integration, is_present))
    }

    /// Stripe rejects the key, or it lacks a permission that collecting needs: the integration is paused until the key
    /// is repaired. Reported once, and not at all if the key was replaced meanwhile.
    pub(super) async fn pause_integration(
        &self,
        account: &StripeAccount,
        operation: Operation,
        error: &stripe::Error,
    ) -> Result<()> {
        let id = account.integration_id;
        let (mut work, mut integration, is_present) = self.lock_with_key(account).await?;
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
        work.record_event(event_payloads::provider_error(&integration, operation, &error.to_string(), code));
        let action = operation.as_str();
        tracing::warn!(integration.id = %id, %error, action, "integration paused until its API key is repaired");
        work.commit().await
    }
}

/// The key of a locked integration works again, or it has caught up: enqueues everything that waited for that.
pub(super) async fn resume(work: &mut UnitOfWork, integration: &mut Integration) -> Result<()> {
    let (org, id) = (work.org, integration.id);
    // Listed under the lock: a transaction that found the integration paused has committed its wait by now.
    let payments = store::payments::unsettled(&mut work.tx, org, id).await?;
    let customers = store::customers::pending_links(&mut work.tx, org, id).await?;
    store::jobs::run_now(&mut work.tx, org, work.now).await?;
    work.enqueue(JobKind::CheckEndpoint, id.0);
    if integration.state == IntegrationState::Paused {
        integration.state = IntegrationState::Active;
        integration.pause_reason = None;
        store::integrations::save(&mut work.tx, integration, work.now).await?;
        work.record_event(event_payloads::provider(EventType::PaymentProviderRecovered, integration));
        tracing::info!(integration.id = %id, "integration resumed: its API key works");
    }
    let operations = store::payments::with_pending_operations(&mut work.tx, org, id).await?;
    let payments: BTreeSet<_> = payments.into_iter().map(|(payment, _)| payment).chain(operations).collect();
    for payment in payments {
        work.enqueue(JobKind::SubmitPayment, payment);
    }
    for customer in customers {
        work.enqueue(JobKind::SyncCustomer, customer);
    }
    if integration.state == IntegrationState::Disconnecting {
        work.enqueue(JobKind::DisconnectIntegration, id.0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_catching_up_holds_back_has_its_own_reason() {
        let map = |cause| {
            let (retry_after, detail) = (Duration::from_secs(10), Box::default());
            stripe_unavailable(&stripe::Error::NotSent { cause, retry_after, detail })
        };
        let Error::Unavailable { reason, retry_after, .. } = map(UnsentCause::CatchingUp) else {
            panic!("unavailable")
        };
        assert_eq!((reason, retry_after), ("INTEGRATION_CATCHING_UP", Duration::from_secs(10)));
        assert!(matches!(map(UnsentCause::Outage), Error::Throttled { .. }));
    }
}
