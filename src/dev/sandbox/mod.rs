//! The Stripe sandbox: a stateful stand-in for the part of Stripe that Paybridge calls, over a real socket.
//!
//! Who talks to it: the real client of `stripe/`, Stripe's official SDKs, a payer's browser (`/c/pay/…`, `/3ds/…`), and
//! tests, either through [`Sandbox`] or over HTTP under `/_sandbox`. A request goes from `api` (door: recorded,
//! authenticated, limited, checked against `parameters.txt`, idempotency) to the file of its noun, which works on
//! an [`act::Act`]: one account, one moment, under the one lock. Events that an act emits are taken to webhook
//! endpoints by `delivery`; what happens by itself later (a bank's answer, the end of a session) is in `timers`.
//! All periods are the clock's.

mod accounts;
mod act;
mod api;
mod auth;
mod captures;
mod charges;
mod checkout_sessions;
mod confirmation;
mod connection;
mod control;
mod customers;
mod delivery;
mod disputes;
mod events;
mod faults;
mod form;
mod handle;
mod handlers;
mod idempotency;
mod lacking;
mod limits;
mod line_items;
mod lists;
mod looks;
mod mailbag;
mod mandates;
mod method_types;
mod money;
mod pages;
/// The table of endpoints and parameters, and the check of a request against it.
pub mod parameters;
mod payment_intents;
mod payment_methods;
mod payment_pages;
mod products;
mod refunds;
mod refusal;
mod setup_attempts;
mod setup_intents;
mod shared;
mod sources;
mod state;
mod test_methods;
#[cfg(test)]
mod tests;
mod timers;
mod versions;
mod webhook_endpoints;

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
pub use self::handle::{HandPayment, Waiting};
pub use self::limits::Limits;
use self::shared::Shared;
pub use self::shared::{Options, Recorded};
use self::state::{Key, State};
use crate::clock::Clock;

/// The account that is always there.
pub const ACCOUNT: &str = "acct_sandbox";
/// Its secret key.
pub const SECRET_KEY: &str = "sk_test_sandbox";

/// The longest body that is read.
const LONGEST_BODY: usize = 1 << 20;

/// A handle to a running sandbox; clones are the same sandbox.
#[derive(Debug, Clone)]
pub struct Sandbox(Arc<Shared>);

impl Sandbox {
    /// Starts a sandbox on the listener. Call it within a Tokio runtime.
    ///
    /// # Errors
    /// The state file is there but cannot be read, or the listener has no address.
    pub fn start(listener: TcpListener, clock: Clock, options: Options) -> anyhow::Result<Self> {
        let url = format!("http://{}", listener.local_addr().context("the sandbox's listener has no address")?);
        let mut state = State::default();
        if let Some(file) = options.state_file.as_deref().filter(|file| file.exists()) {
            let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            state = serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is not a state of the sandbox", file.display()))?;
        }
        state.moved_to(&url);
        state.account(ACCOUNT, false, "DE", "eur", clock.now().unix_timestamp());
        state.keys.entry(SECRET_KEY.to_owned()).or_insert_with(|| Key {
            account: ACCOUNT.to_owned(),
            scopes: None,
            revoked: false,
            hides_account: false,
        });
        // A second installation fails, and means that there is a provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .context("the sandbox's HTTP client")?;
        let shared = Arc::new(Shared::new(state, clock, options, url));
        let sandbox = Self(shared.clone());
        let router = Router::new()
            .route("/", get(pages::home))
            .route("/thanks", get(pages::thanks))
            .route("/c/pay/{session}", get(pages::checkout).post(pages::pay))
            .route("/3ds/{intent}", get(pages::proof).post(pages::prove))
            .route("/_sandbox", any(control::serve))
            .route("/_sandbox/", any(control::serve))
            .route("/_sandbox/{*rest}", any(control::serve))
            .fallback(api::serve)
            .layer(DefaultBodyLimit::max(LONGEST_BODY))
            .with_state(shared.clone())
            .into_make_service_with_connect_info::<connection::Scissors>();
        let stopped = shared.stop.clone().cancelled_owned();
        shared.tasks.spawn(async move {
            let served = axum::serve(connection::Listener(listener), router).with_graceful_shutdown(stopped);
            if let Err(error) = served.await {
                tracing::error!(%error, "the sandbox's server ended");
            }
        });
        shared.tasks.spawn(delivery::run(shared.clone(), client));
        shared.tasks.spawn(keep_time(shared.clone()));
        if shared.options.state_file.is_some() {
            shared.tasks.spawn(keep_state(shared.clone()));
        }
        Ok(sandbox)
    }

    /// `http://127.0.0.1:…`: where the API, the hosted pages and the control plane are.
    pub fn url(&self) -> String {
        self.0.settings.url.clone()
    }

    /// Stops: no more requests, no more webhooks; the state is written if it is to be kept.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        // A client that keeps its connection open must not keep us.
        let _ = tokio::time::timeout(RealDuration::from_secs(3), self.0.tasks.wait()).await;
        save(&self.0).await;
    }
}

/// Lets happen what is due, also when nobody calls.
async fn keep_time(shared: Arc<Shared>) {
    loop {
        let next = shared.look(|inner| inner.state.accounts.values().filter_map(|account| account.timers.next()).min());
        let wait = async {
            match next.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok()) {
                Some(at) => shared.clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.timekeeper.notified() => {}
            () = wait => shared.read(|_| ()),
        }
    }
}

/// Writes the state soon after it has changed, and never for more than a part of the time.
async fn keep_state(shared: Arc<Shared>) {
    let mut pause = RealDuration::from_millis(200);
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.saver.notified() => {}
        }
        // Changes come in bursts: one file for all of them.
        let _ = tokio::time::timeout(pause, shared.stop.cancelled()).await;
        let begun = Instant::now();
        save(&shared).await;
        pause = RealDuration::from_millis(200).max(begun.elapsed() * 10);
    }
}

/// Writes the state beside its file and puts it in its place, so that a kill leaves the old one or the new one.
async fn save(shared: &Arc<Shared>) {
    let Some(file) = shared.options.state_file.clone() else { return };
    let shared = shared.clone();
    let saved = tokio::task::spawn_blocking(move || {
        let bytes = shared.look(|inner| serde_json::to_vec(&inner.state))?;
        let beside = file.with_extension("new");
        std::fs::write(&beside, bytes)?;
        std::fs::File::open(&beside)?.sync_all()?;
        std::fs::rename(&beside, &file)
    });
    match saved.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the sandbox's state could not be written"),
        Err(error) => tracing::error!(%error, "the sandbox's state could not be written"),
    }
}
