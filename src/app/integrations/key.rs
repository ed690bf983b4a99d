//! What Stripe says of a key: whether it is accepted, whose it is, and what it may do. Whose it is matters twice: one
//! account is connected once, and a key of another account would lose the idempotency of everything that was sent (P2).

use secrecy::{ExposeSecret, SecretString};

use super::stripe_unavailable;
use crate::app::App;
use crate::domain::integrations::{Finding, FindingState, FindingSubject, Integration, IntegrationState};
use crate::domain::{Error, IntegrationId, OrganizationId, Result};
use crate::store::integrations::Secret;
use crate::stripe::accounts::KeyClass;
use crate::stripe::scopes::{self, Proof, Scope};
use crate::{store, stripe};

/// A key that Stripe accepts and that may do what collecting needs.
pub(super) struct CheckedKey {
    pub key: SecretString,
    pub class: KeyClass,
    /// `acct_…`; `None` where Stripe lets the key read its account nowhere.
    pub account: Option<String>,
    /// Of a restricted key, what it may do.
    pub findings: Vec<scopes::Finding>,
}

/// Whether a key is of an integration's account, in the same mode.
pub(super) enum Sameness {
    Same,
    Other,
    /// Not proved; why not, for people.
    Unproved(String),
}

impl App {
    /// Checks a key with Stripe: its class, that it is accepted, and that it may do what `is_needed`.
    pub(super) async fn check_key(&self, key: &SecretString, is_needed: impl Fn(&Scope) -> bool) -> Result<CheckedKey> {
        let key = SecretString::from(key.expose_secret().trim());
        let class = KeyClass::of(&key).map_err(|refusal| refused("KEY_NOT_SECRET", refusal.to_string()))?;
        // Whose limits its calls count against is not known yet.
        let unpaced = stripe::ApiKey::unpaced(key.clone());
        let mut account = match self.0.stripe.account(&unpaced).await {
            Ok(account) => Some(account.id),
            Err(error @ stripe::Error::Unauthorized(_)) => {
                return Err(refused("KEY_REJECTED", error.to_string()));
            }
            Err(error @ stripe::Error::Forbidden { .. }) => error.named_account().map(str::to_owned),
            Err(error) => return Err(stripe_unavailable(&error)),
        };
        let mut findings = Vec::new();
        if class.restricted {
            let probed = self.0.stripe.probe_scopes(&unpaced).await.map_err(|error| stripe_unavailable(&error))?;
            refuse_lacking(&probed.findings, is_needed)?;
            account = account.or(probed.account);
            findings = probed.findings;
        }
        Ok(CheckedKey { key, class, account, findings })
    }

    /// Whether a key is of an integration's account: by the accounts' ids, or, where Stripe did not name one of them, by
    /// something of that account that the key can read, since Stripe's ids are unique over all accounts.
    pub(super) async fn same_account(&self, known: &Integration, checked: &CheckedKey) -> Result<Sameness> {
        if known.livemode != checked.class.livemode {
            return Ok(Sameness::Other);
        }
        if let (Some(theirs), Some(own)) = (&checked.account, &known.provider_account_id) {
            return Ok(if theirs == own { Sameness::Same } else { Sameness::Other });
        }
        let (org, id) = (known.organization_id, known.id);
        let mut tx = self.read(org).await?;
        let present = store::integrations::secret(&mut tx, &self.0.sealer, org, id, Secret::Key).await?;
        let customer = store::customers::any_linked(&mut tx, org, id).await?;
        tx.close().await?;
        if present.is_some_and(|present| present.expose_secret() == checked.key.expose_secret()) {
            return Ok(Sameness::Same);
        }
        let key = stripe::ApiKey::unpaced(checked.key.clone());
        let mut unread = Vec::new();
        if let Some(endpoint) = &known.provider_endpoint_id {
            match self.0.stripe.webhook_endpoint(&key, endpoint).await {
                Ok(_) => return Ok(Sameness::Same),
                Err(error) => unread.push(unreadable(&format!("webhook endpoint {endpoint}"), &error)?),
            }
        }
        if let Some(customer) = &customer {
            match self.0.stripe.customer(&key, customer).await {
                Ok(_) => return Ok(Sameness::Same),
                Err(error) => unread.push(unreadable(&format!("customer {customer}"), &error)?),
            }
        }
        if unread.is_empty() {
            unread.push("it has neither a webhook endpoint nor a linked customer that the key could read".to_owned());
        }
        Ok(Sameness::Unproved(unread.join("; ")))
    }

    /// Refuses a key of an account that an integration of the organization holds already. Returns which integrations it
    /// was compared with; what is not among them has to be looked at by its account's id.
    pub(super) async fn refuse_connected(
        &self,
        org: OrganizationId,
        checked: &CheckedKey,
    ) -> Result<Vec<IntegrationId>> {
        let mut tx = self.read(org).await?;
        let live = store::integrations::live(&mut tx, org).await?;
        tx.close().await?;
        for known in &live {
            match self.same_account(known, checked).await? {
                Sameness::Same => return Err(store::integrations::account_held_by(known)),
                // Its endpoint will prove it in a moment.
                Sameness::Unproved(_) if known.state == IntegrationState::Connecting => {
                    return Err(connecting_as_well(known));
                }
                Sameness::Unproved(_) | Sameness::Other => {}
            }
        }
        Ok(live.into_iter().map(|known| known.id).collect())
    }

    /// The same look again, within the transaction that connects: what began since `compared` is compared by the
    /// accounts' ids, and where one is not known, the caller has to come again.
    pub(super) async fn refuse_connected_since(
        &self,
        tx: &mut store::Transaction,
        new: &Integration,
        compared: &[IntegrationId],
    ) -> Result<()> {
        store::integrations::refuse_held(tx, new).await?;
        let live = store::integrations::live(tx, new.organization_id).await?;
        let is_nameless = |known: &&Integration| {
            known.livemode == new.livemode
                && !compared.contains(&known.id)
                && (known.provider_account_id.is_none() || new.provider_account_id.is_none())
        };
        live.iter().find(is_nameless).map_or(Ok(()), |known| Err(connecting_as_well(known)))
    }
}

fn refused(reason: &'static str, message: String) -> Error {
    Error::precondition(reason, "secret_key", message)
}

fn connecting_as_well(known: &Integration) -> Error {
    Error::Unavailable {
        reason: "STRIPE_UNAVAILABLE",
        message: format!(
            "the integration {} is being connected, and Stripe does not say whether it is the same account; repeat the \
             call when that integration is ACTIVE",
            known.code
        ),
        retry_after: std::time::Duration::from_secs(5),
    }
}

/// What is reported of an object that the key can't read. An answer that decides nothing is an error.
fn unreadable(what: &str, error: &stripe::Error) -> Result<String> {
    match error {
        stripe::Error::Forbidden { .. } => Ok(format!("the key may not read its {what}")),
        _ if error.is_missing() => Ok(format!("the key finds no {what}")),
        _ => Err(stripe_unavailable(error)),
    }
}

/// Refuses a key that lacks what collecting needs, and names everything that it lacks, so that the key is changed once.
fn refuse_lacking(findings: &[scopes::Finding], is_needed: impl Fn(&Scope) -> bool) -> Result<()> {
    let missing = || findings.iter().filter(|finding| finding.proof == Proof::Missing).map(|finding| finding.scope);
    let named = |is_wanted: &dyn Fn(&Scope) -> bool| -> Vec<String> {
        missing()
            .filter(|scope| is_wanted(scope))
            .map(|scope| format!("{} (to {})", scope.title, scope.needed_to))
            .collect()
    };
    let needed = named(&is_needed);
    if needed.is_empty() {
        return Ok(());
    }
    let optional = named(&|scope| !is_needed(scope));
    let optional = if optional.is_empty() {
        String::new()
    } else {
        format!(" It also lacks these, without which it collects but not all is done: {}.", optional.join(", "))
    };
    let needed = needed.join(", ");
    let message = format!(
        "the restricted key lacks {needed}. Set these permissions on the key's page in Stripe's dashboard.{optional}"
    );
    Err(refused("KEY_LACKS_PERMISSION", message))
}

/// What a probe found, as callers see it.
pub(super) fn scope_finding(probed: &scopes::Finding) -> Finding {
    let scope = probed.scope;
    let (state, message) = match &probed.proof {
        Proof::Proved => (FindingState::Ok, String::new()),
        Proof::Missing => (FindingState::Missing, format!("{} is needed to {}", scope.title, scope.needed_to)),
        Proof::Unproved(why) => (FindingState::Unproved, format!("{}: {why}", scope.title)),
    };
    Finding { subject: FindingSubject::Scope, name: scope.permission.to_owned(), state, message }
}
