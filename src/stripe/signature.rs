//! Who sent this webhook: Stripe's signature over the raw bytes. Pure; the webhook door calls it before it parses
//! anything, with every secret that may have signed (during a roll there are two), and with the clock's time.

use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq as _};
use time::OffsetDateTime;

/// How far the signature's own time may lie from ours, in seconds, in either direction.
pub const TOLERANCE_SECONDS: i64 = 300;

/// More signatures than this in one header are not looked at (P11); Stripe sends one for each secret that is alive.
const MOST_SIGNATURES: usize = 8;

/// Why a signature was not accepted. The texts may go to a log; the sender learns only that it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No `t`, no `v1`, or a `t` that is no time.
    #[error("the Stripe-Signature header is missing or malformed")]
    Malformed,
    /// Signed too long ago: a replay, or a clock that is wrong.
    #[error("the signature is older than {TOLERANCE_SECONDS} s")]
    TooOld,
    /// Signed in the future: a clock is wrong.
    #[error("the signature is more than {TOLERANCE_SECONDS} s in the future")]
    TooNew,
    /// None of the secrets made any of the signatures.
    #[error("no signature in the header was made with the endpoint's secret")]
    NoMatch,
}

/// Accepts the payload if one of `secrets` made one of the header's `v1` signatures, within the tolerance.
///
/// `payload` is the body as it came, byte for byte. Every scheme but `v1` is passed over, so that nobody can talk us
/// down to a weaker one. All pairs are compared, in constant time.
pub fn verify(
    payload: &[u8],
    header: &str,
    secrets: &[SecretString],
    now: OffsetDateTime,
) -> Result<(), SignatureError> {
    let (stamp, signatures) = parse(header)?;
    let mut matched = Choice::from(0);
    for secret in secrets {
        let expected = sign(payload, stamp, secret);
        for signature in &signatures {
            matched |= expected.as_slice().ct_eq(signature);
        }
    }
    if !bool::from(matched) {
        return Err(SignatureError::NoMatch);
    }
    // The age is looked at only once the time is known to be Stripe's, so a stranger learns nothing of our clock.
    let age = i128::from(now.unix_timestamp()) - i128::from(stamp);
    if age > i128::from(TOLERANCE_SECONDS) {
        return Err(SignatureError::TooOld);
    }
    if age < -i128::from(TOLERANCE_SECONDS) {
        return Err(SignatureError::TooNew);
    }
    Ok(())
}

/// The header that Stripe would send for this payload: what the sandbox sends, and what tests are made of.
pub fn header(payload: &[u8], secrets: &[SecretString], now: OffsetDateTime) -> String {
    let stamp = now.unix_timestamp();
    let mut header = format!("t={stamp}");
    for secret in secrets {
        header.push_str(",v1=");
        header.push_str(&hex::encode(sign(payload, stamp, secret)));
    }
    header
}

/// Secrets are trimmed: whitespace pasted along with one is the commonest reason for a signature that never matches.
fn sign(payload: &[u8], stamp: i64, secret: &SecretString) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().trim().as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(stamp.to_string().as_bytes());
    mac.update(b".");
    mac.update(payload);
    mac.finalize().into_bytes().into()
}

fn parse(header: &str) -> Result<(i64, Vec<Vec<u8>>), SignatureError> {
    let mut stamp = None;
    let mut signatures = Vec::new();
    for (scheme, value) in header.split(',').filter_map(|part| part.trim().split_once('=')) {
        match scheme {
            // Two times would leave open which of them was signed.
            "t" if stamp.is_some() => return Err(SignatureError::Malformed),
            "t" => stamp = Some(value.parse::<i64>().map_err(|_| SignatureError::Malformed)?),
            "v1" if signatures.len() < MOST_SIGNATURES => signatures.extend(hex::decode(value).ok()),
            _ => {}
        }
    }
    match stamp {
        Some(stamp) if stamp > 0 && !signatures.is_empty() => Ok((stamp, signatures)),
        _ => Err(SignatureError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    const BODY: &[u8] = br#"{"id":"evt_1","object":"event"}"#;
    const SIGNED: &str = "0c8670ed117751cc551a20e35839447075c42800ea3cf3e8a2fbda99cd1e6edd";

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
    fn the_known_vector_passes_and_is_what_we_would_send() {
        assert_eq!(check(&format!("t=1700000000,v1={SIGNED}")), Ok(()));
        assert_eq!(header(BODY, &[secret("whsec_test_secret")], at()), format!("t=1700000000,v1={SIGNED}"));
    }

    #[test]
    fn one_changed_byte_anywhere_is_refused() {
        let good = format!("t=1700000000,v1={SIGNED}");
        let other = br#"{"id":"evt_2","object":"event"}"#;
        assert_eq!(verify(other, &good, &[secret("whsec_test_secret")], at()), Err(SignatureError::NoMatch));
        assert_eq!(verify(BODY, &good, &[secret("whsec_other")], at()), Err(SignatureError::NoMatch));
        assert_eq!(verify(BODY, &good, &[], at()), Err(SignatureError::NoMatch));
        assert_eq!(check(&good.replace("0c86", "0c87")), Err(SignatureError::NoMatch));
        assert_eq!(check(&good.replace("t=1700000000", "t=1700000001")), Err(SignatureError::NoMatch));
        assert_eq!(check(&format!("t=1700000000,v1={}", &SIGNED[..62])), Err(SignatureError::NoMatch));
    }

    #[test]
    fn while_a_secret_is_rolled_either_signature_with_either_secret_passes() {
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
        assert_eq!(check(&format!("t=1700000000,v0={SIGNED}")), Err(SignatureError::Malformed));
        assert_eq!(check(&format!("t=1700000000,v0={SIGNED},v1=00")), Err(SignatureError::NoMatch));
        assert_eq!(check(&format!("v0=x, v1={SIGNED} ,t=1700000000")), Ok(()));
    }

    #[test]
    fn three_hundred_seconds_either_way_and_no_more() {
        let secrets = [secret("whsec_test_secret")];
        let header = header(BODY, &secrets, at());
        for (seconds, expected) in
            [(300, Ok(())), (-300, Ok(())), (301, Err(SignatureError::TooOld)), (-301, Err(SignatureError::TooNew))]
        {
            assert_eq!(verify(BODY, &header, &secrets, at() + Duration::seconds(seconds)), expected);
        }
    }

    #[test]
    fn what_is_no_signature_header_is_malformed() {
        let bad_times = ["t=", "t=now", "t=-1", "t=0", "t=99999999999999999999", "t=1.7e9", "x=1"];
        for time in bad_times {
            assert_eq!(check(&format!("{time},v1={SIGNED}")), Err(SignatureError::Malformed), "{time}");
        }
        for header in ["", "t=1700000000", "v1", "t=1700000000,v1=zz", ",,,", "t=1700000000,t=1700000000,v1=00"] {
            assert_eq!(check(header), Err(SignatureError::Malformed), "{header}");
        }
    }
}
