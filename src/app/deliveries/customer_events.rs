//! Stripe's events about payment methods, customers and Checkout sessions. Most objects are read from Stripe rather
//! than taken from the event, so that an old snapshot never overwrites a newer one (P6).

use time::OffsetDateTime;

use super::signal::{DeliveryOutcome, SignalOrigin};
use crate::app::customers::{DefaultUpdate, MethodUpdate, clear_unset_read, may_be_our_write, record_provider_default};
use crate::app::unit_of_work::{Actor, UnitOfWork};
use crate::app::{App, StripeAccount, event_payloads, if_allowed, if_found};
use crate::domain::checkout_sessions::SessionState;
use crate::domain::customers::{Customer, LinkState};
use crate::domain::events::EventType;
use crate::domain::integrations::Integration;
use crate::domain::jobs::JobKind;
use crate::domain::signals::{
    DefaultChange, MandateSnapshot, MethodSnapshot, SessionSnapshot, SessionStatus, SetupSnapshot,
};
use crate::domain::{Error, Result};
use crate::store;
use crate::stripe::Operation;

/// How often a read is repeated if the customer changes meanwhile.
const READS_MAX: usize = 5;

/// What an event reports about a payment method.
struct MethodEvent<'a> {
    method: &'a str,
    attach_time: Option<OffsetDateTime>,
    choose_time: Option<OffsetDateTime>,
    unset_time: Option<OffsetDateTime>,
    /// The change of Stripe's default, if the event reports one.
    default_change: Option<&'a DefaultChange>,
    mandate: Option<MandateSnapshot>,
}

impl<'a> MethodEvent<'a> {
    fn new(method: &'a str) -> Self {
        Self { method, attach_time: None, choose_time: None, unset_time: None, default_change: None, mandate: None }
    }
}

fn unmatched_customer() -> DeliveryOutcome {
    DeliveryOutcome::Unmatched("no customer of ours is linked to this Stripe customer".to_owned())
}

impl App {
    async fn account_of(&self, origin: &SignalOrigin<'_>) -> Result<StripeAccount> {
        self.stripe_account(origin.lease.organization_id, origin.integration_id).await
    }

    /// Begins a change and locks the customer with this Stripe id, if it is linked.
    pub(in crate::app) async fn lock_customer_of(
        &self,
        origin: &SignalOrigin<'_>,
        provider_id: &str,
    ) -> Result<Option<(UnitOfWork, Customer, Integration)>> {
        let mut work = self.begin_leased(origin.lease).await?;
        let (org, integration) = (work.org, origin.integration_id);
        let id = store::customers::id_by_provider_id(&mut work.tx, org, integration, provider_id).await?;
        let Some(id) = id else { return Ok(None) };
        let customer = store::customers::lock(&mut work.tx, org, id).await?;
        if customer.link_state != LinkState::Linked {
            return Ok(None);
        }
        let integration = store::integrations::get(&mut work.tx, org, integration).await?;
        Ok(Some((work, customer, integration)))
    }

    /// Reads the customer with this Stripe id, if it is linked, before anything is read from Stripe for it; and whether
    /// its import is still pending.
    async fn read_customer_of(&self, origin: &SignalOrigin<'_>, provider_id: &str) -> Result<Option<(Customer, bool)>> {
        let (org, integration) = (origin.lease.organization_id, origin.integration_id);
        let mut tx = self.read(org).await?;
        let mut found = None;
        if let Some(id) = store::customers::id_by_provider_id(&mut tx, org, integration, provider_id).await? {
            let customer = store::customers::get(&mut tx, org, id).await?;
            let awaits_import = store::jobs::is_enqueued(&mut tx, org, JobKind::ImportPaymentMethods, id.0).await?;
            found = Some((customer, awaits_import)).filter(|(customer, _)| customer.link_state == LinkState::Linked);
        }
        tx.close().await?;
        Ok(found)
    }

    /// Reads a method of a linked customer from Stripe and stores it. The read counts only if the customer did not
    /// change meanwhile: otherwise the method may have been detached since, and is read again (P6).
    async fn refresh_method(
        &self,
        origin: &SignalOrigin<'_>,
        provider_customer: &str,
        event: &MethodEvent<'_>,
    ) -> Result<DeliveryOutcome> {
        let mut is_imported = false;
        for _ in 0..READS_MAX {
            let Some((seen, awaits_import)) = self.read_customer_of(origin, provider_customer).await? else {
                return Ok(unmatched_customer());
            };
            if awaits_import && !is_imported {
                // Its default at Stripe is not known yet. Without the import, a method that was only attached would
                // become the default.
                self.read_payment_methods(origin.lease, seen.id).await?;
                is_imported = true;
                continue;
            }
            let Some((snapshot, mandates)) = self.read_method(origin, event).await? else {
                return Ok(DeliveryOutcome::Ignored("Stripe does not know the payment method".to_owned()));
            };
            let Some((mut work, mut customer, integration)) = self.lock_customer_of(origin, provider_customer).await?
            else {
                return Ok(unmatched_customer());
            };
            if customer.version != seen.version {
                work.rollback().await?;
                continue;
            }
            let update = MethodUpdate {
                snapshot: &snapshot,
                attach_time: event.attach_time,
                choose_time: event.choose_time,
                unset_time: event.unset_time,
                is_unset_read: false,
                mandates: &mandates,
                revives: false,
            };
            if let Some(change) = event.default_change {
                match record_provider_default(&mut work, &customer, change, origin.event_time).await? {
                    DefaultUpdate::Unordered => {
                        work.rollback().await?;
                        self.read_payment_methods(origin.lease, customer.id).await?;
                        return Ok(DeliveryOutcome::Applied);
                    }
                    // A pending write of the default may wait for this.
                    DefaultUpdate::Changed => work.enqueue(JobKind::PushDefaultMethod, customer.id.0),
                    DefaultUpdate::Unchanged => {}
                }
            }
            if let Some(time) = event.unset_time {
                clear_unset_read(&mut work, &customer, time).await?;
            }
            self.apply_method_update(&mut work, &mut customer, &integration, update).await?;
            work.commit().await?;
            return Ok(DeliveryOutcome::Applied);
        }
        Err(Error::internal(anyhow::anyhow!("a customer keeps changing while its payment method is read")))
    }

    /// Reads a method's present state at Stripe, with its mandates if it needs one; `None` if Stripe does not know it.
    /// The mandates are read with it, because an invoice may be charged to the method as soon as it is stored.
    async fn read_method(
        &self,
        origin: &SignalOrigin<'_>,
        event: &MethodEvent<'_>,
    ) -> Result<Option<(MethodSnapshot, Vec<MandateSnapshot>)>> {
        let account = self.account_of(origin).await?;
        let read = if_found(self.0.stripe.payment_method(&account.key, event.method).await);
        let Some(method) = self.checked(&account, Operation::PaymentMethodRead, read).await? else { return Ok(None) };
        let customer = method.provider_customer_id.as_deref().filter(|_| method.needs_mandate());
        let mandates = match (&event.mandate, customer) {
            (Some(mandate), _) => vec![mandate.clone()],
            (None, None) => Vec::new(),
            (None, Some(customer)) => {
                let read = self.mandates_of(&account, customer, &[&method.id]).await;
                self.checked(&account, Operation::MandateRead, read).await?
            }
        };
        Ok(Some((method, mandates)))
    }

    /// A method was attached, updated, or stored through a SetupIntent. It is read, since it may be detached by now.
    pub(super) async fn on_method(
        &self,
        origin: &SignalOrigin<'_>,
        method: &str,
        provider_customer: Option<&str>,
        attach_time: Option<OffsetDateTime>,
        mandate: Option<MandateSnapshot>,
    ) -> Result<DeliveryOutcome> {
        let Some(provider_customer) = provider_customer else {
            return Ok(DeliveryOutcome::Ignored("the payment method belongs to no customer".to_owned()));
        };
        let event = MethodEvent { attach_time, mandate, ..MethodEvent::new(method) };
        self.refresh_method(origin, provider_customer, &event).await
    }

    /// A SetupIntent succeeded: its method is attached, and a SEPA method has a mandate.
    pub(super) async fn on_setup_succeeded(
        &self,
        origin: &SignalOrigin<'_>,
        setup: SetupSnapshot,
    ) -> Result<DeliveryOutcome> {
        let Some(method) = setup.provider_payment_method_id else {
            return Ok(DeliveryOutcome::Ignored("the SetupIntent has no payment method".to_owned()));
        };
        let customer = setup.provider_customer_id.as_deref();
        let mandate = setup.provider_mandate_id.map(|id| MandateSnapshot {
            id,
            provider_payment_method_id: method.clone(),
            is_active: true,
        });
        self.on_method(origin, &method, customer, Some(origin.event_time), mandate).await
    }

    pub(super) async fn on_method_detached(&self, origin: &SignalOrigin<'_>, method: &str) -> Result<DeliveryOutcome> {
        let mut work = self.begin_leased(origin.lease).await?;
        let (org, integration) = (work.org, origin.integration_id);
        let Some(id) = store::payment_methods::customer_of(&mut work.tx, org, integration, method).await? else {
            // A concurrent read may be about to store it, still attached. The retry finds it.
            return Ok(DeliveryOutcome::Unmatched("the payment method is not known".to_owned()));
        };
        let mut customer = store::customers::lock(&mut work.tx, org, id).await?;
        let integration = store::integrations::get(&mut work.tx, org, integration).await?;
        let all = store::payment_methods::list_all(&mut work.tx, org, id).await?;
        if let Some(mut found) = all.into_iter().find(|known| known.provider_payment_method_id == method) {
            if found.detach_time.is_none() {
                self.detach(&mut work, &mut customer, &integration, &mut found, origin.event_time).await?;
            } else if found.is_detach_read || found.detach_time != Some(origin.event_time) {
                // A read found it detached before, at a time that was not Stripe's. Whether a default was unset
                // manually or by the detachment depends on the correct time.
                (found.detach_time, found.is_detach_read) = (Some(origin.event_time), false);
                store::payment_methods::upsert(&mut work.tx, &found).await?;
                self.choose_default(&mut work, &mut customer, &integration).await?;
            }
        }
        work.commit().await?;
        Ok(DeliveryOutcome::Applied)
    }

    /// Stripe's default has changed. `is_ours`: whether we wrote it, if the event says so. If the event does not, it is
    /// a choice only if it reports something new.
    pub(super) async fn on_default_changed(
        &self,
        origin: &SignalOrigin<'_>,
        provider_customer: &str,
        change: &DefaultChange,
        is_ours: Option<bool>,
    ) -> Result<DeliveryOutcome> {
        let is_choice = if let Some(is_ours) = is_ours {
            !is_ours
        } else {
            let Some((mut work, customer, _)) = self.lock_customer_of(origin, provider_customer).await? else {
                return Ok(unmatched_customer());
            };
            let known = store::customers::provider_default(&mut work.tx, work.org, customer.id).await?;
            let is_ours = may_be_our_write(&mut work.tx, &customer, change.to.as_deref(), work.now).await?;
            work.rollback().await?;
            known.time.is_none() || (known.method != change.to && !is_ours)
        };
        if is_choice {
            return self.on_default_chosen(origin, provider_customer, change).await;
        }
        self.on_default(origin, provider_customer, change).await?;
        Ok(DeliveryOutcome::Applied)
    }

    /// A user chose a default at Stripe, or unset it.
    async fn on_default_chosen(
        &self,
        origin: &SignalOrigin<'_>,
        provider_customer: &str,
        change: &DefaultChange,
    ) -> Result<DeliveryOutcome> {
        let time = Some(origin.event_time);
        let (method, choose_time, unset_time) = match (&change.to, &change.from) {
            (Some(chosen), _) => (chosen, time, None),
            (None, Some(unset)) => (unset, None, time),
            (None, None) => return Ok(DeliveryOutcome::Applied),
        };
        let event = MethodEvent { choose_time, unset_time, default_change: Some(change), ..MethodEvent::new(method) };
        let outcome = self.refresh_method(origin, provider_customer, &event).await?;
        if matches!(outcome, DeliveryOutcome::Ignored(_)) {
            self.on_default(origin, provider_customer, change).await?;
        }
        Ok(outcome)
    }

    pub(super) async fn on_customer_deleted(
        &self,
        origin: &SignalOrigin<'_>,
        provider_customer: &str,
    ) -> Result<DeliveryOutcome> {
        let Some((mut work, mut customer, integration)) = self.lock_customer_of(origin, provider_customer).await?
        else {
            return Ok(unmatched_customer());
        };
        let event = event_payloads::customer_deleted(&customer, &integration);
        self.unlink(&mut work, &mut customer, origin.event_time).await?;
        store::customers::save(&mut work.tx, &mut customer, work.now).await?;
        work.record_event(event);
        work.commit().await?;
        Ok(DeliveryOutcome::Applied)
    }

    /// A mandate was created, was used, or has ended. The default may change as a result.
    pub(super) async fn on_mandate(
        &self,
        origin: &SignalOrigin<'_>,
        mandate: &MandateSnapshot,
    ) -> Result<DeliveryOutcome> {
        let mut work = self.begin_leased(origin.lease).await?;
        let (org, integration) = (work.org, origin.integration_id);
        let method = &mandate.provider_payment_method_id;
        let Some(id) = store::payment_methods::customer_of(&mut work.tx, org, integration, method).await? else {
            return Ok(DeliveryOutcome::Unmatched("the mandate's payment method is not known".to_owned()));
        };
        let mut customer = store::customers::lock(&mut work.tx, org, id).await?;
        let integration = store::integrations::get(&mut work.tx, org, integration).await?;
        let all = store::payment_methods::list_all(&mut work.tx, org, id).await?;
        if let Some(mut found) = all.into_iter().find(|known| known.provider_payment_method_id == *method) {
            found.mandates.record(&mandate.id, mandate.is_active);
            store::payment_methods::upsert(&mut work.tx, &found).await?;
            self.choose_default(&mut work, &mut customer, &integration).await?;
        }
        work.commit().await?;
        Ok(DeliveryOutcome::Applied)
    }

    /// A Checkout session was completed or has expired. Both are final, so their order does not matter. It is saved as
    /// completed only after its method is stored: a completed session is not read again (P8).
    pub(in crate::app) async fn on_session_event(
        &self,
        origin: &SignalOrigin<'_>,
        session: &SessionSnapshot,
    ) -> Result<DeliveryOutcome> {
        let (org, integration) = (origin.lease.organization_id, origin.integration_id);
        let mut tx = self.read(org).await?;
        let known = store::checkout_sessions::lock_by_provider_id(&mut tx, org, integration, &session.id).await?;
        let payment = store::attempts::payment_of_session(&mut tx, org, &session.id).await?;
        tx.close().await?;
        match (known, payment) {
            (Some(_), _) => {}
            (None, Some(payment)) => {
                self.refresh_link(Actor::Job(origin.lease), payment).await?;
                return Ok(DeliveryOutcome::Applied);
            }
            (None, None) => {
                return Ok(DeliveryOutcome::Unmatched("the Checkout session was not made by us".to_owned()));
            }
        }
        let setup = session.provider_setup_intent_id.as_deref().filter(|_| session.status == SessionStatus::Complete);
        let outcome = match setup {
            Some(setup) => {
                let account = self.account_of(origin).await?;
                // Without the permission to read it, only `payment_method.attached` reports the stored method.
                let read = if_allowed(self.0.stripe.setup_intent(&account.key, setup).await);
                match self.checked(&account, Operation::SetupIntentRead, read).await?.flatten() {
                    Some(setup) => self.on_setup_succeeded(origin, setup).await?,
                    None => DeliveryOutcome::Applied,
                }
            }
            None => DeliveryOutcome::Applied,
        };
        self.save_session(origin, session).await?;
        Ok(outcome)
    }

    async fn save_session(&self, origin: &SignalOrigin<'_>, session: &SessionSnapshot) -> Result<()> {
        let mut work = self.begin_leased(origin.lease).await?;
        let (org, integration) = (work.org, origin.integration_id);
        let known = store::checkout_sessions::lock_by_provider_id(&mut work.tx, org, integration, &session.id).await?;
        let Some(mut known) = known else { return work.rollback().await };
        let was_open = known.state == SessionState::Open;
        known.state = match session.status {
            SessionStatus::Complete => SessionState::Complete,
            SessionStatus::Expired => SessionState::Expired,
            SessionStatus::Open => known.state,
        };
        store::checkout_sessions::save(&mut work.tx, &known).await?;
        if was_open && known.state == SessionState::Expired {
            let customer = store::customers::get_including_deleted(&mut work.tx, org, known.customer_id).await?;
            let integration = store::integrations::get(&mut work.tx, org, integration).await?;
            work.record_event(event_payloads::checkout_url(
                EventType::CustomerCheckoutUrlExpired,
                &customer,
                &integration,
                &known,
            ));
        }
        work.commit().await
    }
}
