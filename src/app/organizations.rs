//! Organizations (tenants) and their API tokens.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use super::App;
use crate::domain::{Error, OrganizationId, Result, TokenId};
use crate::store::organizations::{Organization, Token};
use crate::store::{self, Scope};

/// The organization that a token names: `pbt_<organization, 32 hex digits>_<43 characters of base64url>`. The token
/// names it so that row-level security applies from the first query (P10).
fn organization_of(token: &str) -> Option<OrganizationId> {
    let (organization, secret) = token.strip_prefix("pbt_")?.split_once('_')?;
    let is_whole = organization.len() == 32 && secret.len() == 43;
    is_whole.then(|| organization.parse().ok()).flatten()
}

impl App {
    /// Creates an organization with an empty event log.
    pub async fn create_organization(&self, name: &str) -> Result<Organization> {
        let clock = self.clock();
        let organization = Organization { id: clock.new_id().into(), name: name.to_owned(), create_time: clock.now() };
        let mut tx = self.0.pool.begin(Scope::System).await?;
        store::organizations::insert(&mut tx, &organization).await?;
        store::events::insert_head(&mut tx, organization.id, clock.new_id().into()).await?;
        tx.commit().await?;
        Ok(organization)
    }

    /// All organizations, oldest first.
    pub async fn list_organizations(&self) -> Result<Vec<Organization>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        store::organizations::list(&mut tx).await
    }

    /// Creates a token. The token itself is returned once and not stored (P9).
    pub async fn create_token(&self, org: OrganizationId, name: &str) -> Result<(Token, SecretString)> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)
            .map_err(|error| Error::internal(anyhow::anyhow!("the system has no randomness: {error}")))?;
        let plain = SecretString::from(format!("pbt_{}_{}", org.0.simple(), URL_SAFE_NO_PAD.encode(secret)));
        let clock = self.clock();
        let token =
            Token { id: clock.new_id().into(), name: name.to_owned(), create_time: clock.now(), revoke_time: None };
        let hash = Sha256::digest(plain.expose_secret());
        let mut tx = self.0.pool.begin(Scope::System).await?;
        if !store::organizations::list(&mut tx).await?.iter().any(|organization| organization.id == org) {
            return Err(Error::not_found("organization", org));
        }
        store::organizations::insert_token(&mut tx, org, &token, &hash).await?;
        tx.commit().await?;
        Ok((token, plain))
    }

    /// An organization's tokens, oldest first, including revoked ones.
    pub async fn list_tokens(&self, org: OrganizationId) -> Result<Vec<Token>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        let tokens = store::organizations::tokens(&mut tx, org).await?;
        // No tokens may mean that the organization does not exist.
        if tokens.is_empty() && store::organizations::list(&mut tx).await?.iter().all(|known| known.id != org) {
            return Err(Error::not_found("organization", org));
        }
        Ok(tokens)
    }

    /// Revokes a token of any organization. It may work for up to 10 s more if it is cached.
    pub async fn revoke_token(&self, id: TokenId) -> Result<()> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        if !store::organizations::revoke_token(&mut tx, id, self.clock().now()).await? {
            return Err(Error::not_found("active token", id));
        }
        tx.commit().await
    }

    /// The organization that a token authenticates.
    pub async fn authenticate(&self, token: &str) -> Result<OrganizationId> {
        let refused = Error::Unauthenticated("the token is unknown or revoked; create a new one");
        let Some(org) = organization_of(token) else { return Err(refused) };
        let hash: [u8; 32] = Sha256::digest(token).into();
        let now = self.clock().now();
        if self.0.tokens.get(&hash, now) == Some(org) {
            return Ok(org);
        }
        let mut tx = self.read(org).await?;
        if !store::organizations::has_live_token(&mut tx, org, &hash).await? {
            return Err(refused);
        }
        self.0.tokens.put(hash, org, now);
        Ok(org)
    }
}
