//! Checks an integration with Stripe: key, permissions, endpoint.

use crate::app::App;
use crate::domain::integrations::{Finding, FindingState, FindingSubject, Integration, IntegrationState};
use crate::domain::{IntegrationId, OrganizationId, Result};
use crate::stripe;
use crate::stripe::accounts::KeyClass;
use crate::stripe::scopes::Proof;

use super::key::scope_finding;
use super::{resume, stripe_unavailable};

impl App {
    /// Reports what works and what does not. A paused integration whose key is found to work is resumed.
    pub async fn check_integration(
        &self,
        org: OrganizationId,
        id: IntegrationId,
    ) -> Result<(Integration, Vec<Finding>)> {
        let (integration, account) = self.stripe_account_even_paused(org, id).await?;
        let mut findings = Vec::new();
        match self.0.stripe.account(&account.key).await {
            // A restricted key need not have the permission to read the account.
            Ok(_) | Err(stripe::Error::Forbidden { .. }) => {
                findings.push(finding(FindingSubject::Key, "", FindingState::Ok, ""));
            }
            Err(error @ stripe::Error::Unauthorized(_)) => {
                let message = format!("{error}; rotate the key");
                findings.push(finding(FindingSubject::Key, "", FindingState::Wrong, &message));
                return Ok((integration, findings));
            }
            Err(error) => return Err(stripe_unavailable(&error)),
        }
        let mut can_collect = true;
        if KeyClass::of(&account.key).is_ok_and(|class| class.restricted) {
            let probed = self.0.stripe.probe_scopes(&account.key).await.map_err(|error| stripe_unavailable(&error))?;
            let source = integration.event_source();
            let is_obstacle =
                |found: &stripe::scopes::Finding| found.proof == Proof::Missing && found.scope.is_needed(source);
            can_collect = !probed.findings.iter().any(is_obstacle);
            findings.extend(probed.findings.iter().map(scope_finding));
        }
        if let Some(endpoint) = &integration.provider_endpoint_id {
            findings.push(self.check_endpoint(&integration, &account.key, endpoint).await?);
        }
        if integration.state != IntegrationState::Paused || !can_collect {
            return Ok((integration, findings));
        }
        let (mut work, mut integration, is_present) = self.lock_with_key(&account).await?;
        // The key may have been replaced meanwhile; this check says nothing about the new one.
        if is_present {
            resume(&mut work, &mut integration).await?;
            work.commit().await?;
        }
        Ok((integration, findings))
    }

    async fn check_endpoint(
        &self,
        integration: &Integration,
        key: &stripe::ApiKey,
        endpoint_id: &str,
    ) -> Result<Finding> {
        let url = self.endpoint_url(integration.organization_id, integration.id);
        match self.0.stripe.webhook_endpoint(key, endpoint_id).await {
            Ok(endpoint) => {
                let faults = endpoint.faults(&url);
                let state = if faults.is_empty() { FindingState::Ok } else { FindingState::Wrong };
                Ok(finding(FindingSubject::Endpoint, endpoint_id, state, &faults.join("; ")))
            }
            Err(error) if error.is_missing() => {
                let message = "the endpoint was deleted at Stripe; a new one is created within minutes";
                Ok(finding(FindingSubject::Endpoint, endpoint_id, FindingState::Missing, message))
            }
            Err(error @ stripe::Error::Forbidden { .. }) => {
                Ok(finding(FindingSubject::Endpoint, endpoint_id, FindingState::Unproved, &error.to_string()))
            }
            Err(error) => Err(stripe_unavailable(&error)),
        }
    }
}

fn finding(subject: FindingSubject, name: &str, state: FindingState, message: &str) -> Finding {
    Finding { subject, name: name.to_owned(), state, message: message.to_owned() }
}
