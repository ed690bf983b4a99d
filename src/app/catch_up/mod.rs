//! Catching up with Stripe after a database was restored, failed over or copied (P8). Until an integration has caught
//! up, its key is read-only for everything but this job, so that nothing is created or moved at Stripe for it.
//!
//! The job runs through the stages of [`Stage`]. What bears our metadata and is not known is stored as it stands at
//! Stripe, under the ids in its metadata; what is known is brought up to date (`objects`). A run reads one page of a list
//! and ends, so that other jobs get their turn, and a killed worker repeats one page at most.

mod counter;
mod customers;
mod objects;

use time::Duration;

use super::event_payloads;
use super::{App, StripeAccount, if_allowed};
use crate::domain::catch_up::{CatchUp, CatchUpReason, Contact, Stage};
use crate::domain::events::EventType;
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::{Error, IntegrationId, OrganizationId, Result};
use crate::stripe::events::EventQuery;
use crate::stripe::{ListPage, Operation};
use crate::{store, stripe};

/// How long the job waits for something outside: a key that is to be repaired, events that are to be applied.
const WAIT_PERIOD: Duration = Duration::seconds(5);

/// How many payments or customers a run of the walk reads.
const WALK_SIZE: i64 = 20;

/// The mark of a read of the events list that has begun: its position is kept with that of the list.
const READING: &str = "reading";

/// A run of the job.
struct Run<'a> {
    lease: &'a Lease,
    integration: &'a Integration,
    account: &'a StripeAccount,
    contact: Contact,
}

/// What a run has achieved.
enum Step {
    /// The stage continues at this position of its list.
    Continue(String),
    /// The stage is complete.
    Complete,
    /// Nothing can be done before this much time has passed.
    Wait(Duration),
    /// The stage continues at this position after this much time.
    Pause { after: String, period: Duration },
    /// What was read may be outdated: everything is read again.
    Restart,
    /// All stages are complete.
    CaughtUp,
}

/// Skips an object that was deleted here meanwhile, or belongs to an integration that is disconnected, as webhooks do.
fn skip_inapplicable(result: Result<()>) -> Result<()> {
    match result {
        Err(error @ (Error::NotFound { .. } | Error::FailedPrecondition { .. })) => {
            tracing::warn!(%error, "an object of Stripe's list does not apply here");
            Ok(())
        }
        result => result,
    }
}

impl App {
    /// Begins to catch up, unless that has begun already.
    pub(super) async fn begin_catch_up(
        &self,
        org: OrganizationId,
        id: IntegrationId,
        reason: CatchUpReason,
    ) -> Result<()> {
        let mut work = self.begin(org).await?;
        let mut contact = store::contacts::lock(&mut work.tx, org, id).await?;
        if contact.catch_up.is_some() {
            return work.rollback().await;
        }
        contact.catch_up = Some(CatchUp::new(reason));
        store::contacts::save(&mut work.tx, org, id, &contact).await?;
        if reason == CatchUpReason::CounterAhead {
            // The positions that were assigned since belong to other events.
            store::contacts::renew_log(&mut work.tx, org).await?;
        }
        work.enqueue(JobKind::CatchUp, id.0);
        work.commit().await
    }

    /// Runs the job that catches up: one step.
    pub(super) async fn catch_up(&self, lease: &Lease) -> Result<()> {
        let (org, id) = (lease.organization_id, IntegrationId::from(lease.object_id));
        let mut tx = self.read(org).await?;
        let integration = store::integrations::get(&mut tx, org, id).await?;
        let contact = store::contacts::get(&mut tx, org, id).await?;
        tx.close().await?;
        let Some(catch_up) = contact.catch_up.clone() else {
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        };
        match integration.state {
            IntegrationState::Disconnected => {
                let mut work = self.begin_leased(lease).await?;
                store::contacts::save(&mut work.tx, org, id, &Contact { catch_up: None, ..contact }).await?;
                return work.end(Outcome::Done).await;
            }
            // A key has to be repaired, or an endpoint to be registered, first. Nothing is collected meanwhile.
            IntegrationState::Paused | IntegrationState::Connecting => {
                let work = self.begin_leased(lease).await?;
                let again = work.now + WAIT_PERIOD;
                return work.end(Outcome::RunAgain(again)).await;
            }
            IntegrationState::Active | IntegrationState::Disconnecting => {}
        }
        let account = self.stripe_account_to_catch_up(org, id).await?;
        let mut run = Run { lease, integration: &integration, account: &account, contact };
        if catch_up.start_time.is_none() {
            return self.announce(run).await;
        }
        let step = self.take_step(&mut run, catch_up.stage).await?;
        self.end_step(run, step).await
    }

    /// Reports that the integration catches up. If the counter shows that the database was set back, with an identity that
    /// does not, that goes into a log of its own: positions that were assigned since belong to other events (P5).
    async fn announce(&self, run: Run<'_>) -> Result<()> {
        let is_set_back = self.is_counter_foreign(&run).await?;
        let Run { lease, integration, mut contact, .. } = run;
        let mut work = self.begin_leased(lease).await?;
        if is_set_back && contact.catch_up.as_ref().is_some_and(|it| it.reason == CatchUpReason::Silence) {
            store::contacts::renew_log(&mut work.tx, work.org).await?;
        }
        if let Some(catch_up) = &mut contact.catch_up {
            catch_up.start_time = Some(work.now);
            tracing::warn!(
                integration.id = %integration.id, reason = catch_up.reason.as_str(), contact.time = %contact.time,
                "integration catches up with Stripe; nothing is collected for it until that is done"
            );
        }
        store::contacts::save(&mut work.tx, work.org, integration.id, &contact).await?;
        work.record_event(event_payloads::provider(EventType::PaymentProviderCatchUpStarted, integration));
        let now = work.now;
        work.end(Outcome::RunAgain(now)).await
    }

    async fn take_step(&self, run: &mut Run<'_>, stage: Stage) -> Result<Step> {
        let (stripe, key) = (&self.0.stripe, &run.account.key);
        let since = run.contact.list_from(self.clock().now());
        let after = run.contact.catch_up.as_ref().and_then(|catch_up| catch_up.after.clone());
        let after = after.as_deref();
        match stage {
            Stage::CreatedIntents | Stage::Events if !self.may_list_events(run).await? => Ok(Step::Complete),
            Stage::Walk if self.events_reach_back(run).await? => Ok(Step::Complete),
            Stage::OtherCopies => self.wait_for_other_copies(run).await,
            Stage::CheckoutSessions => {
                let read = stripe.open_checkout_sessions(key, after).await;
                let (sessions, step) = self.page(run, Operation::CheckoutSessionList, read).await?;
                for session in sessions {
                    self.expire_unknown_session(run, &session).await?;
                }
                Ok(step)
            }
            Stage::Customers => {
                let read = stripe.customers_since(key, since, after).await;
                let (customers, step) = self.page(run, Operation::CustomerList, read).await?;
                for customer in customers {
                    self.recover_customer(run, customer).await?;
                }
                Ok(step)
            }
            Stage::PaymentIntents => {
                let read = stripe.payment_intents_since(key, since, after).await;
                let (intents, step) = self.page(run, Operation::PaymentIntentList, read).await?;
                for intent in intents {
                    skip_inapplicable(self.recover_intent(run, intent).await)?;
                }
                Ok(step)
            }
            Stage::CreatedIntents => {
                let read = stripe.payment_intents_as_created(key, since, after).await;
                let (intents, step) = self.page(run, Operation::EventList, read).await?;
                for intent in intents {
                    skip_inapplicable(self.compare_with_creation(run, intent).await)?;
                }
                Ok(step)
            }
            Stage::Refunds => {
                let Some(read) = if_allowed(stripe.refunds_since(key, since, after).await).transpose() else {
                    return Ok(Step::Complete);
                };
                let (refunds, step) = self.page(run, Operation::RefundList, read).await?;
                for refund in refunds {
                    skip_inapplicable(self.recover_refund(run, &refund).await)?;
                }
                Ok(step)
            }
            Stage::Disputes => {
                let Some(read) = if_allowed(stripe.disputes_since(key, since, after).await).transpose() else {
                    return Ok(Step::Complete);
                };
                let (disputes, step) = self.page(run, Operation::DisputeList, read).await?;
                for dispute in disputes {
                    skip_inapplicable(self.recover_dispute(run, &dispute).await)?;
                }
                Ok(step)
            }
            Stage::Walk => self.walk(run, after).await,
            Stage::Events => self.read_missed_events(run, after).await,
            Stage::Deliveries => self.wait_for_deliveries(run, after).await,
            Stage::Takeover => self.take_over_counter(run).await,
        }
    }

    /// The items of a page, and where the list continues.
    async fn page<T>(
        &self,
        run: &mut Run<'_>,
        operation: Operation,
        read: Result<ListPage<T>, stripe::Error>,
    ) -> Result<(Vec<T>, Step)> {
        let page = self.checked(run.account, operation, read).await?;
        let count = page.items.len();
        if let Some(catch_up) = &mut run.contact.catch_up {
            catch_up.objects_read += i64::try_from(count).unwrap_or(i64::MAX);
        }
        metrics::counter!("paybridge_catch_up_objects_total", "operation" => operation.as_str())
            .increment(count as u64);
        Ok((page.items, page.next.map_or(Step::Complete, Step::Continue)))
    }

    /// Saves the progress and ends the run.
    async fn end_step(&self, run: Run<'_>, step: Step) -> Result<()> {
        let Run { lease, integration, mut contact, .. } = run;
        let id = integration.id;
        let mut again = self.clock().now();
        match (&mut contact.catch_up, step) {
            (Some(catch_up), Step::Continue(after)) => catch_up.after = Some(after),
            (Some(catch_up), Step::Complete) => {
                if let Some(next) = catch_up.stage.next() {
                    tracing::info!(
                        integration.id = %id, stage = next.as_str(), objects = catch_up.objects_read, "catching up"
                    );
                    catch_up.enter(next);
                }
            }
            (Some(_), Step::Wait(period)) => again += period,
            (Some(catch_up), Step::Pause { after, period }) => {
                catch_up.after = Some(after);
                again += period;
            }
            (Some(catch_up), Step::Restart) => {
                tracing::warn!(integration.id = %id, "the counter was raised meanwhile: everything is read again");
                catch_up.enter(CatchUp::new(catch_up.reason).stage);
            }
            (None, _) | (_, Step::CaughtUp) => return self.finish_catch_up(lease, id, contact).await,
        }
        // The lease keeps this from overwriting the beginning of another catching up: a database that was restored has
        // other epochs.
        let mut work = self.begin_leased(lease).await?;
        store::contacts::save(&mut work.tx, work.org, id, &contact).await?;
        work.end(Outcome::RunAgain(again)).await
    }

    /// Everything that Stripe knows is known here again: reports it, and enqueues what has waited.
    async fn finish_catch_up(&self, lease: &Lease, id: IntegrationId, contact: Contact) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        let org = work.org;
        let mut integration = store::integrations::lock(&mut work.tx, org, id).await?;
        let objects = contact.catch_up.as_ref().map_or(0, |catch_up| catch_up.objects_read);
        let started = contact.catch_up.as_ref().and_then(|catch_up| catch_up.start_time).unwrap_or(work.now);
        let contact = Contact { catch_up: None, ..contact };
        store::contacts::save(&mut work.tx, org, id, &contact).await?;
        integration.catch_up = None;
        work.record_event(event_payloads::provider(EventType::PaymentProviderCatchUpFinished, &integration));
        // One that was paused meanwhile is resumed once its key is repaired.
        if integration.state != IntegrationState::Paused {
            super::integrations::resume(&mut work, &mut integration).await?;
        }
        let seconds = (work.now - started).as_seconds_f64();
        work.end(Outcome::Done).await?;
        tracing::info!(integration.id = %id, objects, seconds, "integration has caught up with Stripe");
        Ok(())
    }

    /// Whether the events list shows everything since the last contact.
    async fn events_reach_back(&self, run: &Run<'_>) -> Result<bool> {
        Ok(run.contact.is_within_events(self.clock().now()) && self.may_list_events(run).await?)
    }

    async fn may_list_events(&self, run: &Run<'_>) -> Result<bool> {
        let query = EventQuery { created_gte: Some(self.clock().now()), ..EventQuery::default() };
        let read = if_allowed(self.0.stripe.events(&run.account.key, &query).await);
        Ok(self.checked(run.account, Operation::EventList, read).await?.is_some())
    }

    /// Reads every payment that is not final, then every customer's payment methods: events do not reach back to the
    /// last contact. The position is a payment's id or, after `c`, a customer's.
    async fn walk(&self, run: &Run<'_>, after: Option<&str>) -> Result<Step> {
        let (lease, org, id) = (run.lease, run.lease.organization_id, run.integration.id);
        let mut tx = self.read(org).await?;
        let (payments, customers) = match after.and_then(|after| after.strip_prefix('c')) {
            None => {
                let after = after.and_then(|after| after.parse().ok());
                (store::payments::unfinished(&mut tx, org, id, after, WALK_SIZE).await?, Vec::new())
            }
            Some(after) => {
                (Vec::new(), store::customers::linked(&mut tx, org, id, after.parse().ok(), WALK_SIZE).await?)
            }
        };
        tx.close().await?;
        for payment in &payments {
            match self.refresh_whole_payment(lease, *payment).await {
                // Stripe refuses the read, such as that of deleted test data. Before anything is charged, it is repeated.
                Err(Error::Internal(error)) => tracing::error!(payment.id = %payment, %error, "payment not read"),
                refreshed => skip_inapplicable(refreshed)?,
            }
        }
        for customer in &customers {
            self.read_payment_methods(lease, *customer).await?;
        }
        let is_walking_customers = after.is_some_and(|after| after.starts_with('c'));
        Ok(match (payments.last(), customers.last()) {
            (Some(last), _) => Step::Continue(last.to_string()),
            (None, Some(last)) => Step::Continue(format!("c{last}")),
            (None, None) if is_walking_customers => Step::Complete,
            (None, None) => Step::Continue("c".to_owned()),
        })
    }

    /// Reads the events list back to the last contact. Its position is kept with the integration, as always.
    async fn read_missed_events(&self, run: &Run<'_>, after: Option<&str>) -> Result<Step> {
        let (lease, integration) = (run.lease, run.integration);
        let (org, id) = (lease.organization_id, integration.id);
        let mut tx = self.read(org).await?;
        let mut progress = store::integration_health::list_progress(&mut tx, org, id).await?;
        tx.close().await?;
        if after.is_none() {
            progress.restart(run.contact.list_from(self.clock().now()));
            let mut work = self.begin_leased(lease).await?;
            store::integration_health::set_list_progress(&mut work.tx, org, id, &progress).await?;
            work.commit().await?;
            return Ok(Step::Continue(READING.to_owned()));
        }
        let now = self.clock().now();
        self.read_events(lease, integration, &mut progress, now).await?;
        progress.list_read_time = Some(now);
        let mut work = self.begin_leased(lease).await?;
        store::integration_health::set_list_progress(&mut work.tx, org, id, &progress).await?;
        work.commit().await?;
        Ok(Step::Complete)
    }

    /// Waits until the deliveries that are enqueued now are applied. The position is the id of a job that would be newer
    /// than theirs.
    async fn wait_for_deliveries(&self, run: &Run<'_>, after: Option<&str>) -> Result<Step> {
        let Some(newest) = after.and_then(|after| after.parse().ok()) else {
            return Ok(Step::Continue(self.clock().new_id().to_string()));
        };
        let mut tx = self.read(run.lease.organization_id).await?;
        let org = run.lease.organization_id;
        let is_pending = store::jobs::has_deliveries_before(&mut tx, org, run.integration.id, newest).await?;
        tx.close().await?;
        Ok(if is_pending { Step::Wait(WAIT_PERIOD) } else { Step::Complete })
    }
}
