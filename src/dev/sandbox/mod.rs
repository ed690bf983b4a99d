//! The Stripe sandbox: a stateful stand-in for the part of Stripe that Paybridge calls, served over a real socket.
//!
//! Its clients are the real client in `stripe/`, Stripe's official SDKs, a payer's browser (`/c/pay/…`, `/3ds/…`), and
//! tests, which use [`Sandbox`] directly or the control plane under `/_sandbox`.
//!
//! `api` records, authenticates and rate-limits each request, checks it against `parameters.txt`, applies the
//! idempotency rules, and calls the handler in the module of the requested object. The handler works on a
//! `transaction::Transaction`: one account at one time, under the sandbox's lock. `delivery` sends the emitted events
//! to webhook endpoints. `timers` holds what falls due later without a request, such as a bank's response or a session's
//! expiry, and `dispatch` runs it, as it calls the handler of a request. All periods use the sandbox's clock.

mod accounts;
mod api;
mod api_error;
mod api_request;
mod auth;
mod captures;
mod charges;
mod checkout_sessions;
mod confirmation;
mod connection;
mod control;
mod customers;
mod delivery;
mod detachment;
mod dispatch;
mod disputes;
mod endpoints;
mod events;
mod expand;
mod faults;
mod form;
mod handle;
mod handlers;
mod idempotency;
mod inspect;
mod intent_status;
mod limits;
mod line_items;
mod lists;
mod mandates;
mod method_types;
mod money;
mod pages;
/// Checks requests against the table of endpoints and parameters.
pub mod parameters;
mod payment_intents;
mod payment_methods;
mod payment_pages;
mod products;
mod refunds;
mod session_status;
mod setup_attempts;
mod setup_intents;
mod shared;
mod sources;
mod state;
mod test_methods;
#[cfg(test)]
mod tests;
mod timers;
mod transaction;
mod unsupported;
mod versions;
mod webhook_endpoints;
mod webhook_queue;

use std::sync::Arc;
use std::time::{Duration as RealDuration, Instant};

use anyhow::Context as _;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{any, get};
use time::OffsetDateTime;
use tokio::net::TcpListener;

pub use self::charges::LedgerEntry;
pub use self::faults::{Action, Effect, Fault, WebhookAction, WebhookFault};
pub use self::handle::{DashboardPayment, PendingDelivery};
pub use self::limits::Limits;
use self::shared::Shared;
pub use self::shared::{Options, RecordedRequest, Sandbox};
use self::state::{Key, State};
use crate::clock::Clock;

/// The account that every sandbox has.
pub const ACCOUNT: &str = "acct_sandbox";
/// The secret key of [`ACCOUNT`].
pub const SECRET_KEY: &str = "sk_test_sandbox";

/// The size limit of a request body.
const BODY_BYTES_MAX: usize = 1 << 20;

impl Sandbox {
    /// Starts a sandbox on the listener. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// The state file exists but cannot be read, or the listener has no address.
    pub fn start(listener: TcpListener, clock: Clock, options: Options) -> anyhow::Result<Self> {
        let url = format!("http://{}", listener.local_addr().context("the sandbox's listener has no address")?);
        let mut state = State::default();
        if let Some(file) = options.state_file.as_deref().filter(|file| file.exists()) {
            let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            state = serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is not a state file of the sandbox", file.display()))?;
        }
        state.rewrite_links(&url);
        state.account(ACCOUNT, false, "DE", "eur", clock.now().unix_timestamp());
        state.keys.entry(SECRET_KEY.to_owned()).or_insert_with(|| Key {
            account: ACCOUNT.to_owned(),
            scopes: None,
            revoked: false,
            hides_account: false,
        });
        // Fails if a provider is installed already, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .context("cannot build the sandbox's HTTP client")?;
        let shared = Arc::new(Shared::new(state, clock, options, url));
        let sandbox = Self(shared.clone());
        let router = Router::new()
            .route("/", get(pages::home))
            .route("/thanks", get(pages::thanks))
            .route("/c/pay/{session}", get(pages::checkout).post(pages::pay))
            .route("/3ds/{intent}", get(pages::authentication).post(pages::submit_authentication))
            .route("/_sandbox", any(control::serve))
            .route("/_sandbox/", any(control::serve))
            .route("/_sandbox/{*rest}", any(control::serve))
            .fallback(api::serve)
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(shared.clone())
            .into_make_service_with_connect_info::<connection::ResetHandle>();
        let stopped = shared.stop.clone().cancelled_owned();
        shared.tasks.spawn(async move {
            let served = axum::serve(connection::Listener(listener), router).with_graceful_shutdown(stopped);
            if let Err(error) = served.await {
                tracing::error!(%error, "the sandbox's HTTP server failed");
            }
        });
        shared.tasks.spawn(delivery::run(shared.clone(), client));
        shared.tasks.spawn(run_timers(shared.clone()));
        if shared.options.state_file.is_some() {
            shared.tasks.spawn(persist_state(shared.clone()));
        }
        Ok(sandbox)
    }

    /// The base URL of the API, the hosted pages and the control plane: `http://127.0.0.1:…`.
    pub fn url(&self) -> String {
        self.0.settings.url.clone()
    }

    /// Stops serving requests and sending webhooks, and writes the state file, if there is one.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        // A client that keeps its connection open must not delay the shutdown.
        let _ = tokio::time::timeout(RealDuration::from_secs(3), self.0.tasks.wait()).await;
        save(&self.0).await;
    }
}

/// Runs timers when they are due, even if no request arrives.
async fn run_timers(shared: Arc<Shared>) {
    loop {
        let next =
            shared.with_lock(|inner| inner.state.accounts.values().filter_map(|account| account.timers.next()).min());
        let wait = async {
            match next.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok()) {
                Some(at) => shared.clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.timer_wakeup.notified() => {}
            () = wait => shared.read(|_| ()),
        }
    }
}

/// Writes the state soon after it has changed. Pauses ten times as long as a write takes, to bound the cost.
async fn persist_state(shared: Arc<Shared>) {
    let mut pause = RealDuration::from_millis(200);
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.save_wakeup.notified() => {}
        }
        // Changes come in bursts: one write covers a burst.
        let _ = tokio::time::timeout(pause, shared.stop.cancelled()).await;
        let begun = Instant::now();
        save(&shared).await;
        pause = RealDuration::from_millis(200).max(begun.elapsed() * 10);
    }
}

/// Replaces the state file atomically: a process that is killed leaves the old file or the new one.
async fn save(shared: &Arc<Shared>) {
    let Some(file) = shared.options.state_file.clone() else { return };
    let shared = shared.clone();
    let saved = tokio::task::spawn_blocking(move || {
        let bytes = shared.with_lock(|inner| serde_json::to_vec(&inner.state))?;
        let temporary = file.with_extension("new");
        std::fs::write(&temporary, bytes)?;
        std::fs::File::open(&temporary)?.sync_all()?;
        std::fs::rename(&temporary, &file)
    });
    match saved.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "cannot write the sandbox's state"),
        Err(error) => tracing::error!(%error, "cannot write the sandbox's state"),
    }
}
