//! A refund, requested by a caller or made in the Stripe Dashboard. Refunds are recorded alongside the payment's state
//! and never change it (P7). A refund's states are Stripe's; `succeeded` may still become `failed`.

use time::OffsetDateTime;

use super::payments::Payment;
use super::signals::RefundSnapshot;
use super::stripe_requests::{Purpose, RequestTarget};
use super::{Currency, Error, IntegrationId, Money, OrganizationId, PaymentId, RefundId, Result};

/// Money returned to the customer, in full or in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund {
    /// Our id. Stripe's refund carries it in its metadata if Paybridge requested it.
    pub id: RefundId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The integration that took the money.
    pub integration_id: IntegrationId,
    /// The payment that is refunded.
    pub payment_id: PaymentId,
    /// Stripe's `re_…`; `None` until Stripe has created it.
    pub provider_refund_id: Option<String>,
    /// Stripe's `ch_…`.
    pub provider_charge_id: Option<String>,
    /// Minor units. `None` means all that remains of the charge, until Stripe reports how much that was.
    pub amount: Option<i64>,
    /// The charge's currency.
    pub currency: Currency,
    /// Stripe's status: `pending`, `requires_action`, `succeeded`, `failed` or `canceled`. `pending` until Stripe
    /// reports one.
    pub status: String,
    /// Why it failed: Stripe's reason or code, or one of Paybridge's own.
    pub failure_reason: Option<String>,
    /// Since when the outcome of the Stripe request has been unknown (P2).
    pub unknown_since: Option<OffsetDateTime>,
    /// The caller's request, which names the request to Stripe. `None` if it was not requested here.
    pub request_id: Option<String>,
    /// When it was requested or first reported.
    pub create_time: OffsetDateTime,
    /// When it last changed.
    pub update_time: OffsetDateTime,
}

impl Refund {
    /// Failure reason of a refund that never reached Stripe because its integration was disconnected first.
    pub const INTEGRATION_DISCONNECTED: &'static str = "integration_disconnected";
    /// Failure reason of a refund that exceeds what remains of its charge. Stripe has no code for it.
    pub const MORE_THAN_IS_LEFT: &'static str = "more_than_is_left";

    /// A refund that a caller requests now.
    pub fn requested(
        id: RefundId,
        organization_id: OrganizationId,
        new: &NewRefund,
        charge: &Charge,
        now: OffsetDateTime,
    ) -> Self {
        Self {
            id,
            organization_id,
            integration_id: charge.integration_id,
            payment_id: new.payment_id,
            provider_refund_id: None,
            provider_charge_id: Some(charge.provider_charge_id.clone()),
            amount: new.amount.map(|amount| amount.minor_units),
            currency: charge.amount.currency,
            status: "pending".to_owned(),
            failure_reason: None,
            unknown_since: None,
            request_id: Some(new.request_id.clone()),
            create_time: now,
            update_time: now,
        }
    }

    /// A refund that Stripe reports, and nobody requested here.
    pub fn reported(
        id: RefundId,
        payment: &Payment,
        integration_id: IntegrationId,
        snapshot: &RefundSnapshot,
        now: OffsetDateTime,
    ) -> Self {
        let mut refund = Self {
            id,
            organization_id: payment.organization_id,
            integration_id,
            payment_id: payment.id,
            provider_refund_id: None,
            provider_charge_id: None,
            amount: None,
            currency: snapshot.amount.currency,
            status: String::new(),
            failure_reason: None,
            unknown_since: None,
            request_id: None,
            create_time: now,
            update_time: now,
        };
        refund.apply(snapshot);
        refund
    }

    /// Whether Stripe made the reported refund for this one: its metadata names the row or, if that was lost and made anew,
    /// the caller's request.
    pub fn is_reported_by(&self, snapshot: &RefundSnapshot) -> bool {
        let is_of_request = snapshot.request_id.is_some() && snapshot.request_id == self.request_id;
        snapshot.refund_id == Some(self.id.0) || is_of_request
    }

    /// Takes over what Stripe reports. The outcome is known from then on.
    pub fn apply(&mut self, snapshot: &RefundSnapshot) {
        self.provider_refund_id = Some(snapshot.id.clone());
        self.provider_charge_id = snapshot.provider_charge_id.clone().or_else(|| self.provider_charge_id.take());
        self.amount = Some(snapshot.amount.minor_units);
        self.currency = snapshot.amount.currency;
        self.status.clone_from(&snapshot.status);
        self.failure_reason.clone_from(&snapshot.failure_reason);
        self.unknown_since = None;
    }

    /// The requests that create it at Stripe. A second part of a charge would be refunded in addition to the first (P2).
    pub fn target(&self) -> RequestTarget {
        let purpose = if self.amount.is_some() { Purpose::PartialRefund } else { Purpose::Refund };
        match &self.request_id {
            Some(request_id) => purpose.of(request_id),
            None => purpose.of(self.id),
        }
    }

    /// Whether its status may still change without further requests.
    pub fn is_in_flight(&self) -> bool {
        matches!(self.status.as_str(), "pending" | "requires_action")
    }
}

/// A caller's request for a refund.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Refund")]
pub struct NewRefund {
    pub request_id: String,
    pub payment_id: PaymentId,
    /// `None` selects the charge that settled the payment.
    pub provider_charge_id: Option<String>,
    /// `None` means all that remains of the charge.
    pub amount: Option<Money>,
}

/// A charge that took money for a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Stripe's `ch_…`.
    pub provider_charge_id: String,
    /// The integration that took the money.
    pub integration_id: IntegrationId,
    /// The amount that was charged.
    pub amount: Money,
    /// Whether it settled the payment; otherwise it is an overpayment (P12).
    pub settles: bool,
}

impl NewRefund {
    /// Selects the charge to refund from all charges that took money for the payment. The amount may not exceed the
    /// charge; how much of it remains is for Stripe to decide.
    pub fn select_charge<'a>(&self, charges: &'a [Charge]) -> Result<&'a Charge> {
        if charges.is_empty() {
            return Err(self.not_refundable("no charge taken through Stripe for this payment can be refunded"));
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
                    "no charge has settled this payment; set provider_charge_id to the overpayment to refund: {}",
                    known.join(", ")
                ))
            })?,
        };
        match self.amount {
            Some(amount) if amount.currency != charge.amount.currency => {
                let message = format!("must be the charge's currency: {}", charge.amount.currency);
                Err(Error::invalid("amount.currency_code", message))
            }
            Some(amount) if amount.minor_units > charge.amount.minor_units => {
                let message = format!("must be at most the amount of the charge: {}", charge.amount.minor_units);
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
    use crate::domain::fixtures::{START, payment};

    /// A charge that did not settle the payment.
    fn charge(id: &str, minor_units: i64) -> Charge {
        Charge {
            provider_charge_id: id.to_owned(),
            integration_id: Uuid::from_u128(4).into(),
            amount: Money { minor_units, currency: Currency::EUR },
            settles: false,
        }
    }

    fn new(charge: Option<&str>, amount: Option<(i64, &str)>) -> NewRefund {
        NewRefund {
            request_id: "r1".to_owned(),
            payment_id: Uuid::from_u128(5).into(),
            provider_charge_id: charge.map(str::to_owned),
            amount: amount.map(|(minor_units, code)| Money { minor_units, currency: Currency::parse(code).unwrap() }),
        }
    }

    fn rejected(selected: Result<&Charge>) -> String {
        match selected {
            Err(Error::Invalid(violations)) => violations[0].field.clone(),
            Err(Error::FailedPrecondition { reason, .. }) => reason.to_owned(),
            other => panic!("expected a rejection: {other:?}"),
        }
    }

    #[test]
    fn the_charge_that_settled_the_payment_is_the_default_and_only_the_payments_charges_are_accepted() {
        let both = [charge("ch_over", 700), Charge { settles: true, ..charge("ch_paid", 4900) }];
        assert_eq!(new(None, None).select_charge(&both).unwrap().provider_charge_id, "ch_paid");
        assert_eq!(new(Some("ch_over"), None).select_charge(&both).unwrap().provider_charge_id, "ch_over");
        assert_eq!(rejected(new(Some("ch_other"), None).select_charge(&both)), "provider_charge_id");
        assert_eq!(rejected(new(None, None).select_charge(&both[..1])), "PAYMENT_NOT_REFUNDABLE");
        assert_eq!(rejected(new(None, None).select_charge(&[])), "PAYMENT_NOT_REFUNDABLE");
        assert_eq!(rejected(new(Some("ch_other"), None).select_charge(&[])), "PAYMENT_NOT_REFUNDABLE");
    }

    #[test]
    fn an_amount_is_in_the_charges_currency_and_at_most_its_amount() {
        let charges = [Charge { settles: true, ..charge("ch_paid", 4900) }];
        assert!(new(None, Some((4900, "EUR"))).select_charge(&charges).is_ok());
        assert_eq!(rejected(new(None, Some((4901, "EUR"))).select_charge(&charges)), "amount.minor_units");
        assert_eq!(rejected(new(None, Some((1, "USD"))).select_charge(&charges)), "amount.currency_code");
    }
    /// A refund that was requested now; `None` means all that remains of the charge.
    fn requested(amount: Option<i64>) -> Refund {
        let new = new(None, amount.map(|minor_units| (minor_units, "EUR")));
        Refund::requested(Uuid::from_u128(6).into(), Uuid::nil().into(), &new, &charge("ch_paid", 4900), START)
    }

    fn snapshot(status: &str) -> RefundSnapshot {
        RefundSnapshot {
            id: "re_1".to_owned(),
            provider_payment_intent_id: None,
            provider_charge_id: None,
            amount: Money { minor_units: 4000, currency: Currency::EUR },
            status: status.to_owned(),
            failure_reason: (status == "failed").then(|| "expired_or_canceled_card".to_owned()),
            refund_id: None,
            organization_id: None,
            installation: None,
            request_id: None,
        }
    }

    #[test]
    fn p7_a_refunds_state_is_stripes_and_a_success_may_still_fail() {
        let mut refund = Refund { unknown_since: Some(START), ..requested(None) };
        assert_eq!((refund.amount, refund.status.as_str()), (None, "pending"));
        for status in ["pending", "succeeded", "failed"] {
            refund.apply(&snapshot(status));
            let expected = Refund {
                provider_refund_id: Some("re_1".to_owned()),
                amount: Some(4000),
                status: status.to_owned(),
                failure_reason: snapshot(status).failure_reason,
                ..requested(None)
            };
            assert_eq!(refund, expected, "the outcome is known, and so is the charge although Stripe names none");
        }
    }

    #[test]
    fn a_refund_that_was_made_in_the_stripe_dashboard_is_recorded_as_reported() {
        let snapshot = RefundSnapshot { provider_charge_id: Some("ch_paid".to_owned()), ..snapshot("succeeded") };
        let (payment, id) = (payment(4900), Uuid::from_u128(6).into());
        let refund = Refund::reported(id, &payment, payment.integration_id, &snapshot, START);
        assert_eq!((refund.id, refund.payment_id, refund.request_id.as_deref()), (id, payment.id, None));
        assert_eq!((refund.provider_refund_id.as_deref(), refund.amount), (Some("re_1"), Some(4000)));
        assert_eq!((refund.provider_charge_id.as_deref(), refund.status.as_str()), (Some("ch_paid"), "succeeded"));
    }

    #[test]
    fn p2_a_refund_is_named_by_its_request_and_a_part_could_be_refunded_twice() {
        let (whole, part) = (requested(None).target(), requested(Some(1000)).target());
        assert_eq!((whole.purpose, whole.name.as_str()), (Purpose::Refund, "r1"));
        assert_eq!((part.purpose, part.name.as_str()), (Purpose::PartialRefund, "r1"));
        let ours = Refund { request_id: None, ..requested(None) };
        assert_eq!(ours.target().name, ours.id.to_string());
    }

    #[test]
    fn a_refund_is_in_flight_until_stripe_reports_how_it_ended() {
        for (status, expected) in
            [("pending", true), ("requires_action", true), ("succeeded", false), ("failed", false), ("canceled", false)]
        {
            assert_eq!(Refund { status: status.to_owned(), ..requested(None) }.is_in_flight(), expected, "{status}");
        }
    }
}
