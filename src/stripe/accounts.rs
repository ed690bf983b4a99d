//! The account behind a key, and what can be told from the key itself.

use std::collections::BTreeMap;

use secrecy::ExposeSecret;
use serde::Deserialize;

use super::client::{Call, Client};
use super::error::Error;
use super::object::or_default;
use super::pace::ApiKey;

/// What kind of key it is; told by its prefix, before Stripe is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyClass {
    /// Whether it has only some permissions (`rk_…`), which must then be probed.
    pub restricted: bool,
    /// Whether it moves real money.
    pub livemode: bool,
}

/// Why a key can't be used, before Stripe is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// `pk_…`: made for browsers, can do nothing of what we do.
    #[error("this is a publishable key; give the secret key (sk_…) or a restricted key (rk_…)")]
    Publishable,
    /// Anything else.
    #[error("this is no Stripe key; give a secret key (sk_…) or a restricted key (rk_…)")]
    Unrecognized,
}

impl KeyClass {
    /// Tells a key's class. The key is expected without whitespace around it.
    pub fn of(key: &impl ExposeSecret<str>) -> Result<Self, KeyRefusal> {
        let key = key.expose_secret();
        if key.starts_with("pk_") {
            return Err(KeyRefusal::Publishable);
        }
        let class = |restricted, livemode| Self { restricted, livemode };
        let prefixes = [
            ("sk_live_", class(false, true)),
            ("sk_test_", class(false, false)),
            ("rk_live_", class(true, true)),
            ("rk_test_", class(true, false)),
            ("rkcs_test_", class(true, false)),
        ];
        let found = prefixes.into_iter().find(|(prefix, _)| {
            key.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic()))
        });
        found.map(|(_, class)| class).ok_or(KeyRefusal::Unrecognized)
    }
}

/// A Stripe account, as far as it concerns us.
#[derive(Clone, Debug, Deserialize)]
pub struct Account {
    /// `acct_…`.
    pub id: String,
    /// ISO 3166-1 alpha-2.
    pub country: Option<String>,
    /// Lower case, as Stripe writes it.
    pub default_currency: Option<String>,
    /// Whether it may take payments.
    #[serde(default, deserialize_with = "or_default")]
    pub charges_enabled: bool,
    /// `card_payments`, `sepa_debit_payments`, …: `active`, `inactive` or `pending`.
    #[serde(default, deserialize_with = "or_default")]
    pub capabilities: BTreeMap<String, String>,
}

impl Client {
    /// The account that the key belongs to.
    pub async fn account(&self, key: &ApiKey) -> Result<Account, Error> {
        self.send(key, Call::get("/v1/account", None, "")).await
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;

    #[test]
    fn a_key_tells_its_class_and_its_mode() {
        let class = |restricted, livemode| Ok(KeyClass { restricted, livemode });
        let cases = [
            ("sk_test_sandbox", class(false, false)),
            ("rk_test_sandbox", class(true, false)),
            ("rkcs_test_sandbox", class(true, false)),
            (concat!("sk_", "live_", "fake"), class(false, true)),
            (concat!("rk_", "live_", "fake"), class(true, true)),
            ("pk_test_sandbox", Err(KeyRefusal::Publishable)),
            ("pk_live_sandbox", Err(KeyRefusal::Publishable)),
            ("sk_test_", Err(KeyRefusal::Unrecognized)),
            ("sk_test_with space", Err(KeyRefusal::Unrecognized)),
            ("whsec_sandbox", Err(KeyRefusal::Unrecognized)),
            ("", Err(KeyRefusal::Unrecognized)),
        ];
        for (key, expected) in cases {
            assert_eq!(KeyClass::of(&SecretString::from(key)), expected, "{key}");
        }
    }
}
