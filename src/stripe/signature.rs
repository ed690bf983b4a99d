//! Webhook signatures: Stripe's HMAC over the raw bytes. Pure: the caller passes every secret that may have signed (two
//! during a rotation) and the clock's time, before it parses anything.

use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq as _};
use time::OffsetDateTime;

/// The largest difference between the signature's time and ours, in seconds, in either direction.
pub const TOLERANCE_SECONDS: i64 = 300;

/// The most signatures of one header that are checked (P11). Stripe sends one per valid secret.
const SIGNATURES_MAX: usize = 8;

/// Why a signature was refused. The texts are for the log; the sender only sees that it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No `t`, no `v1`, or a `t` that is not a time.
    #[error("the Stripe-Signature header is missing or malformed")]
    Malformed,
    /// Signed too long ago: a replay, or a wrong clock.
    #[error("the signature is older than {TOLERANCE_SECONDS} s")]
    TooOld,
    /// Signed in the future: a wrong clock.
    #[error("the signature is more than {TOLERANCE_SECONDS} s in the future")]
    TooNew,
    /// None of the secrets made any of the signatures.
    #[error("no signature in the header was made with the endpoint's secret")]
    NoMatch,
}

/// Verifies that one of `secrets` made one of the header's `v1` signatures, within the tolerance.
///
/// `payload` is the raw body. Every other scheme is ignored, so that nobody can downgrade us to a weaker one. All pairs
/// are compared, in constant time.
pub fn verify(
    payload: &[u8],
    header: &str,
    secrets: &[SecretString],
    now: OffsetDateTime,
) -> Result<(), SignatureError> {
    let (timestamp, signatures) = parse(header)?;
    let mut matched = Choice::from(0);
    for secret in secrets {
        let expected = sign(payload, timestamp, secret);
        for signature in &signatures {
            matched |= expected.as_slice().ct_eq(signature);
        }
    }
    if !bool::from(matched) {
        return Err(SignatureError::NoMatch);
    }
    // The age is checked after the signature, so that a stranger learns nothing about our clock.
    let age = i128::from(now.unix_timestamp()) - i128::from(timestamp);
    if age > i128::from(TOLERANCE_SECONDS) {
        return Err(SignatureError::TooOld);
    }
    if age < -i128::from(TOLERANCE_SECONDS) {
        return Err(SignatureError::TooNew);
    }
    Ok(())
}

/// The header that Stripe would send for this payload, for the sandbox and tests.
pub fn header(payload: &[u8], secrets: &[SecretString], now: OffsetDateTime) -> String {
    let timestamp = now.unix_timestamp();
    let mut header = format!("t={timestamp}");
    for secret in secrets {
        header.push_str(",v1=");
        header.push_str(&hex::encode(sign(payload, timestamp, secret)));
    }
    header
}

/// Secrets are trimmed: pasted whitespace is the commonest reason for signatures that never match.
fn sign(payload: &[u8], timestamp: i64, secret: &SecretString) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().trim().as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(timestamp.to_string().as_bytes());
    mac.update(b".");
    mac.update(payload);
    mac.finalize().into_bytes().into()
}

fn parse(header: &str) -> Result<(i64, Vec<Vec<u8>>), SignatureError> {
    let mut timestamp = None;
    let mut signatures = Vec::new();
    for (scheme, value) in header.split(',').filter_map(|part| part.trim().split_once('=')) {
        match scheme {
            // With two times it would be ambiguous which one was signed.
            "t" if timestamp.is_some() => return Err(SignatureError::Malformed),
            "t" => timestamp = Some(value.parse::<i64>().map_err(|_| SignatureError::Malformed)?),
            "v1" if signatures.len() < SIGNATURES_MAX => signatures.extend(hex::decode(value).ok()),
            _ => {}
        }
    }
    match timestamp {
        Some(timestamp) if timestamp > 0 && !signatures.is_empty() => Ok((timestamp, signatures)),
        _ => Err(SignatureError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    const BODY: &[u8] = br#"{"id":"evt_1","object":"event"}"#;
    const SIGNATURE: &str = "0c8670ed117751cc551a20e35839447075c42800ea3cf3e8a2fbda99cd1e6edd";

    fn secret(text: &str) -> SecretString {
        SecretString::from(text)
    }

    fn at() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap()
    }

    fn check(header: &str) -> Result<(), SignatureError> {
        verify(BODY, header, &[secret("whsec_test_secret")], at())
    }

    #[test]
    fn the_known_vector_verifies_and_equals_our_header() {
        assert_eq!(check(&format!("t=1700000000,v1={SIGNATURE}")), Ok(()));
        assert_eq!(header(BODY, &[secret("whsec_test_secret")], at()), format!("t=1700000000,v1={SIGNATURE}"));
    }

    #[test]
    fn one_changed_byte_anywhere_is_refused() {
        let good = format!("t=1700000000,v1={SIGNATURE}");
        let other = br#"{"id":"evt_2","object":"event"}"#;
        assert_eq!(verify(other, &good, &[secret("whsec_test_secret")], at()), Err(SignatureError::NoMatch));
        assert_eq!(verify(BODY, &good, &[secret("whsec_other")], at()), Err(SignatureError::NoMatch));
        assert_eq!(verify(BODY, &good, &[], at()), Err(SignatureError::NoMatch));
        assert_eq!(check(&good.replace("0c86", "0c87")), Err(SignatureError::NoMatch));
        assert_eq!(check(&good.replace("t=1700000000", "t=1700000001")), Err(SignatureError::NoMatch));
        assert_eq!(check(&format!("t=1700000000,v1={}", &SIGNATURE[..62])), Err(SignatureError::NoMatch));
    }

    #[test]
    fn during_a_rotation_either_secret_verifies() {
        let both = [secret("whsec_old"), secret("whsec_new\n")];
        for signed_with in [vec![secret("whsec_old")], vec![secret("whsec_new")], both.to_vec()] {
            let header = header(BODY, &signed_with, at());
            assert_eq!(verify(BODY, &header, &both, at()), Ok(()));
        }
        let header = header(BODY, &both, at());
        assert_eq!(verify(BODY, &header, &[secret("whsec_old")], at()), Ok(()));
        assert_eq!(verify(BODY, &header, &[secret("whsec_new")], at()), Ok(()));
    }

    #[test]
    fn only_v1_counts() {
        assert_eq!(check(&format!("t=1700000000,v0={SIGNATURE}")), Err(SignatureError::Malformed));
        assert_eq!(check(&format!("t=1700000000,v0={SIGNATURE},v1=00")), Err(SignatureError::NoMatch));
        assert_eq!(check(&format!("v0=x, v1={SIGNATURE} ,t=1700000000")), Ok(()));
    }

    #[test]
    fn the_tolerance_is_300_seconds_in_either_direction() {
        let secrets = [secret("whsec_test_secret")];
        let header = header(BODY, &secrets, at());
        for (seconds, expected) in
            [(300, Ok(())), (-300, Ok(())), (301, Err(SignatureError::TooOld)), (-301, Err(SignatureError::TooNew))]
        {
            assert_eq!(verify(BODY, &header, &secrets, at() + Duration::seconds(seconds)), expected);
        }
    }

    #[test]
    fn an_invalid_signature_header_is_malformed() {
        let bad_times = ["t=", "t=now", "t=-1", "t=0", "t=99999999999999999999", "t=1.7e9", "x=1"];
        for time in bad_times {
            assert_eq!(check(&format!("{time},v1={SIGNATURE}")), Err(SignatureError::Malformed), "{time}");
        }
        for header in ["", "t=1700000000", "v1", "t=1700000000,v1=zz", ",,,", "t=1700000000,t=1700000000,v1=00"] {
            assert_eq!(check(header), Err(SignatureError::Malformed), "{header}");
        }
    }
}
