//! API keys: authentication, and the permissions of restricted keys.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::api_error::ApiError;
use super::endpoints::Endpoint;
use super::state::{Key, State, is_live, slot};

/// The authenticated caller of a request.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// The account's key in the state, see [`slot`].
    pub slot: String,
    pub account: String,
    pub livemode: bool,
    key: String,
    scopes: Option<std::collections::BTreeSet<String>>,
    hides_account: bool,
}

/// The key of an `Authorization` header: a bearer token, or the user name of basic authentication.
pub(super) fn key_from_header(header: &str) -> Option<String> {
    if let Some(key) = header.strip_prefix("Bearer ") {
        return Some(key.trim().to_owned()).filter(|key| !key.is_empty());
    }
    let decoded = STANDARD.decode(header.strip_prefix("Basic ")?.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, _) = text.split_once(':')?;
    Some(user.to_owned()).filter(|key| !key.is_empty())
}

/// Authenticates a request, or returns a 401.
pub(super) fn authenticate(state: &State, header: Option<&str>) -> Result<Caller, ApiError> {
    let unauthorized = |message: String| ApiError::new(401, "invalid_request_error", message).before_execution();
    let Some(key) = header.and_then(key_from_header) else {
        return Err(unauthorized(
            "You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer \
             auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY')."
                .to_owned(),
        ));
    };
    if key.starts_with("pk_") {
        let message = "This API call cannot be made with a publishable API key. Please use a secret API key. You can find \
                       a list of your API keys at https://dashboard.stripe.com/account/apikeys.";
        return Err(unauthorized(message.to_owned()).code("secret_key_required"));
    }
    match state.keys.get(&key) {
        None => Err(unauthorized(format!("Invalid API Key provided: {}", masked(&key)))),
        Some(Key { revoked: true, .. }) => {
            Err(unauthorized(format!("Expired API Key provided: {}", masked(&key))).code("api_key_expired"))
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

/// Returns a 403 if a restricted key lacks the endpoint's permission. Write implies read. Charges and refunds share one
/// permission, as in the Dashboard ("Charges and Refunds").
pub(super) fn check_permission(caller: &Caller, endpoint: &Endpoint) -> Result<(), ApiError> {
    let Some(scopes) = &caller.scopes else { return Ok(()) };
    let required = format!("rak_{}", endpoint.permission);
    let write = required.replace("_read", "_write");
    let merged = |scope: &str| scope.replace("rak_refund_", "rak_charge_");
    if scopes.iter().any(|scope| [merged(&required), merged(&write)].contains(&merged(scope))) {
        return Ok(());
    }
    let account = if caller.hides_account { String::new() } else { format!(" on account '{}'", caller.account) };
    let message = format!(
        "The provided key '{}' does not have the required permissions for this endpoint{account}. Having the '{required}' \
         permission would allow this request to continue.",
        masked(&caller.key),
    );
    Err(ApiError::new(403, "invalid_request_error", message).before_execution())
}

/// A key with its middle masked, for error messages.
fn masked(key: &str) -> String {
    let letters: Vec<char> = key.chars().collect();
    let visible = letters.len().min(8);
    let end = letters.len().saturating_sub(4).max(visible);
    letters[..visible].iter().chain(&vec!['*'; end - visible]).chain(&letters[end..]).collect()
}
