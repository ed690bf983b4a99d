//! Reading of Stripe's events list, where Stripe has no address to post to. What is read takes the same way as a
//! webhook; repeats are known by their event id, so that the reads may overlap.

use time::{Duration, OffsetDateTime};

use super::inbox::job_for;
use super::new_delivery;
use crate::app::{App, stripe_unavailable};
use crate::domain::Result;
use crate::domain::deliveries::Delivery;
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::jobs::{Lease, Outcome};
use crate::store;
use crate::stripe::events::EventQuery;

/// How far a read goes back behind the newest event seen: events may be listed late.
const OVERLAP: Duration = Duration::minutes(2);
/// How many pages of 100 one read takes at most (P11); the next read goes on from there.
const PAGES_MAX: usize = 50;

impl App {
    /// The job of an integration whose events list is to be read.
    pub(in crate::app) async fn poll_events(&self, lease: &Lease) -> Result<()> {
        let (org, id) = (lease.organization_id, lease.object_id.into());
        let integration = self.get_integration(org, id).await?;
        if !integration.polls_events || integration.state == IntegrationState::Disconnected {
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        }
        let period =
            if integration.livemode { self.0.settings.poll_period_live } else { self.0.settings.poll_period_test };
        if integration.state == IntegrationState::Paused {
            let work = self.begin_leased(lease).await?;
            let next = work.now + Duration::MINUTE;
            return work.end(Outcome::Again(next)).await;
        }
        let since = {
            let mut tx = self.read(org).await?;
            store::integrations::poll_time(&mut tx, org, id).await?.unwrap_or(integration.create_time)
        };
        let found = self.read_events(&integration, since - OVERLAP).await?;
        let newest = found.iter().map(|delivery| delivery.created).max();

        let mut work = self.begin_leased(lease).await?;
        let batch: Vec<&Delivery> = found.iter().collect();
        let new = store::deliveries::insert_new(&mut work.tx, &batch).await?;
        for delivery in &found {
            if new.contains(&(delivery.integration_id.0, delivery.provider_event_id.clone())) {
                work.ask_for(job_for(delivery, self.clock()));
            }
        }
        if let Some(newest) = newest.filter(|newest| *newest > since) {
            store::integrations::set_poll_time(&mut work.tx, org, id, newest).await?;
        }
        let next = work.now + period;
        work.end(Outcome::Again(next)).await
    }

    /// The events created at `since` or later, as deliveries, oldest first.
    async fn read_events(&self, integration: &Integration, since: OffsetDateTime) -> Result<Vec<Delivery>> {
        let (org, id) = (integration.organization_id, integration.id);
        let key = self.key(org, id).await?;
        let now = self.clock().now();
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let query =
                EventQuery { created_gte: Some(since), starting_after: after.as_deref(), ..EventQuery::default() };
            let page = match self.0.stripe.events(&key, &query).await {
                Ok(page) => page,
                Err(error) => {
                    if error.is_key_trouble() {
                        self.pause_integration(org, id, "event.list", &error).await?;
                    }
                    return Err(stripe_unavailable(&error));
                }
            };
            after = page.events.last().map(|event| event.envelope.id.clone());
            found.extend(
                page.events.into_iter().map(|event| new_delivery(org, id, event.envelope, event.body, true, now)),
            );
            if !page.has_more || after.is_none() {
                break;
            }
        }
        found.reverse();
        Ok(found)
    }
}
