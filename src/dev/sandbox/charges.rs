//! Charges: what was, or was not, taken; and the ledger that is read from them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::act::{Act, Call};
use super::lists;
use super::refusal::Answer;
use super::state::{Account, flag, new_id, number, text};
use super::test_methods::Decline;

/// `GET /v1/charges/{id}`
pub(super) fn retrieve(act: &mut Act, call: &Call) -> Answer {
    act.find("charge", call.id())
}

/// `GET /v1/charges`
pub(super) fn list(act: &mut Act, call: &Call) -> Answer {
    let (customer, intent) = (text(&call.params, "/customer"), text(&call.params, "/payment_intent"));
    lists::list(act, call, "charge", |charge| {
        (customer.is_empty() || text(charge, "/customer") == customer)
            && (intent.is_empty() || text(charge, "/payment_intent") == intent)
    })
}

/// Makes the charge of an attempt. The intent's metadata is copied to it, once.
pub(super) fn make(act: &mut Act, intent: &Value, method: &Value, status: &str) -> Value {
    let (id, kind) = (new_id("ch"), text(method, "/type"));
    let taken = status == "succeeded";
    let mut details = json!({ "type": kind });
    details[kind] = method[kind].clone();
    if kind == "sepa_debit" {
        details[kind]["mandate"] = act.hidden_of(text(method, "/id")).mandate.into();
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
        "balance_transaction": if taken { json!(new_id("txn")) } else { Value::Null },
        "billing_details": method["billing_details"],
        "calculated_statement_descriptor": "PAYBRIDGE SANDBOX",
        "captured": status != "failed",
        "created": act.now,
        "currency": intent["currency"],
        "customer": intent["customer"],
        "description": intent["description"],
        "disputed": false,
        "failure_balance_transaction": null,
        "failure_code": null,
        "failure_message": null,
        "fraud_details": {},
        "livemode": act.account.livemode,
        "metadata": intent["metadata"],
        "on_behalf_of": null,
        "outcome": if taken { authorized() } else { Value::Null },
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
    act.insert(charge.clone());
    charge
}

/// The outcome of a charge that went through.
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

/// Writes why a bank declined onto its charge.
pub(super) fn explain(charge: &mut Value, decline: &Decline) {
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

/// One line of the ledger: the truth about money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// `acct_…`
    pub account: String,
    /// Live or test mode.
    pub livemode: bool,
    /// `ch_…`
    pub charge: String,
    /// `pi_…`
    pub payment_intent: String,
    /// `cus_…`, if there was a customer.
    pub customer: Option<String>,
    /// Minor units; what was captured of it, once it is.
    pub amount: i64,
    /// Lower case.
    pub currency: String,
    /// `succeeded`, `pending` or `failed`; `authorized` where the money was held and has not been captured.
    pub status: String,
    /// Why it failed.
    pub failure_code: Option<String>,
    /// Minor units given back so far.
    pub amount_refunded: i64,
    /// Whether it is, or was, disputed.
    pub disputed: bool,
    /// The payment intent's metadata as it is now.
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
    let held = text(charge, "/status") == "succeeded" && !captured;
    // What was held and not captured was never taken.
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
        status: if held { "authorized".to_owned() } else { owned("/status") },
        failure_code: optional("/failure_code"),
        amount_refunded: refunded,
        disputed: flag(charge, "/disputed"),
        metadata: metadata.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap_or("").to_owned())).collect(),
        created: number(charge, "/created"),
    }
}
