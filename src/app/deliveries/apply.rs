//! Applying a delivery: from JSON to a signal, from the signal to the noun that it is about. Any order and any number of
//! repeats of the same deliveries ends in the same state (P6): final facts are taken as they are told, and where order
//! matters the object is fetched from Stripe instead.

use time::Duration;

use super::facts::About;
use crate::app::App;
use crate::app::payments::Scene;
use crate::app::tell;
use crate::domain::deliveries::{Delivery, DeliveryState};
use crate::domain::jobs::{Lease, Outcome};
use crate::domain::payments::{AttemptState, News, Payment, PaymentState};
use crate::domain::signals::{IntentSnapshot, IntentStatus, Observation, Signal};
use crate::domain::{Error, PaymentId, Result};
use crate::{store, stripe};

/// For how long a delivery about something not yet known is looked at again, before it counts as not ours.
const UNKNOWN_PERIOD: Duration = Duration::minutes(2);

/// What has become of a delivery for now.
pub(in crate::app) enum Verdict {
    /// Applied, or it changed nothing.
    Applied,
    /// Kept, but of no concern to us.
    Ignored(String),
    /// About something that may be known soon.
    Unknown(String),
}

impl App {
    /// The job of a stored webhook.
    pub(in crate::app) async fn apply_delivery(&self, lease: &Lease) -> Result<()> {
        let (org, integration) = (lease.organization_id, lease.object_id.into());
        let created = lease.object_time.unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
        let found = {
            let mut tx = self.read(org).await?;
            store::deliveries::get(&mut tx, org, integration, &lease.object_key, created).await?
        };
        let Some(delivery) = found.filter(|delivery| delivery.state == DeliveryState::Received) else {
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        };
        let is_young = self.clock().now() - delivery.receive_time < UNKNOWN_PERIOD;
        let state = match stripe::signals::observe(delivery.body.as_bytes()) {
            Err(error) => {
                // It may be about money: an operator has to look at it.
                tracing::error!(event.id = %delivery.provider_event_id, %error, "a delivery can't be understood");
                DeliveryState::Parked(error.to_string())
            }
            Ok(observation) => match self.take_signal(lease, &delivery, observation).await {
                Ok(Verdict::Applied) => DeliveryState::Applied,
                Ok(Verdict::Unknown(reason)) if is_young => {
                    return self.begin_leased(lease).await?.end(Outcome::Retry(reason)).await;
                }
                Ok(Verdict::Unknown(reason) | Verdict::Ignored(reason)) => DeliveryState::Ignored(reason),
                // It is about something that was deleted here, or came after the disconnect.
                Err(error @ (Error::NotFound { .. } | Error::FailedPrecondition { .. })) => {
                    DeliveryState::Ignored(error.to_string())
                }
                Err(error) => return Err(error),
            },
        };
        self.conclude(lease, delivery, state).await
    }

    /// Notes what has become of the delivery; with it, Stripe's own event is relayed where the integration asks for it.
    async fn conclude(&self, lease: &Lease, mut delivery: Delivery, state: DeliveryState) -> Result<()> {
        delivery.state = state;
        let mut work = self.begin_leased(lease).await?;
        store::deliveries::save_state(&mut work.tx, &delivery).await?;
        let integration = store::integrations::get(&mut work.tx, work.org, delivery.integration_id).await?;
        if integration.relay_provider_events {
            work.tell(tell::relayed(&delivery, &integration));
        }
        work.end(Outcome::Done).await
    }

    async fn take_signal(&self, lease: &Lease, delivery: &Delivery, observed: Observation) -> Result<Verdict> {
        let about = About { lease, integration_id: delivery.integration_id, event_time: observed.event_time };
        let request_key = observed.request_key;
        match observed.signal {
            Signal::Ignored { reason } => Ok(Verdict::Ignored(reason)),
            Signal::Intent(intent) => self.intent_told(lease, delivery, request_key.as_deref(), intent).await,
            Signal::ChargeRefunded(charge) => self.charge_refunded(&about, &charge).await,
            Signal::Refund(refund) => self.refund_told(&about, &refund).await,
            Signal::Dispute(dispute) => self.dispute_told(&about, &dispute).await,
            Signal::MethodAttached(method) => {
                let customer = method.provider_customer_id.as_deref();
                self.method_told(&about, &method.id, customer, Some(observed.event_time), None).await
            }
            Signal::MethodUpdated(method) => {
                let customer = method.provider_customer_id.as_deref();
                self.method_told(&about, &method.id, customer, None, None).await
            }
            Signal::MethodDetached { provider_payment_method_id } => {
                self.method_detached(&about, &provider_payment_method_id).await
            }
            Signal::SetupSucceeded(setup) => self.setup_succeeded(&about, setup).await,
            Signal::Session(session) => self.session_told(&about, &session).await,
            Signal::CustomerUpdated { provider_customer_id, default_changed_to } => {
                // A default that we wrote ourselves is not somebody's choice.
                let is_ours = request_key.is_some_and(|key| key.starts_with("paybridge-"));
                match default_changed_to.flatten().filter(|_| !is_ours) {
                    Some(method) => self.default_chosen(&about, &provider_customer_id, &method).await,
                    None => Ok(Verdict::Applied),
                }
            }
            Signal::CustomerDeleted { provider_customer_id } => {
                self.customer_deleted(&about, &provider_customer_id).await
            }
            Signal::MandateUpdated { provider_mandate_id, provider_payment_method_id, active } => {
                self.mandate_told(&about, provider_mandate_id, &provider_payment_method_id, active).await
            }
        }
    }

    /// News of a PaymentIntent.
    async fn intent_told(
        &self,
        lease: &Lease,
        delivery: &Delivery,
        request_key: Option<&str>,
        intent: IntentSnapshot,
    ) -> Result<Verdict> {
        let org = lease.organization_id;
        let mut tx = self.read(org).await?;
        let by_intent = store::payments::id_by_intent(&mut tx, org, delivery.integration_id, &intent.id).await?;
        let by_mark = intent.payment_id.filter(|_| intent.organization_id == Some(org.0)).map(PaymentId::from);
        let Some(id) = by_intent.or(by_mark) else {
            return Ok(Verdict::Ignored("the PaymentIntent was not made by us".to_owned()));
        };
        let Some(payment) = store::payments::get(&mut tx, org, id).await? else {
            return Ok(Verdict::Unknown("the PaymentIntent names a payment that is not known".to_owned()));
        };
        let told_before = match request_key {
            Some(key) => store::attempts::get_by_key(&mut tx, org, key)
                .await?
                .is_some_and(|attempt| attempt.state != AttemptState::Open),
            None => false,
        };
        tx.close().await?;
        match &payment.provider_payment_intent_id {
            // The creation of its intent may not be committed yet; but one that was paid is money, whatever waits (P12).
            None if payment.state == PaymentState::Pending || intent.status != IntentStatus::Succeeded => {
                Ok(Verdict::Unknown("the PaymentIntent is not the payment's, or not yet".to_owned()))
            }
            None => self.other_intent(lease, id, &intent).await,
            Some(own) if *own != intent.id => self.other_intent(lease, id, &intent).await,
            Some(_) => {
                if !(told_before && intent.status == IntentStatus::RequiresPaymentMethod) {
                    self.own_intent(lease, delivery, &payment, &intent).await?;
                }
                Ok(Verdict::Applied)
            }
        }
    }

    /// A final state is taken as it is told; one that says what is known already changes nothing; for everything else
    /// the intent is read, because a snapshot may be older than what we know.
    async fn own_intent(
        &self,
        lease: &Lease,
        delivery: &Delivery,
        payment: &Payment,
        intent: &IntentSnapshot,
    ) -> Result<()> {
        let says_nothing_new = payment.state.is_final()
            || (intent.status == IntentStatus::Processing && payment.state == PaymentState::Processing);
        if says_nothing_new && payment.unknown_since.is_none() {
            return Ok(());
        }
        let is_final = matches!(intent.status, IntentStatus::Succeeded | IntentStatus::Canceled);
        if is_final && !delivery.polled {
            let mut work = self.begin_leased(lease).await?;
            let mut scene = Scene::load(&mut work, payment.id).await?;
            scene.news(&mut work, News::Intent(intent)).await?;
            return work.commit().await;
        }
        self.refresh_payment(lease, payment.id).await.map(|_| ())
    }

    /// An intent that bears a payment's mark and is not the payment's: of an earlier round, or made by hand. If it has
    /// taken money for an invoice, that is never silent (P12).
    async fn other_intent(&self, lease: &Lease, id: PaymentId, intent: &IntentSnapshot) -> Result<Verdict> {
        if intent.status != IntentStatus::Succeeded {
            return Ok(Verdict::Ignored("another PaymentIntent of the payment than the one that collects".to_owned()));
        }
        let mut work = self.begin_leased(lease).await?;
        let mut scene = Scene::load(&mut work, id).await?;
        let (org, now, amount) = (work.org, work.now, intent.amount_received);
        if store::settlements::insert_overpayment(&mut work.tx, org, id, &intent.id, amount, now).await? {
            scene.payment.amount_received += amount;
            store::payments::save(&mut work.tx, &mut scene.payment, now).await?;
            work.tell(tell::overpaid(&scene.about(), &intent.id, amount));
        }
        work.commit().await?;
        Ok(Verdict::Applied)
    }
}
