//! Requests of callers, as they are repeated after a restoration of the database.

use super::plan::InvoicePlan;
use crate::grpc::proto::{CreateCustomerRequest, Money, PaymentProviderInvoicePaymentError, RetryPaymentRequest};

/// A payment as callers name it. The ids of Paybridge's that they know may be lost with the database.
#[derive(Clone, Debug)]
pub(super) struct PaymentRef {
    pub organization: usize,
    pub invoice: String,
}

impl PaymentRef {
    /// The payment of a reported failure.
    pub fn of(organization: usize, failure: &PaymentProviderInvoicePaymentError) -> Self {
        Self { organization, invoice: failure.lago_invoice_id.clone() }
    }

    /// The payment of a planned invoice.
    pub fn planned(invoice: &InvoicePlan) -> Self {
        Self { organization: invoice.organization, invoice: invoice.id.clone() }
    }
}

/// A refund of one charge, or, if none is given, of the charge that settled the payment.
#[derive(Clone, Debug)]
pub(super) struct RefundPlan {
    pub target: PaymentRef,
    /// Distinguishes refunds of the same charge.
    pub name: &'static str,
    /// Stripe's id; empty if none is given.
    pub charge: String,
    /// `None` is all that is left.
    pub amount: Option<Money>,
}

/// A request that callers repeat, under the same request id.
#[derive(Clone, Debug)]
pub(super) enum Request {
    /// Creates a customer of this organization.
    CreateCustomer(usize, Box<CreateCustomerRequest>),
    /// Submits an invoice, under this request id.
    CreatePayment(InvoicePlan, String),
    /// Cancels the payment of an invoice.
    CancelPayment(InvoicePlan),
    /// Changes the amount, in minor units of this currency.
    ChangeAmount(PaymentRef, i64, &'static str),
    /// Records a manual payment, under a request id with this name.
    RecordManual(PaymentRef, &'static str),
    /// Refunds a charge.
    Refund(RefundPlan),
    /// Retries a payment of this organization.
    Retry(usize, RetryPaymentRequest),
    /// Creates a payment link, under a request id with this name.
    CreateLink(PaymentRef, String),
}

impl Request {
    /// The organization whose request it is.
    pub fn organization(&self) -> usize {
        match self {
            Self::CreateCustomer(organization, _) | Self::Retry(organization, _) => *organization,
            Self::CreatePayment(invoice, _) | Self::CancelPayment(invoice) => invoice.organization,
            Self::ChangeAmount(target, ..) | Self::RecordManual(target, _) | Self::CreateLink(target, _) => {
                target.organization
            }
            Self::Refund(refund) => refund.target.organization,
        }
    }
}
