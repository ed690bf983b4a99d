//! Redacts secrets in Stripe's texts (P9): Stripe quotes parts of API keys in messages and puts client secrets into
//! links.

use std::fmt;

use serde::{Deserialize, Deserializer};

/// The replacement for a secret.
const REDACTED: &str = "[redacted]";

/// The longest text of Stripe that we keep, in characters (P11).
const TEXT_CHARS_MAX: usize = 1_000;

/// Substrings that mark a word as a secret.
const SECRET_MARKERS: [&str; 7] = ["_secret_", "sk_live_", "sk_test_", "rk_live_", "rk_test_", "rkcs_", "whsec_"];

/// Truncates a text and replaces every word that looks like a key or a client secret.
pub fn scrub(text: &str) -> String {
    let mut clean = String::with_capacity(text.len().min(TEXT_CHARS_MAX));
    let mut word = String::new();
    for character in text.chars().take(TEXT_CHARS_MAX) {
        if character.is_ascii_alphanumeric() || matches!(character, '_' | '*' | '-') {
            word.push(character);
        } else {
            push_word(&mut clean, &mut word);
            clean.push(character);
        }
    }
    push_word(&mut clean, &mut word);
    clean
}

/// Replaces the values of `client_secret` in an event's JSON. With a client secret and the publishable key anybody can
/// act on an intent, and we need none. Apart from white space after the colon, the rest is unchanged.
pub fn redact_client_secrets(json: String) -> String {
    const FIELD: &str = "\"client_secret\"";
    if !json.contains(FIELD) {
        return json;
    }
    let mut clean = String::with_capacity(json.len());
    let mut rest = json.as_str();
    while let Some((before, after)) = rest.split_once(FIELD) {
        clean.push_str(before);
        clean.push_str(FIELD);
        rest = after;
        let value = after.trim_start().strip_prefix(':').and_then(|value| value.trim_start().strip_prefix('"'));
        // A value with a backslash is not a client secret but a caller's text.
        let secret = value.and_then(|value| value.split_once('"')).filter(|(secret, _)| !secret.contains('\\'));
        if let Some((_, after)) = secret {
            clean.extend([":\"", REDACTED, "\""]);
            rest = after;
        }
    }
    clean.push_str(rest);
    clean
}

fn push_word(clean: &mut String, word: &mut String) {
    let secret = ["sk_", "rk_"].iter().any(|prefix| word.starts_with(prefix))
        || SECRET_MARKERS.iter().any(|marker| word.contains(marker));
    clean.push_str(if secret { REDACTED } else { word });
    word.clear();
}

/// Deserializes an optional text through [`scrub`].
pub(super) fn scrubbed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(|text| scrub(&text)))
}

/// The URL of a Stripe-hosted page. Whoever has it can act on the page, so it is returned to the caller and never
/// printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct HostedUrl(String);

impl HostedUrl {
    /// Exposes the URL. Never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HostedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p9_client_secrets_of_an_event_are_redacted() {
        let clean = |json: &str| redact_client_secrets(json.to_owned());
        let compact = r#"{"id":"pi_1","client_secret":"pi_1_secret_x","last":{"client_secret":"seti_secret_y"},"a":1}"#;
        let expected = r#"{"id":"pi_1","client_secret":"[redacted]","last":{"client_secret":"[redacted]"},"a":1}"#;
        assert_eq!(clean(compact), expected);
        assert_eq!(clean("{\n  \"client_secret\": \"x_secret_y\",\n"), "{\n  \"client_secret\":\"[redacted]\",\n");
        for untouched in [
            r#"{"client_secret":null}"#,
            r#"{"client_secret": 7}"#,
            r#"{"metadata":{"client_secret":"a\"b"}}"#,
            r#"["client_secret"]"#,
            r#"{"description":"say \"client_secret\": \"x\" aloud"}"#,
            r#"{"client_secret":"cut"#,
        ] {
            assert_eq!(clean(untouched), untouched);
        }
    }

    #[test]
    fn p9_keys_and_client_secrets_are_redacted_and_the_rest_is_kept() {
        let cases = [
            ("Invalid API Key provided: sk_test_********1234", "Invalid API Key provided: [redacted]"),
            (
                "The provided key 'rk_live_abc*def' lacks 'rak_customer_read'",
                "The provided key '[redacted]' lacks 'rak_customer_read'",
            ),
            ("use pi_1abc_secret_9xyz, whsec_abc.", "use [redacted], [redacted]."),
            ("https://x.test/?client_secret=src_client_secret_abc&b=1", "https://x.test/?client_secret=[redacted]&b=1"),
            ("xsk_live_abc rkcs_test_1", "[redacted] [redacted]"),
            ("risk_level and task_id are no keys", "risk_level and task_id are no keys"),
        ];
        for (dirty, clean) in cases {
            assert_eq!(scrub(dirty), clean);
        }
    }

    #[test]
    fn a_hosted_url_is_not_printed() {
        let url: HostedUrl = serde_json::from_str("\"https://checkout.stripe.com/c/pay/cs_test_1\"").unwrap();
        assert_eq!(format!("{url:?}"), "[redacted]");
        assert_eq!(url.expose(), "https://checkout.stripe.com/c/pay/cs_test_1");
    }
}
