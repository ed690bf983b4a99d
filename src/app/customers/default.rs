//! Stripe's default payment method of a customer: what events report, what reads show, and our writes.

use std::cmp::Ordering;

use time::{Duration, OffsetDateTime};

use crate::app::App;
use crate::app::deliveries::SignalOrigin;
use crate::app::unit_of_work::UnitOfWork;
use crate::domain::customers::Customer;
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::payment_methods::PaymentMethod;
use crate::domain::signals::DefaultChange;
use crate::domain::stripe_requests::{IdempotencyKey, KEY_RETENTION, Purpose, RequestTarget, StripeRequest};
use crate::domain::{CustomerId, Result};
use crate::store::Transaction;
use crate::store::customers::ProviderDefault;
use crate::stripe::Operation;
use crate::{store, stripe};

/// How long a write of the default with an unknown outcome may explain what a read shows: its event has arrived by then.
const UNKNOWN_WRITE_PERIOD: Duration = KEY_RETENTION;

/// After how many reads, about two minutes, the event about a default that a read shows counts as missing.
const EVENT_READS_MAX: i32 = 6;

/// What an event changed in the stored default of Stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::app) enum DefaultUpdate {
    /// The stored default changed.
    Changed,
    /// Nothing: the event is older, or reports what is stored.
    Unchanged,
    /// It happened in the same second as the stored change. Stripe's times are whole seconds, so only a read can decide
    /// which of the two counts. Nothing was stored.
    Unordered,
}

/// Records that Stripe's default of a locked customer changed at `time`.
pub(in crate::app) async fn record_provider_default(
    work: &mut UnitOfWork,
    customer: &Customer,
    change: &DefaultChange,
    time: OffsetDateTime,
) -> Result<DefaultUpdate> {
    let known = store::customers::provider_default(&mut work.tx, work.org, customer.id).await?;
    let is_same = known.method == change.to;
    if let Some(known_time) = known.time {
        match time.unix_timestamp().cmp(&known_time.unix_timestamp()) {
            Ordering::Less => return Ok(DefaultUpdate::Unchanged),
            Ordering::Equal if is_same => return Ok(DefaultUpdate::Unchanged),
            Ordering::Equal => return Ok(DefaultUpdate::Unordered),
            Ordering::Greater => {}
        }
    }
    // The time is stored even if the default is the same: another event of the same second may still arrive.
    let now = ProviderDefault { method: change.to.clone(), time: Some(time) };
    store::customers::set_provider_default(&mut work.tx, work.org, customer.id, &now).await?;
    Ok(if is_same && known.time.is_some() { DefaultUpdate::Unchanged } else { DefaultUpdate::Changed })
}

/// Applies what a read of all of a customer's methods showed as Stripe's default. If it differs from the stored one, a
/// user chose it, and it counts as chosen now.
///
/// A change stored since `before`, which was stored when the read began, is newer than the read. A default that a write
/// of ours may have set is not a choice: our default is written again, and if a user chose the same one, the event says
/// so. Returns the method that was chosen, and the one that was unset without a successor.
pub(super) async fn apply_default_read(
    work: &mut UnitOfWork,
    customer: &Customer,
    before: &ProviderDefault,
    provider_default: Option<&String>,
) -> Result<DefaultChange> {
    let known = store::customers::provider_default(&mut work.tx, work.org, customer.id).await?;
    if known != *before || known.method.as_ref() == provider_default {
        return Ok(DefaultChange { from: None, to: None });
    }
    if may_be_our_write(&mut work.tx, customer, provider_default.map(String::as_str), work.now).await? {
        work.enqueue(JobKind::PushDefaultMethod, customer.id.0);
        return Ok(DefaultChange { from: None, to: None });
    }
    let now = ProviderDefault { method: provider_default.cloned(), time: Some(work.now) };
    store::customers::set_provider_default(&mut work.tx, work.org, customer.id, &now).await?;
    Ok(DefaultChange { from: known.method.filter(|_| provider_default.is_none()), to: provider_default.cloned() })
}

/// Whether a write of ours with an unknown outcome may have made `provider_default` Stripe's default, at any time since
/// it was sent.
pub(in crate::app) async fn may_be_our_write(
    tx: &mut Transaction,
    customer: &Customer,
    provider_default: Option<&str>,
    now: OffsetDateTime,
) -> Result<bool> {
    let body = stripe::customers::default_method_body(provider_default);
    let (org, since) = (customer.organization_id, now - UNKNOWN_WRITE_PERIOD);
    store::stripe_requests::is_outcome_unknown(tx, org, &target_of(customer.id), &body, since).await
}

/// The requests that write a customer's default.
fn target_of(id: CustomerId) -> RequestTarget {
    Purpose::DefaultMethod.of(id)
}

/// The outcome of a write is known: it no longer explains what a read shows.
async fn finish_write(work: &mut UnitOfWork, id: CustomerId, write: &StripeRequest) -> Result<()> {
    let (org, now) = (work.org, work.now);
    store::stripe_requests::finish(&mut work.tx, org, &target_of(id), write.generation, now).await
}

/// Clears that a read of a locked customer's methods found no default, once an event says when it was unset: a method
/// attached between the two counts.
pub(in crate::app) async fn clear_unset_read(
    work: &mut UnitOfWork,
    customer: &Customer,
    event_time: OffsetDateTime,
) -> Result<()> {
    let methods = store::payment_methods::list_all(&mut work.tx, work.org, customer.id).await?;
    for mut method in methods {
        if method.clear_unset_read(event_time) {
            store::payment_methods::upsert(&mut work.tx, &method).await?;
        }
    }
    Ok(())
}

impl App {
    /// Runs the job that writes a customer's default to Stripe, if a read shows that it differs. A default there that
    /// no event reported was chosen by a user, or set by a delayed write of ours, so its event is awaited. If none
    /// arrives, our default is written again if it may have been our write; otherwise Stripe's counts as chosen now.
    pub(in crate::app) async fn push_default_method(&self, lease: &Lease) -> Result<()> {
        let org = lease.organization_id;
        let Some((_, provider_id, account)) = self.linked_customer(org, lease.object_id.into()).await? else {
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        };
        let mut tx = self.read(org).await?;
        let customer = store::customers::get(&mut tx, org, lease.object_id.into()).await?;
        let methods = store::payment_methods::list_all(&mut tx, org, customer.id).await?;
        let default = methods.iter().find(|method| Some(method.id) == customer.default_payment_method_id);
        let method = default.map(|method| method.provider_payment_method_id.clone());
        if method.is_none() && methods.iter().all(|method| method.unset_second().is_none()) {
            // Nobody has chosen to have no default.
            tx.close().await?;
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        }
        let known = store::customers::provider_default(&mut tx, org, customer.id).await?;
        tx.close().await?;
        let found = self.read_customer(&account, &provider_id).await?;
        if found.deleted {
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        }
        if found.default_method == method {
            return self.on_default_written(lease, &customer, method, None).await;
        }
        // Stripe itself unsets a default that is detached.
        let is_known = |method: &&PaymentMethod| Some(&method.provider_payment_method_id) == known.method.as_ref();
        let is_detached = methods.iter().find(is_known).is_some_and(|method| method.detach_time.is_some());
        let is_explained = found.default_method == known.method || (is_detached && found.default_method.is_none());
        let mut work = self.begin_leased(lease).await?;
        let is_current = store::customers::lock(&mut work.tx, org, customer.id).await?.version == customer.version
            && store::customers::provider_default(&mut work.tx, org, customer.id).await? == known;
        if !is_current {
            let now = work.now;
            return work.end(Outcome::RunAgain(now)).await;
        }
        if !is_explained {
            // If no event and no read has shown a default before, this one was chosen before the customer was linked.
            if known.time.is_some() && lease.failures < EVENT_READS_MAX {
                let text = "Stripe shows a default payment method that no event has reported; waiting for the event";
                return work.end(Outcome::Retry(text.to_owned())).await;
            }
            if !may_be_our_write(&mut work.tx, &customer, found.default_method.as_deref(), work.now).await? {
                work.rollback().await?;
                self.read_payment_methods(lease, customer.id).await?;
                return self.begin_leased(lease).await?.end(Outcome::Done).await;
            }
        }
        let write = self.prepare_write(&mut work, customer.id, method.as_deref()).await?;
        work.commit().await?;
        let response = self.0.stripe.update_customer(&account.key, &provider_id, &write.key, &write.body).await;
        let Err(error) = response else {
            return self.on_default_written(lease, &customer, method, Some(write)).await;
        };
        if error.disposition() != stripe::Disposition::Unknown {
            let mut work = self.begin_leased(lease).await?;
            finish_write(&mut work, customer.id, &write).await?;
            // The method was deleted at Stripe; the event that reports it will arrive.
            if error.disposition() == stripe::Disposition::Refused {
                tracing::warn!(customer.id = %customer.id, %error, "default payment method refused by Stripe");
                return work.end(Outcome::Done).await;
            }
            work.commit().await?;
        }
        Err(self.map_stripe_error(&account, Operation::CustomerSetDefault, &error).await)
    }

    /// Prepares the request that writes the default, under a new key: an earlier response says nothing about Stripe's
    /// present default. Writing the same default twice is harmless, unless Stripe carries out an earlier request after
    /// a user chose another default. Therefore requests with an unknown outcome are kept for as long as that can
    /// happen.
    async fn prepare_write(
        &self,
        work: &mut UnitOfWork,
        id: CustomerId,
        method: Option<&str>,
    ) -> Result<StripeRequest> {
        let (org, target) = (work.org, target_of(id));
        let generation = store::stripe_requests::get(&mut work.tx, org, &target).await?.next_generation;
        store::stripe_requests::delete_finished(&mut work.tx, org, &target, work.now - UNKNOWN_WRITE_PERIOD).await?;
        let body = stripe::customers::default_method_body(method);
        let write = StripeRequest {
            key: IdempotencyKey::unique("default", self.clock().new_id()),
            ..target.request(work.key_scope(), generation, body, work.now)
        };
        store::stripe_requests::insert(&mut work.tx, org, &target, &write).await?;
        Ok(write)
    }

    /// Stripe's default is ours, by this write or an earlier one. Later events are ordered by their time, including
    /// that of a choice which this write replaced.
    async fn on_default_written(
        &self,
        lease: &Lease,
        customer: &Customer,
        method: Option<String>,
        write: Option<StripeRequest>,
    ) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        if let Some(write) = &write {
            finish_write(&mut work, customer.id, write).await?;
        }
        let locked = store::customers::lock(&mut work.tx, work.org, customer.id).await?;
        let known = store::customers::provider_default(&mut work.tx, work.org, customer.id).await?;
        let is_same_link = locked.linked_provider_id() == customer.linked_provider_id();
        if is_same_link && (write.is_some() || known.method != method) {
            let now = ProviderDefault { method, time: Some(work.now) };
            store::customers::set_provider_default(&mut work.tx, work.org, customer.id, &now).await?;
        }
        work.end(Outcome::Done).await
    }

    /// Records a change of Stripe's default that is not a choice: we wrote it, or Stripe no longer knows the method.
    pub(in crate::app) async fn on_default(
        &self,
        origin: &SignalOrigin<'_>,
        provider_customer: &str,
        change: &DefaultChange,
    ) -> Result<()> {
        let Some((mut work, customer, _)) = self.lock_customer_of(origin, provider_customer).await? else {
            return Ok(());
        };
        match record_provider_default(&mut work, &customer, change, origin.event_time).await? {
            DefaultUpdate::Unordered => {
                work.rollback().await?;
                return self.read_payment_methods(origin.lease, customer.id).await;
            }
            DefaultUpdate::Changed => work.enqueue(JobKind::PushDefaultMethod, customer.id.0),
            DefaultUpdate::Unchanged => {}
        }
        // Stripe carried out this write at a known time: its outcome is no longer unknown.
        if let Some(key) = origin.request_key {
            let (org, now) = (work.org, work.now);
            store::stripe_requests::finish_by_key(&mut work.tx, org, &target_of(customer.id), key, now).await?;
        }
        work.commit().await
    }
}
