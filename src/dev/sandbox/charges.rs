//! Charges, and the ledger that is derived from them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api_error::ApiResult;
use super::lists;
use super::state::{Account, flag, new_id, number, text};
use super::test_methods::Decline;
use super::transaction::{Call, Transaction};

/// `GET /v1/charges/{id}`
pub(super) fn retrieve(tx: &mut Transaction, call: &Call) -> ApiResult {
    tx.find("charge", call.id())
}

/// `GET /v1/charges`
pub(super) fn list(tx: &mut Transaction, call: &Call) -> ApiResult {
    let (customer, intent) = (text(&call.params, "/customer"), text(&call.params, "/payment_intent"));
    lists::list(tx, call, "charge", |charge| {
        (customer.is_empty() || text(charge, "/customer") == customer)
            && (intent.is_empty() || text(charge, "/payment_intent") == intent)
    })
}

/// Creates the charge of an attempt. It gets a copy of the intent's metadata, which later updates do not change.
pub(super) fn create(tx: &mut Transaction, intent: &Value, method: &Value, status: &str) -> Value {
    let (id, kind) = (new_id("ch"), text(method, "/type"));
    let is_succeeded = status == "succeeded";
    let mut details = json!({ "type": kind });
    details[kind] = method[kind].clone();
    if kind == "sepa_debit" {
        details[kind]["mandate"] = tx.internals(text(method, "/id")).mandate.into();
    }
    let charge = json!({
        "id": id,
        "object": "charge",
        "amount": intent["amount"],
        "amount_captured": if status == "failed" { json!(0) } else { intent["amount"].clone() },
        "amount_refunded": 0,
        "application": null,
        "application_fee": null,
        "application_fee_amount": null,
        "balance_transaction": if is_succeeded { json!(new_id("txn")) } else { Value::Null },
        "billing_details": method["billing_details"],
        "calculated_statement_descriptor": "PAYBRIDGE SANDBOX",
        "captured": status != "failed",
        "created": tx.now,
        "currency": intent["currency"],
        "customer": intent["customer"],
        "description": intent["description"],
        "disputed": false,
        "failure_balance_transaction": null,
        "failure_code": null,
        "failure_message": null,
        "fraud_details": {},
        "livemode": tx.account.livemode,
        "metadata": intent["metadata"],
        "on_behalf_of": null,
        "outcome": if is_succeeded { authorized() } else { Value::Null },
        "paid": status != "failed",
        "payment_intent": intent["id"],
        "payment_method": method["id"],
        "payment_method_details": details,
        "receipt_email": intent["receipt_email"],
        "receipt_number": null,
        "receipt_url": null,
        "refunded": false,
        "review": null,
        "shipping": null,
        "source_transfer": null,
        "statement_descriptor": null,
        "statement_descriptor_suffix": null,
        "status": status,
        "transfer_data": null,
        "transfer_group": null,
    });
    tx.insert(charge.clone());
    charge
}

/// The `outcome` of a successful charge.
pub(super) fn authorized() -> Value {
    json!({
        "advice_code": null,
        "network_advice_code": null,
        "network_decline_code": null,
        "network_status": "approved_by_network",
        "reason": null,
        "risk_level": "normal",
        "risk_score": 20,
        "seller_message": "Payment complete.",
        "type": "authorized",
    })
}

/// Sets the failure and the outcome of a declined charge.
pub(super) fn set_decline(charge: &mut Value, decline: &Decline) {
    let advice = if decline.advice.is_empty() { Value::Null } else { decline.advice.into() };
    charge["failure_code"] = decline.code.into();
    charge["failure_message"] = decline.message.into();
    charge["outcome"] = json!({
        "advice_code": advice,
        "network_advice_code": null,
        "network_decline_code": null,
        "network_status": if decline.blocked { "not_sent_to_network" } else { "declined_by_network" },
        "reason": decline.bank_code,
        "risk_level": if decline.blocked { "highest" } else { "normal" },
        "seller_message": "The bank returned the decline code.",
        "type": if decline.blocked { "blocked" } else { "issuer_declined" },
    });
}

/// One charge, as the ledger reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// `acct_…`
    pub account: String,
    /// Live mode, not test mode.
    pub livemode: bool,
    /// `ch_…`
    pub charge: String,
    /// `pi_…`
    pub payment_intent: String,
    /// `cus_…`
    pub customer: Option<String>,
    /// In minor units; the captured amount once it is captured.
    pub amount: i64,
    /// ISO 4217, in lower case.
    pub currency: String,
    /// `succeeded`, `pending`, `failed`, or `authorized` before the capture of an authorization.
    pub status: String,
    /// The charge's `failure_code`.
    pub failure_code: Option<String>,
    /// In minor units, so far. The released part of an authorization does not count.
    pub amount_refunded: i64,
    /// Whether there is, or was, a dispute.
    pub disputed: bool,
    /// The current metadata of the PaymentIntent.
    pub metadata: std::collections::BTreeMap<String, String>,
    /// Unix seconds of the clock.
    pub created: i64,
}

/// Every charge of an account, oldest first.
pub(super) fn ledger(account: &Account) -> Vec<LedgerEntry> {
    let ids = account.order.get("charge").map_or(&[][..], Vec::as_slice);
    ids.iter().filter_map(|id| account.objects.get(id)).map(|charge| entry(account, charge)).collect()
}

fn entry(account: &Account, charge: &Value) -> LedgerEntry {
    let owned = |pointer: &str| text(charge, pointer).to_owned();
    let optional = |pointer: &str| Some(owned(pointer)).filter(|value| !value.is_empty());
    let intent = account.objects.get(text(charge, "/payment_intent"));
    let metadata = intent.and_then(|intent| intent["metadata"].as_object()).cloned().unwrap_or_default();
    let captured = flag(charge, "/captured");
    let is_authorized = text(charge, "/status") == "succeeded" && !captured;
    // The uncaptured part of an authorization was never taken.
    let released = number(charge, "/amount") - number(charge, "/amount_captured");
    let refunded = if captured { number(charge, "/amount_refunded") - released } else { 0 };
    LedgerEntry {
        account: account.id.clone(),
        livemode: account.livemode,
        charge: owned("/id"),
        payment_intent: owned("/payment_intent"),
        customer: optional("/customer"),
        amount: number(charge, if captured { "/amount_captured" } else { "/amount" }),
        currency: owned("/currency"),
        status: if is_authorized { "authorized".to_owned() } else { owned("/status") },
        failure_code: optional("/failure_code"),
        amount_refunded: refunded,
        disputed: flag(charge, "/disputed"),
        metadata: metadata.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap_or("").to_owned())).collect(),
        created: number(charge, "/created"),
    }
}
