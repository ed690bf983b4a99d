//! Reading of Stripe's events list: instead of webhooks where Stripe has no address to post to, and beside them for what
//! they have missed. What is read takes the same way as a webhook; repeats are known by their event id, so that the reads
//! may overlap.

use time::{Duration, OffsetDateTime};

use super::inbox::job_for;
use super::new_delivery;
use crate::app::reconcile::mended;
use crate::app::{Access, App, stripe_unavailable};
use crate::domain::deliveries::Delivery;
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::jobs::{Lease, Outcome};
use crate::domain::{Error, Result};
use crate::store::upkeep::ListProgress;
use crate::stripe::events::{EventPage, EventQuery, ListedEvent};
use crate::{store, stripe};

/// How far a read goes back behind the newest event seen: events may be listed late.
const OVERLAP: Duration = Duration::minutes(2);

/// How long a webhook may be on its way before its event is taken from the list.
const LATE_PERIOD: Duration = Duration::MINUTE;

/// How far the first read goes back at most: for so long Stripe itself repeats a webhook.
const FIRST_READ_PERIOD: Duration = Duration::days(3);

/// After how long without a read, beyond the usual, something was down; and how fast and how long the list is read then.
const GAP_PERIOD: Duration = Duration::minutes(10);
const FAST_READS: Duration = Duration::seconds(15);
const FAST_PERIOD: Duration = Duration::minutes(5);

impl App {
    /// The job of an integration whose events list is to be read.
    pub(in crate::app) async fn poll_events(&self, lease: &Lease) -> Result<()> {
        let (org, id) = (lease.organization_id, lease.object_id.into());
        let integration = self.get_integration(org, id).await?;
        let now = self.clock().now();
        match integration.state {
            IntegrationState::Disconnected => return self.begin_leased(lease).await?.end(Outcome::Done).await,
            IntegrationState::Connecting | IntegrationState::Paused => {
                return self.begin_leased(lease).await?.end(Outcome::Again(now + Duration::MINUTE)).await;
            }
            IntegrationState::Active | IntegrationState::Disconnecting => {}
        }
        let mut tx = self.read(org).await?;
        let mut progress = store::upkeep::list_progress(&mut tx, org, id).await?;
        tx.close().await?;
        self.read_events(lease, &integration, &mut progress, now).await?;
        let usual = self.list_period(&integration);
        progress.list_fast_until = fast_until(&progress, integration.create_time, usual, now);
        progress.list_read_time = Some(now);
        let mut work = self.begin_leased(lease).await?;
        store::upkeep::set_list_progress(&mut work.tx, org, id, &progress).await?;
        let is_fast = progress.list_fast_until.is_some_and(|until| now < until);
        let again = self.look_again(work.now, if is_fast { usual.min(FAST_READS) } else { usual });
        work.end(again).await
    }

    /// How far apart the reads are, in the clock's time.
    pub(in crate::app) fn list_period(&self, integration: &Integration) -> Duration {
        let periods = &self.0.settings.periods;
        match (integration.polls_events, integration.livemode) {
            (true, false) => periods.poll_test,
            (true, true) => periods.poll_live,
            (false, false) => periods.list_test,
            (false, true) => periods.list_live,
        }
    }

    /// Reads the list to its end: from the newest event back, or from where the last read was cut off. Only at the end
    /// does the time that was read up to move on.
    async fn read_events(
        &self,
        lease: &Lease,
        integration: &Integration,
        progress: &mut ListProgress,
        now: OffsetDateTime,
    ) -> Result<()> {
        let access = self.access(integration.organization_id, integration.id).await?;
        let mut has_begun_anew = false;
        loop {
            let since = *progress.list_walk_since.get_or_insert_with(|| {
                progress.poll_time.unwrap_or(integration.create_time.max(now - FIRST_READ_PERIOD)) - OVERLAP
            });
            let after = progress.list_walk_after.as_deref();
            let query = EventQuery { created_gte: Some(since), starting_after: after, ..EventQuery::default() };
            let has_more = match self.0.stripe.events(&access.key, &query).await {
                Ok(page) => self.keep_page(lease, integration, page, progress, now).await?,
                // An event is listed for 30 days: a read that was cut off before that begins anew.
                Err(error) if after.is_some() && error.verdict() == stripe::Verdict::Refused && !has_begun_anew => {
                    tracing::info!(integration.id = %integration.id, %error, "the events list is read from its newest on");
                    forget_walk(progress);
                    has_begun_anew = true;
                    true
                }
                Err(error) => return Err(self.list_trouble(integration, &access, &error).await),
            };
            if !has_more {
                progress.poll_time = progress.poll_time.max(progress.list_walk_newest);
                forget_walk(progress);
                return Ok(());
            }
        }
    }

    /// A page can't be read. Where nobody else brings events, nothing may be collected of which nothing would be heard.
    async fn list_trouble(&self, integration: &Integration, access: &Access, error: &stripe::Error) -> Error {
        let is_deaf = integration.polls_events && integration.state == IntegrationState::Active;
        if !is_deaf || !error.is_key_trouble() {
            return self.stripe_trouble(access, "event.list", error).await;
        }
        match self.pause_integration(access, "event.list", error).await {
            Ok(()) => stripe_unavailable(error),
            Err(error) => error,
        }
    }

    /// Stores the events of a page and where the next one begins, in one transaction. Tells whether there is a next one.
    async fn keep_page(
        &self,
        lease: &Lease,
        integration: &Integration,
        page: EventPage,
        progress: &mut ListProgress,
        now: OffsetDateTime,
    ) -> Result<bool> {
        let (org, id) = (integration.organization_id, integration.id);
        progress.list_walk_after = page.last;
        // One of others is passed over, and not read again at the next look; one that a webhook may still bring is.
        let is_due = |event: &ListedEvent| integration.polls_events || event.envelope.created <= now - LATE_PERIOD;
        let is_wanted = |event: &ListedEvent| integration.polls_events || is_handled(event);
        let due: Vec<ListedEvent> = page.events.into_iter().rev().filter(is_due).collect();
        let newest = due.iter().map(|event| event.envelope.created).max();
        progress.list_walk_newest = progress.list_walk_newest.max(newest);
        let listed: Vec<ListedEvent> = due.into_iter().filter(is_wanted).collect();

        let mut work = self.begin_leased(lease).await?;
        let now = work.now;
        let found: Vec<Delivery> =
            listed.into_iter().map(|event| new_delivery(org, id, event.envelope, event.body, true, now)).collect();
        let new = store::deliveries::insert_new(&mut work.tx, &found.iter().collect::<Vec<_>>()).await?;
        for delivery in &found {
            if new.contains(&(delivery.integration_id.0, delivery.provider_event_id.clone())) {
                work.ask_for(job_for(delivery, self.clock()));
            }
        }
        if page.has_more {
            store::upkeep::set_list_progress(&mut work.tx, org, id, progress).await?;
        }
        work.commit().await?;
        if !integration.polls_events && !new.is_empty() {
            tracing::info!(integration.id = %id, events = new.len(), "the events list has what no webhook brought");
            mended("event", new.len());
        }
        Ok(page.has_more)
    }
}

/// No read is on its way any more.
fn forget_walk(progress: &mut ListProgress) {
    (progress.list_walk_after, progress.list_walk_since, progress.list_walk_newest) = (None, None, None);
}

/// Whether the endpoint is registered for the event, so that a webhook should have brought it.
fn is_handled(event: &ListedEvent) -> bool {
    stripe::signals::handled_types().any(|name| name == event.envelope.event_type)
}

/// Until when the list is read fast. Where it was not read for long, we or Stripe were down, and so perhaps were
/// webhooks.
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
        assert_eq!(fast_until(&read(60, None), connected, usual, at(81)), Some(at(86)), "it was down");
        assert_eq!(fast_until(&read(84, Some(at(86))), connected, usual, at(85)), Some(at(86)), "still");
        assert_eq!(fast_until(&read(85, Some(at(86))), connected, usual, at(86)), None, "no more");
    }
}
