//! The counter in the metadata of an integration's webhook endpoint. Only the database in use raises it, so a copy, or a
//! database that was restored, finds that it has risen without it.

use time::{Duration, OffsetDateTime};

use super::{Run, Step};
use crate::app::{App, StripeAccount, event_payloads, if_allowed, if_found};
use crate::domain::catch_up::{CatchUpReason, Counter, Takeover};
use crate::domain::integrations::Integration;
use crate::domain::jobs::Lease;
use crate::domain::{IntegrationId, Result};
use crate::store;
use crate::stripe::Operation;
use crate::stripe::webhook_endpoints::{self, WebhookEndpoint};

/// The code of the error that reports another copy.
const OTHER_COPY: &str = "database_copy_in_use";

/// How long a database that takes over waits to see whether another one does so at the same time: longer than a call
/// lasts.
const CONFIRM_PERIOD: Duration = Duration::minutes(2);

/// The mark of a takeover whose counter is written, and is still to be confirmed.
const WRITTEN: &str = "written";

/// What Stripe holds.
struct CounterAtStripe {
    /// The integration's endpoint, if the key may read it or, if it does not exist, the one with the highest counter of
    /// the integration's other endpoints.
    endpoint: Option<WebhookEndpoint>,
}

impl CounterAtStripe {
    fn counter(&self) -> Option<Counter> {
        self.endpoint.as_ref().and_then(WebhookEndpoint::counter)
    }
}

/// Whether the counter is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    Yes,
    /// The key may not write it, or Stripe refuses. That was reported.
    No,
}

impl App {
    /// Raises the counter: Stripe confirms that this database is the one in use. If somebody else has raised it, the
    /// integration catches up instead. Returns whether Stripe has confirmed.
    pub(in crate::app) async fn raise_counter(
        &self,
        lease: &Lease,
        account: &StripeAccount,
        endpoint: &WebhookEndpoint,
    ) -> Result<bool> {
        let (org, id) = (account.org, account.integration_id);
        let mut work = self.begin_leased(lease).await?;
        let mut contact = store::contacts::lock(&mut work.tx, org, id).await?;
        let now = work.now;
        if contact.catch_up.is_some() || contact.is_stale(now, self.contact_max()) {
            work.rollback().await?;
            return Ok(false);
        }
        let writer = store::contacts::incarnation(&mut work.tx).await?;
        let own = Counter { number: contact.number, writer, time: contact.time };
        if endpoint.counter().is_some_and(|theirs| theirs.is_foreign_to(&own)) {
            work.rollback().await?;
            self.begin_catch_up(org, id, CatchUpReason::CounterAhead).await?;
            return Ok(false);
        }
        // Stored before it is sent: the counter at Stripe is never ahead of a database that was not restored.
        contact.number += 1;
        store::contacts::save(&mut work.tx, org, id, &contact).await?;
        work.commit().await?;
        let counter = Counter { number: contact.number, writer, time: now };
        self.write_counter(lease, account, endpoint, &counter).await?;
        self.renew_contact(lease, id, now).await
    }

    /// Like [`raise_counter`](Self::raise_counter) for an integration whose endpoint does not exist: others of it may,
    /// with a counter. There is none to raise.
    pub(in crate::app) async fn compare_other_endpoints(&self, lease: &Lease, account: &StripeAccount) -> Result<bool> {
        let (org, id, now) = (account.org, account.integration_id, self.clock().now());
        let theirs = self.highest_counter(account).await?.and_then(|endpoint| endpoint.counter());
        let mut tx = self.read(org).await?;
        let contact = store::contacts::get(&mut tx, org, id).await?;
        let writer = store::contacts::incarnation(&mut tx).await?;
        tx.close().await?;
        let own = Counter { number: contact.number, writer, time: contact.time };
        if theirs.is_some_and(|theirs| theirs.is_foreign_to(&own)) {
            self.begin_catch_up(org, id, CatchUpReason::CounterAhead).await?;
            return Ok(false);
        }
        self.renew_contact(lease, id, now).await
    }

    /// Records a contact with Stripe at this time, unless the integration catches up. Returns whether it was recorded.
    pub(in crate::app) async fn renew_contact(
        &self,
        lease: &Lease,
        id: IntegrationId,
        time: OffsetDateTime,
    ) -> Result<bool> {
        let mut work = self.begin_leased(lease).await?;
        let org = work.org;
        let mut contact = store::contacts::lock(&mut work.tx, org, id).await?;
        if contact.catch_up.is_some() || contact.is_stale(time, self.contact_max()) {
            work.rollback().await?;
            return Ok(false);
        }
        contact.time = contact.time.max(time);
        store::contacts::save(&mut work.tx, org, id, &contact).await?;
        work.commit().await?;
        Ok(true)
    }

    /// Writes the counter.
    async fn write_counter(
        &self,
        lease: &Lease,
        account: &StripeAccount,
        endpoint: &WebhookEndpoint,
        counter: &Counter,
    ) -> Result<Written> {
        let body = webhook_endpoints::counter_body(counter);
        match self.0.stripe.update_webhook_endpoint(&account.key, &endpoint.id, &body).await {
            Ok(_) => Ok(Written::Yes),
            Err(error) => self.report_endpoint_error(lease, account, &error).await.map(|()| Written::No),
        }
    }

    /// Of all the integration's endpoints, known or not, the one with the highest counter.
    async fn highest_counter(&self, account: &StripeAccount) -> Result<Option<WebhookEndpoint>> {
        let listed = if_allowed(self.0.stripe.webhook_endpoints(&account.key).await);
        let listed = self.checked(account, Operation::WebhookEndpointList, listed).await?.unwrap_or_default();
        let ours = listed.into_iter().filter(|endpoint| endpoint.integration_id() == Some(account.integration_id));
        let counted = ours.filter(|endpoint| endpoint.counter().is_some());
        Ok(counted.max_by_key(|endpoint| endpoint.counter().map(|counter| counter.number)))
    }

    /// Reads what Stripe holds. An integration that polls events, or whose endpoint may not be read, has no counter.
    async fn read_counter(&self, account: &StripeAccount, integration: &Integration) -> Result<CounterAtStripe> {
        let Some(id) = integration.provider_endpoint_id.as_ref().filter(|_| !integration.polls_events) else {
            return Ok(CounterAtStripe { endpoint: None });
        };
        let read = if_allowed(if_found(self.0.stripe.webhook_endpoint(&account.key, id).await));
        let endpoint = match self.checked(account, Operation::WebhookEndpointUpdate, read).await? {
            None => None,
            Some(None) => self.highest_counter(account).await?,
            Some(present) => present,
        };
        Ok(CounterAtStripe { endpoint })
    }

    /// The counter as this database has last raised it.
    async fn own_counter(&self, run: &Run<'_>) -> Result<Counter> {
        let mut tx = self.read(run.account.org).await?;
        let writer = store::contacts::incarnation(&mut tx).await?;
        tx.close().await?;
        Ok(Counter { number: run.contact.number, writer, time: run.contact.time })
    }

    /// Whether somebody else has raised the counter since this database did: the database was set back.
    pub(super) async fn is_counter_foreign(&self, run: &Run<'_>) -> Result<bool> {
        let at_stripe = self.read_counter(run.account, run.integration).await?;
        let own = self.own_counter(run).await?;
        Ok(at_stripe.counter().is_some_and(|theirs| theirs.is_foreign_to(&own)))
    }

    /// Waits until no other copy can be in use: the counter has rested for long enough.
    pub(super) async fn wait_for_other_copies(&self, run: &mut Run<'_>) -> Result<Step> {
        let at_stripe = self.read_counter(run.account, run.integration).await?;
        let (own, now) = (self.own_counter(run).await?, self.clock().now());
        let Some(catch_up) = &mut run.contact.catch_up else { return Ok(Step::Complete) };
        let Some(theirs) = at_stripe.counter() else {
            catch_up.seen = None;
            return Ok(Step::Complete);
        };
        let seen = *catch_up.seen.get_or_insert(Counter { time: now, ..theirs });
        match theirs.may_be_taken_over(&own, &seen, self.contact_max(), now) {
            Takeover::Now => {
                catch_up.seen = Some(Counter { time: now, ..theirs });
                catch_up.fault = None;
                Ok(Step::Complete)
            }
            Takeover::Wait(until) => Ok(Step::Wait((until - now).min(Duration::MINUTE))),
            Takeover::OtherCopyInUse => {
                catch_up.seen = Some(Counter { time: now, ..theirs });
                let message = "another copy of this database collects for the integration, so this one does not: stop \
                               the other copy, or make this one an installation of its own with `paybridge adopt`";
                self.report_fault(run, OTHER_COPY, message).await?;
                Ok(Step::Wait(Duration::MINUTE))
            }
        }
    }

    /// Takes over the counter, unless somebody has raised it since it was found at rest: then everything is read again.
    pub(super) async fn take_over_counter(&self, run: &mut Run<'_>) -> Result<Step> {
        let at_stripe = self.read_counter(run.account, run.integration).await?;
        let (own, now) = (self.own_counter(run).await?, self.clock().now());
        let Some(catch_up) = &mut run.contact.catch_up else { return Ok(Step::CaughtUp) };
        // The time tells the takeovers of two copies of one incarnation apart. Stripe holds whole seconds.
        let is_confirmed = catch_up.after.as_deref() == Some(WRITTEN);
        let identity = |counter: Counter| {
            let second = is_confirmed.then(|| counter.time.unix_timestamp());
            (counter.number, counter.writer, second)
        };
        if at_stripe.counter().map(identity) != catch_up.seen.map(identity) {
            return Ok(Step::Restart);
        }
        if is_confirmed {
            run.contact.time = catch_up.seen.map_or(now, |written| written.time);
            return Ok(Step::CaughtUp);
        }
        let theirs = at_stripe.counter().filter(|theirs| theirs.is_foreign_to(&own));
        let number = theirs.map_or(own.number, |theirs| theirs.number.max(own.number)) + 1;
        run.contact.number = number;
        run.contact.time = now;
        let Some(endpoint) = at_stripe.endpoint else { return Ok(Step::CaughtUp) };
        let written = Counter { number, time: now, ..own };
        // Stored before it is sent, as always.
        let mut work = self.begin_leased(run.lease).await?;
        let mut contact = store::contacts::lock(&mut work.tx, work.org, run.integration.id).await?;
        contact.number = number;
        store::contacts::save(&mut work.tx, work.org, run.integration.id, &contact).await?;
        work.commit().await?;
        if self.write_counter(run.lease, run.account, &endpoint, &written).await? == Written::No {
            if theirs.is_none() {
                return Ok(Step::CaughtUp);
            }
            run.contact.time = contact.time;
            let message = "another copy of this database has raised the counter in the metadata of the webhook endpoint, \
                           and the API key may not write there: give it the permission for webhook endpoints";
            self.report_fault(run, OTHER_COPY, message).await?;
            return Ok(Step::Wait(Duration::MINUTE));
        }
        if theirs.is_none() {
            return Ok(Step::CaughtUp);
        }
        run.contact.time = contact.time;
        if let Some(catch_up) = &mut run.contact.catch_up {
            catch_up.seen = Some(written);
        }
        Ok(Step::Pause { after: WRITTEN.to_owned(), period: CONFIRM_PERIOD })
    }

    /// Reports, once, what an operator has to repair.
    pub(super) async fn report_fault(&self, run: &mut Run<'_>, code: &str, message: &str) -> Result<()> {
        let Some(catch_up) = &mut run.contact.catch_up else { return Ok(()) };
        if catch_up.fault.as_deref() == Some(message) {
            return Ok(());
        }
        catch_up.fault = Some(message.to_owned());
        tracing::error!(integration.id = %run.integration.id, message);
        let mut work = self.begin_leased(run.lease).await?;
        let mut contact = store::contacts::lock(&mut work.tx, work.org, run.integration.id).await?;
        if let Some(catch_up) = &mut contact.catch_up {
            catch_up.fault = Some(message.to_owned());
        }
        store::contacts::save(&mut work.tx, work.org, run.integration.id, &contact).await?;
        let operation = Operation::WebhookEndpointUpdate;
        work.record_event(event_payloads::provider_error(run.integration, operation, message, code));
        work.commit().await
    }
}
