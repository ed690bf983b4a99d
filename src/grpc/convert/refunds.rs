//! Converts refunds.

use super::customers::TEXT_LENGTH_MAX;
use super::{Fields, money, timestamp};
use crate::domain::payments::PaymentRef;
use crate::domain::refunds::Refund;
use crate::domain::{Money, Result};
use crate::grpc::proto::{self, RefundState};

/// A CreateRefundRequest, parsed.
pub(in crate::grpc) struct RefundRequest {
    pub request_id: String,
    pub payment: PaymentRef,
    pub provider_charge_id: Option<String>,
    pub amount: Option<Money>,
}

/// Parses a CreateRefundRequest.
pub(in crate::grpc) fn refund_request(request: proto::CreateRefundRequest) -> Result<RefundRequest> {
    let mut fields = Fields::default();
    let payment = fields.payment(request.payment);
    let request_id = fields.request_id(request.request_id);
    let charge = fields.text("provider_charge_id", request.provider_charge_id, TEXT_LENGTH_MAX);
    let amount = request.amount.map(|amount| {
        if amount.minor_units == 0 {
            fields.add_violation(
                "amount.minor_units",
                "must be at least 1; omit the amount to refund everything that is left",
            );
        }
        fields.money("amount", Some(&amount))
    });
    fields.check()?;
    let provider_charge_id = Some(charge).filter(|id| !id.is_empty());
    Ok(RefundRequest { request_id, payment, provider_charge_id, amount })
}

pub(in crate::grpc) fn refund(refund: Refund) -> proto::Refund {
    let currency = refund.currency;
    proto::Refund {
        id: refund.id.to_string(),
        payment_id: refund.payment_id.to_string(),
        integration_id: refund.integration_id.to_string(),
        provider_refund_id: refund.provider_refund_id.unwrap_or_default(),
        provider_charge_id: refund.provider_charge_id.unwrap_or_default(),
        amount: refund.amount.map(|minor_units| money(Money { minor_units, currency })),
        state: state(&refund.status).into(),
        failure_reason: refund.failure_reason.unwrap_or_default(),
        outcome_unknown_time: refund.unknown_since.map(timestamp),
        create_time: Some(timestamp(refund.create_time)),
        update_time: Some(timestamp(refund.update_time)),
    }
}

fn state(status: &str) -> RefundState {
    match status {
        "pending" => RefundState::Pending,
        "requires_action" => RefundState::RequiresAction,
        "succeeded" => RefundState::Succeeded,
        "failed" => RefundState::Failed,
        "canceled" => RefundState::Canceled,
        _ => RefundState::Unspecified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Error;
    use crate::grpc::proto::create_refund_request::Payment;

    fn request(minor_units: i64, currency_code: &str) -> proto::CreateRefundRequest {
        proto::CreateRefundRequest {
            payment: Some(Payment::PaymentId("01890a5d-ac96-774b-bcce-b302099a8057".into())),
            request_id: "r1".into(),
            amount: Some(proto::Money { minor_units, currency_code: currency_code.into() }),
            ..Default::default()
        }
    }

    fn violations(request: proto::CreateRefundRequest) -> Vec<String> {
        match refund_request(request) {
            Err(Error::Invalid(violations)) => violations.into_iter().map(|violation| violation.field).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn amount_and_charge_are_optional() {
        let whole = proto::CreateRefundRequest { amount: None, ..request(0, "") };
        let whole = refund_request(whole).unwrap();
        assert_eq!((whole.request_id.as_str(), whole.provider_charge_id, whole.amount), ("r1", None, None));
        let part = refund_request(request(1, "EUR")).unwrap();
        assert_eq!(part.amount.unwrap().minor_units, 1);
    }

    #[test]
    fn all_violations_of_a_refund_are_reported() {
        assert_eq!(violations(proto::CreateRefundRequest::default()), ["payment", "request_id"]);
        assert_eq!(violations(request(0, "EUR")), ["amount.minor_units"]);
        assert_eq!(violations(request(-1, "EUR")), ["amount.minor_units"]);
        assert_eq!(violations(request(0, "eur")), ["amount.minor_units", "amount.currency_code"]);
    }
}
