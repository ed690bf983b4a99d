//! Charges: what a try came to. They are never read: what went back of one is the sum of its refunds.

use serde::Deserialize;

use super::object::reference;
use crate::domain::signals::ChargeSnapshot;

#[derive(Debug, Deserialize)]
pub(super) struct WireCharge {
    id: String,
    #[serde(default, deserialize_with = "reference")]
    payment_intent: Option<String>,
}

impl From<WireCharge> for ChargeSnapshot {
    fn from(wire: WireCharge) -> Self {
        Self { id: wire.id, provider_payment_intent_id: wire.payment_intent }
    }
}
