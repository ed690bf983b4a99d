//! Payment methods, and which of them is the default. What is stored are dated facts; the default follows from them by
//! a rule of the domain, so that the order in which Stripe tells them does not matter (P6).

use time::OffsetDateTime;

use crate::app::work::Work;
use crate::app::{Access, App, tell};
use crate::domain::customers::Customer;
use crate::domain::integrations::Integration;
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::payment_methods::{Mandates, MethodKind, PaymentMethod, default_method, time_of_choice};
use crate::domain::signals::{MandateSnapshot, MethodSnapshot};
use crate::domain::{CustomerId, Error, OrganizationId, Page, PaymentMethodId, Result};
use crate::{store, stripe};

/// What is learnt about a method at once.
#[derive(Clone, Copy)]
pub(in crate::app) struct Learnt<'a> {
    pub snapshot: &'a MethodSnapshot,
    /// When it was attached, as far as this source knows.
    pub attach_time: Option<OffsetDateTime>,
    /// When it was chosen as the default, if it was.
    pub choose_time: Option<OffsetDateTime>,
    /// When it was unset as the default in favour of none, if it was.
    pub unset_time: Option<OffsetDateTime>,
    /// Whether a read has found that, at that time.
    pub is_unset_read: bool,
    /// The mandates that this source names, of this method and of others.
    pub mandates: &'a [MandateSnapshot],
    /// Whether a method that was unlinked here is taken into use again, because its customer is linked anew. Nothing else
    /// revives one: it may be on its way to be detached at Stripe.
    pub revives: bool,
}

impl App {
    /// A customer and a page of its attached methods, newest first.
    pub async fn list_payment_methods(
        &self,
        org: OrganizationId,
        id: CustomerId,
        page: Page,
    ) -> Result<(Customer, Vec<PaymentMethod>)> {
        let mut tx = self.read(org).await?;
        let customer = store::customers::get(&mut tx, org, id).await?;
        let methods = store::payment_methods::list(&mut tx, org, id, page).await?;
        Ok((customer, methods))
    }

    /// Chooses the default; it is pushed to Stripe by a job.
    pub async fn set_default_payment_method(&self, org: OrganizationId, id: PaymentMethodId) -> Result<PaymentMethod> {
        let mut work = self.begin(org).await?;
        let customer_id = store::payment_methods::get(&mut work.tx, org, id).await?.customer_id;
        let mut customer = store::customers::lock(&mut work.tx, org, customer_id).await?;
        let methods = store::payment_methods::all(&mut work.tx, org, customer_id).await?;
        let choose_time = time_of_choice(&methods, work.now);
        let Some(mut method) = methods.into_iter().find(|known| known.id == id) else {
            return Err(Error::not_found("payment method", id));
        };
        if !method.is_eligible(&customer.provider_payment_methods) {
            let message = "the payment method is detached, or its kind is not allowed for the customer";
            return Err(Error::precondition("PAYMENT_METHOD_NOT_USABLE", format!("payment_method/{id}"), message));
        }
        method.choose_time = Some(choose_time);
        store::payment_methods::upsert(&mut work.tx, &method).await?;
        let integration = store::integrations::get(&mut work.tx, org, method.integration_id).await?;
        self.choose_default(&mut work, &mut customer, &integration).await?;
        work.commit().await?;
        Ok(method)
    }

    /// Takes a method out of use; it is detached at Stripe by a job.
    pub async fn delete_payment_method(&self, org: OrganizationId, id: PaymentMethodId) -> Result<PaymentMethod> {
        let mut work = self.begin(org).await?;
        let customer_id = store::payment_methods::get(&mut work.tx, org, id).await?.customer_id;
        let mut customer = store::customers::lock(&mut work.tx, org, customer_id).await?;
        let mut method = store::payment_methods::get(&mut work.tx, org, id).await?;
        if method.detach_time.is_none() {
            let integration = store::integrations::get(&mut work.tx, org, method.integration_id).await?;
            let now = work.now;
            self.detach(&mut work, &mut customer, &integration, &mut method, now).await?;
            work.ask(JobKind::DetachMethod, id.0);
        }
        work.commit().await?;
        Ok(method)
    }

    /// Notes that a method is detached. The customer is locked.
    pub(in crate::app) async fn detach(
        &self,
        work: &mut Work,
        customer: &mut Customer,
        integration: &Integration,
        method: &mut PaymentMethod,
        time: OffsetDateTime,
    ) -> Result<()> {
        if method.detach_time.is_some() {
            return Ok(());
        }
        method.detach_time = Some(time);
        store::payment_methods::upsert(&mut work.tx, method).await?;
        // The version rises even where the default stays: whoever read the method before reads it again.
        store::customers::save(&mut work.tx, customer, work.now).await?;
        self.choose_default(work, customer, integration).await?;
        work.tell(tell::method("payment_method.detached", method, customer, integration));
        Ok(())
    }

    /// Stores what is learnt about a method of a locked customer, and lets the default follow.
    pub(in crate::app) async fn learn_method(
        &self,
        work: &mut Work,
        customer: &mut Customer,
        integration: &Integration,
        learnt: Learnt<'_>,
    ) -> Result<()> {
        let gone = self.store_method(work, customer, integration, learnt).await?;
        self.choose_default(work, customer, integration).await?;
        if let Some(gone) = gone {
            // Read before the event that tells so has come: that one will find nothing new.
            work.tell(tell::method("payment_method.detached", &gone, customer, integration));
        }
        Ok(())
    }

    /// The earliest attachment and the latest choice count, so that repeats and other orders change nothing. A method
    /// that Stripe shows as attached is this customer's, whosever it was here before: of one that was relinked or
    /// deleted, say. Returns the method if it was attached here, and Stripe shows that it is no more.
    async fn store_method(
        &self,
        work: &mut Work,
        customer: &Customer,
        integration: &Integration,
        learnt: Learnt<'_>,
    ) -> Result<Option<PaymentMethod>> {
        let snapshot = learnt.snapshot;
        let known =
            store::payment_methods::get_by_provider_id(&mut work.tx, work.org, integration.id, &snapshot.id).await?;
        let is_anothers = known.as_ref().is_some_and(|known| known.customer_id != customer.id);
        if is_anothers && snapshot.provider_customer_id.is_none() {
            return Ok(None);
        }
        let is_new = is_anothers || known.as_ref().is_none_or(|known| known.detach_time.is_some());
        let mut method = known.unwrap_or_else(|| PaymentMethod {
            id: self.clock().new_id().into(),
            organization_id: work.org,
            customer_id: customer.id,
            integration_id: integration.id,
            provider_payment_method_id: snapshot.id.clone(),
            kind: snapshot.kind.clone(),
            details: snapshot.details.clone(),
            mandates: Mandates::default(),
            attach_time: None,
            choose_time: None,
            unset_time: None,
            is_unset_read: false,
            detach_time: None,
            is_detach_read: false,
            create_time: work.now,
        });
        let is_updated = !is_new && method.details != snapshot.details;
        method.customer_id = customer.id;
        method.details = snapshot.details.clone();
        method.attach_time = earlier(method.attach_time, learnt.attach_time);
        method.choose_time = method.choose_time.max(learnt.choose_time);
        if method.unset_time < learnt.unset_time {
            (method.unset_time, method.is_unset_read) = (learnt.unset_time, learnt.is_unset_read);
        }
        for mandate in learnt.mandates.iter().filter(|mandate| mandate.provider_payment_method_id == snapshot.id) {
            method.mandates.note(&mandate.id, mandate.is_active);
        }
        let is_attached = snapshot.provider_customer_id.is_some();
        if is_attached && (learnt.revives || is_anothers) {
            (method.detach_time, method.is_detach_read) = (None, false);
        } else if !is_attached && method.detach_time.is_none() {
            (method.detach_time, method.is_detach_read) = (Some(work.now), true);
        }
        store::payment_methods::upsert(&mut work.tx, &method).await?;
        if is_new && method.detach_time.is_none() {
            work.tell(tell::method("payment_method.created", &method, customer, integration));
        } else if is_updated && method.detach_time.is_none() {
            work.tell(tell::method("payment_method.updated", &method, customer, integration));
        }
        Ok(Some(method).filter(|method| !is_new && method.detach_time.is_some()))
    }

    /// Lets the default follow from the facts. If it changes: told, written to Stripe by a job, and payments that lack a
    /// method are tried once more.
    pub(in crate::app) async fn choose_default(
        &self,
        work: &mut Work,
        customer: &mut Customer,
        integration: &Integration,
    ) -> Result<()> {
        let methods = store::payment_methods::all(&mut work.tx, work.org, customer.id).await?;
        let default = default_method(&methods, &customer.provider_payment_methods);
        let default_id = default.map(|method| method.id);
        if default_id == customer.default_payment_method_id {
            return Ok(());
        }
        let before = methods.iter().find(|method| Some(method.id) == customer.default_payment_method_id);
        customer.default_payment_method_id = default_id;
        store::customers::save(&mut work.tx, customer, work.now).await?;
        if let Some(default) = default {
            work.tell(tell::method("payment_method.set_as_default", default, customer, integration));
            work.ask(JobKind::PushDefaultMethod, customer.id.0);
            super::sync::ask_for_waiting(work, customer).await?;
        } else if let Some(before) = before.filter(|before| before.detach_time.is_none()) {
            work.tell(tell::method("payment_method.unset_as_default", before, customer, integration));
            work.ask(JobKind::PushDefaultMethod, customer.id.0);
        }
        Ok(())
    }

    /// The job of a customer whose methods and default are to be read from Stripe: it was linked just now.
    pub(in crate::app) async fn import_payment_methods(&self, lease: &Lease) -> Result<()> {
        self.learn_payment_methods(lease, lease.object_id.into(), true).await?;
        self.begin_leased(lease).await?.end(Outcome::Done).await
    }

    /// Reads a linked customer's methods and default from Stripe, for a payment that would fail for lack of one. One that
    /// was detached here stays so.
    pub(in crate::app) async fn read_payment_methods(&self, lease: &Lease, id: CustomerId) -> Result<()> {
        self.learn_payment_methods(lease, id, false).await
    }

    async fn learn_payment_methods(&self, lease: &Lease, id: CustomerId, revives: bool) -> Result<()> {
        let org = lease.organization_id;
        let Some((integration, provider_id, access)) = self.linked_customer(org, id).await? else { return Ok(()) };
        let mut tx = self.read(org).await?;
        let before = store::customers::provider_default(&mut tx, org, id).await?;
        tx.close().await?;
        let read = async {
            let kinds = [MethodKind::Card, MethodKind::SepaDebit];
            let found = self.0.stripe.payment_methods_of(&access.key, &provider_id, &kinds).await?;
            let sepa = found.iter().filter(|method| method.kind == MethodKind::SepaDebit.as_str());
            let sepa: Vec<&str> = sepa.map(|method| method.id.as_str()).collect();
            let mandates = self.mandates_of(&access, &provider_id, &sepa).await?;
            let chosen = self.0.stripe.customer(&access.key, &provider_id).await?.default_method;
            Ok::<_, stripe::Error>((found, mandates, chosen))
        };
        let (found, mandates, chosen) = match read.await {
            Ok(read) => read,
            // Deleted at Stripe: nothing can be charged, and the event that says so is on its way.
            Err(error) if error.is_missing() => return Ok(()),
            Err(error) => return Err(self.stripe_trouble(&access, "payment_method.list", &error).await),
        };
        let mut work = self.begin_leased(lease).await?;
        let mut customer = store::customers::lock(&mut work.tx, org, id).await?;
        if customer.linked_provider_id() != Some(provider_id.as_str()) {
            // Linked anew meanwhile: what was read is of another Stripe customer.
            return work.abandon().await;
        }
        let change = super::default::default_read(&mut work, &customer, &before, chosen.as_ref()).await?;
        let known = store::payment_methods::all(&mut work.tx, org, id).await?;
        let read_time = time_of_choice(&known, work.now);
        for snapshot in &found {
            let learnt = Learnt {
                snapshot,
                attach_time: Some(snapshot.created),
                choose_time: (change.to.as_ref() == Some(&snapshot.id)).then_some(read_time),
                unset_time: (change.from.as_ref() == Some(&snapshot.id)).then_some(read_time),
                is_unset_read: true,
                mandates: &mandates,
                revives,
            };
            self.store_method(&mut work, &customer, &integration, learnt).await?;
        }
        self.choose_default(&mut work, &mut customer, &integration).await?;
        work.commit().await
    }

    /// The job of a method to be detached at Stripe.
    pub(in crate::app) async fn detach_method(&self, lease: &Lease) -> Result<()> {
        let org = lease.organization_id;
        let mut tx = self.read(org).await?;
        let method = store::payment_methods::get(&mut tx, org, lease.object_id.into()).await?;
        tx.close().await?;
        let access = self.access(org, method.integration_id).await?;
        // With the number of the try, so that none is answered with a stored 500 for a day.
        let idempotency_key = format!("paybridge-detach-{}-{}", method.id, lease.failures);
        let detached = self
            .0
            .stripe
            .detach_payment_method(&access.key, &method.provider_payment_method_id, &idempotency_key)
            .await;
        match detached {
            Ok(_) => {}
            // It is detached already, or gone.
            Err(error) if error.verdict() == stripe::Verdict::Refused => {}
            Err(error) => return Err(self.stripe_trouble(&access, "payment_method.detach", &error).await),
        }
        self.begin_leased(lease).await?.end(Outcome::Done).await
    }

    /// The integration, Stripe id and access of a customer, if it is there and linked.
    pub(super) async fn linked_customer(
        &self,
        org: OrganizationId,
        id: CustomerId,
    ) -> Result<Option<(Integration, String, Access)>> {
        let mut tx = self.read(org).await?;
        let customer = match store::customers::get(&mut tx, org, id).await {
            Err(Error::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let (Some(provider_id), Some(integration)) = (customer.linked_provider_id(), customer.integration_id) else {
            return Ok(None);
        };
        let integration = store::integrations::get(&mut tx, org, integration).await?;
        tx.close().await?;
        let access = self.access(org, integration.id).await?;
        Ok(Some((integration, provider_id.to_owned(), access)))
    }
}

/// The earlier of two times of which either may be unknown.
fn earlier(left: Option<OffsetDateTime>, right: Option<OffsetDateTime>) -> Option<OffsetDateTime> {
    match (left, right) {
        (Some(left), Some(right)) => Some(left.min(right)),
        (one, other) => one.or(other),
    }
}
