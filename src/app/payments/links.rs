//! Links: pages of Stripe's on which a payer pays one invoice. A link holds the payment's one slot from before it is made
//! (P1): it opens only after the payment's intent is closed, and while it is open nothing else can take money. It ends when
//! it is used, after Stripe's 24 hours, or when the payment is canceled, retried, settled or changes its amount.

use time::Duration;

use super::close::{LINK, refused};
use super::{Scene, hash_request};
use crate::app::work::{Hand, Work};
use crate::app::{App, KEY_AGE_MAX};
use crate::domain::integrations::{Integration, MOVE_PAYMENT};
use crate::domain::jobs::JobKind;
use crate::domain::payments::{
    Attempt, AttemptState, Failure, Link, News, Payment, PaymentState, Step, Way, link_objection,
};
use crate::domain::{Error, OrganizationId, PaymentId, Result};
use crate::{store, stripe};

/// After how long a job looks whether the call that makes a link came to its end.
const LINK_PERIOD: Duration = Duration::seconds(30);

/// How long after its end a link is looked at, should nobody tell.
pub(super) const LINK_END_PERIOD: Duration = Duration::MINUTE;

/// Steps of one call: the intent is closed, the link made.
const STEPS_MAX: usize = 4;

impl App {
    /// Makes a link to a page where the payer pays the invoice; the open one, if there is one. A repeated request stands for
    /// its own link, whatever links came after it.
    pub async fn create_payment_url(
        &self,
        org: OrganizationId,
        request_id: String,
        id: PaymentId,
        success_url: Option<String>,
    ) -> Result<(Payment, Option<Link>)> {
        let hash = hash_request("CreatePaymentUrl", &[&id.to_string(), success_url.as_deref().unwrap_or_default()]);
        let mut work = self.begin(org).await?;
        store::requests::claim(&mut work.tx, org, &request_id).await?;
        let is_known = store::requests::known(&mut work.tx, org, &request_id, &hash).await?.is_some();
        let mut scene = Scene::load(&mut work, id).await?;
        let number = if is_known {
            store::requests::attempt_of(&mut work.tx, org, &request_id).await?.unwrap_or(scene.payment.attempt_number)
        } else {
            if scene.open_link().is_none() {
                self.freeze_link(&mut work, &mut scene, success_url).await?;
            }
            let number = scene.payment.attempt_number;
            store::requests::take(&mut work.tx, org, &request_id, &hash, id.0, work.now).await?;
            store::requests::note_attempt(&mut work.tx, org, &request_id, number).await?;
            number
        };
        work.commit().await?;
        for _ in 0..STEPS_MAX {
            let mut work = self.begin(org).await?;
            let scene = Scene::load(&mut work, id).await?;
            work.abandon().await?;
            if scene.payment.attempt_number != number {
                break;
            }
            match scene.plan() {
                Step::CloseIntent => {
                    if self.close_intent(Hand::Caller(org), scene).await?.is_break() {
                        break;
                    }
                }
                Step::MakeLink => self.make_link(Hand::Caller(org), scene).await?,
                _ => break,
            }
        }
        let (payment, attempts) = self.get_payment(org, super::PaymentRef::Id(id)).await?;
        let link = match attempts.into_iter().find(|attempt| attempt.number == number) {
            Some(attempt) => link_of(&payment, &attempt)?,
            None => None,
        };
        Ok((payment, link))
    }

    /// Writes the link that is to be made, with its frozen request. From here on it holds the slot.
    async fn freeze_link(&self, work: &mut Work, scene: &mut Scene, success_url: Option<String>) -> Result<()> {
        let payment = &scene.payment;
        if let Some(objection) = link_objection(payment, scene.attempt.as_ref()) {
            return Err(refused(objection, payment, &LINK));
        }
        let subject = format!("payment/{}", payment.id);
        scene.integration.check_accepts_work(subject.clone(), MOVE_PAYMENT)?;
        let provider_customer = scene.customer.linked_provider_id();
        let Some(provider_customer) =
            provider_customer.filter(|_| scene.customer.integration_id == Some(payment.integration_id))
        else {
            let message = "the customer has no Stripe customer yet; have one created, or link one, first";
            return Err(Error::precondition("CUSTOMER_NOT_LINKED", subject, message));
        };
        let kinds = scene.customer.kinds_for(payment.amount.currency);
        if payment.amount.minor_units == 0 || kinds.is_empty() {
            let message =
                "there is nothing to be paid, or none of the customer's kinds of payment method takes its currency";
            return Err(Error::precondition("PAYMENT_URL_REFUSED", subject, message));
        }
        let success_url = self.success_url(success_url, &scene.integration);
        let number = payment.attempt_number + 1;
        let attempt = Attempt {
            payment_id: payment.id,
            number,
            amount: payment.amount,
            way: Way::Link(Link::default()),
            provider_payment_intent_id: None,
            idempotency_key: format!("paybridge-link-{}-{number}", payment.id),
            body: stripe::checkout_sessions::payment_body(payment, number, provider_customer, &kinds, &success_url),
            prior_charge: None,
            prior_error: None,
            state: AttemptState::Open,
            provider_charge_id: None,
            dead_key_time: None,
            create_time: work.now,
            finish_time: None,
        };
        store::attempts::insert(&mut work.tx, work.org, &attempt).await?;
        scene.payment.attempt_number = number;
        if scene.payment.provider_payment_intent_id.is_none() {
            // An intent that is in the making just now is not waited for, and will never be confirmed.
            scene.payment.intent_number += 1;
        }
        store::payments::save(&mut work.tx, &mut scene.payment, work.now).await?;
        let at = work.now + LINK_PERIOD;
        work.ask_at(JobKind::SubmitPayment, scene.payment.id.0, at);
        scene.attempt = Some(attempt);
        Ok(())
    }

    /// Makes the page at Stripe. Until its id is committed nobody has the link, so a creation whose outcome stays unknown
    /// is given up without harm.
    pub(super) async fn make_link(&self, hand: Hand<'_>, scene: Scene) -> Result<()> {
        let Some(attempt) = scene.attempt.as_ref().filter(|attempt| attempt.open_link().is_some()) else {
            return Ok(());
        };
        let id = scene.payment.id;
        if self.clock().now() - attempt.create_time > KEY_AGE_MAX {
            let text = "Stripe could not be reached for too long; ask for a new link";
            return self.link_refused(hand, id, attempt.number, Failure::ours("payment_url_failed", text)).await;
        }
        let access = self.access(hand.org(), scene.payment.integration_id).await?;
        let made = self.0.stripe.create_checkout_session(&access.key, &attempt.idempotency_key, &attempt.body).await;
        let made = match made {
            Ok(made) => made,
            Err(error) if error.verdict() == stripe::Verdict::Refused => {
                return self.link_refused(hand, id, attempt.number, Failure::from(error.detail())).await;
            }
            Err(stripe::Error::Unknown { replayed: true, .. }) => {
                let text = "Stripe had an error of its own; ask for a new link";
                return self.link_refused(hand, id, attempt.number, Failure::ours("payment_url_failed", text)).await;
            }
            Err(error) => return Err(self.stripe_trouble(&access, "checkout_session.create", &error).await),
        };
        let mut work = self.begin_by(hand).await?;
        let mut now_scene = Scene::load(&mut work, id).await?;
        let is_wanted = now_scene.payment.attempt_number == attempt.number && now_scene.plan() == Step::MakeLink;
        if is_wanted {
            now_scene.news(&mut work, News::LinkMade(&made)).await?;
            work.ask_at(JobKind::ReconcilePayment, id.0, made.expire_time + LINK_END_PERIOD);
            return work.commit().await;
        }
        let is_there =
            now_scene.open_link().is_some_and(|link| link.provider_session_id.as_deref() == Some(made.id.as_str()));
        work.abandon().await?;
        if !is_there {
            // It was withdrawn meanwhile, and has left nobody's hands. It ends by itself in a day, should this not succeed.
            let idempotency_key = format!("paybridge-expire-{}", self.clock().new_id());
            if let Err(error) = self.0.stripe.expire_checkout_session(&access.key, &made.id, &idempotency_key).await {
                tracing::info!(payment.id = %id, %error, "a link that nobody has could not be ended");
            }
        }
        Ok(())
    }

    async fn link_refused(&self, hand: Hand<'_>, id: PaymentId, number: i32, failure: Failure) -> Result<()> {
        let message = failure.message.clone();
        let mut work = self.begin_by(hand).await?;
        let mut scene = Scene::load(&mut work, id).await?;
        if scene.payment.attempt_number == number {
            scene.news(&mut work, News::LinkRefused(failure)).await?;
            if scene.payment.state == PaymentState::Pending {
                work.ask(JobKind::SubmitPayment, id.0);
            }
        }
        work.commit().await?;
        Err(Error::precondition("PAYMENT_URL_REFUSED", format!("payment/{id}"), message))
    }

    /// Where Stripe sends the customer afterwards: the call's own address, else the integration's, else the service's.
    pub(in crate::app) fn success_url(&self, asked: Option<String>, integration: &Integration) -> String {
        asked
            .or_else(|| integration.success_redirect_url.clone())
            .unwrap_or_else(|| self.0.settings.default_success_url.clone())
    }
}

/// The link that an attempt stands for: none if it was used or has ended; and why, if it never came to be.
fn link_of(payment: &Payment, attempt: &Attempt) -> Result<Option<Link>> {
    if attempt.link().is_none_or(|link| link.provider_session_id.is_some()) {
        return Ok(attempt.open_link().cloned());
    }
    let message = match &attempt.state {
        AttemptState::Failed(failure) => failure.message.clone(),
        _ => format!("the payment was {} before the link was there; read it", payment.state.as_str().to_uppercase()),
    };
    Err(Error::precondition("PAYMENT_URL_REFUSED", format!("payment/{}", payment.id), message))
}
