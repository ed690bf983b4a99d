//! Our metadata on Stripe's objects. It names what an object was created for, so that a database that has forgotten the
//! object can find it. Every value fits Stripe's limit of 500 characters, because callers' ids have at most 255.

use crate::domain::payments::Payment;

/// The name of the installation. Every object that we create has it.
pub const INSTALLATION: &str = "installation";
/// The billing system's invoice id.
pub const INVOICE_ID: &str = "invoice_id";
/// The invoice number shown to people.
pub const INVOICE_NUMBER: &str = "invoice_number";
/// The organization's id. Every object that we create has it.
pub const ORGANIZATION_ID: &str = "organization_id";
/// The payment's id.
pub const PAYMENT_ID: &str = "payment_id";
/// The refund's id.
pub const REFUND_ID: &str = "refund_id";
/// The caller's request for a refund.
pub const REQUEST_ID: &str = "request_id";
/// The attempt that an object was created for: payment id and number.
pub const ATTEMPT_ID: &str = "attempt_id";
/// Set to [`LINK`] on what a payment link creates.
pub const ATTEMPT_KIND: &str = "attempt_kind";
/// The value of [`ATTEMPT_KIND`] for payment links.
pub const LINK: &str = "link";
/// The customer's id.
pub const CUSTOMER_ID: &str = "customer_id";
/// The billing system's customer id.
pub const EXTERNAL_CUSTOMER_ID: &str = "external_customer_id";
/// The customer's allowed kinds of payment method, separated by commas.
pub const PAYMENT_METHOD_KINDS: &str = "payment_method_kinds";
/// The Checkout session's id, ours.
pub const CHECKOUT_SESSION_ID: &str = "checkout_session_id";
/// The integration's id.
pub const INTEGRATION_ID: &str = "integration_id";
/// A webhook endpoint's [`Counter`](crate::domain::catch_up::Counter): number, writer, and Unix seconds, separated by
/// spaces.
pub const CONTACT_COUNTER: &str = "contact_counter";

/// The metadata of the objects that the payment's next attempt creates.
pub(super) fn of_next_attempt(installation: &str, payment: &Payment) -> Vec<(&'static str, String)> {
    let mut entries = vec![
        (INVOICE_ID, payment.invoice_id.clone()),
        (ORGANIZATION_ID, payment.organization_id.to_string()),
        (PAYMENT_ID, payment.id.to_string()),
        (ATTEMPT_ID, format!("{}/{}", payment.id, payment.next_attempt_number())),
        (INSTALLATION, installation.to_owned()),
        (CUSTOMER_ID, payment.customer_id.to_string()),
        (EXTERNAL_CUSTOMER_ID, payment.external_customer_id.clone()),
    ];
    if !payment.invoice_number.is_empty() {
        entries.push((INVOICE_NUMBER, payment.invoice_number.clone()));
    }
    entries
}
