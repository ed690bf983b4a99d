//! Rows of organizations and their API tokens.

use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use time::OffsetDateTime;
use uuid::Uuid;

use super::schema::{api_tokens::dsl as tokens, organizations::dsl};
use crate::domain::{OrganizationId, Result, TokenId};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Organization {
    pub id: OrganizationId,
    pub name: String,
    pub create_time: OffsetDateTime,
}

/// An API token, without the secret: that is shown once and never stored (P9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub id: TokenId,
    pub name: String,
    pub create_time: OffsetDateTime,
    pub revoke_time: Option<OffsetDateTime>,
}

/// Inserts an organization. For the system role.
pub async fn insert(conn: &mut AsyncPgConnection, organization: &Organization) -> Result<()> {
    diesel::insert_into(dsl::organizations)
        .values((
            dsl::id.eq(organization.id.0),
            dsl::name.eq(&organization.name),
            dsl::create_time.eq(organization.create_time),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Lists all organizations, oldest first. For the system role.
pub async fn list(conn: &mut AsyncPgConnection) -> Result<Vec<Organization>> {
    let rows: Vec<(Uuid, String, OffsetDateTime)> =
        dsl::organizations.order(dsl::id).select((dsl::id, dsl::name, dsl::create_time)).load(conn).await?;
    Ok(rows.into_iter().map(|(id, name, create_time)| Organization { id: id.into(), name, create_time }).collect())
}

/// Inserts a token with its hash. For the system role.
pub async fn insert_token(
    conn: &mut AsyncPgConnection,
    org: OrganizationId,
    token: &Token,
    token_hash: &[u8],
) -> Result<()> {
    diesel::insert_into(tokens::api_tokens)
        .values((
            tokens::organization_id.eq(org.0),
            tokens::id.eq(token.id.0),
            tokens::name.eq(&token.name),
            tokens::token_hash.eq(token_hash),
            tokens::create_time.eq(token.create_time),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Lists an organization's tokens, oldest first. For the system role.
pub async fn tokens(conn: &mut AsyncPgConnection, org: OrganizationId) -> Result<Vec<Token>> {
    let rows: Vec<(Uuid, String, OffsetDateTime, Option<OffsetDateTime>)> = tokens::api_tokens
        .filter(tokens::organization_id.eq(org.0))
        .order(tokens::id)
        .select((tokens::id, tokens::name, tokens::create_time, tokens::revoke_time))
        .load(conn)
        .await?;
    Ok(rows
        .into_iter()
        .map(|(id, name, create_time, revoke_time)| Token { id: id.into(), name, create_time, revoke_time })
        .collect())
}

/// Revokes a token. Returns `false` if it does not exist or was revoked before. For the system role.
pub async fn revoke_token(conn: &mut AsyncPgConnection, id: TokenId, now: OffsetDateTime) -> Result<bool> {
    let live = tokens::api_tokens.filter(tokens::id.eq(id.0).and(tokens::revoke_time.is_null()));
    let revoked = diesel::update(live).set(tokens::revoke_time.eq(now)).execute(conn).await?;
    Ok(revoked == 1)
}

/// Whether the organization has a token with this hash that is not revoked.
pub async fn has_live_token(conn: &mut AsyncPgConnection, org: OrganizationId, token_hash: &[u8]) -> Result<bool> {
    let query = tokens::api_tokens
        .filter(tokens::organization_id.eq(org.0).and(tokens::token_hash.eq(token_hash)))
        .filter(tokens::revoke_time.is_null());
    Ok(diesel::select(diesel::dsl::exists(query)).get_result(conn).await?)
}
