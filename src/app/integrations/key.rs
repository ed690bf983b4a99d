//! Checks of an API key with Stripe: whether it is accepted, its account, and its permissions. The account matters
//! twice: one account is connected once, and a key of another account would lose the idempotency of everything already
//! sent (P2).

use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;

use super::{if_allowed, stripe_unavailable};
use crate::app::App;
use crate::domain::integrations::{EventSource, Finding, FindingState, FindingSubject, Integration, IntegrationState};
use crate::domain::{Error, IntegrationId, OrganizationId, Result};
use crate::store::integrations::Secret;
use crate::stripe::accounts::KeyClass;
use crate::stripe::scopes::{self, Proof, Scope};
use crate::{store, stripe};

/// A key that Stripe accepts and that has the permissions that collecting needs.
pub(super) struct CheckedKey {
    pub key: SecretString,
    pub class: KeyClass,
    /// `acct_…`; `None` if Stripe does not let the key read it anywhere.
    pub account: Option<String>,
    /// The permissions of a restricted key.
    pub findings: Vec<scopes::Finding>,
    /// Since when the account has a webhook endpoint of an integration that the database has forgotten.
    pub lost_since: Option<OffsetDateTime>,
}

/// Whether a key belongs to an integration's account and mode.
pub(super) enum AccountMatch {
    Same,
    Other,
    /// Not proved, with the reason.
    Unproved(String),
}

impl App {
    /// Checks a key with Stripe: its class, that it is accepted, and that it has the permissions that collecting needs
    /// for an integration whose events come from `source`.
    pub(super) async fn check_key(&self, key: &SecretString, source: EventSource) -> Result<CheckedKey> {
        let key = SecretString::from(key.expose_secret().trim());
        let class = KeyClass::of(&key).map_err(|error| refused("KEY_NOT_SECRET", error.to_string()))?;
        // The account whose rate limits apply is not known yet.
        let unlimited = stripe::ApiKey::unlimited(key.clone());
        let mut account = match self.0.stripe.account(&unlimited).await {
            Ok(account) => Some(account.id),
            Err(error @ stripe::Error::Unauthorized(_)) => {
                return Err(refused("KEY_REJECTED", error.to_string()));
            }
            Err(error @ stripe::Error::Forbidden { .. }) => error.named_account().map(str::to_owned),
            Err(error) => return Err(stripe_unavailable(&error)),
        };
        let mut findings = Vec::new();
        if class.restricted {
            let probed = self.0.stripe.probe_scopes(&unlimited).await.map_err(|error| stripe_unavailable(&error))?;
            check_permissions(&probed.findings, source)?;
            account = account.or(probed.account);
            findings = probed.findings;
        }
        Ok(CheckedKey { key, class, account, findings, lost_since: None })
    }

    /// Finds out whether the account was connected before, by an integration that the database has forgotten: it was
    /// restored to a state before that. What that integration did has to be read back.
    pub(super) async fn find_lost_integration(&self, org: OrganizationId, checked: &mut CheckedKey) -> Result<()> {
        let key = stripe::ApiKey::unlimited(checked.key.clone());
        let listed = if_allowed(self.0.stripe.webhook_endpoints(&key).await);
        let listed = listed.map_err(|error| stripe_unavailable(&error))?.unwrap_or_default();
        let installation = &self.0.settings.installation;
        let mut tx = self.read(org).await?;
        for endpoint in listed.iter().filter(|endpoint| endpoint.is_of(org, installation)) {
            let Some(id) = endpoint.integration_id() else { continue };
            match store::integrations::get(&mut tx, org, id).await {
                Ok(_) => {}
                Err(Error::NotFound { .. }) => {
                    let since = checked.lost_since.map_or(endpoint.created, |since| since.min(endpoint.created));
                    checked.lost_since = Some(since);
                }
                Err(error) => return Err(error),
            }
        }
        tx.close().await
    }

    /// Whether a key belongs to an integration's account: by the accounts' ids or, if Stripe did not name one of them,
    /// by an object of that account that the key can read, since Stripe's ids are unique over all accounts.
    pub(super) async fn match_account(&self, known: &Integration, checked: &CheckedKey) -> Result<AccountMatch> {
        if known.livemode != checked.class.livemode {
            return Ok(AccountMatch::Other);
        }
        if let (Some(of_key), Some(own)) = (&checked.account, &known.provider_account_id) {
            return Ok(if of_key == own { AccountMatch::Same } else { AccountMatch::Other });
        }
        let (org, id) = (known.organization_id, known.id);
        let mut tx = self.read(org).await?;
        let present = store::integrations::secret(&mut tx, &self.0.sealer, org, id, Secret::Key).await?;
        let customer = store::customers::any_linked(&mut tx, org, id).await?;
        tx.close().await?;
        if present.is_some_and(|present| present.expose_secret() == checked.key.expose_secret()) {
            return Ok(AccountMatch::Same);
        }
        let key = stripe::ApiKey::unlimited(checked.key.clone());
        let mut unread = Vec::new();
        if let Some(endpoint) = &known.provider_endpoint_id {
            match self.0.stripe.webhook_endpoint(&key, endpoint).await {
                Ok(_) => return Ok(AccountMatch::Same),
                Err(error) => unread.push(unreadable(&format!("webhook endpoint {endpoint}"), &error)?),
            }
        }
        if let Some(customer) = &customer {
            match self.0.stripe.customer(&key, customer).await {
                Ok(_) => return Ok(AccountMatch::Same),
                Err(error) => unread.push(unreadable(&format!("customer {customer}"), &error)?),
            }
        }
        if unread.is_empty() {
            unread.push(
                "the integration has neither a webhook endpoint nor a linked customer for the key to read".to_owned(),
            );
        }
        Ok(AccountMatch::Unproved(unread.join("; ")))
    }

    /// Rejects a key of an account that the organization has already connected. Returns the integrations that it was
    /// compared with; others must be compared by account id.
    pub(super) async fn check_not_connected(
        &self,
        org: OrganizationId,
        checked: &CheckedKey,
    ) -> Result<Vec<IntegrationId>> {
        let mut tx = self.read(org).await?;
        let live = store::integrations::live(&mut tx, org).await?;
        tx.close().await?;
        for known in &live {
            match self.match_account(known, checked).await? {
                AccountMatch::Same => return Err(store::integrations::account_in_use(known)),
                // Its endpoint will prove it as soon as it is registered.
                AccountMatch::Unproved(_) if known.state == IntegrationState::Connecting => {
                    return Err(another_is_connecting(known));
                }
                AccountMatch::Unproved(_) | AccountMatch::Other => {}
            }
        }
        Ok(live.into_iter().map(|known| known.id).collect())
    }

    /// Repeats the check within the transaction that connects. Integrations begun since `compared` are compared by
    /// account id; if one is unknown, the caller must retry.
    pub(super) async fn check_not_connected_since(
        &self,
        tx: &mut store::Transaction,
        new: &Integration,
        compared: &[IntegrationId],
    ) -> Result<()> {
        store::integrations::check_unique(tx, new).await?;
        let live = store::integrations::live(tx, new.organization_id).await?;
        let is_nameless = |known: &&Integration| {
            known.livemode == new.livemode
                && !compared.contains(&known.id)
                && (known.provider_account_id.is_none() || new.provider_account_id.is_none())
        };
        live.iter().find(is_nameless).map_or(Ok(()), |known| Err(another_is_connecting(known)))
    }
}

fn refused(reason: &'static str, message: String) -> Error {
    Error::precondition(reason, "secret_key", message)
}

fn another_is_connecting(known: &Integration) -> Error {
    Error::Unavailable {
        reason: "STRIPE_UNAVAILABLE",
        message: format!(
            "the integration {} is being connected, and Stripe does not say whether it is the same account; retry when \
             that integration is ACTIVE",
            known.code
        ),
        retry_after: std::time::Duration::from_secs(5),
    }
}

/// Why an object could not be read with the key. An inconclusive response is an error.
fn unreadable(what: &str, error: &stripe::Error) -> Result<String> {
    match error {
        stripe::Error::Forbidden { .. } => Ok(format!("the key may not read its {what}")),
        _ if error.is_missing() => Ok(format!("the key finds no {what}")),
        _ => Err(stripe_unavailable(error)),
    }
}

/// Rejects a key that lacks permissions that collecting needs, and lists all missing ones, so that the key needs to be
/// changed only once.
fn check_permissions(findings: &[scopes::Finding], source: EventSource) -> Result<()> {
    let missing = || findings.iter().filter(|finding| finding.proof == Proof::Missing).map(|finding| finding.scope);
    let named = |is_wanted: &dyn Fn(&Scope) -> bool| -> Vec<String> {
        missing()
            .filter(|scope| is_wanted(scope))
            .map(|scope| format!("{} (to {})", scope.title, scope.usage))
            .collect()
    };
    let needed = named(&|scope: &Scope| scope.is_needed(source));
    if needed.is_empty() {
        return Ok(());
    }
    let optional = named(&|scope: &Scope| !scope.is_needed(source));
    let optional = if optional.is_empty() {
        String::new()
    } else {
        format!(" It also lacks permissions that are needed for other features: {}.", optional.join(", "))
    };
    let needed = needed.join(", ");
    let message = format!(
        "the restricted key lacks {needed}. Set these permissions on the key's page in the Stripe Dashboard.{optional}"
    );
    Err(refused("KEY_LACKS_PERMISSION", message))
}

/// A probed permission as a finding for callers.
pub(super) fn scope_finding(probed: &scopes::Finding) -> Finding {
    let scope = probed.scope;
    let (state, message) = match &probed.proof {
        Proof::Proved => (FindingState::Ok, String::new()),
        Proof::Missing => (FindingState::Missing, format!("{} is needed to {}", scope.title, scope.usage)),
        Proof::Unproved(why) => (FindingState::Unproved, format!("{}: {why}", scope.title)),
    };
    Finding { subject: FindingSubject::Scope, name: scope.permission.to_owned(), state, message }
}
