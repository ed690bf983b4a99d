//! Stripe's own default of a customer: what its events tell of it, what a read shows, and what is written.

use std::cmp::Ordering;

use time::{Duration, OffsetDateTime};

use crate::app::App;
use crate::app::deliveries::About;
use crate::app::work::Work;
use crate::domain::customers::Customer;
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::payment_methods::PaymentMethod;
use crate::domain::signals::DefaultChange;
use crate::domain::{CustomerId, Result};
use crate::store::Transaction;
use crate::store::customers::ProviderDefault;
use crate::store::requests::{FrozenRequest, Purpose};
use crate::{store, stripe};

/// How long a write of the default whose outcome is unknown may explain what a read shows: Stripe keeps its key for no
/// longer, and its event has come by then.
const DOUBT_PERIOD: Duration = Duration::DAY;

/// After how many tries, some two minutes, the event about a default that a read shows counts as missing.
const EVENT_TRIES: i32 = 6;

/// What an event about Stripe's default adds to what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::app) enum Noted {
    /// Another default is known since.
    Changed,
    /// Nothing: it is older, or says what is known.
    Unchanged,
    /// It happened in the same second as what is known. Stripe's times are whole seconds, so only a read can say which of
    /// the two counts; nothing was stored.
    Unordered,
}

/// Notes that Stripe's default of a locked customer is another one since `time`.
pub(in crate::app) async fn note_provider_default(
    work: &mut Work,
    customer: &Customer,
    change: &DefaultChange,
    time: OffsetDateTime,
) -> Result<Noted> {
    let known = store::customers::provider_default(&mut work.tx, work.org, customer.id).await?;
    let is_same = known.method == change.to;
    if let Some(known_time) = known.time {
        match time.unix_timestamp().cmp(&known_time.unix_timestamp()) {
            Ordering::Less => return Ok(Noted::Unchanged),
            Ordering::Equal if is_same => return Ok(Noted::Unchanged),
            Ordering::Equal => return Ok(Noted::Unordered),
            Ordering::Greater => {}
        }
    }
    // The time counts even where the default is the same: an event of the same second may still be on its way.
    let now = ProviderDefault { method: change.to.clone(), time: Some(time) };
    store::customers::set_provider_default(&mut work.tx, work.org, customer.id, &now).await?;
    Ok(if is_same && known.time.is_some() { Noted::Unchanged } else { Noted::Changed })
}

/// Takes in what a read of all of a customer's methods has shown of Stripe's default: another one than is known was chosen,
/// and counts as chosen now. What has become known since `before`, which was known when the read began, is newer than the
/// read. What a write of ours may have caused is no choice: our default is written again, and if somebody has chosen the
/// same, the event says so. Returns which method that is in favour of, and which one was unset for none.
pub(super) async fn default_read(
    work: &mut Work,
    customer: &Customer,
    before: &ProviderDefault,
    there: Option<&String>,
) -> Result<DefaultChange> {
    let known = store::customers::provider_default(&mut work.tx, work.org, customer.id).await?;
    if known != *before || known.method.as_ref() == there {
        return Ok(DefaultChange { from: None, to: None });
    }
    if may_be_ours(&mut work.tx, customer, there.map(String::as_str), work.now).await? {
        work.ask(JobKind::PushDefaultMethod, customer.id.0);
        return Ok(DefaultChange { from: None, to: None });
    }
    let now = ProviderDefault { method: there.cloned(), time: Some(work.now) };
    store::customers::set_provider_default(&mut work.tx, work.org, customer.id, &now).await?;
    Ok(DefaultChange { from: known.method.filter(|_| there.is_none()), to: there.cloned() })
}

/// Whether a write of ours whose outcome is unknown may have made `there` Stripe's default, at any moment since it was sent.
pub(in crate::app) async fn may_be_ours(
    tx: &mut Transaction,
    customer: &Customer,
    there: Option<&str>,
    now: OffsetDateTime,
) -> Result<bool> {
    let body = stripe::customers::default_method_body(there);
    let (org, since) = (customer.organization_id, now - DOUBT_PERIOD);
    store::requests::is_in_doubt(tx, org, Purpose::DefaultMethod, customer.id.0, &body, since).await
}

/// Stripe has given its word on a write of the default: from here on it explains nothing that a read shows.
async fn finish_write(work: &mut Work, id: CustomerId, write: &FrozenRequest) -> Result<()> {
    let (org, now) = (work.org, work.now);
    store::requests::finish(&mut work.tx, org, Purpose::DefaultMethod, id.0, write.number, now).await
}

/// Forgets that a read of a locked customer's methods found no default, now that an event says since when: a method that
/// was attached between the two counts.
pub(in crate::app) async fn forget_unset_read(
    work: &mut Work,
    customer: &Customer,
    event_time: OffsetDateTime,
) -> Result<()> {
    let methods = store::payment_methods::all(&mut work.tx, work.org, customer.id).await?;
    for mut method in methods {
        if method.forget_unset_read(event_time) {
            store::payment_methods::upsert(&mut work.tx, &method).await?;
        }
    }
    Ok(())
}

impl App {
    /// The job of a customer whose default is to be written to Stripe: only if a read shows that it differs. A default there
    /// that nobody has told of was chosen by somebody, or set by a late write of ours: its event is waited for. If none comes,
    /// ours is written again where it may have been ours, and else it counts as chosen now.
    pub(in crate::app) async fn push_default_method(&self, lease: &Lease) -> Result<()> {
        let org = lease.organization_id;
        let Some((_, provider_id, access)) = self.linked_customer(org, lease.object_id.into()).await? else {
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        };
        let mut tx = self.read(org).await?;
        let customer = store::customers::get(&mut tx, org, lease.object_id.into()).await?;
        let methods = store::payment_methods::all(&mut tx, org, customer.id).await?;
        let default = methods.iter().find(|method| Some(method.id) == customer.default_payment_method_id);
        let method = default.map(|method| method.provider_payment_method_id.clone());
        if method.is_none() && methods.iter().all(|method| method.unset().is_none()) {
            // Nobody has chosen to have none.
            tx.close().await?;
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        }
        let known = store::customers::provider_default(&mut tx, org, customer.id).await?;
        tx.close().await?;
        let there = match self.0.stripe.customer(&access.key, &provider_id).await {
            Ok(there) => there,
            Err(error) => return Err(self.stripe_trouble(&access, "customer.read", &error).await),
        };
        if there.deleted {
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        }
        if there.default_method == method {
            return self.default_is_written(lease, &customer, method, None).await;
        }
        // Stripe itself unsets a default that is detached.
        let is_known = |method: &&PaymentMethod| Some(&method.provider_payment_method_id) == known.method.as_ref();
        let is_gone = methods.iter().find(is_known).is_some_and(|method| method.detach_time.is_some());
        let is_explained = there.default_method == known.method || (is_gone && there.default_method.is_none());
        let mut work = self.begin_leased(lease).await?;
        let is_current = store::customers::lock(&mut work.tx, org, customer.id).await?.version == customer.version
            && store::customers::provider_default(&mut work.tx, org, customer.id).await? == known;
        if !is_current {
            let now = work.now;
            return work.end(Outcome::Again(now)).await;
        }
        if !is_explained {
            // Where no event and no read has shown a default yet, this one was chosen before the customer was linked.
            if known.time.is_some() && lease.failures < EVENT_TRIES {
                let text = "Stripe shows another default than its events have told of; theirs is waited for";
                return work.end(Outcome::Retry(text.to_owned())).await;
            }
            if !may_be_ours(&mut work.tx, &customer, there.default_method.as_deref(), work.now).await? {
                work.abandon().await?;
                self.read_payment_methods(lease, customer.id).await?;
                return self.begin_leased(lease).await?.end(Outcome::Done).await;
            }
        }
        let write = self.freeze_write(&mut work, customer.id, method.as_deref()).await?;
        work.commit().await?;
        let answer =
            self.0.stripe.update_customer(&access.key, &provider_id, &write.idempotency_key, &write.body).await;
        let Err(error) = answer else {
            return self.default_is_written(lease, &customer, method, Some(write)).await;
        };
        if error.verdict() != stripe::Verdict::Unknown {
            let mut work = self.begin_leased(lease).await?;
            finish_write(&mut work, customer.id, &write).await?;
            // The method is gone at Stripe; the event that tells so is on its way.
            if error.verdict() == stripe::Verdict::Refused {
                tracing::warn!(customer.id = %customer.id, %error, "Stripe refused the default payment method");
                return work.end(Outcome::Done).await;
            }
            work.commit().await?;
        }
        Err(self.stripe_trouble(&access, "customer.set_default", &error).await)
    }

    /// Freezes the request that writes the default, under a key that was never used: an earlier answer, good or bad, says
    /// nothing of what Stripe has now. To write the same default twice harms nobody, unless Stripe carries an earlier try
    /// out after somebody has chosen another one; so those whose outcome is unknown are kept for as long as that can be.
    async fn freeze_write(&self, work: &mut Work, id: CustomerId, method: Option<&str>) -> Result<FrozenRequest> {
        let (org, purpose) = (work.org, Purpose::DefaultMethod);
        let newest = store::requests::newest_frozen(&mut work.tx, org, purpose, id.0).await?;
        let number = newest.map_or(1, |newest| newest.number + 1);
        store::requests::forget_frozen(&mut work.tx, org, purpose, id.0, work.now - DOUBT_PERIOD).await?;
        let write = FrozenRequest {
            idempotency_key: format!("paybridge-default-{id}-{}", self.clock().new_id()),
            ..purpose.request(id.0, number, stripe::customers::default_method_body(method), work.now)
        };
        store::requests::freeze(&mut work.tx, org, purpose, id.0, &write).await?;
        Ok(write)
    }

    /// Stripe's default is ours, by this write or an earlier one. Events that come later are ordered by their time: also
    /// that of a choice which this write has replaced.
    async fn default_is_written(
        &self,
        lease: &Lease,
        customer: &Customer,
        method: Option<String>,
        write: Option<FrozenRequest>,
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

    /// Notes another default of Stripe's that is no choice: we wrote it, or Stripe does not know the method any more.
    pub(in crate::app) async fn default_told(
        &self,
        about: &About<'_>,
        provider_customer: &str,
        change: &DefaultChange,
    ) -> Result<()> {
        let Some((mut work, customer, _)) = self.customer_of(about, provider_customer).await? else { return Ok(()) };
        match note_provider_default(&mut work, &customer, change, about.event_time).await? {
            Noted::Unordered => {
                work.abandon().await?;
                return self.read_payment_methods(about.lease, customer.id).await;
            }
            Noted::Changed => work.ask(JobKind::PushDefaultMethod, customer.id.0),
            Noted::Unchanged => {}
        }
        // Stripe has carried this write out, at a time that is known: its outcome is not in doubt any more.
        if let Some(key) = about.request_key {
            let (org, now) = (work.org, work.now);
            store::requests::finish_by_key(&mut work.tx, org, Purpose::DefaultMethod, customer.id.0, key, now).await?;
        }
        work.commit().await
    }
}
