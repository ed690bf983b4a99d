//! The billing systems' way in: calls that go to any of the processes, and again to another one, under the same
//! `request_id`, where no answer came.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::{lock, pause};
use crate::dev::rng::Rng;
use crate::dev::story::Api;
use crate::domain::OrganizationId;

/// How long a caller waits for an answer. A process that was stopped in the middle gives none.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long it waits before it asks another process.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// After how many tries without an answer it gives up; a run's own time limit comes first.
const TRIES_MAX: u32 = 3_000;

/// An organization, its way in, and its Stripe account.
pub(super) struct Organization {
    pub id: OrganizationId,
    pub token: String,
    pub account: String,
    /// Of its connected account.
    pub integration: String,
    /// All secret keys that the account ever had; the last one is in use.
    keys: Mutex<Vec<String>>,
    /// One for each process.
    apis: Vec<Api>,
}

impl Organization {
    /// One whose account is not connected yet. `servers` are the processes' gRPC addresses.
    pub fn new(id: OrganizationId, token: String, account: String, key: String, servers: &[String]) -> Result<Self> {
        let api = |url: &String| {
            let channel = Channel::from_shared(url.clone())?.connect_timeout(PATIENCE).connect_lazy();
            Api::over(&channel, &token)
        };
        let apis = servers.iter().map(api).collect::<Result<_>>()?;
        Ok(Self { id, token, account, integration: String::new(), keys: Mutex::new(vec![key]), apis })
    }

    /// All secret keys that its account ever had, oldest first.
    pub fn keys(&self) -> Vec<String> {
        lock(&self.keys).clone()
    }

    /// Its account has a new key.
    pub fn add_key(&self, key: &str) {
        lock(&self.keys).push(key.to_owned());
    }

    /// The way in at one of the processes.
    pub fn any_api(&self, rng: &mut Rng) -> Api {
        rng.pick(&self.apis).clone()
    }
}

/// How often calls were repeated, over all callers.
#[derive(Debug, Default)]
pub(super) struct Repeats(AtomicU64);

impl Repeats {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sends a request until there is an answer that another process would give, too.
pub(super) async fn call<R: Clone, T, F: Future<Output = Result<Response<T>, Status>>>(
    organization: &Organization,
    rng: &mut Rng,
    repeats: &Repeats,
    request: &R,
    send: impl Fn(Api, R) -> F,
) -> Result<T, Status> {
    let mut last = Status::unavailable("nobody was asked");
    for _ in 0..TRIES_MAX {
        match timeout(PATIENCE, send(organization.any_api(rng), request.clone())).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) if is_an_answer(&status) => return Err(status),
            Ok(Err(status)) => last = status,
            Err(_) => last = Status::deadline_exceeded("no answer in time"),
        }
        repeats.0.fetch_add(1, Ordering::Relaxed);
        pause(AGAIN_AFTER).await;
    }
    Err(last)
}

/// Whether a status is Paybridge's word about the request, and not about the moment.
fn is_an_answer(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
    )
}
