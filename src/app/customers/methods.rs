//! Payment methods and the choice of the default. The rows hold dated facts from which a domain rule derives the
//! default, so the order in which Stripe reports them does not matter (P6).

use time::OffsetDateTime;

use crate::app::unit_of_work::UnitOfWork;
use crate::app::{App, StripeAccount, event_payloads, if_found};
use crate::domain::customers::Customer;
use crate::domain::events::EventType;
use crate::domain::integrations::Integration;
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::payment_methods::{Mandates, MethodKind, PaymentMethod, default_method, next_choice_time};
use crate::domain::signals::{MandateSnapshot, MethodSnapshot};
use crate::domain::{CustomerId, Error, OrganizationId, Page, PaymentMethodId, Result};
use crate::stripe::Operation;
use crate::{store, stripe};

/// New facts about a method.
#[derive(Clone, Copy)]
pub(in crate::app) struct MethodUpdate<'a> {
    pub snapshot: &'a MethodSnapshot,
    /// When it was attached, if this source says so.
    pub attach_time: Option<OffsetDateTime>,
    /// When it was chosen as the default, if it was.
    pub choose_time: Option<OffsetDateTime>,
    /// When it was unset as the default without a successor, if it was.
    pub unset_time: Option<OffsetDateTime>,
    /// Whether a read found it unset, so that `unset_time` is when it was read.
    pub is_unset_read: bool,
    /// The mandates that this source names, of this method and others.
    pub mandates: &'a [MandateSnapshot],
    /// Whether a method that was unlinked here becomes usable again, because its customer is linked again. Nothing else
    /// revives one: its detachment at Stripe may be in progress.
    pub revives: bool,
}

/// What a read of a customer's methods does with a method that was detached here and is attached at Stripe.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detached {
    /// It becomes usable again.
    Revived,
    /// It stays detached.
    Kept,
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

    /// Chooses the default. A job pushes it to Stripe.
    pub async fn set_default_payment_method(&self, org: OrganizationId, id: PaymentMethodId) -> Result<PaymentMethod> {
        let mut work = self.begin(org).await?;
        let customer_id = store::payment_methods::get(&mut work.tx, org, id).await?.customer_id;
        let mut customer = store::customers::lock(&mut work.tx, org, customer_id).await?;
        let methods = store::payment_methods::list_all(&mut work.tx, org, customer_id).await?;
        let choose_time = next_choice_time(&methods, work.now);
        let Some(mut method) = methods.into_iter().find(|known| known.id == id) else {
            return Err(Error::not_found("payment method", id));
        };
        if !method.is_eligible(&customer.provider_payment_methods) {
            let message =
                "the payment method is detached, or its kind is not allowed for the customer; use another one";
            return Err(Error::precondition("PAYMENT_METHOD_NOT_USABLE", format!("payment_method/{id}"), message));
        }
        method.choose_time = Some(choose_time);
        store::payment_methods::upsert(&mut work.tx, &method).await?;
        let integration = store::integrations::get(&mut work.tx, org, method.integration_id).await?;
        self.choose_default(&mut work, &mut customer, &integration).await?;
        work.commit().await?;
        Ok(method)
    }

    /// Detaches a method. A job detaches it at Stripe.
    pub async fn delete_payment_method(&self, org: OrganizationId, id: PaymentMethodId) -> Result<PaymentMethod> {
        let mut work = self.begin(org).await?;
        let customer_id = store::payment_methods::get(&mut work.tx, org, id).await?.customer_id;
        let mut customer = store::customers::lock(&mut work.tx, org, customer_id).await?;
        let mut method = store::payment_methods::get(&mut work.tx, org, id).await?;
        if method.detach_time.is_none() {
            let integration = store::integrations::get(&mut work.tx, org, method.integration_id).await?;
            let now = work.now;
            self.detach(&mut work, &mut customer, &integration, &mut method, now).await?;
            work.enqueue(JobKind::DetachMethod, id.0);
        }
        work.commit().await?;
        Ok(method)
    }

    /// Records that a method is detached. The customer must be locked.
    pub(in crate::app) async fn detach(
        &self,
        work: &mut UnitOfWork,
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
        // The version increases even if the default stays: a concurrent read of the method must be repeated.
        store::customers::save(&mut work.tx, customer, work.now).await?;
        self.choose_default(work, customer, integration).await?;
        work.record_event(event_payloads::method(EventType::PaymentMethodDetached, method, customer, integration));
        Ok(())
    }

    /// Stores new facts about a method of a locked customer, and updates the default.
    pub(in crate::app) async fn apply_method_update(
        &self,
        work: &mut UnitOfWork,
        customer: &mut Customer,
        integration: &Integration,
        update: MethodUpdate<'_>,
    ) -> Result<()> {
        let detached = self.upsert_method(work, customer, integration, update).await?;
        self.choose_default(work, customer, integration).await?;
        if let Some(detached) = detached {
            // The read came before Stripe's event, which will change nothing.
            work.record_event(event_payloads::method(
                EventType::PaymentMethodDetached,
                &detached,
                customer,
                integration,
            ));
        }
        Ok(())
    }

    /// The earliest attachment and the latest choice count, so that repeats and other orders change nothing. A method
    /// that Stripe shows as attached belongs to this customer, even if it belonged to another one here, such as one
    /// relinked or deleted since. Returns the method if it was attached here and Stripe shows that it no longer is.
    async fn upsert_method(
        &self,
        work: &mut UnitOfWork,
        customer: &Customer,
        integration: &Integration,
        update: MethodUpdate<'_>,
    ) -> Result<Option<PaymentMethod>> {
        let snapshot = update.snapshot;
        let known =
            store::payment_methods::get_by_provider_id(&mut work.tx, work.org, integration.id, &snapshot.id).await?;
        let is_of_other_customer = known.as_ref().is_some_and(|known| known.customer_id != customer.id);
        if is_of_other_customer && snapshot.provider_customer_id.is_none() {
            return Ok(None);
        }
        let is_new = is_of_other_customer || known.as_ref().is_none_or(|known| known.detach_time.is_some());
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
        method.attach_time = earlier(method.attach_time, update.attach_time);
        method.choose_time = method.choose_time.max(update.choose_time);
        if method.unset_time < update.unset_time {
            (method.unset_time, method.is_unset_read) = (update.unset_time, update.is_unset_read);
        }
        for mandate in update.mandates.iter().filter(|mandate| mandate.provider_payment_method_id == snapshot.id) {
            method.mandates.record(&mandate.id, mandate.is_active);
        }
        let is_attached = snapshot.provider_customer_id.is_some();
        if is_attached && (update.revives || is_of_other_customer) {
            (method.detach_time, method.is_detach_read) = (None, false);
        } else if !is_attached && method.detach_time.is_none() {
            (method.detach_time, method.is_detach_read) = (Some(work.now), true);
        }
        store::payment_methods::upsert(&mut work.tx, &method).await?;
        if is_new && method.detach_time.is_none() {
            work.record_event(event_payloads::method(EventType::PaymentMethodCreated, &method, customer, integration));
        } else if is_updated && method.detach_time.is_none() {
            work.record_event(event_payloads::method(EventType::PaymentMethodUpdated, &method, customer, integration));
        }
        Ok(Some(method).filter(|method| !is_new && method.detach_time.is_some()))
    }

    /// Derives the default from the stored facts. If it changed, reports it, enqueues the write to Stripe, and enqueues
    /// payments that lacked a method.
    pub(in crate::app) async fn choose_default(
        &self,
        work: &mut UnitOfWork,
        customer: &mut Customer,
        integration: &Integration,
    ) -> Result<()> {
        let methods = store::payment_methods::list_all(&mut work.tx, work.org, customer.id).await?;
        let default = default_method(&methods, &customer.provider_payment_methods);
        let default_id = default.map(|method| method.id);
        if default_id == customer.default_payment_method_id {
            return Ok(());
        }
        let before = methods.iter().find(|method| Some(method.id) == customer.default_payment_method_id);
        customer.default_payment_method_id = default_id;
        store::customers::save(&mut work.tx, customer, work.now).await?;
        if let Some(default) = default {
            work.record_event(event_payloads::method(
                EventType::PaymentMethodSetAsDefault,
                default,
                customer,
                integration,
            ));
            work.enqueue(JobKind::PushDefaultMethod, customer.id.0);
            super::sync::enqueue_waiting_payments(work, customer).await?;
        } else if let Some(before) = before.filter(|before| before.detach_time.is_none()) {
            work.record_event(event_payloads::method(
                EventType::PaymentMethodUnsetAsDefault,
                before,
                customer,
                integration,
            ));
            work.enqueue(JobKind::PushDefaultMethod, customer.id.0);
        }
        Ok(())
    }

    /// Runs the job that imports the methods and the default of a customer just linked.
    pub(in crate::app) async fn import_payment_methods(&self, lease: &Lease) -> Result<()> {
        self.refresh_payment_methods(lease, lease.object_id.into(), Detached::Revived).await?;
        self.begin_leased(lease).await?.end(Outcome::Done).await
    }

    /// Reads a linked customer's methods and default from Stripe, before a payment fails for lack of one. A method that
    /// was detached here stays detached.
    pub(in crate::app) async fn read_payment_methods(&self, lease: &Lease, id: CustomerId) -> Result<()> {
        self.refresh_payment_methods(lease, id, Detached::Kept).await
    }

    async fn refresh_payment_methods(&self, lease: &Lease, id: CustomerId, detached: Detached) -> Result<()> {
        let org = lease.organization_id;
        let Some((integration, provider_id, account)) = self.linked_customer(org, id).await? else { return Ok(()) };
        let mut tx = self.read(org).await?;
        let before = store::customers::provider_default(&mut tx, org, id).await?;
        tx.close().await?;
        let read = async {
            let found = self.0.stripe.payment_methods_of(&account.key, &provider_id, MethodKind::ALL).await?;
            let debits = found.iter().filter(|method| method.needs_mandate());
            let debits: Vec<&str> = debits.map(|method| method.id.as_str()).collect();
            let mandates = self.mandates_of(&account, &provider_id, &debits).await?;
            let chosen = self.0.stripe.customer(&account.key, &provider_id).await?.default_method;
            Ok::<_, stripe::Error>((found, mandates, chosen))
        };
        // If the customer was deleted at Stripe, nothing can be charged, and the event that reports it will arrive.
        let read = self.checked(&account, Operation::PaymentMethodList, if_found(read.await)).await?;
        let Some((found, mandates, chosen)) = read else { return Ok(()) };
        let mut work = self.begin_leased(lease).await?;
        let mut customer = store::customers::lock(&mut work.tx, org, id).await?;
        if customer.linked_provider_id() != Some(provider_id.as_str()) {
            // The customer was relinked meanwhile: the read is of another Stripe customer.
            return work.rollback().await;
        }
        let change = super::default::apply_default_read(&mut work, &customer, &before, chosen.as_ref()).await?;
        let known = store::payment_methods::list_all(&mut work.tx, org, id).await?;
        let read_time = next_choice_time(&known, work.now);
        for snapshot in &found {
            let update = MethodUpdate {
                snapshot,
                attach_time: Some(snapshot.created),
                choose_time: (change.to.as_ref() == Some(&snapshot.id)).then_some(read_time),
                unset_time: (change.from.as_ref() == Some(&snapshot.id)).then_some(read_time),
                is_unset_read: true,
                mandates: &mandates,
                revives: detached == Detached::Revived,
            };
            self.upsert_method(&mut work, &customer, &integration, update).await?;
        }
        self.choose_default(&mut work, &mut customer, &integration).await?;
        work.commit().await
    }

    /// Runs the job that detaches a method at Stripe.
    pub(in crate::app) async fn detach_method(&self, lease: &Lease) -> Result<()> {
        let org = lease.organization_id;
        let mut tx = self.read(org).await?;
        let method = store::payment_methods::get(&mut tx, org, lease.object_id.into()).await?;
        tx.close().await?;
        let account = self.stripe_account(org, method.integration_id).await?;
        let detached = self.0.stripe.detach_payment_method(&account.key, &method.provider_payment_method_id).await;
        match detached {
            Ok(_) => {}
            // It is already detached or deleted.
            Err(error) if error.disposition() == stripe::Disposition::Refused => {}
            Err(error) => return Err(self.map_stripe_error(&account, Operation::PaymentMethodDetach, &error).await),
        }
        self.begin_leased(lease).await?.end(Outcome::Done).await
    }

    /// The integration, Stripe customer id and account of a customer, if it exists and is linked.
    pub(super) async fn linked_customer(
        &self,
        org: OrganizationId,
        id: CustomerId,
    ) -> Result<Option<(Integration, String, StripeAccount)>> {
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
        let account = self.stripe_account(org, integration.id).await?;
        Ok(Some((integration, provider_id.to_owned(), account)))
    }
}

/// The earlier of two times, either of which may be unknown.
fn earlier(left: Option<OffsetDateTime>, right: Option<OffsetDateTime>) -> Option<OffsetDateTime> {
    match (left, right) {
        (Some(left), Some(right)) => Some(left.min(right)),
        (one, other) => one.or(other),
    }
}
