//! Polling of Stripe's events list: instead of webhooks if Stripe has no address to post to, and in addition to them to
//! find missed events. An event read here is stored and applied like a webhook. Events are identified by id, so reads
//! may overlap.

use time::{Duration, OffsetDateTime};

use super::inbox::job_for;
use super::new_delivery;
use crate::app::reconcile::record_repair;
use crate::app::{App, StripeAccount, stripe_unavailable};
use crate::domain::deliveries::Delivery;
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::jobs::{Lease, Outcome};
use crate::domain::{Error, Result};
use crate::store::integration_health::ListProgress;
use crate::stripe::Operation;
use crate::stripe::events::{EventPage, EventQuery, ListedEvent};
use crate::{store, stripe};

/// How far a read reaches back before the newest event seen: events may be listed late.
const OVERLAP: Duration = Duration::minutes(2);

/// How long a webhook may take to arrive before its event is read from the list.
const LATE_PERIOD: Duration = Duration::MINUTE;

/// How far the first read reaches back at most. Stripe retries a webhook for this long.
const FIRST_READ_PERIOD: Duration = Duration::days(3);

/// A longer gap between reads, beyond the usual interval, means that Paybridge or Stripe was down. The list is then
/// read at the fast interval for a while.
const GAP_PERIOD: Duration = Duration::minutes(10);
const FAST_READS: Duration = Duration::seconds(15);
const FAST_PERIOD: Duration = Duration::minutes(5);

impl App {
    /// Runs the job that reads an integration's events list.
    pub(in crate::app) async fn poll_events(&self, lease: &Lease) -> Result<()> {
        let (org, id) = (lease.organization_id, lease.object_id.into());
        let integration = self.get_integration(org, id).await?;
        let now = self.clock().now();
        match integration.state {
            IntegrationState::Disconnected => return self.begin_leased(lease).await?.end(Outcome::Done).await,
            IntegrationState::Connecting | IntegrationState::Paused => {
                return self.begin_leased(lease).await?.end(Outcome::RunAgain(now + Duration::MINUTE)).await;
            }
            // Catching up reads the list itself.
            IntegrationState::Active | IntegrationState::Disconnecting if integration.is_catching_up() => {
                return self.begin_leased(lease).await?.end(Outcome::RunAgain(now + Duration::MINUTE)).await;
            }
            IntegrationState::Active | IntegrationState::Disconnecting => {}
        }
        let mut tx = self.read(org).await?;
        let mut progress = store::integration_health::list_progress(&mut tx, org, id).await?;
        tx.close().await?;
        self.read_events(lease, &integration, &mut progress, now).await?;
        if integration.polls_events {
            // There is no endpoint whose check would do so.
            self.renew_contact(lease, integration.id, now).await?;
        }
        let usual = self.list_period(&integration);
        progress.list_fast_until = fast_until(&progress, integration.create_time, usual, now);
        progress.list_read_time = Some(now);
        let mut work = self.begin_leased(lease).await?;
        store::integration_health::set_list_progress(&mut work.tx, org, id, &progress).await?;
        let is_fast = progress.list_fast_until.is_some_and(|until| now < until);
        let again = self.next_run(work.now, if is_fast { usual.min(FAST_READS) } else { usual });
        work.end(again).await
    }

    /// The interval between reads, in clock time.
    pub(in crate::app) fn list_period(&self, integration: &Integration) -> Duration {
        let periods = &self.0.settings.periods;
        match (integration.polls_events, integration.livemode) {
            (true, false) => periods.poll_test,
            (true, true) => periods.poll_live,
            (false, false) => periods.list_test,
            (false, true) => periods.list_live,
        }
    }

    /// Reads the list to its end: from the newest event back, or from where the last read was interrupted. `poll_time`
    /// advances only when the end is reached.
    pub(in crate::app) async fn read_events(
        &self,
        lease: &Lease,
        integration: &Integration,
        progress: &mut ListProgress,
        now: OffsetDateTime,
    ) -> Result<()> {
        let account = self.stripe_account(integration.organization_id, integration.id).await?;
        let mut has_restarted = false;
        loop {
            let since = *progress.list_walk_since.get_or_insert_with(|| {
                progress.poll_time.unwrap_or(integration.create_time.max(now - FIRST_READ_PERIOD)) - OVERLAP
            });
            let after = progress.list_walk_after.as_deref();
            let query = EventQuery { created_gte: Some(since), starting_after: after, ..EventQuery::default() };
            let has_more = match self.0.stripe.events(&account.key, &query).await {
                Ok(page) => self.store_page(lease, integration, page, progress, now).await?,
                // Stripe lists an event for 30 days. A read that was interrupted longer ago has lost its place and
                // restarts.
                Err(error)
                    if after.is_some() && error.disposition() == stripe::Disposition::Refused && !has_restarted =>
                {
                    let id = integration.id;
                    tracing::info!(integration.id = %id, %error, "events list read restarted from the newest event");
                    progress.reset_walk();
                    has_restarted = true;
                    true
                }
                Err(error) => return Err(self.map_list_error(integration, &account, &error).await),
            };
            if !has_more {
                progress.poll_time = progress.poll_time.max(progress.list_walk_newest);
                progress.reset_walk();
                return Ok(());
            }
        }
    }

    /// A page could not be read. If the list is the only source of events, the integration is paused: nothing may be
    /// collected whose outcome would not be noticed.
    async fn map_list_error(&self, integration: &Integration, account: &StripeAccount, error: &stripe::Error) -> Error {
        let is_only_source = integration.polls_events && integration.state == IntegrationState::Active;
        if !is_only_source || !error.is_api_key_error() {
            return self.map_stripe_error(account, Operation::EventList, error).await;
        }
        match self.pause_integration(account, Operation::EventList, error).await {
            Ok(()) => stripe_unavailable(error),
            Err(error) => error,
        }
    }

    /// Stores a page's events and the position of the next page in one transaction. Returns whether there is a next
    /// page.
    async fn store_page(
        &self,
        lease: &Lease,
        integration: &Integration,
        page: EventPage,
        progress: &mut ListProgress,
        now: OffsetDateTime,
    ) -> Result<bool> {
        let (org, id) = (integration.organization_id, integration.id);
        progress.list_walk_after = page.last_id;
        // Events of unsubscribed types are skipped and not read again. One whose webhook may still arrive is read again
        // next time.
        let is_due = |event: &ListedEvent| integration.polls_events || event.envelope.created <= now - LATE_PERIOD;
        let is_stored = |event: &ListedEvent| integration.polls_events || is_subscribed(event);
        let due: Vec<ListedEvent> = page.events.into_iter().rev().filter(is_due).collect();
        let newest = due.iter().map(|event| event.envelope.created).max();
        progress.list_walk_newest = progress.list_walk_newest.max(newest);
        let listed: Vec<ListedEvent> = due.into_iter().filter(is_stored).collect();

        let mut work = self.begin_leased(lease).await?;
        let now = work.now;
        let polled = |event| Delivery { polled: true, ..new_delivery(org, id, event, now) };
        let found: Vec<Delivery> = listed.into_iter().map(polled).collect();
        let new = store::deliveries::insert_new(&mut work.tx, &found.iter().collect::<Vec<_>>()).await?;
        for delivery in &found {
            if new.contains(&(delivery.integration_id.0, delivery.provider_event_id.clone())) {
                work.enqueue_job(job_for(delivery, self.clock()));
            }
        }
        if page.has_more {
            store::integration_health::set_list_progress(&mut work.tx, org, id, progress).await?;
        }
        work.commit().await?;
        if !integration.polls_events && !new.is_empty() {
            tracing::info!(integration.id = %id, events = new.len(), "events found that no webhook delivered");
            record_repair("event", new.len());
        }
        Ok(page.has_more)
    }
}

/// Whether the endpoint is subscribed to the event, so that a webhook should have delivered it.
fn is_subscribed(event: &ListedEvent) -> bool {
    stripe::signals::handled_types().any(|name| name == event.envelope.event_type)
}

/// Until when the list is read at the fast interval. After a long gap, Paybridge or Stripe was down, and webhooks may
/// have been missed.
fn fast_until(
    before: &ListProgress,
    connected: OffsetDateTime,
    usual: Duration,
    now: OffsetDateTime,
) -> Option<OffsetDateTime> {
    let gap = now - before.list_read_time.unwrap_or(connected);
    if gap > usual + GAP_PERIOD { Some(now + FAST_PERIOD) } else { before.list_fast_until.filter(|until| now < *until) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_downtime_the_list_is_read_fast_for_a_while() {
        let connected = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
        let at = |minutes| connected + Duration::minutes(minutes);
        let read = |minutes, fast| ListProgress {
            list_read_time: Some(at(minutes)),
            list_fast_until: fast,
            ..ListProgress::default()
        };
        let usual = Duration::minutes(10);
        assert_eq!(fast_until(&ListProgress::default(), connected, usual, at(1)), None, "just connected");
        assert_eq!(fast_until(&ListProgress::default(), connected, usual, at(90)), Some(at(95)), "never read");
        assert_eq!(fast_until(&read(60, None), connected, usual, at(70)), None, "as usual");
        assert_eq!(fast_until(&read(60, None), connected, usual, at(79)), None, "a little late");
        assert_eq!(fast_until(&read(60, None), connected, usual, at(81)), Some(at(86)), "after downtime");
        assert_eq!(fast_until(&read(84, Some(at(86))), connected, usual, at(85)), Some(at(86)), "still");
        assert_eq!(fast_until(&read(85, Some(at(86))), connected, usual, at(86)), None, "over");
    }
}
