//! Payments: proto to domain and back.

use super::customers::TEXT_LENGTH_MAX;
use super::{Fields, etag, masked, money, timestamp};
use crate::domain::customers::CustomerRef;
use crate::domain::payments::{
    Attempt, AttemptState, Errand, Failure, NewPayment, Payment, PaymentFilter, PaymentRef, PaymentState,
    PendingReason, Way,
};
use crate::domain::{Money, PaymentId, Result};
use crate::grpc::proto::{
    self, PaymentAttemptKind, PaymentAttemptState, PaymentPendingReason, create_payment_request, get_payment_request,
};

/// What CreatePayment asks for, and its `request_id`.
pub(in crate::grpc) fn new_payment(request: proto::CreatePaymentRequest) -> Result<(String, NewPayment)> {
    use create_payment_request::Customer;
    let mut fields = Fields::default();
    let request_id = fields.request_id(request.request_id);
    let new = NewPayment {
        invoice_id: fields.required_text("invoice_id", request.invoice_id, TEXT_LENGTH_MAX),
        invoice_number: fields.text("invoice_number", request.invoice_number, TEXT_LENGTH_MAX),
        customer: match request.customer {
            Some(Customer::CustomerId(id)) => CustomerRef::Id(fields.id("customer_id", &id)),
            Some(Customer::ExternalCustomerId(id)) => {
                CustomerRef::ExternalId(fields.required_text("external_customer_id", id, TEXT_LENGTH_MAX))
            }
            None => {
                fields.object("customer", "is required: one of customer_id, external_customer_id");
                CustomerRef::ExternalId(String::new())
            }
        },
        amount: fields.money("amount", request.amount.as_ref()),
    };
    fields.check()?;
    Ok((request_id, new))
}

/// Which payment GetPayment asks for.
pub(in crate::grpc) fn which(request: proto::GetPaymentRequest) -> Result<PaymentRef> {
    Fields::only(|fields| match request.payment {
        Some(get_payment_request::Payment::Id(id)) => PaymentRef::Id(fields.id("id", &id)),
        Some(get_payment_request::Payment::InvoiceId(id)) => {
            PaymentRef::InvoiceId(fields.required_text("invoice_id", id, TEXT_LENGTH_MAX))
        }
        None => {
            fields.object("payment", "is required: one of id, invoice_id");
            PaymentRef::InvoiceId(String::new())
        }
    })
}

/// What UpdatePayment asks for: which payment, which version of it, and the amount to collect, if that is set.
pub(in crate::grpc) fn payment_update(
    request: proto::UpdatePaymentRequest,
) -> Result<(PaymentId, Option<i64>, Option<Money>)> {
    let mut fields = Fields::default();
    let payment = request.payment.unwrap_or_else(|| {
        fields.object("payment", "is required");
        proto::Payment::default()
    });
    let id = fields.id("payment.id", &payment.id);
    let version = fields.optional_etag("payment.etag", &payment.etag);
    let set = masked(&mut fields, request.update_mask, &[("amount", payment.amount.is_some())]);
    let amount = set.contains(&"amount").then(|| fields.money("payment.amount", payment.amount.as_ref()));
    fields.check()?;
    Ok((id, version, amount))
}

/// Which payments ListPayments asks for.
pub(in crate::grpc) fn filter(fields: &mut Fields, request: &proto::ListPaymentsRequest) -> PaymentFilter {
    let filter = PaymentFilter {
        customer_id: fields.optional_id("customer_id", &request.customer_id),
        states: fields.states(&request.states),
        created_from: fields.optional_time("start_time", request.start_time),
        created_before: fields.optional_time("end_time", request.end_time),
    };
    if let (Some(from), Some(before)) = (filter.created_from, filter.created_before)
        && from >= before
    {
        fields.object("end_time", "must be later than start_time");
    }
    filter
}

impl Fields {
    /// The states to list; none means any.
    fn states(&mut self, states: &[i32]) -> Vec<PaymentState> {
        if states.len() > STATES_MAX {
            self.object("states", format!("must name at most {STATES_MAX} states"));
        }
        let mut parsed = Vec::new();
        for (index, state) in states.iter().enumerate().take(STATES_MAX) {
            match proto::PaymentState::try_from(*state) {
                Ok(proto::PaymentState::Pending) => parsed.push(PaymentState::Pending),
                Ok(proto::PaymentState::Processing) => parsed.push(PaymentState::Processing),
                Ok(proto::PaymentState::RequiresAction) => parsed.push(PaymentState::RequiresAction),
                Ok(proto::PaymentState::Succeeded) => parsed.push(PaymentState::Succeeded),
                Ok(proto::PaymentState::Failed) => parsed.push(PaymentState::Failed),
                Ok(proto::PaymentState::Canceled) => parsed.push(PaymentState::Canceled),
                Ok(proto::PaymentState::Unspecified) | Err(_) => {
                    self.object(&format!("states[{index}]"), "must be a state of payments");
                }
            }
        }
        parsed
    }
}

/// More states than there are.
const STATES_MAX: usize = 16;

/// A payment and its attempts, the first one first.
pub(in crate::grpc) fn payment(payment: Payment, attempts: Vec<Attempt>) -> proto::Payment {
    let of = |minor_units| Some(money(Money { minor_units, currency: payment.amount.currency }));
    proto::Payment {
        amount: Some(money(payment.amount)),
        amount_received: of(payment.amount_received),
        amount_refunded: of(payment.amount_refunded),
        id: payment.id.to_string(),
        invoice_id: payment.invoice_id,
        invoice_number: payment.invoice_number,
        customer_id: payment.customer_id.to_string(),
        integration_id: payment.integration_id.to_string(),
        state: state(payment.state).into(),
        pending_reason: payment.pending_reason.map_or(PaymentPendingReason::Unspecified, pending_reason).into(),
        failure: payment.failure.filter(|_| payment.state == PaymentState::Failed).map(failure),
        next_action_url: payment.next_action_url.unwrap_or_default(),
        provider_payment_intent_id: payment.provider_payment_intent_id.unwrap_or_default(),
        provider_charge_id: payment.provider_charge_id.unwrap_or_default(),
        requested_amount: match payment.errand {
            Some(Errand::ChangeAmount { minor_units, .. }) => of(minor_units),
            _ => None,
        },
        manual_payment: payment.manual.map(|manual| proto::ManualPayment {
            reference: manual.reference,
            paid_time: Some(timestamp(manual.time)),
        }),
        cancel_request_time: payment.cancel_request_time.map(timestamp),
        outcome_unknown_time: payment.unknown_since.map(timestamp),
        attempts: attempts.into_iter().map(attempt).collect(),
        etag: etag(payment.version),
        create_time: Some(timestamp(payment.create_time)),
        update_time: Some(timestamp(payment.update_time)),
    }
}

fn attempt(attempt: Attempt) -> proto::PaymentAttempt {
    let (state, failed) = match attempt.state {
        AttemptState::Open => (PaymentAttemptState::Open, None),
        AttemptState::Succeeded => (PaymentAttemptState::Succeeded, None),
        AttemptState::Failed(failed) => (PaymentAttemptState::Failed, Some(failed)),
        AttemptState::Canceled => (PaymentAttemptState::Canceled, None),
        AttemptState::Superseded => (PaymentAttemptState::Superseded, None),
    };
    let (kind, method, expire_time) = match attempt.way {
        Way::Confirm { method } => (PaymentAttemptKind::Confirm, method.to_string(), None),
        Way::Link(link) => (PaymentAttemptKind::Link, String::new(), link.expire_time),
    };
    proto::PaymentAttempt {
        kind: kind.into(),
        expire_time: expire_time.map(timestamp),
        provider_payment_intent_id: attempt.provider_payment_intent_id.unwrap_or_default(),
        number: attempt.number,
        state: state.into(),
        amount: Some(money(attempt.amount)),
        payment_method_id: method,
        provider_charge_id: attempt.provider_charge_id.unwrap_or_default(),
        failure: failed.map(failure),
        create_time: Some(timestamp(attempt.create_time)),
        finish_time: attempt.finish_time.map(timestamp),
    }
}

fn failure(failure: Failure) -> proto::PaymentFailure {
    proto::PaymentFailure {
        code: failure.code,
        decline_code: failure.decline_code.unwrap_or_default(),
        advice_code: failure.advice_code.unwrap_or_default(),
        network_decline_code: failure.network_decline_code.unwrap_or_default(),
        message: failure.message,
        param: failure.param.unwrap_or_default(),
        provider_request_id: failure.provider_request_id.unwrap_or_default(),
    }
}

fn state(state: PaymentState) -> proto::PaymentState {
    match state {
        PaymentState::Pending => proto::PaymentState::Pending,
        PaymentState::Processing => proto::PaymentState::Processing,
        PaymentState::RequiresAction => proto::PaymentState::RequiresAction,
        PaymentState::Succeeded => proto::PaymentState::Succeeded,
        PaymentState::Failed => proto::PaymentState::Failed,
        PaymentState::Canceled => proto::PaymentState::Canceled,
    }
}

fn pending_reason(reason: PendingReason) -> PaymentPendingReason {
    match reason {
        PendingReason::WaitingForCustomer => PaymentPendingReason::WaitingForCustomer,
        PendingReason::AmountTooSmall => PaymentPendingReason::AmountTooSmall,
        PendingReason::IntegrationPaused => PaymentPendingReason::IntegrationPaused,
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;
    use crate::domain::Error;

    fn objections<T>(parsed: Result<T>) -> Vec<String> {
        match parsed {
            Err(Error::Invalid(violations)) => violations.into_iter().map(|violation| violation.field).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn an_invoice_is_taken_over_as_it_is_given() {
        let (request_id, new) = new_payment(proto::CreatePaymentRequest {
            request_id: "r1".into(),
            invoice_id: "inv_1".into(),
            invoice_number: "HOO-1".into(),
            customer: Some(create_payment_request::Customer::ExternalCustomerId("hooli_1234".into())),
            amount: Some(proto::Money { minor_units: 4900, currency_code: "EUR".into() }),
        })
        .unwrap();
        assert_eq!((request_id.as_str(), new.invoice_id.as_str()), ("r1", "inv_1"));
        assert_eq!((new.amount.minor_units, new.amount.currency.as_str()), (4900, "EUR"));
    }

    #[test]
    fn everything_wrong_with_an_invoice_is_told_at_once() {
        let empty = new_payment(proto::CreatePaymentRequest::default());
        assert_eq!(objections(empty), ["request_id", "invoice_id", "customer", "amount"]);
        let bad = new_payment(proto::CreatePaymentRequest {
            request_id: "r1".into(),
            invoice_id: "x".repeat(256),
            invoice_number: "\n".into(),
            customer: Some(create_payment_request::Customer::CustomerId("hooli_1234".into())),
            amount: Some(proto::Money { minor_units: -1, currency_code: "EUR".into() }),
        });
        assert_eq!(objections(bad), ["invoice_id", "invoice_number", "customer_id", "amount.minor_units"]);
    }

    #[test]
    fn a_list_is_filtered_by_what_is_given() {
        let request = proto::ListPaymentsRequest {
            states: vec![proto::PaymentState::Failed.into()],
            start_time: Some(Timestamp { seconds: 1, nanos: 0 }),
            end_time: Some(Timestamp { seconds: 2, nanos: 0 }),
            ..Default::default()
        };
        let filter = Fields::only(|fields| filter(fields, &request)).unwrap();
        assert_eq!(filter.states, [PaymentState::Failed]);
        assert!(filter.customer_id.is_none() && filter.created_from < filter.created_before);
    }

    #[test]
    fn a_filter_that_makes_no_sense_is_refused() {
        let request = proto::ListPaymentsRequest {
            customer_id: "x".into(),
            states: vec![0, 99],
            start_time: Some(Timestamp { seconds: 2, nanos: 0 }),
            end_time: Some(Timestamp { seconds: 2, nanos: 0 }),
            ..Default::default()
        };
        let parsed = Fields::only(|fields| filter(fields, &request));
        assert_eq!(objections(parsed), ["customer_id", "states[0]", "states[1]", "end_time"]);
    }

    /// A declined card is data, with everything that Stripe said about it.
    #[test]
    fn a_failure_is_told_in_full() {
        let told = failure(Failure {
            decline_code: Some("insufficient_funds".into()),
            advice_code: Some("try_again_later".into()),
            provider_request_id: Some("req_1".into()),
            ..Failure::ours("card_declined", "Your card has insufficient funds.")
        });
        assert_eq!((told.code.as_str(), told.decline_code.as_str()), ("card_declined", "insufficient_funds"));
        assert_eq!((told.advice_code.as_str(), told.provider_request_id.as_str()), ("try_again_later", "req_1"));
    }
}
