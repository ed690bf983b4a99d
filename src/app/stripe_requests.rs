//! What the use cases share about stored requests to Stripe. The decisions are the domain's.

use crate::domain::Error;
use crate::domain::stripe_requests::RequestTarget;

/// The error of a request that can neither be sent again nor be replaced. Its job is parked after some attempts, for an
/// operator.
pub(super) fn stopped(target: &RequestTarget, reason: &str) -> Error {
    Error::internal(anyhow::anyhow!(
        "the request to Stripe for {} {} is stopped: {reason}; look for the object in the Stripe Dashboard",
        target.purpose.as_str(),
        target.name
    ))
}

/// The error of a decision that the rules of this purpose do not contain.
pub(super) fn unplanned(target: &RequestTarget) -> Error {
    Error::internal(anyhow::anyhow!("no rule covers the request to Stripe for {}", target.purpose.as_str()))
}
