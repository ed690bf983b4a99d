//! A refund: money that goes back, asked for by a caller or made by hand at Stripe. It stands beside the payment's state
//! and never changes it (P7). Its states are Stripe's, and so are its turns: `succeeded` may still become `failed`.

use time::OffsetDateTime;

use super::{Currency, Error, IntegrationId, Money, OrganizationId, PaymentId, RefundId, Result};

/// Money that goes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund {
    /// Our id; Stripe's refund bears it as a mark, if we asked for it.
    pub id: RefundId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The integration that took the money.
    pub integration_id: IntegrationId,
    /// The payment whose money goes back.
    pub payment_id: PaymentId,
    /// Stripe's `re_…`; `None` until Stripe has made it.
    pub provider_refund_id: Option<String>,
    /// Stripe's `ch_…`.
    pub provider_charge_id: Option<String>,
    /// Minor units; `None`: all that is left of the charge, until Stripe says how much that was.
    pub amount: Option<i64>,
    /// The charge's currency.
    pub currency: Currency,
    /// Stripe's word: `pending`, `requires_action`, `succeeded`, `failed`, `canceled`. `pending` before it has spoken.
    pub status: String,
    /// Why it failed: Stripe's reason or code, or one of ours.
    pub failure_reason: Option<String>,
    /// Since when the outcome of the call to Stripe is unknown (P2).
    pub unknown_since: Option<OffsetDateTime>,
    /// When the newest key was found to bring no answer any more.
    pub dead_key_time: Option<OffsetDateTime>,
    /// When it was asked for, or first told.
    pub create_time: OffsetDateTime,
    /// When it last changed.
    pub update_time: OffsetDateTime,
}

impl Refund {
    /// The failure of a refund that never reached Stripe, because its integration was disconnected first.
    pub const INTEGRATION_DISCONNECTED: &'static str = "integration_disconnected";
    /// The failure of a refund of more than is left of its charge: Stripe has no code for it.
    pub const MORE_THAN_IS_LEFT: &'static str = "more_than_is_left";

    /// Whether it may still come to something by itself.
    pub fn is_moving(&self) -> bool {
        matches!(self.status.as_str(), "pending" | "requires_action")
    }
}

/// What a caller gives to have money go back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Refund")]
pub struct NewRefund {
    pub payment_id: PaymentId,
    /// Absent: the charge that settled the payment.
    pub provider_charge_id: Option<String>,
    /// Absent: all that is left of the charge.
    pub amount: Option<Money>,
}

/// A charge that took money for a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Stripe's `ch_…`.
    pub provider_charge_id: String,
    /// The integration that took the money.
    pub integration_id: IntegrationId,
    /// How much it took.
    pub amount: Money,
    /// Whether it settled the payment; else it came in beside (P12).
    pub settles: bool,
}

impl NewRefund {
    /// The charge that the money goes back from, of all that took money for the payment. How much of it is left is
    /// Stripe's to say, but never more than it took.
    pub fn choose<'a>(&self, charges: &'a [Charge]) -> Result<&'a Charge> {
        if charges.is_empty() {
            return Err(self.not_refundable("nothing that could be refunded was taken through Stripe for this payment"));
        }
        let charge = match &self.provider_charge_id {
            Some(id) => charges.iter().find(|charge| charge.provider_charge_id == *id).ok_or_else(|| {
                let message =
                    "is not a charge that took money for this payment; leave it empty for the one that settled it";
                Error::invalid("provider_charge_id", message)
            })?,
            None => charges.iter().find(|charge| charge.settles).ok_or_else(|| {
                let known: Vec<_> = charges.iter().map(|charge| charge.provider_charge_id.as_str()).collect();
                self.not_refundable(&format!(
                    "no charge has settled this payment; name the overpayment's in provider_charge_id: {}",
                    known.join(", ")
                ))
            })?,
        };
        match self.amount {
            Some(amount) if amount.currency != charge.amount.currency => {
                let message = format!("must be the charge's: {}", charge.amount.currency);
                Err(Error::invalid("amount.currency_code", message))
            }
            Some(amount) if amount.minor_units > charge.amount.minor_units => {
                let message = format!("must be at most what the charge took: {}", charge.amount.minor_units);
                Err(Error::invalid("amount.minor_units", message))
            }
            _ => Ok(charge),
        }
    }

    fn not_refundable(&self, message: &str) -> Error {
        Error::precondition("PAYMENT_NOT_REFUNDABLE", format!("payment/{}", self.payment_id), message)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn charge(id: &str, minor_units: i64, settles: bool) -> Charge {
        Charge {
            provider_charge_id: id.to_owned(),
            integration_id: Uuid::from_u128(4).into(),
            amount: Money { minor_units, currency: Currency::EUR },
            settles,
        }
    }

    fn new(charge: Option<&str>, amount: Option<(i64, &str)>) -> NewRefund {
        NewRefund {
            payment_id: Uuid::from_u128(5).into(),
            provider_charge_id: charge.map(str::to_owned),
            amount: amount.map(|(minor_units, code)| Money { minor_units, currency: Currency::parse(code).unwrap() }),
        }
    }

    fn refused(chosen: Result<&Charge>) -> String {
        match chosen {
            Err(Error::Invalid(violations)) => violations[0].field.clone(),
            Err(Error::FailedPrecondition { reason, .. }) => reason.to_owned(),
            other => panic!("this was to be refused: {other:?}"),
        }
    }

    #[test]
    fn the_charge_that_settled_the_payment_is_the_default_and_only_ones_of_the_payment_are_taken() {
        let both = [charge("ch_over", 700, false), charge("ch_paid", 4900, true)];
        assert_eq!(new(None, None).choose(&both).unwrap().provider_charge_id, "ch_paid");
        assert_eq!(new(Some("ch_over"), None).choose(&both).unwrap().provider_charge_id, "ch_over");
        assert_eq!(refused(new(Some("ch_other"), None).choose(&both)), "provider_charge_id");
        assert_eq!(refused(new(None, None).choose(&both[..1])), "PAYMENT_NOT_REFUNDABLE");
        assert_eq!(refused(new(None, None).choose(&[])), "PAYMENT_NOT_REFUNDABLE");
        assert_eq!(refused(new(Some("ch_other"), None).choose(&[])), "PAYMENT_NOT_REFUNDABLE");
    }

    #[test]
    fn an_amount_is_in_the_charges_currency_and_at_most_what_it_took() {
        let charges = [charge("ch_paid", 4900, true)];
        assert!(new(None, Some((4900, "EUR"))).choose(&charges).is_ok());
        assert_eq!(refused(new(None, Some((4901, "EUR"))).choose(&charges)), "amount.minor_units");
        assert_eq!(refused(new(None, Some((1, "USD"))).choose(&charges)), "amount.currency_code");
    }
}
