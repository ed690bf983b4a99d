//! Cancelling a payment. What never reached Stripe is canceled at once; else the request is recorded, and Stripe's
//! answer decides: an intent in `processing` usually can't be canceled, and then the payment goes on.

use time::OffsetDateTime;

use super::Scene;
use crate::app::App;
use crate::app::tell;
use crate::domain::events::{NewEvent, Payload};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::payments::{News, Payment, PaymentState};
use crate::domain::signals::IntentStatus;
use crate::domain::{Error, OrganizationId, PaymentId, Result};
use crate::store;
use crate::stripe;

impl App {
    /// Asks for a payment to be canceled. The answer is its present state; `CANCELED` is told by an event.
    pub async fn cancel_payment(&self, org: OrganizationId, id: PaymentId) -> Result<Payment> {
        let mut work = self.begin(org).await?;
        let mut scene = Scene::load(&mut work, id).await?;
        match scene.payment.state {
            PaymentState::Canceled => return Ok(scene.payment),
            PaymentState::Succeeded => {
                let message =
                    "the payment is SUCCEEDED, which is final; money that was taken is given back by a refund";
                return Err(Error::precondition("PAYMENT_NOT_CANCELABLE", format!("payment/{id}"), message));
            }
            _ => {}
        }
        if scene.payment.provider_payment_intent_id.is_none() {
            // An intent that may be in the making is unconfirmed, and will never be confirmed: it can take no money.
            scene.news(&mut work, News::Withdrawn).await?;
        } else {
            scene.payment.cancel_request_time.get_or_insert(work.now);
            store::payments::save(&mut work.tx, &mut scene.payment, work.now).await?;
            work.ask(JobKind::CancelPayment, id.0);
        }
        work.commit().await?;
        Ok(scene.payment)
    }

    /// The job of a payment whose cancellation was asked for.
    pub(in crate::app) async fn finish_cancellation(&self, lease: &Lease) -> Result<()> {
        let id: PaymentId = lease.object_id.into();
        let mut work = self.begin_leased(lease).await?;
        let scene = Scene::load(&mut work, id).await?;
        let payment = &scene.payment;
        let intent_id = payment.provider_payment_intent_id.clone().filter(|_| payment.cancel_request_time.is_some());
        let Some(intent_id) = intent_id.filter(|_| !payment.state.is_final()) else {
            return work.end(Outcome::Done).await;
        };
        let payment = scene.payment;
        work.abandon().await?;
        let access = self.access(lease.organization_id, payment.integration_id).await?;
        // The key names the request to cancel and the try, so that none is answered with an earlier refusal or a stored
        // 500 for a day; to cancel twice harms nobody.
        let asked = payment.cancel_request_time.map(OffsetDateTime::unix_timestamp_nanos).unwrap_or_default();
        let idempotency_key = format!("paybridge-cancel-{id}-{}-{asked}-{}", payment.intent_number, lease.failures);
        match self.0.stripe.cancel_payment_intent(&access.key, &intent_id, &idempotency_key).await {
            Ok(_) => {}
            Err(error) if matches!(error.verdict(), stripe::Verdict::Refused | stripe::Verdict::Unknown) => {}
            Err(error) => return Err(self.stripe_trouble(&access, "payment_intent.cancel", &error).await),
        }
        // Whether it was canceled, refused or lost: the intent itself says where it stands.
        let intent = self.refresh_payment(lease, id).await?;
        let mut work = self.begin_leased(lease).await?;
        let mut scene = Scene::load(&mut work, id).await?;
        let goes_on = matches!(&intent, Some(intent) if intent.status == IntentStatus::Processing);
        if goes_on && scene.payment.state == PaymentState::Processing {
            scene.payment.cancel_request_time = None;
            store::payments::save(&mut work.tx, &mut scene.payment, work.now).await?;
            let told = NewEvent {
                webhook_type: "payment.cancellation_refused",
                payload: Payload::Payment(tell::payment_object(&scene.about())),
            };
            work.tell(told);
        } else if !scene.payment.state.is_final() {
            work.abandon().await?;
            let message = "Stripe has not canceled the intent, and does not say why";
            return Err(Error::precondition("INTENT_NOT_CANCELED", format!("payment/{id}"), message));
        }
        work.end(Outcome::Done).await
    }
}
