//! The account of an API key, and what the key itself reveals.

use std::collections::BTreeMap;

use secrecy::ExposeSecret;
use serde::Deserialize;

use super::call::Call;
use super::client::Client;
use super::error::Error;
use super::object::null_as_default;
use super::rate_limit::ApiKey;

/// The class of an API key, from its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyClass {
    /// Whether it is a restricted key (`rk_…`), whose permissions must be probed.
    pub restricted: bool,
    /// Whether it is a live-mode key.
    pub livemode: bool,
}

/// The classes of test keys.
const SECRET: KeyClass = KeyClass { restricted: false, livemode: false };
const RESTRICTED: KeyClass = KeyClass { restricted: true, livemode: false };

/// Why a key is rejected without calling Stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFormatError {
    /// `pk_…`: for browsers, without the permissions that we need.
    #[error("this is a publishable key; give the secret key (sk_…) or a restricted key (rk_…)")]
    Publishable,
    /// Not a Stripe key.
    #[error("this is not a Stripe key; give a secret key (sk_…) or a restricted key (rk_…)")]
    Unrecognized,
}

impl KeyClass {
    /// Parses a key's class. The key must have no whitespace around it.
    pub fn of(key: &impl ExposeSecret<str>) -> Result<Self, KeyFormatError> {
        let key = key.expose_secret();
        if key.starts_with("pk_") {
            return Err(KeyFormatError::Publishable);
        }
        let prefixes = [
            ("sk_live_", Self { livemode: true, ..SECRET }),
            ("sk_test_", SECRET),
            ("rk_live_", Self { livemode: true, ..RESTRICTED }),
            ("rk_test_", RESTRICTED),
            ("rkcs_test_", RESTRICTED),
        ];
        let found = prefixes.into_iter().find(|(prefix, _)| {
            key.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic()))
        });
        found.map(|(_, class)| class).ok_or(KeyFormatError::Unrecognized)
    }
}

/// The part of a Stripe account that we use.
#[derive(Clone, Debug, Deserialize)]
pub struct Account {
    /// `acct_…`.
    pub id: String,
    /// ISO 3166-1 alpha-2.
    pub country: Option<String>,
    /// Lower case, as Stripe sends it.
    pub default_currency: Option<String>,
    /// Whether it may accept payments.
    #[serde(default, deserialize_with = "null_as_default")]
    pub charges_enabled: bool,
    /// `card_payments`, `sepa_debit_payments`, …: `active`, `inactive` or `pending`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub capabilities: BTreeMap<String, String>,
}

impl Client {
    /// Reads the account of the key.
    pub async fn account(&self, key: &ApiKey) -> Result<Account, Error> {
        self.send(key, Call::get("/v1/account", None, "")).await
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;

    #[test]
    fn a_key_reveals_its_class_and_mode() {
        let cases = [
            ("sk_test_sandbox", Ok(SECRET)),
            ("rk_test_sandbox", Ok(RESTRICTED)),
            ("rkcs_test_sandbox", Ok(RESTRICTED)),
            (concat!("sk_", "live_", "fake"), Ok(KeyClass { livemode: true, ..SECRET })),
            (concat!("rk_", "live_", "fake"), Ok(KeyClass { livemode: true, ..RESTRICTED })),
            ("pk_test_sandbox", Err(KeyFormatError::Publishable)),
            ("pk_live_sandbox", Err(KeyFormatError::Publishable)),
            ("sk_test_", Err(KeyFormatError::Unrecognized)),
            ("sk_test_with space", Err(KeyFormatError::Unrecognized)),
            ("whsec_sandbox", Err(KeyFormatError::Unrecognized)),
            ("", Err(KeyFormatError::Unrecognized)),
        ];
        for (key, expected) in cases {
            assert_eq!(KeyClass::of(&SecretString::from(key)), expected, "{key}");
        }
    }
}
