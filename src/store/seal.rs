//! Sealing of secrets (P9): XChaCha20-Poly1305 with a random nonce. A sealed value is bound to its row and column, so a
//! copy in another row does not open. It starts with the key's id, so that keys can be rotated: the first key seals,
//! every key opens.

use std::sync::Arc;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use crate::domain::{Error, IntegrationId, OrganizationId, Result};

const NONCE_LEN: usize = 24;

/// The plaintext of a canary. Only whether it opens matters.
const CANARY: &str = "paybridge";
/// What a canary is bound to instead of a column of `integrations`.
const CANARY_COLUMN: &str = "encryption_keys.canary";

/// A key of the ring.
pub struct SealKey {
    /// At most 255 bytes. Every value that the key sealed starts with it.
    pub id: String,
    /// 256 bits for XChaCha20-Poly1305.
    pub key: [u8; 32],
}

/// Seals and opens secrets. Clones share the keys.
#[derive(Clone)]
pub struct Sealer(Arc<Vec<(String, XChaCha20Poly1305)>>);

/// What a sealed value is bound to.
#[derive(Clone, Copy, Debug)]
pub struct Place<'column> {
    pub organization_id: OrganizationId,
    pub integration_id: IntegrationId,
    /// Table and column, such as `integrations.sealed_secret_key`.
    pub column: &'column str,
}

impl Place<'_> {
    fn of_canary() -> Self {
        Self { organization_id: Uuid::nil().into(), integration_id: Uuid::nil().into(), column: CANARY_COLUMN }
    }

    fn bytes(&self) -> Vec<u8> {
        format!("{}|{}|{}", self.organization_id, self.integration_id, self.column).into_bytes()
    }
}

impl Sealer {
    /// Creates a ring; its first key seals. `None` if there is no key, or an id is longer than 255 bytes.
    pub fn new(keys: &[SealKey]) -> Option<Self> {
        let fits = !keys.is_empty() && keys.iter().all(|key| u8::try_from(key.id.len()).is_ok());
        fits.then(|| {
            Self(Arc::new(keys.iter().map(|key| (key.id.clone(), XChaCha20Poly1305::new(&key.key.into()))).collect()))
        })
    }

    /// The keys' ids. The first key seals.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(id, _)| &**id)
    }

    /// Seals `secret` for `place`.
    pub fn seal(&self, secret: &SecretString, place: Place) -> Result<Vec<u8>> {
        let Some((id, _)) = self.0.first() else {
            return Err(Error::internal(anyhow::anyhow!("the key ring is empty")));
        };
        self.seal_under(id, secret.expose_secret().as_bytes(), place)
    }

    /// A value that only the key `id` opens, and that holds no secret.
    pub fn canary(&self, id: &str) -> Result<Vec<u8>> {
        self.seal_under(id, CANARY.as_bytes(), Place::of_canary())
    }

    /// Whether a canary was sealed with a key of the ring.
    pub fn opens_canary(&self, canary: &[u8]) -> bool {
        self.open(canary, Place::of_canary()).is_ok()
    }

    fn cipher(&self, id: &[u8]) -> Option<&XChaCha20Poly1305> {
        self.0.iter().find(|(known, _)| known.as_bytes() == id).map(|(_, cipher)| cipher)
    }

    fn seal_under(&self, id: &str, secret: &[u8], place: Place) -> Result<Vec<u8>> {
        let missing = || Error::internal(anyhow::anyhow!("the key `{id}` is not in the ring"));
        let cipher = self.cipher(id.as_bytes()).ok_or_else(missing)?;
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|error| Error::internal(anyhow::anyhow!("no randomness: {error}")))?;
        let payload = Payload { msg: secret, aad: &place.bytes() };
        let sealed = cipher
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| Error::internal(anyhow::anyhow!("sealing failed")))?;
        let id_len = u8::try_from(id.len()).map_err(Error::internal)?;
        Ok([&[id_len], id.as_bytes(), &nonce, &sealed].concat())
    }

    /// Opens a value that was sealed for `place`.
    pub fn open(&self, sealed: &[u8], place: Place) -> Result<SecretString> {
        let broken = |what: &str| Error::internal(anyhow::anyhow!("{}: {what}", place.column));
        let (&id_len, rest) = sealed.split_first().ok_or_else(|| broken("a sealed secret is empty"))?;
        let (id, rest) =
            rest.split_at_checked(usize::from(id_len)).ok_or_else(|| broken("a sealed secret is truncated"))?;
        let (nonce, text) =
            rest.split_first_chunk::<NONCE_LEN>().ok_or_else(|| broken("a sealed secret is truncated"))?;
        let opened = self
            .cipher(id)
            .ok_or_else(|| broken("sealed with a key that is not in the ring"))?
            .decrypt(&XNonce::from(*nonce), Payload { msg: text, aad: &place.bytes() })
            .map_err(|_| broken("a sealed secret does not open here"))?;
        String::from_utf8(opened).map(SecretString::from).map_err(Error::internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(ids: &[(&str, u8)]) -> Sealer {
        let keys: Vec<_> = ids.iter().map(|(id, byte)| SealKey { id: (*id).to_owned(), key: [*byte; 32] }).collect();
        Sealer::new(&keys).expect("a valid ring")
    }

    fn place(organization: u128, column: &str) -> Place<'_> {
        Place {
            organization_id: Uuid::from_u128(organization).into(),
            integration_id: Uuid::from_u128(7).into(),
            column,
        }
    }

    #[test]
    fn p9_a_sealed_secret_opens_only_in_its_own_row_and_column() {
        let sealer = ring(&[("a", 1)]);
        let secret = SecretString::from("sk_test_sandbox");
        let sealed = sealer.seal(&secret, place(1, "sealed_secret_key")).unwrap();
        assert!(!sealed.windows(4).any(|part| part == b"sk_t"), "the sealed value does not contain the secret");
        let opened = sealer.open(&sealed, place(1, "sealed_secret_key")).unwrap();
        assert_eq!(opened.expose_secret(), "sk_test_sandbox");
        assert!(sealer.open(&sealed, place(2, "sealed_secret_key")).is_err(), "another tenant");
        assert!(sealer.open(&sealed, place(1, "sealed_webhook_secret")).is_err(), "another column");
        for cut in 0..sealed.len() {
            assert!(sealer.open(&sealed[..cut], place(1, "sealed_secret_key")).is_err());
        }
    }

    #[test]
    fn a_ring_seals_with_its_first_key_and_opens_with_every_key() {
        let old = ring(&[("old", 1)]);
        let both = ring(&[("new", 2), ("old", 1)]);
        let secret = SecretString::from("x");
        let sealed = old.seal(&secret, place(1, "c")).unwrap();
        assert_eq!(both.open(&sealed, place(1, "c")).unwrap().expose_secret(), "x");
        let sealed = both.seal(&secret, place(1, "c")).unwrap();
        assert!(old.open(&sealed, place(1, "c")).is_err(), "sealed with the new key");
    }
}
