//! Applying a delivery: from JSON to a signal, from the signal to the noun that it is about. Any order and any number of
//! repeats of the same deliveries ends in the same state (P6): final facts are taken as they are told, and where order
//! matters the object is fetched from Stripe instead.

use std::borrow::Cow;

use time::Duration;

use super::facts::About;
use crate::app::App;
use crate::app::payments::{Fetch, Scene};
use crate::app::tell;
use crate::app::work::Hand;
use crate::domain::deliveries::{Delivery, DeliveryState};
use crate::domain::integrations::Integration;
use crate::domain::jobs::{Lease, Outcome};
use crate::domain::payments::{Attempt, AttemptState, News, Payment, PaymentState};
use crate::domain::signals::{IntentSnapshot, IntentStatus, Observation, Signal};
use crate::domain::{Error, OrganizationId, PaymentId, Result};
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
        let mut tx = self.read(org).await?;
        let found = store::deliveries::get(&mut tx, org, integration, &lease.object_key, created).await?;
        let Some(delivery) = found.filter(|delivery| delivery.state == DeliveryState::Received) else {
            tx.close().await?;
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        };
        let integration = store::integrations::get(&mut tx, org, integration).await?;
        tx.close().await?;
        let is_young = self.is_young(&delivery);
        let state = match stripe::signals::observe(delivery.body.as_bytes()) {
            Err(error) => {
                // It may be about money: an operator has to look at it.
                tracing::error!(event.id = %delivery.provider_event_id, %error, "a delivery can't be understood");
                DeliveryState::Parked(error.to_string())
            }
            Ok(observation) if let Some(reason) = strangeness(&observation, &integration) => {
                DeliveryState::Ignored(reason)
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

    /// Whether what it is about may become known soon.
    fn is_young(&self, delivery: &Delivery) -> bool {
        self.clock().now() - delivery.receive_time < UNKNOWN_PERIOD
    }

    /// Notes what has become of the delivery; with it, Stripe's own event is relayed where the integration asks for it.
    async fn conclude(&self, lease: &Lease, mut delivery: Delivery, state: DeliveryState) -> Result<()> {
        let name = state.as_str();
        delivery.state = state;
        let mut work = self.begin_leased(lease).await?;
        store::deliveries::save_state(&mut work.tx, &delivery).await?;
        let integration = store::integrations::get(&mut work.tx, work.org, delivery.integration_id).await?;
        if integration.relay_provider_events {
            work.tell(tell::relayed(&delivery, &integration));
        }
        work.end(Outcome::Done).await?;
        metrics::counter!("paybridge_deliveries_total", "state" => name).increment(1);
        Ok(())
    }

    async fn take_signal(&self, lease: &Lease, delivery: &Delivery, observed: Observation) -> Result<Verdict> {
        let request_key = observed.request_key;
        let about = About {
            lease,
            integration_id: delivery.integration_id,
            event_time: observed.event_time,
            request_key: request_key.as_deref(),
        };
        match observed.signal {
            Signal::Ignored { reason } => Ok(Verdict::Ignored(reason)),
            Signal::Intent(intent) => self.intent_told(lease, delivery, request_key.as_deref(), intent).await,
            Signal::ChargeRefunded(charge) => {
                let intent = charge.provider_payment_intent_id.as_deref();
                self.settlement_told(lease, delivery, intent, Fetch::RefundsOf(&charge.id)).await
            }
            Signal::Refund(refund) => {
                let intent = refund.provider_payment_intent_id.as_deref();
                self.settlement_told(lease, delivery, intent, Fetch::Refund(&refund.id)).await
            }
            Signal::Dispute(dispute) => {
                let intent = dispute.provider_payment_intent_id.as_deref();
                self.settlement_told(lease, delivery, intent, Fetch::Dispute(&dispute.id)).await
            }
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
            Signal::CustomerUpdated { provider_customer_id, default_change } => {
                // A default that we wrote ourselves is not somebody's choice.
                let ours = about.request_key.is_some_and(|key| key.starts_with("paybridge-"));
                let is_ours = (!observed.hides_request_key).then_some(ours);
                match default_change {
                    Some(change) => self.default_changed(&about, &provider_customer_id, &change, is_ours).await,
                    None => Ok(Verdict::Applied),
                }
            }
            Signal::CustomerDeleted { provider_customer_id } => {
                self.customer_deleted(&about, &provider_customer_id).await
            }
            Signal::Mandate(mandate) => self.mandate_told(&about, &mandate).await,
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
        let (payment, is_ours) = match payment_of(&mut tx, org, delivery, &intent).await? {
            Ok(found) => found,
            Err(verdict) => return Ok(verdict),
        };
        let id = payment.id;
        let mut attempts = store::attempts::list(&mut tx, org, id).await?;
        tx.close().await?;
        let is_link = |attempt: &&Attempt| {
            attempt.link().is_some() && attempt.provider_payment_intent_id.as_deref() == Some(intent.id.as_str())
        };
        let open_link = attempts.last().filter(|attempt| attempt.open_link().is_some());
        if open_link.is_some_and(|link| link.provider_payment_intent_id.is_none() || is_link(&link)) {
            // Perhaps the one that Stripe has made for the link: the link's page says so.
            self.refresh_link(Hand::Job(lease), id).await?;
            let mut tx = self.read(org).await?;
            attempts = store::attempts::list(&mut tx, org, id).await?;
            tx.close().await?;
        }
        let is_paid = intent.status == IntentStatus::Succeeded;
        match attempts.iter().find(is_link).map(|link| &link.state) {
            // What became of it is known already.
            Some(AttemptState::Open | AttemptState::Succeeded) => return Ok(Verdict::Applied),
            Some(_) if !is_paid => return Ok(Verdict::Applied),
            // A link that failed leaves an intent behind that a person can still have paid: money all the same (P12).
            Some(_) => return self.other_intent(lease, delivery, id, &intent).await,
            None => {}
        }
        let told_before = request_key
            .is_some_and(|key| attempts.iter().any(|attempt| attempt.idempotency_key == key && !attempt.is_open()));
        match &payment.provider_payment_intent_id {
            // The creation of its intent may not be committed yet; but one that was paid is money, whatever waits (P12).
            None if is_ours && payment.state == PaymentState::Pending && (!is_paid || self.is_young(delivery)) => {
                Ok(Verdict::Unknown("the PaymentIntent is not the payment's, or not yet".to_owned()))
            }
            None => self.other_intent(lease, delivery, id, &intent).await,
            Some(own) if *own != intent.id => self.other_intent(lease, delivery, id, &intent).await,
            Some(_) => {
                if !(told_before && intent.status == IntentStatus::RequiresPaymentMethod) {
                    self.own_intent(lease, delivery, &payment, &intent).await?;
                }
                Ok(Verdict::Applied)
            }
        }
    }

    /// A refund or a dispute of a payment of ours. What is told may be old; what is read counts. It may be told before the
    /// money that it is about: then that is taken in first, so that neither is lost (P6, P7).
    async fn settlement_told(
        &self,
        lease: &Lease,
        delivery: &Delivery,
        intent: Option<&str>,
        fetch: Fetch<'_>,
    ) -> Result<Verdict> {
        let Some(intent) = intent else {
            return Ok(Verdict::Ignored("the charge belongs to no PaymentIntent".to_owned()));
        };
        let access = self.access(lease.organization_id, delivery.integration_id).await?;
        let mut known = self.payment_of_intent(delivery, intent).await?;
        if known.is_none() {
            let read = match self.0.stripe.payment_intent(&access.key, intent).await {
                Ok(read) => read,
                Err(error) if error.is_missing() => {
                    return Ok(Verdict::Ignored("Stripe does not know the PaymentIntent".to_owned()));
                }
                Err(error) => return Err(self.stripe_trouble(&access, "payment_intent.read", &error).await),
            };
            let verdict = self.intent_told(lease, delivery, None, read).await?;
            if !matches!(verdict, Verdict::Applied) {
                return Ok(verdict);
            }
            known = self.payment_of_intent(delivery, intent).await?;
        }
        let Some(id) = known else {
            return Ok(Verdict::Unknown("the PaymentIntent belongs to no payment of ours".to_owned()));
        };
        self.read_settlement(lease, id, &access, &fetch).await?;
        Ok(Verdict::Applied)
    }

    /// The payment whose money an intent has taken, as far as is known.
    async fn payment_of_intent(&self, delivery: &Delivery, intent: &str) -> Result<Option<PaymentId>> {
        let (org, integration) = (delivery.organization_id, delivery.integration_id);
        let mut tx = self.read(org).await?;
        let id = store::payments::id_by_intent(&mut tx, org, integration, intent).await?;
        tx.close().await?;
        Ok(id)
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
        self.refresh_payment(Hand::Job(lease), payment.id).await.map(|_| ())
    }

    /// An intent that names a payment and is not the payment's: of an earlier round, made by hand, or of a link that had
    /// failed. If it has taken money for an invoice, that is never silent (P12).
    async fn other_intent(
        &self,
        lease: &Lease,
        delivery: &Delivery,
        id: PaymentId,
        intent: &IntentSnapshot,
    ) -> Result<Verdict> {
        if intent.status != IntentStatus::Succeeded {
            return Ok(Verdict::Ignored("another PaymentIntent of the payment than the one that collects".to_owned()));
        }
        let mut intent = Cow::Borrowed(intent);
        if delivery.polled {
            // In the account's own version it may lack its charge.
            let access = self.access(lease.organization_id, delivery.integration_id).await?;
            intent = match self.0.stripe.payment_intent(&access.key, &intent.id).await {
                Ok(read) => Cow::Owned(read),
                Err(error) => return Err(self.stripe_trouble(&access, "payment_intent.read", &error).await),
            };
        }
        let mut work = self.begin_leased(lease).await?;
        let mut scene = Scene::load(&mut work, id).await?;
        let otherness = otherness(&scene, delivery, &intent);
        if scene.payment.provider_payment_intent_id.as_ref() == Some(&intent.id) {
            // It is the payment's own by now.
            scene.news(&mut work, News::Intent(&intent)).await?;
        } else if let Some(reason) = otherness.filter(|_| intent.organization_id.is_none()) {
            work.abandon().await?;
            return Ok(Verdict::Ignored(reason.to_owned()));
        } else {
            scene.paid_beside(&mut work, delivery.integration_id, &intent, otherness.is_none()).await?;
        }
        work.commit().await?;
        Ok(Verdict::Applied)
    }
}

/// Why money does not count for the payment's invoice although it names it. Without our marks, which only we write, that
/// is no business of the payment's.
fn otherness(scene: &Scene, delivery: &Delivery, intent: &IntentSnapshot) -> Option<&'static str> {
    let payment = &scene.payment;
    let customer = scene.customer.linked_provider_id();
    if payment.integration_id != delivery.integration_id {
        return Some("the PaymentIntent names an invoice of another integration");
    }
    if customer.is_none() || intent.provider_customer_id.as_deref() != customer {
        return Some("the PaymentIntent names an invoice of another customer");
    }
    (intent.amount.currency != payment.amount.currency)
        .then_some("the PaymentIntent names an invoice in another currency")
}

/// Why an event is not its integration's, though it came to its door: an organization's accounts, and their two modes,
/// are kept apart.
fn strangeness(observed: &Observation, integration: &Integration) -> Option<String> {
    if let Some(claimed) = &observed.account
        && integration.provider_account_id.as_ref() != Some(claimed)
    {
        let own = integration.provider_account_id.as_deref().unwrap_or("not known");
        return Some(format!("the event claims the account {claimed}, and the integration's is {own}"));
    }
    let mode = |livemode| if livemode { "live" } else { "test" };
    (observed.livemode != integration.livemode).then(|| {
        let (theirs, ours) = (mode(observed.livemode), mode(integration.livemode));
        format!("the event is of {theirs} mode, and the integration of {ours} mode")
    })
}

/// The payment that an intent collects for, or names, and whether we made the intent. One that somebody else made counts
/// if it names an invoice or a payment that the same integration collects.
async fn payment_of(
    tx: &mut store::Transaction,
    org: OrganizationId,
    delivery: &Delivery,
    intent: &IntentSnapshot,
) -> Result<Result<(Payment, bool), Verdict>> {
    let by_intent = store::payments::id_by_intent(tx, org, delivery.integration_id, &intent.id).await?;
    let marked = intent.payment_id.map(PaymentId::from);
    let (payment, is_ours) = match (by_intent, intent.organization_id) {
        (Some(id), _) => (store::payments::get(tx, org, id).await?, true),
        (None, Some(owner)) if owner != org.0 => {
            return Ok(Err(Verdict::Ignored("the PaymentIntent is another organization's".to_owned())));
        }
        (None, owner) => {
            let found = match (marked, &intent.invoice_id) {
                (Some(id), _) => store::payments::get(tx, org, id).await?,
                (None, Some(invoice)) => store::payments::get_by_invoice(tx, org, invoice).await?,
                (None, None) => {
                    return Ok(Err(Verdict::Ignored("the PaymentIntent was not made by us".to_owned())));
                }
            };
            let is_ours = owner.is_some();
            (found.filter(|payment| is_ours || payment.integration_id == delivery.integration_id), is_ours)
        }
    };
    Ok(payment.map(|payment| (payment, is_ours)).ok_or_else(|| {
        Verdict::Unknown("the PaymentIntent names a payment or an invoice that is not known".to_owned())
    }))
}
