//! What the reconcilers find and repair.

use paybridge::grpc::proto::event::Object;
use time::Duration;

use crate::support::harness::Harness;
use crate::support::wait::until;

/// A period that no test outlasts.
pub const NEVER: Duration = Duration::days(365);

/// Waits until no check of an endpoint is due or running.
pub async fn until_no_check_runs(harness: &Harness) {
    let database = harness.database().await;
    until("no check is due or running", async || {
        let query = "SELECT FROM jobs WHERE kind = 'check_endpoint' AND (due OR lease_until IS NOT NULL)";
        database.query(query, &[]).await.expect("a result").is_empty().then_some(())
    })
    .await;
}

/// The server's count of repairs of a kind. It only grows, and other tests of this process add to it.
pub async fn repaired(harness: &Harness, kind: &str) -> u64 {
    let text = harness.metrics().await;
    let name = format!("paybridge_repairs_total{{kind=\"{kind}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
}

/// Waits until at least `least` repairs were counted: a repair shows before it is counted.
pub async fn until_repaired(harness: &Harness, kind: &str, least: u64) {
    until(&format!("{least} repairs of {kind} are counted"), async || {
        (repaired(harness, kind).await >= least).then_some(())
    })
    .await;
}

/// The statuses in the refund events that the stream has brought so far.
pub fn refund_statuses(harness: &Harness) -> Vec<String> {
    let events = harness.billing.events();
    let status = |object: Option<Object>| match object {
        Some(Object::Refund(refund)) => Some(refund.status),
        _ => None,
    };
    events.into_iter().filter_map(|event| status(event.object)).collect()
}
