//! The PaymentIntent as Stripe sends it: in responses, events, and the errors of a declined payment.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::domain::Currency;
use crate::domain::payments::Failure;
use crate::domain::signals::{IntentSnapshot, IntentStatus};
use crate::stripe::error::Detail;
use crate::stripe::metadata;
use crate::stripe::object::{Metadata, currency, metadata_id, metadata_text, money, null_as_default, reference};
use crate::stripe::redact::HostedUrl;

#[derive(Debug, Deserialize)]
pub(in crate::stripe) struct WireIntent {
    id: String,
    #[serde(deserialize_with = "status")]
    status: IntentStatus,
    amount: i64,
    #[serde(default, deserialize_with = "null_as_default")]
    amount_received: i64,
    #[serde(deserialize_with = "currency")]
    currency: Currency,
    #[serde(default, deserialize_with = "reference")]
    customer: Option<String>,
    #[serde(default, deserialize_with = "reference")]
    latest_charge: Option<String>,
    /// Instead of `latest_charge` until API version 2022-11-15; newest first.
    charges: Option<Charges>,
    last_payment_error: Option<Detail>,
    next_action: Option<NextAction>,
    /// Instead of `next_action` until API version 2019-02-11.
    next_source_action: Option<NextAction>,
    #[serde(default, deserialize_with = "null_as_default")]
    metadata: Metadata,
}

#[derive(Debug, Deserialize)]
struct Charges {
    data: Vec<ChargeId>,
}

#[derive(Debug, Deserialize)]
struct ChargeId {
    id: String,
}

#[derive(Debug, Deserialize)]
struct NextAction {
    redirect_to_url: Option<RedirectToUrl>,
    /// Instead of `redirect_to_url` until API version 2019-02-11.
    authorize_with_url: Option<RedirectToUrl>,
}

#[derive(Debug, Deserialize)]
struct RedirectToUrl {
    url: Option<HostedUrl>,
}

fn status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IntentStatus, D::Error> {
    let name = String::deserialize(deserializer)?;
    name.parse().map_err(|_| D::Error::custom("not a status of a PaymentIntent"))
}

impl From<WireIntent> for IntentSnapshot {
    fn from(wire: WireIntent) -> Self {
        let action = wire.next_action.or(wire.next_source_action);
        let redirect = action.and_then(|action| action.redirect_to_url.or(action.authorize_with_url));
        let url = redirect.and_then(|redirect| redirect.url);
        let charges = wire.charges.map(|charges| charges.data).unwrap_or_default();
        Self {
            id: wire.id,
            status: wire.status,
            amount: money(wire.amount, wire.currency),
            amount_received: wire.amount_received,
            provider_customer_id: wire.customer,
            latest_charge: wire.latest_charge.or(charges.into_iter().next().map(|charge| charge.id)),
            last_payment_error: wire.last_payment_error.as_ref().map(Failure::from),
            next_action_url: url.map(|url| url.expose().to_owned()),
            payment_id: metadata_id(&wire.metadata, metadata::PAYMENT_ID),
            organization_id: metadata_id(&wire.metadata, metadata::ORGANIZATION_ID),
            installation: metadata_text(&wire.metadata, metadata::INSTALLATION),
            customer_id: metadata_id(&wire.metadata, metadata::CUSTOMER_ID),
            external_customer_id: metadata_text(&wire.metadata, metadata::EXTERNAL_CUSTOMER_ID),
            is_of_link: wire.metadata.get(metadata::ATTEMPT_KIND).is_some_and(|kind| kind == metadata::LINK),
            invoice_id: metadata_text(&wire.metadata, metadata::INVOICE_ID),
            invoice_number: metadata_text(&wire.metadata, metadata::INVOICE_NUMBER),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p9_an_action_url_is_parsed_and_not_printed() {
        let json = r#"{"id":"pi_1","status":"requires_action","amount":1,"currency":"eur","metadata":null,
            "next_action":{"type":"redirect_to_url","redirect_to_url":{"url":"https://hooks.stripe.com/3ds?client_secret=x_secret_y"}}}"#;
        let wire: WireIntent = serde_json::from_str(json).unwrap();
        assert!(!format!("{wire:?}").contains("_secret_"));
        let url = IntentSnapshot::from(wire).next_action_url.unwrap();
        assert!(url.starts_with("https://hooks.stripe.com/3ds"));
    }
}
