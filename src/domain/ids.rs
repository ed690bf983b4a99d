//! Typed ids. Ours are UUID v7, written without a prefix; prefixed ids are Stripe's.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )*};
}

id! {
    /// The tenant.
    OrganizationId;
    /// An organization's event log. One that takes its place has another id.
    LogId;
    /// An API token of an organization.
    TokenId;
    /// One connection of an organization to one Stripe account.
    IntegrationId;
    /// A customer of the billing system.
    CustomerId;
    /// A Stripe PaymentMethod known to Paybridge.
    PaymentMethodId;
    /// A Checkout session created by Paybridge.
    CheckoutSessionId;
    /// The collection of one invoice.
    PaymentId;
    /// A refund of a payment.
    RefundId;
    /// A durable job.
    JobId;
}
