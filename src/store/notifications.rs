//! Notifications between replicas: NOTIFY after the commit, coalesced, on a dedicated connection. A NOTIFY inside a
//! business transaction would serialize commits. Notifications may be lost, so every waiter also polls.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client};

use super::connect::{Address, Driver};
use crate::domain::OrganizationId;

const CHANNEL: &str = "paybridge_notifications";

/// The pause before a lost connection is opened again, in real time.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// A warning is logged after this many failed connections in a row, some 10 seconds.
const WARN_AFTER: u32 = 10;

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Notification {
    /// Events were appended to an organization's log.
    Events(OrganizationId),
    /// Jobs were enqueued.
    Jobs,
}

impl Notification {
    fn to_payload(self) -> String {
        match self {
            Self::Events(organization) => organization.to_string(),
            Self::Jobs => "jobs".to_owned(),
        }
    }

    fn parse(payload: &str) -> Option<Self> {
        if payload == "jobs" { Some(Self::Jobs) } else { payload.parse().ok().map(Self::Events) }
    }
}

/// Relays notifications between replicas until the returned future is dropped: those from `outgoing` are sent to all
/// other replicas, and theirs are passed to `on_received`. `url` must be a direct address of Postgres, because
/// transaction poolers break LISTEN. If it differs from the pool's address (`is_separate`), an outage of some 10
/// seconds is logged once as a warning. Readiness logs outages of the pool's address.
pub async fn relay(
    url: String,
    is_separate: bool,
    mut outgoing: mpsc::Receiver<Notification>,
    on_received: impl Fn(Notification) + Send + Sync + 'static,
) {
    let on_received = std::sync::Arc::new(on_received);
    let mut failures = 0;
    loop {
        match connect(&url).await {
            Ok((client, connection)) => {
                failures = 0;
                if let Err(error) = relay_over(client, connection, &mut outgoing, on_received.clone()).await {
                    tracing::debug!(%error, "no notifications from other replicas until the database is back");
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                failures += 1;
                if is_separate && failures == WARN_AFTER {
                    tracing::warn!(
                        error,
                        "no notifications from other replicas until the direct database address answers"
                    );
                } else {
                    tracing::debug!(error, "no notifications from other replicas until the database is back");
                }
            }
        }
        if outgoing.is_closed() {
            return;
        }
        #[expect(clippy::disallowed_methods, reason = "the pause between connections is real time")]
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn connect(url: &str) -> anyhow::Result<(Client, Driver)> {
    let address = Address::parse(url).map_err(|sentence| anyhow::anyhow!("the direct address {sentence}"))?;
    address.connect().await
}

async fn relay_over(
    client: Client,
    mut connection: Driver,
    outgoing: &mut mpsc::Receiver<Notification>,
    on_received: std::sync::Arc<impl Fn(Notification) + Send + Sync + 'static>,
) -> Result<(), tokio_postgres::Error> {
    let mut driver = tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(message) = message
                && let Some(notification) = Notification::parse(message.payload())
            {
                on_received(notification);
            }
        }
    });
    let outcome = async {
        client.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
        let notify = format!("SELECT pg_notify('{CHANNEL}', payload) FROM unnest($1::text[]) AS payload");
        let mut pending = Vec::new();
        loop {
            tokio::select! {
                received = outgoing.recv_many(&mut pending, 256) => if received == 0 { return Ok(()) },
                _ = &mut driver => return Ok(()),
            }
            pending.sort_unstable_by_key(|notification: &Notification| notification.to_payload());
            pending.dedup();
            let payloads: Vec<String> = pending.drain(..).map(Notification::to_payload).collect();
            client.execute(&notify, &[&payloads]).await?;
        }
    }
    .await;
    driver.abort();
    outcome
}
