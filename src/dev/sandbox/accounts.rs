//! The account of the request's key.

use serde_json::json;

use super::api_error::ApiResult;
use super::transaction::{Call, Transaction};

/// `GET /v1/account`
#[expect(clippy::unnecessary_wraps, reason = "all endpoints have one signature")]
pub(super) fn retrieve(tx: &mut Transaction, _call: &Call) -> ApiResult {
    let account = &tx.account;
    let mut object = json!({
        "id": account.id,
        "object": "account",
        "business_profile": {
            "mcc": null, "name": "Paybridge sandbox", "product_description": null, "support_address": null,
            "support_email": null, "support_phone": null, "support_url": null, "url": null,
        },
        "business_type": "company",
        "capabilities": { "card_payments": "active", "sepa_debit_payments": "active", "transfers": "active" },
        "charges_enabled": true,
        "controller": { "type": "account" },
        "country": account.country,
        "created": account.created,
        "default_currency": account.default_currency,
        "details_submitted": true,
        "email": "sandbox@example.com",
        "external_accounts": {
            "object": "list", "data": [], "has_more": false, "url": "/v1/accounts/acct/external_accounts",
        },
        "metadata": {},
        "payouts_enabled": true,
        "settings": {
            "branding": { "icon": null, "logo": null, "primary_color": null, "secondary_color": null },
            "card_payments": { "statement_descriptor_prefix": null },
            "dashboard": { "display_name": "Paybridge sandbox", "timezone": "Etc/UTC" },
            "payments": { "statement_descriptor": "PAYBRIDGE SANDBOX" },
            "sepa_debit_payments": {},
        },
        "type": "standard",
    });
    object["external_accounts"]["url"] = format!("/v1/accounts/{}/external_accounts", account.id).into();
    Ok(object)
}
