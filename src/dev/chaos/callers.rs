//! Calls of the billing systems: they go to any of the processes, and are repeated at another one, under the same
//! `request_id`, if there was no response.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::restorations::Restorations;
use crate::clock::pause;
use crate::dev::rng::Rng;
use crate::dev::scenarios::Api;
use crate::domain::OrganizationId;

/// The timeout of a call. A stopped process never responds.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// The pause before a retry.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// The number of attempts without a response after which a call fails. The run's own time limit comes first.
const ATTEMPTS_MAX: u32 = 3_000;

/// An organization, its API clients and its Stripe account.
pub(super) struct Organization {
    pub id: OrganizationId,
    pub token: String,
    pub account: String,
    /// The id of its integration.
    pub integration: String,
    /// All secret keys that the account ever had, oldest first; the last one is in use.
    keys: Mutex<Vec<String>>,
    /// One for each process that serves the API.
    apis: Vec<Api>,
}

impl Organization {
    /// An organization whose account is not connected yet. `servers` are the gRPC URLs of the processes.
    pub fn new(id: OrganizationId, token: String, account: String, key: String, servers: &[String]) -> Result<Self> {
        let api = |url: &String| {
            let channel = Channel::from_shared(url.clone())?.connect_timeout(CALL_TIMEOUT).connect_lazy();
            Api::over(&channel, &token)
        };
        let apis = servers.iter().map(api).collect::<Result<_>>()?;
        Ok(Self { id, token, account, integration: String::new(), keys: Mutex::new(vec![key]), apis })
    }

    /// All secret keys that the account ever had, oldest first.
    pub fn keys(&self) -> Vec<String> {
        self.keys.lock().clone()
    }

    /// Adds the account's new key.
    pub fn add_key(&self, key: &str) {
        self.keys.lock().push(key.to_owned());
    }

    /// A client of a random process.
    pub fn any_api(&self, rng: &mut Rng) -> Api {
        rng.pick(&self.apis).clone()
    }
}

/// What all calls share: how often they were retried, and the restorations that they repeat requests after.
#[derive(Debug, Default)]
pub(super) struct Calls {
    retries: AtomicU64,
    pub restorations: Restorations,
}

impl Calls {
    /// How often calls were retried.
    pub fn retry_count(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Whether the same request would get this status from any process and at any time. What a restoration has lost is
    /// found again once its creation is repeated.
    fn is_final(&self, status: &Status) -> bool {
        match status.code() {
            Code::NotFound => !self.restorations.is_repeating(),
            Code::InvalidArgument
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented => true,
            _ => false,
        }
    }
}

/// Sends a request, each time to any of the processes, until there is a final response. A response that a restoration
/// may have overtaken is not final.
pub(super) async fn call<R: Clone, T, F: Future<Output = Result<Response<T>, Status>>>(
    organization: &Organization,
    rng: &mut Rng,
    calls: &Calls,
    request: &R,
    send: impl Fn(Api, R) -> F,
) -> Result<T, Status> {
    let mut last = Status::unavailable("no call was made");
    for _ in 0..ATTEMPTS_MAX {
        let restored = calls.restorations.count();
        let response = timeout(CALL_TIMEOUT, send(organization.any_api(rng), request.clone())).await;
        let is_overtaken = calls.restorations.count() != restored;
        match response {
            Ok(Ok(response)) if !is_overtaken => return Ok(response.into_inner()),
            Ok(Ok(_)) => last = Status::unavailable("the database was restored meanwhile"),
            Ok(Err(status)) if !is_overtaken && calls.is_final(&status) => return Err(status),
            Ok(Err(status)) => last = status,
            Err(_) => last = Status::deadline_exceeded("no response in time"),
        }
        calls.retries.fetch_add(1, Ordering::Relaxed);
        pause(RETRY_DELAY).await;
    }
    Err(last)
}
