//! API keys: whose they are and what they may do.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::parameters::Endpoint;
use super::refusal::Refusal;
use super::state::{Key, State, is_live, slot};

/// Who calls.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Where the account's mode is kept.
    pub slot: String,
    pub account: String,
    pub livemode: bool,
    key: String,
    scopes: Option<std::collections::BTreeSet<String>>,
    hides_account: bool,
}

/// The key of an `Authorization` header: a bearer token, or the user name of basic authentication.
pub(super) fn key_of(header: &str) -> Option<String> {
    if let Some(key) = header.strip_prefix("Bearer ") {
        return Some(key.trim().to_owned()).filter(|key| !key.is_empty());
    }
    let decoded = STANDARD.decode(header.strip_prefix("Basic ")?.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, _) = text.split_once(':')?;
    Some(user.to_owned()).filter(|key| !key.is_empty())
}

/// Finds the account behind the request, or says why there is none (401).
pub(super) fn authenticate(state: &State, header: Option<&str>) -> Result<Caller, Refusal> {
    let refuse = |message: String| Refusal::new(401, "invalid_request_error", message).early();
    let Some(key) = header.and_then(key_of) else {
        return Err(refuse(
            "You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer \
             auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY')."
                .to_owned(),
        ));
    };
    if key.starts_with("pk_") {
        let message = "This API call cannot be made with a publishable API key. Please use a secret API key. You can find \
                       a list of your API keys at https://dashboard.stripe.com/account/apikeys.";
        return Err(refuse(message.to_owned()).code("secret_key_required"));
    }
    match state.keys.get(&key) {
        None => Err(refuse(format!("Invalid API Key provided: {}", masked(&key)))),
        Some(Key { revoked: true, .. }) => {
            Err(refuse(format!("Expired API Key provided: {}", masked(&key))).code("api_key_expired"))
        }
        Some(known) => {
            let livemode = is_live(&key);
            Ok(Caller {
                slot: slot(&known.account, livemode),
                account: known.account.clone(),
                livemode,
                scopes: known.scopes.clone(),
                hides_account: known.hides_account,
                key,
            })
        }
    }
}

/// 403 where a restricted key lacks the endpoint's permission. Write implies read; charges and refunds are one row of
/// Stripe's dashboard, "Charges and Refunds".
pub(super) fn permit(caller: &Caller, endpoint: &Endpoint) -> Result<(), Refusal> {
    let Some(scopes) = &caller.scopes else { return Ok(()) };
    let wanted = format!("rak_{}", endpoint.permission);
    let writing = wanted.replace("_read", "_write");
    let row = |scope: &str| scope.replace("rak_refund_", "rak_charge_");
    if scopes.iter().any(|scope| [row(&wanted), row(&writing)].contains(&row(scope))) {
        return Ok(());
    }
    let account = if caller.hides_account { String::new() } else { format!(" on account '{}'", caller.account) };
    let message = format!(
        "The provided key '{}' does not have the required permissions for this endpoint{account}. Having the '{wanted}' \
         permission would allow this request to continue.",
        masked(&caller.key),
    );
    Err(Refusal::new(403, "invalid_request_error", message).early())
}

/// A key as error messages show it.
fn masked(key: &str) -> String {
    let letters: Vec<char> = key.chars().collect();
    let shown = letters.len().min(8);
    let end = letters.len().saturating_sub(4).max(shown);
    letters[..shown].iter().chain(&vec!['*'; end - shown]).chain(&letters[end..]).collect()
}
