//! Waking of readers: a NOTIFY after commit, coalesced, on a connection of its own. A NOTIFY inside a business
//! transaction would serialise commits. It is only a hint: whoever waits also polls.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client};

use super::connect::{Address, Driver};
use crate::domain::OrganizationId;

/// The channel's name.
const CHANNEL: &str = "paybridge_wake";

/// How long after a lost connection the next one is tried, real time.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// After how many connections that failed in a row a warning is logged: some 10 seconds.
const LONG_AWAY: u32 = 10;

/// What a hint says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hint {
    /// An organization's log has grown.
    Events(OrganizationId),
    /// Jobs were asked for.
    Jobs,
}

impl Hint {
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

/// Passes hints between the replicas until the returned future is dropped: those from `outgoing` go to all other
/// replicas, theirs go to `heard`. `url` must lead to Postgres itself: transaction poolers break LISTEN. If it is another
/// address than the pool's (`is_separate`), a warning says that it has been away for long, once for each time; an outage of
/// the pool's is logged by readiness.
pub async fn relay(
    url: String,
    is_separate: bool,
    mut outgoing: mpsc::Receiver<Hint>,
    heard: impl Fn(Hint) + Send + Sync + 'static,
) {
    let heard = std::sync::Arc::new(heard);
    let mut failures = 0;
    loop {
        match connected(&url).await {
            Ok((client, connection)) => {
                failures = 0;
                if let Err(error) = relay_over(client, connection, &mut outgoing, heard.clone()).await {
                    tracing::debug!(%error, "no wake-ups from other replicas until the database is back");
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                failures += 1;
                if is_separate && failures == LONG_AWAY {
                    tracing::warn!(error, "no wake-ups from other replicas until the direct database address answers");
                } else {
                    tracing::debug!(error, "no wake-ups from other replicas until the database is back");
                }
            }
        }
        if outgoing.is_closed() {
            return;
        }
        #[expect(clippy::disallowed_methods, reason = "a pause between connections is real time, not business time")]
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn connected(url: &str) -> anyhow::Result<(Client, Driver)> {
    let address = Address::parse(url).map_err(|sentence| anyhow::anyhow!("the direct address {sentence}"))?;
    address.connect().await
}

async fn relay_over(
    client: Client,
    mut connection: Driver,
    outgoing: &mut mpsc::Receiver<Hint>,
    heard: std::sync::Arc<impl Fn(Hint) + Send + Sync + 'static>,
) -> Result<(), tokio_postgres::Error> {
    let mut driver = tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(note) = message
                && let Some(hint) = Hint::parse(note.payload())
            {
                heard(hint);
            }
        }
    });
    let outcome = async {
        client.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
        let notify = format!("SELECT pg_notify('{CHANNEL}', payload) FROM unnest($1::text[]) AS payload");
        let mut hints = Vec::new();
        loop {
            tokio::select! {
                received = outgoing.recv_many(&mut hints, 256) => if received == 0 { return Ok(()) },
                _ = &mut driver => return Ok(()),
            }
            hints.sort_unstable_by_key(|hint| hint.to_payload());
            hints.dedup();
            let payloads: Vec<String> = hints.drain(..).map(Hint::to_payload).collect();
            client.execute(&notify, &[&payloads]).await?;
        }
    }
    .await;
    driver.abort();
    outcome
}
