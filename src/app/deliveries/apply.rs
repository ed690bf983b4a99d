//! Applies deliveries: parses the JSON into a signal and applies the signal to the object that it concerns. Any order
//! and any number of repeats of the same deliveries ends in the same state (P6): final facts are applied as reported;
//! where order matters, the object is read from Stripe instead.

use std::borrow::Cow;

use time::Duration;

use super::signal::{DeliveryOutcome, IntentSource, SignalOrigin};
use crate::app::event_payloads;
use crate::app::payments::{PaymentContext, ReadTarget};
use crate::app::unit_of_work::Actor;
use crate::app::{App, if_found};
use crate::domain::deliveries::{Delivery, DeliveryState};
use crate::domain::integrations::Integration;
use crate::domain::jobs::{Lease, Outcome};
use crate::domain::payments::{Attempt, AttemptState, Payment, PaymentInput, PaymentState};
use crate::domain::signals::{IntentSnapshot, IntentStatus, Observation, Signal};
use crate::domain::stripe_requests::IdempotencyKey;
use crate::domain::{Error, PaymentId, Result};
use crate::stripe::Operation;
use crate::{store, stripe};

/// How long a delivery waits, again and again, while its integration reads back what the database has forgotten.
const CATCH_UP_PERIOD: Duration = Duration::seconds(5);

/// How long a delivery about an unknown object is retried before it is ignored.
const UNMATCHED_PERIOD: Duration = Duration::minutes(2);

impl App {
    /// Runs the job of a stored delivery.
    pub(in crate::app) async fn apply_delivery(&self, lease: &Lease) -> Result<()> {
        let (org, integration) = (lease.organization_id, lease.object_id.into());
        let created = lease.object_time.unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
        let mut tx = self.read(org).await?;
        let found = store::deliveries::get(&mut tx, org, integration, &lease.object_key, created).await?;
        let Some(delivery) = found.filter(|delivery| delivery.state == DeliveryState::Received) else {
            tx.close().await?;
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        };
        let integration = match store::integrations::get(&mut tx, org, integration).await {
            // Its signature was verified with a cached secret just after a restore: this database never had the
            // integration. What the event is about is read when the account is connected again.
            Err(error @ Error::NotFound { .. }) => {
                tx.close().await?;
                return self.finish_delivery(lease, None, delivery, DeliveryState::Ignored(error.to_string())).await;
            }
            found => found?,
        };
        tx.close().await?;
        if integration.catch_up.is_some_and(|stage| !stage.applies_events()) {
            // Its object may be unknown only because it is not read back yet.
            let again = self.clock().now() + CATCH_UP_PERIOD;
            return self.begin_leased(lease).await?.end(Outcome::Postponed(again)).await;
        }
        let is_recent = self.is_recent(&delivery);
        let state = match stripe::signals::observe(delivery.body.as_bytes()) {
            Err(error) => {
                // It may be about money, so an operator must look at it.
                tracing::error!(event.id = %delivery.provider_event_id, %error, "delivery parked: unknown format");
                DeliveryState::Parked(error.to_string())
            }
            Ok(observation) if let Some(reason) = integration_mismatch(&observation, &integration) => {
                DeliveryState::Ignored(reason)
            }
            Ok(observation) => match self.apply_signal(lease, &delivery, observation).await {
                Ok(DeliveryOutcome::Applied) => DeliveryState::Applied,
                Ok(DeliveryOutcome::Unmatched(reason)) if is_recent => {
                    return self.begin_leased(lease).await?.end(Outcome::Retry(reason)).await;
                }
                Ok(DeliveryOutcome::Unmatched(reason) | DeliveryOutcome::Ignored(reason)) => {
                    DeliveryState::Ignored(reason)
                }
                // Its object was deleted here, or the integration was disconnected.
                Err(error @ (Error::NotFound { .. } | Error::FailedPrecondition { .. })) => {
                    DeliveryState::Ignored(error.to_string())
                }
                Err(error) => return Err(error),
            },
        };
        self.finish_delivery(lease, Some(&integration), delivery, state).await
    }

    /// Whether the delivery's object may still become known.
    fn is_recent(&self, delivery: &Delivery) -> bool {
        self.clock().now() - delivery.receive_time < UNMATCHED_PERIOD
    }

    /// Saves the delivery's state, and relays Stripe's own event if its integration, where known, is configured to.
    async fn finish_delivery(
        &self,
        lease: &Lease,
        integration: Option<&Integration>,
        mut delivery: Delivery,
        state: DeliveryState,
    ) -> Result<()> {
        let name = state.as_str();
        delivery.state = state;
        let mut work = self.begin_leased(lease).await?;
        store::deliveries::save_state(&mut work.tx, &delivery).await?;
        if let Some(integration) = integration.filter(|integration| integration.relay_provider_events) {
            work.record_event(event_payloads::relayed(&delivery, integration));
        }
        work.end(Outcome::Done).await?;
        metrics::counter!("paybridge_deliveries_total", "state" => name).increment(1);
        Ok(())
    }

    async fn apply_signal(&self, lease: &Lease, delivery: &Delivery, observed: Observation) -> Result<DeliveryOutcome> {
        let request_key = observed.request_key;
        let origin = SignalOrigin {
            lease,
            integration_id: delivery.integration_id,
            event_time: observed.event_time,
            request_key: request_key.as_deref(),
        };
        let source = IntentSource {
            lease,
            integration_id: delivery.integration_id,
            installation: &self.0.settings.installation,
            is_complete: !delivery.polled,
            is_recent: self.is_recent(delivery),
        };
        match observed.signal {
            Signal::Ignored { reason } => Ok(DeliveryOutcome::Ignored(reason)),
            Signal::Intent(intent) => self.on_intent(&source, request_key.as_deref(), *intent).await,
            Signal::ChargeRefunded(charge) => {
                let intent = charge.provider_payment_intent_id.as_deref();
                self.on_charge_or_dispute(&source, intent, ReadTarget::RefundsOf(&charge.id)).await
            }
            Signal::Refund(refund) => {
                let intent = refund.provider_payment_intent_id.as_deref();
                self.on_charge_or_dispute(&source, intent, ReadTarget::Refund(&refund.id)).await
            }
            Signal::Dispute(dispute) => {
                let intent = dispute.provider_payment_intent_id.as_deref();
                self.on_charge_or_dispute(&source, intent, ReadTarget::Dispute(&dispute.id)).await
            }
            Signal::MethodAttached(method) => {
                let customer = method.provider_customer_id.as_deref();
                self.on_method(&origin, &method.id, customer, Some(observed.event_time), None).await
            }
            Signal::MethodUpdated(method) => {
                let customer = method.provider_customer_id.as_deref();
                self.on_method(&origin, &method.id, customer, None, None).await
            }
            Signal::MethodDetached { provider_payment_method_id } => {
                self.on_method_detached(&origin, &provider_payment_method_id).await
            }
            Signal::SetupSucceeded(setup) => self.on_setup_succeeded(&origin, setup).await,
            Signal::Session(session) => self.on_session_event(&origin, &session).await,
            Signal::CustomerUpdated { provider_customer_id, default_change } => {
                // A default that we wrote ourselves is not a user's choice.
                let ours = origin.request_key.is_some_and(IdempotencyKey::is_ours);
                let is_ours = (!observed.hides_request_key).then_some(ours);
                match default_change {
                    Some(change) => self.on_default_changed(&origin, &provider_customer_id, &change, is_ours).await,
                    None => Ok(DeliveryOutcome::Applied),
                }
            }
            Signal::CustomerDeleted { provider_customer_id } => {
                self.on_customer_deleted(&origin, &provider_customer_id).await
            }
            Signal::Mandate(mandate) => self.on_mandate(&origin, &mandate).await,
        }
    }

    /// Applies a snapshot of a PaymentIntent.
    pub(in crate::app) async fn on_intent(
        &self,
        source: &IntentSource<'_>,
        request_key: Option<&str>,
        intent: IntentSnapshot,
    ) -> Result<DeliveryOutcome> {
        let (lease, org) = (source.lease, source.lease.organization_id);
        let mut tx = self.read(org).await?;
        let (payment, is_ours) = match payment_of(&mut tx, source, &intent).await? {
            Ok(found) => found,
            Err(outcome) => return Ok(outcome),
        };
        let id = payment.id;
        let mut attempts = store::attempts::list(&mut tx, org, id).await?;
        tx.close().await?;
        let is_link = |attempt: &&Attempt| {
            attempt.link().is_some() && attempt.provider_payment_intent_id.as_deref() == Some(intent.id.as_str())
        };
        let open_link = attempts.last().filter(|attempt| attempt.open_link().is_some());
        if open_link.is_some_and(|link| link.provider_payment_intent_id.is_none() || is_link(&link)) {
            // It may be the intent that Stripe created for the link; the link's session says so.
            self.refresh_link(Actor::Job(lease), id).await?;
            let mut tx = self.read(org).await?;
            attempts = store::attempts::list(&mut tx, org, id).await?;
            tx.close().await?;
        }
        let is_paid = intent.status == IntentStatus::Succeeded;
        match attempts.iter().find(is_link).map(|link| &link.state) {
            // Its outcome is known already.
            Some(AttemptState::Open | AttemptState::Succeeded) => return Ok(DeliveryOutcome::Applied),
            Some(_) if !is_paid => return Ok(DeliveryOutcome::Applied),
            // The intent of a failed link can still be paid. That is money all the same (P12).
            Some(_) => return self.on_other_intent(source, id, &intent).await,
            None => {}
        }
        let is_reported = request_key.is_some_and(|key| {
            attempts.iter().any(|attempt| attempt.request.key.as_str() == key && !attempt.is_open())
        });
        match &payment.provider_payment_intent_id {
            // The commit of its intent's id may still be in progress. A paid intent is not deferred for long: it is
            // money (P12).
            None if is_ours && payment.state() == PaymentState::Pending && (!is_paid || source.is_recent) => {
                Ok(DeliveryOutcome::Unmatched("the PaymentIntent is not, or not yet, the payment's own".to_owned()))
            }
            None => self.on_other_intent(source, id, &intent).await,
            Some(own) if *own != intent.id => self.on_other_intent(source, id, &intent).await,
            Some(_) => {
                if !(is_reported && intent.status == IntentStatus::RequiresPaymentMethod) {
                    self.on_own_intent(source, &payment, &intent).await?;
                }
                Ok(DeliveryOutcome::Applied)
            }
        }
    }

    /// A refund or a dispute of one of our payments. The event may be outdated, so the object is read. The event may
    /// also arrive before that of the money it concerns; then the intent is applied first, so that neither is lost (P6,
    /// P7).
    async fn on_charge_or_dispute(
        &self,
        source: &IntentSource<'_>,
        intent: Option<&str>,
        target: ReadTarget<'_>,
    ) -> Result<DeliveryOutcome> {
        let Some(intent) = intent else {
            return Ok(DeliveryOutcome::Ignored("the charge belongs to no PaymentIntent".to_owned()));
        };
        let lease = source.lease;
        let account = self.stripe_account(lease.organization_id, source.integration_id).await?;
        let mut known = self.payment_of_intent(source, intent).await?;
        if known.is_none() {
            let read = if_found(self.0.stripe.payment_intent(&account.key, intent).await);
            let Some(read) = self.checked(&account, Operation::PaymentIntentRead, read).await? else {
                return Ok(DeliveryOutcome::Ignored("Stripe does not know the PaymentIntent".to_owned()));
            };
            let outcome = self.on_intent(source, None, read).await?;
            if !matches!(outcome, DeliveryOutcome::Applied) {
                return Ok(outcome);
            }
            known = self.payment_of_intent(source, intent).await?;
        }
        let Some(id) = known else {
            return Ok(DeliveryOutcome::Unmatched("the PaymentIntent belongs to no payment of ours".to_owned()));
        };
        self.read_refunds_or_dispute(lease, id, &account, &target).await?;
        Ok(DeliveryOutcome::Applied)
    }

    /// The payment for which an intent took money, if known.
    async fn payment_of_intent(&self, source: &IntentSource<'_>, intent: &str) -> Result<Option<PaymentId>> {
        let (org, integration) = (source.lease.organization_id, source.integration_id);
        let mut tx = self.read(org).await?;
        let id = store::payments::id_by_intent(&mut tx, org, integration, intent).await?;
        tx.close().await?;
        Ok(id)
    }

    /// A final state is applied as reported, and a state already known is skipped. Otherwise the intent is read,
    /// because the snapshot may be older than our state.
    async fn on_own_intent(&self, source: &IntentSource<'_>, payment: &Payment, intent: &IntentSnapshot) -> Result<()> {
        let is_known = payment.state().is_final()
            || (intent.status == IntentStatus::Processing && payment.state() == PaymentState::Processing);
        if is_known && payment.unknown_since.is_none() {
            return Ok(());
        }
        let is_final = matches!(intent.status, IntentStatus::Succeeded | IntentStatus::Canceled);
        if is_final && source.is_complete {
            let mut work = self.begin_leased(source.lease).await?;
            let mut context = PaymentContext::load(&mut work, payment.id).await?;
            context.apply(&mut work, PaymentInput::Intent(intent)).await?;
            return work.commit().await;
        }
        self.refresh_payment(Actor::Job(source.lease), payment.id).await.map(|_| ())
    }

    /// An intent that names a payment without being its own: of an earlier round, made in the Stripe Dashboard, or of a
    /// link that failed. If it took money for an invoice, that is always recorded (P12).
    async fn on_other_intent(
        &self,
        source: &IntentSource<'_>,
        id: PaymentId,
        intent: &IntentSnapshot,
    ) -> Result<DeliveryOutcome> {
        if intent.status != IntentStatus::Succeeded {
            return Ok(DeliveryOutcome::Ignored(
                "the PaymentIntent names the payment but is not the one that collects it".to_owned(),
            ));
        }
        let mut intent = Cow::Borrowed(intent);
        let lease = source.lease;
        if !source.is_complete {
            let account = self.stripe_account(lease.organization_id, source.integration_id).await?;
            intent = Cow::Owned(self.read_intent(&account, &intent.id).await?);
        }
        let mut work = self.begin_leased(lease).await?;
        let mut context = PaymentContext::load(&mut work, id).await?;
        let mismatch = invoice_mismatch(&context, source, &intent);
        if context.payment.provider_payment_intent_id.as_ref() == Some(&intent.id) {
            // It has become the payment's own meanwhile.
            context.apply(&mut work, PaymentInput::Intent(&intent)).await?;
        } else if let Some(reason) = mismatch.filter(|_| intent.organization_id.is_none()) {
            work.rollback().await?;
            return Ok(DeliveryOutcome::Ignored(reason.to_owned()));
        } else {
            context.other_intent_paid(&mut work, source.integration_id, &intent, mismatch.is_none()).await?;
        }
        work.commit().await?;
        Ok(DeliveryOutcome::Applied)
    }
}

/// Why an intent's money does not count for the invoice that it names. Without our metadata, which only we write, such
/// an intent is ignored.
fn invoice_mismatch(
    context: &PaymentContext,
    source: &IntentSource<'_>,
    intent: &IntentSnapshot,
) -> Option<&'static str> {
    let payment = &context.payment;
    let customer = context.customer.linked_provider_id();
    if payment.integration_id != source.integration_id {
        return Some("the PaymentIntent names an invoice of another integration");
    }
    if customer.is_none() || intent.provider_customer_id.as_deref() != customer {
        return Some("the PaymentIntent names an invoice of another customer");
    }
    (intent.amount.currency != payment.amount.currency)
        .then_some("the PaymentIntent names an invoice in another currency")
}

/// Why an event does not belong to the integration whose endpoint received it: accounts, and the modes of an account,
/// are kept separate.
fn integration_mismatch(observed: &Observation, integration: &Integration) -> Option<String> {
    if let Some(claimed) = &observed.account
        && integration.provider_account_id.as_ref() != Some(claimed)
    {
        let own = integration.provider_account_id.as_deref().unwrap_or("not known");
        return Some(format!("the event claims the account {claimed}, but the integration's account is {own}"));
    }
    let mode = |livemode| if livemode { "live" } else { "test" };
    (observed.livemode != integration.livemode).then(|| {
        let (event_mode, own_mode) = (mode(observed.livemode), mode(integration.livemode));
        format!("the event is in {event_mode} mode, but the integration is in {own_mode} mode")
    })
}

/// The payment that an intent collects for, or names, and whether we created the intent. An intent that somebody else
/// created counts if it names an invoice or a payment of the same integration.
async fn payment_of(
    tx: &mut store::Transaction,
    source: &IntentSource<'_>,
    intent: &IntentSnapshot,
) -> Result<Result<(Payment, bool), DeliveryOutcome>> {
    let org = source.lease.organization_id;
    let by_intent = store::payments::id_by_intent(tx, org, source.integration_id, &intent.id).await?;
    let marked = intent.payment_id.map(PaymentId::from);
    let (payment, is_ours) = match (by_intent, intent.organization_id) {
        (Some(id), _) => (store::payments::get(tx, org, id).await?, true),
        (None, Some(owner)) if owner != org.0 => {
            return Ok(Err(DeliveryOutcome::Ignored("the PaymentIntent belongs to another organization".to_owned())));
        }
        (None, Some(_)) if intent.installation.as_ref().is_some_and(|name| name != source.installation) => {
            return Ok(Err(DeliveryOutcome::Ignored("the PaymentIntent belongs to another installation".to_owned())));
        }
        (None, owner) => {
            if marked.is_none() && intent.invoice_id.is_none() {
                return Ok(Err(DeliveryOutcome::Ignored("the PaymentIntent was not made by us".to_owned())));
            }
            let mut found = match marked {
                Some(id) => store::payments::get(tx, org, id).await?,
                None => None,
            };
            // The payment of an invoice that was lost and accepted anew has another id.
            if let (None, Some(invoice)) = (&found, &intent.invoice_id) {
                found = store::payments::get_by_invoice(tx, org, invoice).await?;
            }
            let is_ours = owner.is_some();
            (found.filter(|payment| is_ours || payment.integration_id == source.integration_id), is_ours)
        }
    };
    Ok(payment.map(|payment| (payment, is_ours)).ok_or_else(|| {
        DeliveryOutcome::Unmatched("the PaymentIntent names a payment or an invoice that is not known".to_owned())
    }))
}
