//! Converts payments.

use super::customers::TEXT_LENGTH_MAX;
use super::{Fields, etag, masked_fields, money, timestamp};
use crate::domain::customers::CustomerRef;
use crate::domain::payments::{
    Attempt, AttemptKind, AttemptState, Failure, NewPayment, Payment, PaymentFilter, PaymentRef, PaymentState,
    PendingOperation, PendingReason, RequiredAction, State,
};
use crate::domain::{Money, Result};
use crate::grpc::proto::{self, PaymentAttemptKind, PaymentAttemptState, PaymentNextAction, PaymentPendingReason};

/// Parses a CreatePaymentRequest: the `request_id` and the payment.
pub(in crate::grpc) fn new_payment(request: proto::CreatePaymentRequest) -> Result<(String, NewPayment)> {
    let mut fields = Fields::default();
    let request_id = fields.request_id(request.request_id);
    let new = NewPayment {
        invoice_id: fields.required_text("invoice_id", request.invoice_id, TEXT_LENGTH_MAX),
        invoice_number: fields.text("invoice_number", request.invoice_number, TEXT_LENGTH_MAX),
        customer: fields.customer(request.customer),
        amount: fields.money("amount", request.amount.as_ref()),
    };
    fields.check()?;
    Ok((request_id, new))
}

/// Parses an UpdatePaymentRequest: the payment, the expected version, and the amount if it is to be set.
pub(in crate::grpc) fn payment_update(
    request: &proto::UpdatePaymentRequest,
) -> Result<(PaymentRef, Option<i64>, Option<Money>)> {
    let mut fields = Fields::default();
    let payment = request.payment.clone().unwrap_or_else(|| {
        fields.add_violation("payment", "is required");
        proto::Payment::default()
    });
    let which = match (payment.id.as_str(), payment.invoice_id) {
        ("", invoice_id) if !invoice_id.is_empty() => {
            PaymentRef::InvoiceId(fields.text("payment.invoice_id", invoice_id, TEXT_LENGTH_MAX))
        }
        (id, _) => PaymentRef::Id(fields.id("payment.id", id)),
    };
    let version = fields.optional_etag("payment.etag", &payment.etag);
    let known = [("amount", payment.amount.is_some())];
    let set = masked_fields(&mut fields, request.update_mask.as_ref(), &known);
    let amount = set.contains(&"amount").then(|| fields.money("payment.amount", payment.amount.as_ref()));
    fields.check()?;
    Ok((which, version, amount))
}

/// Checks that an update does not change an immutable field.
pub(in crate::grpc) fn check_immutable(request: &proto::UpdatePaymentRequest, present: &Payment) -> Result<()> {
    let payment = request.payment.clone().unwrap_or_default();
    let customer_id = present.customer_id.to_string();
    let immutable: [(&str, &str, &str); 4] = [
        ("payment.invoice_id", &payment.invoice_id, &present.invoice_id),
        ("payment.invoice_number", &payment.invoice_number, &present.invoice_number),
        ("payment.customer_id", &payment.customer_id, &customer_id),
        ("payment.external_customer_id", &payment.external_customer_id, &present.external_customer_id),
    ];
    super::check_immutable(request.update_mask.as_ref(), &immutable)
}

/// Parses the filter of a ListPaymentsRequest: the customer, and everything else.
pub(in crate::grpc) fn filter(
    fields: &mut Fields,
    request: proto::ListPaymentsRequest,
) -> (Option<CustomerRef>, PaymentFilter) {
    let customer = fields.optional_customer(request.customer);
    let filter = PaymentFilter {
        customer_id: None,
        states: fields.states(&request.states),
        created_from: fields.optional_time("start_time", request.start_time),
        created_before: fields.optional_time("end_time", request.end_time),
    };
    if let (Some(from), Some(before)) = (filter.created_from, filter.created_before)
        && from >= before
    {
        fields.add_violation("end_time", "must be later than start_time");
    }
    (customer, filter)
}

impl Fields {
    /// The states to list; empty means all.
    fn states(&mut self, states: &[i32]) -> Vec<PaymentState> {
        if states.len() > STATES_MAX {
            self.add_violation("states", format!("must name at most {STATES_MAX} states"));
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
                    self.add_violation(
                        &format!("states[{index}]"),
                        "must be a PaymentState other than PAYMENT_STATE_UNSPECIFIED",
                    );
                }
            }
        }
        parsed
    }
}

/// More than the number of states.
const STATES_MAX: usize = 16;

/// Converts a payment and its attempts, oldest first.
pub(in crate::grpc) fn payment(payment: Payment, attempts: Vec<Attempt>) -> proto::Payment {
    let next_action = match payment.state {
        State::RequiresAction { action: RequiredAction::Authenticate { .. }, .. } => PaymentNextAction::Authenticate,
        State::RequiresAction { action: RequiredAction::PayByLink { .. }, .. } => PaymentNextAction::Pay,
        _ => PaymentNextAction::Unspecified,
    };
    let of = |minor_units| Some(money(Money { minor_units, currency: payment.amount.currency }));
    proto::Payment {
        amount: Some(money(payment.amount)),
        amount_received: of(payment.amount_received),
        amount_refunded: of(payment.amount_refunded),
        state: state(payment.state()).into(),
        pending_reason: payment.pending_reason().map_or(PaymentPendingReason::Unspecified, pending_reason).into(),
        failure: payment.failure().cloned().map(failure),
        next_action: next_action.into(),
        next_action_url: payment.next_action_url().unwrap_or_default().to_owned(),
        provider_charge_id: payment.provider_charge_id().unwrap_or_default().to_owned(),
        manual_payment: payment.manual().map(|manual| proto::ManualPayment {
            reference: manual.reference.clone(),
            paid_time: Some(timestamp(manual.time)),
        }),
        id: payment.id.to_string(),
        invoice_id: payment.invoice_id,
        invoice_number: payment.invoice_number,
        customer_id: payment.customer_id.to_string(),
        external_customer_id: payment.external_customer_id,
        integration_id: payment.integration_id.to_string(),
        provider_payment_intent_id: payment.provider_payment_intent_id.unwrap_or_default(),
        requested_amount: match payment.pending_operation {
            Some(PendingOperation::ChangeAmount { minor_units, .. }) => of(minor_units),
            _ => None,
        },
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
    let (kind, method, expire_time) = match attempt.kind {
        AttemptKind::Confirm { method } => (PaymentAttemptKind::Confirm, method.to_string(), None),
        AttemptKind::Link(link) => (PaymentAttemptKind::Link, String::new(), link.expire_time),
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
        create_time: Some(timestamp(attempt.request.create_time)),
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
    use crate::grpc::proto::{create_payment_request, list_payments_request};

    fn violations<T>(parsed: Result<T>) -> Vec<String> {
        match parsed {
            Err(Error::Invalid(violations)) => violations.into_iter().map(|violation| violation.field).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn a_payment_is_parsed() {
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
    fn all_violations_of_a_payment_are_reported() {
        let empty = new_payment(proto::CreatePaymentRequest::default());
        assert_eq!(violations(empty), ["request_id", "invoice_id", "customer", "amount"]);
        let bad = new_payment(proto::CreatePaymentRequest {
            request_id: "r1".into(),
            invoice_id: "x".repeat(256),
            invoice_number: "\n".into(),
            customer: Some(create_payment_request::Customer::CustomerId("hooli_1234".into())),
            amount: Some(proto::Money { minor_units: -1, currency_code: "EUR".into() }),
        });
        assert_eq!(violations(bad), ["invoice_id", "invoice_number", "customer_id", "amount.minor_units"]);
    }

    #[test]
    fn a_filter_is_parsed() {
        let request = proto::ListPaymentsRequest {
            states: vec![proto::PaymentState::Failed.into()],
            start_time: Some(Timestamp { seconds: 1, nanos: 0 }),
            end_time: Some(Timestamp { seconds: 2, nanos: 0 }),
            ..Default::default()
        };
        let (customer, filter) = Fields::parse_one(|fields| filter(fields, request)).unwrap();
        assert_eq!(filter.states, [PaymentState::Failed]);
        assert!(customer.is_none() && filter.created_from < filter.created_before);
    }

    #[test]
    fn an_invalid_filter_is_rejected() {
        let request = proto::ListPaymentsRequest {
            customer: Some(list_payments_request::Customer::CustomerId("x".into())),
            states: vec![0, 99],
            start_time: Some(Timestamp { seconds: 2, nanos: 0 }),
            end_time: Some(Timestamp { seconds: 2, nanos: 0 }),
            ..Default::default()
        };
        let parsed = Fields::parse_one(|fields| filter(fields, request));
        assert_eq!(violations(parsed), ["customer_id", "states[0]", "states[1]", "end_time"]);
    }

    #[test]
    fn a_failure_has_all_of_stripes_codes() {
        let failure = failure(Failure {
            decline_code: Some("insufficient_funds".into()),
            advice_code: Some("try_again_later".into()),
            provider_request_id: Some("req_1".into()),
            ..Failure::ours("card_declined", "Your card has insufficient funds.")
        });
        assert_eq!((failure.code.as_str(), failure.decline_code.as_str()), ("card_declined", "insufficient_funds"));
        assert_eq!((failure.advice_code.as_str(), failure.provider_request_id.as_str()), ("try_again_later", "req_1"));
    }
}
