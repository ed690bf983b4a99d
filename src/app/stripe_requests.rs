//! What the use cases share about stored requests to Stripe. The decisions are the domain's.

use std::time::Duration;

use crate::app::App;
use crate::domain::jobs::Lease;
use crate::domain::stripe_requests::{RequestTarget, StripeRequest};
use crate::domain::{Error, Result};
use crate::{store, stripe};

impl App {
    /// Records what the error of a job's call shows of the request's key, if it forbids its use. Returns whether it
    /// does: then the request is decided again.
    pub(super) async fn note_key_state(
        &self,
        lease: &Lease,
        target: &RequestTarget,
        request: &mut StripeRequest,
        error: &stripe::Error,
    ) -> Result<bool> {
        let Some(key_state) = error.key_state(self.clock().now()) else { return Ok(false) };
        request.key_state = key_state;
        let mut work = self.begin_leased(lease).await?;
        store::stripe_requests::save_key_state(&mut work.tx, work.org, target, request).await?;
        work.commit().await?;
        Ok(true)
    }
}

/// The error of a request that can neither be sent again nor be replaced. Its job is parked after some attempts, for an
/// operator.
pub(super) fn stopped(target: &RequestTarget, reason: &str) -> Error {
    Error::internal(anyhow::anyhow!(
        "the request to Stripe for {} {} is stopped: {reason}; look for the object in the Stripe Dashboard",
        target.purpose.as_str(),
        target.name
    ))
}

/// The error of a request that is prepared under another key. It is sent with the job's or the caller's next attempt:
/// while Stripe answers every request with an error, keys must not be used up in a loop.
pub(super) fn sent_again() -> Error {
    Error::Unavailable {
        reason: "STRIPE_UNAVAILABLE",
        message: "Stripe returned an internal error; the request is repeated under another idempotency key".to_owned(),
        retry_after: Duration::from_secs(1),
    }
}

/// The error of a decision that the rules of this purpose do not contain.
pub(super) fn unplanned(target: &RequestTarget) -> Error {
    Error::internal(anyhow::anyhow!("no rule covers the request to Stripe for {}", target.purpose.as_str()))
}
