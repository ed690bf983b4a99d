//! Converts Stripe's events to the domain's signals.
//!
//! [`HANDLED`] is the only table of event types. Webhook endpoints are registered for it and events are parsed by it,
//! so the two cannot diverge.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::charges::WireCharge;
use super::checkout_sessions::WireSession;
use super::customers::WireCustomer;
use super::disputes::WireDispute;
use super::events::EventEnvelope;
use super::mandates::WireMandate;
use super::payment_intents::WireIntent;
use super::payment_methods::WireMethod;
use super::redact::scrub;
use super::refunds::WireRefund;
use super::setup_intents::WireSetup;
use crate::domain::signals::{Observation, Signal};

/// An event of a handled type whose object does not match Stripe's documentation. It must not be dropped, because it
/// may be about money.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event is unreadable: {0}")]
pub struct UnreadableEvent(String);

#[derive(Deserialize)]
struct Event {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    object: Value,
    /// The old values of the fields that an update changed.
    #[serde(default)]
    previous_attributes: Value,
}

type Parse = fn(Data) -> Result<Signal, serde_json::Error>;

/// The event types that we handle, and the parser of each.
const HANDLED: [(&str, Parse); 28] = [
    ("charge.dispute.closed", dispute),
    ("charge.dispute.created", dispute),
    ("charge.dispute.funds_reinstated", dispute),
    ("charge.dispute.funds_withdrawn", dispute),
    ("charge.dispute.updated", dispute),
    ("charge.pending", charge_pending),
    ("charge.refunded", charge_refunded),
    ("checkout.session.async_payment_failed", session),
    ("checkout.session.async_payment_succeeded", session),
    ("checkout.session.completed", session),
    ("checkout.session.expired", session),
    ("customer.deleted", customer_deleted),
    ("customer.updated", customer_updated),
    ("mandate.updated", mandate_updated),
    ("payment_intent.canceled", intent),
    ("payment_intent.payment_failed", intent),
    ("payment_intent.processing", intent),
    ("payment_intent.requires_action", intent),
    ("payment_intent.succeeded", intent),
    ("payment_method.attached", method_attached),
    ("payment_method.automatically_updated", method_updated),
    ("payment_method.detached", method_detached),
    ("payment_method.updated", method_updated),
    ("refund.created", refund),
    ("refund.failed", refund),
    ("refund.updated", refund),
    ("setup_intent.setup_failed", setup),
    ("setup_intent.succeeded", setup),
];

/// Names of event types in earlier API versions, which an account's events list may still use. They are parsed, but not
/// registered for.
const RENAMED: [(&str, &str); 2] = [
    ("charge.refund.updated", "refund.updated"),
    ("payment_method.card_automatically_updated", "payment_method.automatically_updated"),
];

/// The event types that we handle, in alphabetical order.
pub fn handled_types() -> impl Iterator<Item = &'static str> {
    HANDLED.iter().map(|(name, _)| *name)
}

/// Parses an event from the JSON that was delivered or listed. An event that does not concern us becomes
/// [`Signal::Ignored`] with the reason.
pub fn observe(body: &[u8]) -> Result<Observation, UnreadableEvent> {
    let envelope = EventEnvelope::parse(body).map_err(|why| UnreadableEvent(why.to_owned()))?;
    let signal = parse(&envelope, body).map_err(|error| {
        // The parser's message may quote a value, and Stripe's values may be secrets (P9).
        UnreadableEvent(scrub(&format!("{}: {error}", envelope.event_type)))
    })?;
    Ok(Observation {
        event_time: envelope.created,
        account: envelope.account,
        livemode: envelope.livemode,
        request_key: envelope.request.idempotency_key,
        hides_request_key: envelope.request.hides_key,
        signal,
    })
}

fn parse(envelope: &EventEnvelope, body: &[u8]) -> Result<Signal, serde_json::Error> {
    let renamed = RENAMED.iter().find(|(old, _)| *old == envelope.event_type);
    let event_type = renamed.map_or(envelope.event_type.as_str(), |(_, new)| new);
    match HANDLED.iter().find(|(name, _)| *name == event_type) {
        Some((_, parse)) => parse(serde_json::from_slice::<Event>(body)?.data),
        None => Ok(ignored(&format!("events of type {} are not handled", scrub(&envelope.event_type)))),
    }
}

fn ignored(reason: &str) -> Signal {
    Signal::Ignored { reason: reason.to_owned() }
}

fn object<T: DeserializeOwned>(data: Data) -> Result<T, serde_json::Error> {
    serde_json::from_value(data.object)
}

fn intent(data: Data) -> Result<Signal, serde_json::Error> {
    Ok(Signal::Intent(Box::new(object::<WireIntent>(data)?.into())))
}

fn charge_refunded(data: Data) -> Result<Signal, serde_json::Error> {
    Ok(Signal::ChargeRefunded(object::<WireCharge>(data)?.into()))
}

/// A debit that was sent to the bank. Its mandate may appear nowhere else.
fn charge_pending(data: Data) -> Result<Signal, serde_json::Error> {
    let mandate = object::<WireCharge>(data)?.mandate();
    Ok(mandate.map_or_else(|| ignored("the charge names no mandate"), Signal::Mandate))
}

fn refund(data: Data) -> Result<Signal, serde_json::Error> {
    Ok(Signal::Refund(object::<WireRefund>(data)?.into()))
}

fn dispute(data: Data) -> Result<Signal, serde_json::Error> {
    Ok(Signal::Dispute(object::<WireDispute>(data)?.into()))
}

fn session(data: Data) -> Result<Signal, serde_json::Error> {
    Ok(Signal::Session(object::<WireSession>(data)?.into()))
}

fn method_attached(data: Data) -> Result<Signal, serde_json::Error> {
    Ok(Signal::MethodAttached(object::<WireMethod>(data)?.into()))
}

fn method_updated(data: Data) -> Result<Signal, serde_json::Error> {
    Ok(Signal::MethodUpdated(object::<WireMethod>(data)?.into()))
}

fn method_detached(data: Data) -> Result<Signal, serde_json::Error> {
    Ok(Signal::MethodDetached { provider_payment_method_id: object::<WireMethod>(data)?.id })
}

fn setup(data: Data) -> Result<Signal, serde_json::Error> {
    let setup = object::<WireSetup>(data)?;
    Ok(setup.success().map_or_else(|| ignored("the setup did not succeed; nothing was stored"), Signal::SetupSucceeded))
}

fn customer_deleted(data: Data) -> Result<Signal, serde_json::Error> {
    Ok(Signal::CustomerDeleted { provider_customer_id: object::<WireCustomer>(data)?.id })
}

fn customer_updated(data: Data) -> Result<Signal, serde_json::Error> {
    let previous = data.previous_attributes.clone();
    let customer = object::<WireCustomer>(data)?;
    let default_change = customer.default_change(&previous)?;
    Ok(Signal::CustomerUpdated { provider_customer_id: customer.id, default_change })
}

fn mandate_updated(data: Data) -> Result<Signal, serde_json::Error> {
    let mandate = object::<WireMandate>(data)?.snapshot();
    Ok(mandate.map_or_else(|| ignored("the mandate names no payment method"), Signal::Mandate))
}

#[cfg(test)]
mod tests;
