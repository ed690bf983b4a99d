//! Reads the bearer token of a call: `authorization: Bearer pbt_…`. A token belongs to one organization, and a call
//! sees and changes only that organization's data (P10). Health and reflection need no token.

use tonic::metadata::MetadataMap;

use crate::domain::{Error, Result};

/// Longer than any valid token. Longer values are rejected without a lookup (P11).
const TOKEN_LENGTH_MAX: usize = 256;

/// The token in the metadata of a call. `app` checks whether it is valid.
pub(super) fn bearer_token(metadata: &MetadataMap) -> Result<&str> {
    let header = metadata
        .get("authorization")
        .ok_or(Error::Unauthenticated("the token is missing; send the metadata `authorization: Bearer <token>`"))?;
    let malformed =
        || Error::Unauthenticated("the authorization metadata is malformed; send `authorization: Bearer <token>`");
    let (scheme, token) = header.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(malformed)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > TOKEN_LENGTH_MAX {
        return Err(malformed());
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token_of(header: &str) -> Option<String> {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", header.parse().unwrap());
        bearer_token(&metadata).ok().map(str::to_owned)
    }

    #[test]
    fn the_token_is_read_from_the_authorization_metadata() {
        assert_eq!(token_of("Bearer pbt_x").as_deref(), Some("pbt_x"));
        assert_eq!(token_of("bearer  pbt_x ").as_deref(), Some("pbt_x"));
    }

    #[test]
    fn malformed_metadata_is_rejected() {
        let long = format!("Bearer {}", "x".repeat(TOKEN_LENGTH_MAX + 1));
        for bad in ["", "pbt_x", "Basic pbt_x", "Bearer", "Bearer ", &long] {
            assert_eq!(token_of(bad), None, "{bad}");
        }
        assert!(bearer_token(&MetadataMap::new()).is_err());
    }
}
