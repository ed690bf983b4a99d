//! Who is calling. Every call of our services carries `authorization: Bearer pbt_…`; the token is bound to one
//! organization, and everything that the call sees or does is that organization's (P10). Health and reflection ask for
//! nothing.

use tonic::metadata::MetadataMap;

use crate::domain::{Error, Result};

/// Longer than any token of ours; what is longer is not looked at (P11).
const TOKEN_LENGTH_MAX: usize = 256;

/// The token that a call carries. Whether it is a live one is for `app` to say.
pub(super) fn bearer_token(metadata: &MetadataMap) -> Result<&str> {
    let header = metadata.get("authorization").ok_or(Error::Unauthenticated(
        "the call carries no token; send the metadata `authorization: Bearer <token>`",
    ))?;
    let malformed = || Error::Unauthenticated("the authorization metadata is not `Bearer <token>`");
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
    fn the_token_is_taken_from_the_authorization_metadata() {
        assert_eq!(token_of("Bearer pbt_x").as_deref(), Some("pbt_x"));
        assert_eq!(token_of("bearer  pbt_x ").as_deref(), Some("pbt_x"));
    }

    #[test]
    fn anything_else_is_refused() {
        let long = format!("Bearer {}", "x".repeat(TOKEN_LENGTH_MAX + 1));
        for bad in ["", "pbt_x", "Basic pbt_x", "Bearer", "Bearer ", &long] {
            assert_eq!(token_of(bad), None, "{bad}");
        }
        assert!(bearer_token(&MetadataMap::new()).is_err());
    }
}
