//! Reading of Stripe's events list, where Stripe has no address to post to. What is read takes the same way as a
//! webhook; repeats are known by their event id, so that the reads may overlap.

use time::{Duration, OffsetDateTime};

use super::inbox::job_for;
use super::new_delivery;
use crate::app::App;
use crate::domain::Result;
use crate::domain::deliveries::Delivery;
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::jobs::{Lease, Outcome};
use crate::store;
use crate::stripe::events::EventQuery;

/// How far a read goes back behind the newest event seen: events may be listed late.
const OVERLAP: Duration = Duration::minutes(2);

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
        let newest = self.read_events(lease, &integration, since - OVERLAP).await?;
        let mut work = self.begin_leased(lease).await?;
        if let Some(newest) = newest.filter(|newest| *newest > since) {
            store::integrations::set_poll_time(&mut work.tx, org, id, newest).await?;
        }
        let next = work.now + period;
        work.end(Outcome::Again(next)).await
    }

    /// Stores the events created at `since` or later, a page a transaction, and returns the newest time among them. The
    /// list runs from the newest back: only once its end is reached does the time that was read up to move on.
    async fn read_events(
        &self,
        lease: &Lease,
        integration: &Integration,
        since: OffsetDateTime,
    ) -> Result<Option<OffsetDateTime>> {
        let (org, id) = (integration.organization_id, integration.id);
        let access = self.access(org, id).await?;
        let mut newest = None;
        let mut after: Option<String> = None;
        loop {
            let query =
                EventQuery { created_gte: Some(since), starting_after: after.as_deref(), ..EventQuery::default() };
            let page = match self.0.stripe.events(&access.key, &query).await {
                Ok(page) => page,
                Err(error) => return Err(self.stripe_trouble(&access, "event.list", &error).await),
            };
            after = page.events.last().map(|event| event.envelope.id.clone());
            let has_more = page.has_more && after.is_some();
            newest = newest.max(page.events.iter().map(|event| event.envelope.created).max());

            let mut work = self.begin_leased(lease).await?;
            let now = work.now;
            let listed = page.events.into_iter().rev();
            let found: Vec<Delivery> =
                listed.map(|event| new_delivery(org, id, event.envelope, event.body, true, now)).collect();
            let new = store::deliveries::insert_new(&mut work.tx, &found.iter().collect::<Vec<_>>()).await?;
            for delivery in &found {
                if new.contains(&(delivery.integration_id.0, delivery.provider_event_id.clone())) {
                    work.ask_for(job_for(delivery, self.clock()));
                }
            }
            work.commit().await?;
            if !has_more {
                return Ok(newest);
            }
        }
    }
}
