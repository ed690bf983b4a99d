//! Payment links: Checkout sessions in payment mode, on which a payer pays one invoice. A link holds the payment's slot
//! from before it is created (P1): it opens only after the payment's intent is closed, and while it is open nothing
//! else can take money. It ends when it is used, after Stripe's 24 hours, or when the payment is canceled, retried,
//! settled or changes its amount.

use time::Duration;

use super::PaymentContext;
use super::close::{LINK, refused};
use crate::app::request_hash::hash_request;
use crate::app::stripe_requests::{stopped, unplanned};
use crate::app::unit_of_work::{Actor, UnitOfWork};
use crate::app::{App, StripeAccount, stripe_unavailable};
use crate::domain::integrations::{Integration, MOVE_PAYMENT};
use crate::domain::jobs::JobKind;
use crate::domain::payments::{
    Attempt, AttemptState, Failure, Link, Payment, PaymentInput, PaymentState, Step, link_rejection,
};
use crate::domain::signals::{SessionSnapshot, SessionStatus};
use crate::domain::stripe_requests::{KeyState, Next, Observed, Purpose, StripeRequest};
use crate::domain::{Error, OrganizationId, PaymentId, Result};
use crate::store::request_ids::CallerRequest;
use crate::stripe::Operation;
use crate::{store, stripe};

/// After how long a job checks that the call that creates a link completed.
const LINK_PERIOD: Duration = Duration::seconds(30);

/// How long after its expiry a link is read if no event reports it.
pub(super) const LINK_END_PERIOD: Duration = Duration::MINUTE;

/// The maximum number of steps per call: close the intent, create the link. After a restore, several keys may be taken.
const STEPS_MAX: usize = 10;

impl App {
    /// Creates a payment link, or returns the open one. A repeated request returns its own link, even if newer links
    /// exist.
    pub async fn create_payment_url(
        &self,
        org: OrganizationId,
        request_id: String,
        id: PaymentId,
        success_url: Option<String>,
    ) -> Result<(Payment, Option<Link>)> {
        let request = CallerRequest {
            id: request_id,
            body_hash: hash_request("CreatePaymentUrl", &[&id.to_string(), success_url.as_deref().unwrap_or_default()]),
        };
        let mut number = self.accept_link(org, &request, id, success_url.clone()).await?;
        for _ in 0..STEPS_MAX {
            let mut work = self.begin(org).await?;
            let context = PaymentContext::load(&mut work, id).await?;
            work.rollback().await?;
            if context.payment.attempt_number != number {
                break;
            }
            match context.plan() {
                Step::CloseIntent => {
                    if self.close_intent(Actor::Caller(org), context).await?.is_break() {
                        break;
                    }
                }
                Step::CreateLink => {
                    if self.create_link(Actor::Caller(org), context).await? == LinkOutcome::KeyTaken {
                        number = self.prepare_another_link(org, &request.id, id, success_url.clone()).await?;
                    }
                }
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

    /// The number of the link that a request stands for: one that it has created before, the open one, or else a new one,
    /// which is to be created at Stripe.
    async fn accept_link(
        &self,
        org: OrganizationId,
        request: &CallerRequest,
        id: PaymentId,
        success_url: Option<String>,
    ) -> Result<i32> {
        let mut work = self.begin(org).await?;
        store::request_ids::lock(&mut work.tx, org, &request.id).await?;
        let is_known = store::request_ids::resource_of(&mut work.tx, org, request).await?.is_some();
        let mut context = PaymentContext::load(&mut work, id).await?;
        if is_known {
            return store::request_ids::attempt_of(&mut work.tx, org, &request.id).await;
        }
        if context.open_link().is_none() {
            self.prepare_link(&mut work, &mut context, success_url).await?;
        }
        let number = context.payment.attempt_number;
        store::request_ids::insert(&mut work.tx, org, request, id.0, work.now).await?;
        store::request_ids::set_attempt(&mut work.tx, org, &request.id, number).await?;
        work.commit().await?;
        Ok(number)
    }

    /// Prepares another link for a request whose link was not created. Returns its number.
    async fn prepare_another_link(
        &self,
        org: OrganizationId,
        request_id: &str,
        id: PaymentId,
        success_url: Option<String>,
    ) -> Result<i32> {
        let mut work = self.begin(org).await?;
        let mut context = PaymentContext::load(&mut work, id).await?;
        if context.open_link().is_none() {
            self.prepare_link(&mut work, &mut context, success_url).await?;
        }
        let number = context.payment.attempt_number;
        store::request_ids::set_attempt(&mut work.tx, org, request_id, number).await?;
        work.commit().await?;
        Ok(number)
    }

    /// Writes a link and its prepared request, to be created at Stripe. From here on it holds the slot.
    async fn prepare_link(
        &self,
        work: &mut UnitOfWork,
        context: &mut PaymentContext,
        success_url: Option<String>,
    ) -> Result<()> {
        let payment = &context.payment;
        if let Some(rejection) = link_rejection(payment, context.attempt.as_ref()) {
            return Err(refused(rejection, payment, &LINK));
        }
        let subject = format!("payment/{}", payment.id);
        context.integration.check_accepts_work(subject.clone(), MOVE_PAYMENT)?;
        let provider_customer = context.customer.linked_provider_id();
        let Some(provider_customer) =
            provider_customer.filter(|_| context.customer.integration_id == Some(payment.integration_id))
        else {
            let message = "the customer has no Stripe customer yet; create or link one first";
            return Err(Error::precondition("CUSTOMER_NOT_LINKED", subject, message));
        };
        let kinds = context.customer.kinds_for(payment.amount.currency);
        if payment.amount.minor_units == 0 || kinds.is_empty() {
            let message =
                "there is nothing to pay, or none of the customer's kinds of payment method supports its currency";
            return Err(Error::precondition("PAYMENT_URL_REFUSED", subject, message));
        }
        let success_url = self.success_url(success_url, &context.integration);
        let number = payment.next_attempt_number();
        let installation = work.installation();
        let body =
            stripe::checkout_sessions::payment_body(installation, payment, provider_customer, &kinds, &success_url);
        let target = Purpose::PaymentLink.of(&payment.invoice_id);
        let attempt = Attempt::new_link(payment, target.request(work.key_scope(), number, body, work.now));
        store::attempts::insert(&mut work.tx, work.org, &attempt).await?;
        context.payment.attempt_number = number;
        if context.payment.provider_payment_intent_id.is_none() {
            // An intent being created concurrently is not waited for, and will never be confirmed.
            context.payment.intent_number += 1;
        }
        store::payments::save(&mut work.tx, &mut context.payment, work.now).await?;
        let at = work.now + LINK_PERIOD;
        work.enqueue_at(JobKind::SubmitPayment, context.payment.id.0, at);
        context.attempt = Some(attempt);
        Ok(())
    }

    /// Creates the session at Stripe. Until its id is committed nobody has its URL, so a creation whose outcome stays
    /// unknown is abandoned without harm.
    pub(super) async fn create_link(&self, actor: Actor<'_>, context: PaymentContext) -> Result<LinkOutcome> {
        let Some(attempt) = context.attempt.as_ref().filter(|attempt| attempt.open_link().is_some()) else {
            return Ok(LinkOutcome::Settled);
        };
        let (id, now) = (context.payment.id, self.clock().now());
        let account = self.stripe_account(actor.org(), context.payment.integration_id).await?;
        let target = Purpose::PaymentLink.of(&context.payment.invoice_id);
        let (mut request, mut observed) = (attempt.request.clone(), Observed::Unread);
        let session = loop {
            match request.next(observed, now) {
                Next::Send => {}
                Next::Abandon => {
                    let text = "Stripe did not create the payment page; request a new link";
                    let failure = Failure::ours(Failure::PAYMENT_URL_FAILED, text);
                    let failed = self.fail_link(actor, id, attempt.number, failure).await;
                    let is_taken = matches!(request.key_state, KeyState::Taken(_));
                    return if is_taken { Ok(LinkOutcome::KeyTaken) } else { failed.map(|()| LinkOutcome::Settled) };
                }
                Next::Read => {
                    self.close_unknown_pages(&account, &context).await?;
                    observed = Observed::Absent;
                    continue;
                }
                Next::Wait(_) | Next::NewKey | Next::Done | Next::Stop(_) => return Err(unplanned(&target)),
            }
            match self.0.stripe.create_checkout_session(&account.key, &request).await {
                Ok(created) if !created.is_replayed => break created.object,
                Ok(replayed) => {
                    let session = self.read_session(&account, &replayed.object.id).await?;
                    if session.status != SessionStatus::Expired {
                        break session;
                    }
                    observed = Observed::Spent;
                }
                Err(error) if error.disposition() == stripe::Disposition::Refused => {
                    let failed = self.fail_link(actor, id, attempt.number, Failure::from(error.detail())).await;
                    return failed.map(|()| LinkOutcome::Settled);
                }
                Err(error) => match error.key_state(now) {
                    Some(key_state) => {
                        request.key_state = key_state;
                        self.save_key_state(actor, id, &request).await?;
                    }
                    None => return self.checked(&account, Operation::CheckoutSessionCreate, Err(error)).await,
                },
            }
        };
        self.on_link_created(actor, &context, &account, &session).await.map(|()| LinkOutcome::Settled)
    }

    /// Closes the pages of a payment's invoice that are not known: their rows were lost. One that was paid stops the
    /// request, and the slot stays taken (P1).
    async fn close_unknown_pages(&self, account: &StripeAccount, context: &PaymentContext) -> Result<()> {
        let Some(customer) = context.customer.linked_provider_id() else { return Ok(()) };
        let found = self.0.stripe.checkout_sessions_of(&account.key, customer).await;
        let found = self.checked(account, Operation::CheckoutSessionList, found).await?;
        for session in found {
            let own = &self.0.settings.installation;
            let is_of_invoice = session.organization_id == Some(account.org.0)
                && session.installation.as_ref().is_none_or(|name| name == own)
                && session.invoice_id.as_ref() == Some(&context.payment.invoice_id);
            if !is_of_invoice || session.status == SessionStatus::Expired {
                continue;
            }
            let mut tx = self.read(account.org).await?;
            let is_known = store::attempts::payment_of_session(&mut tx, account.org, &session.id).await?.is_some();
            tx.close().await?;
            if is_known {
                continue;
            }
            if session.status == SessionStatus::Complete {
                let target = Purpose::PaymentLink.of(&context.payment.invoice_id);
                return Err(stopped(&target, "a page that was made for the invoice, and is not known, was completed"));
            }
            let expired = self.0.stripe.expire_checkout_session(&account.key, &session.id).await;
            if let Err(error) = expired {
                // It may have been completed meanwhile: the next read shows that.
                return Err(stripe_unavailable(&error));
            }
        }
        Ok(())
    }

    /// Records what Stripe has shown of the key of a payment's newest attempt.
    async fn save_key_state(&self, actor: Actor<'_>, id: PaymentId, request: &StripeRequest) -> Result<()> {
        let mut work = self.begin_as(actor).await?;
        let mut context = PaymentContext::load(&mut work, id).await?;
        if let Some(attempt) = context.attempt.as_mut().filter(|newest| newest.number == request.generation) {
            attempt.request.key_state = request.key_state;
            store::attempts::save_outcome(&mut work.tx, work.org, attempt).await?;
        }
        work.commit().await
    }

    /// The session exists: its URL may be handed out if the link is still wanted.
    async fn on_link_created(
        &self,
        actor: Actor<'_>,
        context: &PaymentContext,
        account: &StripeAccount,
        created: &SessionSnapshot,
    ) -> Result<()> {
        let id = context.payment.id;
        let mut work = self.begin_as(actor).await?;
        let mut current = PaymentContext::load(&mut work, id).await?;
        let is_wanted =
            current.payment.attempt_number == context.payment.attempt_number && current.plan() == Step::CreateLink;
        if is_wanted {
            current.apply(&mut work, PaymentInput::LinkCreated(created)).await?;
            work.enqueue_at(JobKind::ReconcilePayment, id.0, created.expire_time + LINK_END_PERIOD);
            return work.commit().await;
        }
        let is_current =
            current.open_link().is_some_and(|link| link.provider_session_id.as_deref() == Some(created.id.as_str()));
        work.rollback().await?;
        if !is_current {
            // It was withdrawn meanwhile, and its URL has never left Paybridge. If this fails, it expires within a day.
            if let Err(error) = self.0.stripe.expire_checkout_session(&account.key, &created.id).await {
                tracing::info!(payment.id = %id, %error, "unused payment link not expired");
            }
        }
        Ok(())
    }

    /// Reads a Checkout session.
    pub(in crate::app) async fn read_session(&self, account: &StripeAccount, id: &str) -> Result<SessionSnapshot> {
        let read = self.0.stripe.checkout_session(&account.key, id).await;
        self.checked(account, Operation::CheckoutSessionRead, read).await
    }

    async fn fail_link(&self, actor: Actor<'_>, id: PaymentId, number: i32, failure: Failure) -> Result<()> {
        let message = failure.message.clone();
        let mut work = self.begin_as(actor).await?;
        let mut context = PaymentContext::load(&mut work, id).await?;
        if context.payment.attempt_number == number {
            context.apply(&mut work, PaymentInput::LinkRefused(failure)).await?;
            if context.payment.state() == PaymentState::Pending {
                work.enqueue(JobKind::SubmitPayment, id.0);
            }
        }
        work.commit().await?;
        Err(Error::precondition("PAYMENT_URL_REFUSED", format!("payment/{id}"), message))
    }

    /// Where Stripe redirects the customer afterwards: the call's own URL, else the integration's, else the service's.
    pub(in crate::app) fn success_url(&self, requested: Option<String>, integration: &Integration) -> String {
        requested
            .or_else(|| integration.success_redirect_url.clone())
            .unwrap_or_else(|| self.0.settings.default_success_url.clone())
    }
}

/// What became of the creation of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkOutcome {
    /// It was created, or is no longer wanted.
    Settled,
    /// It has failed, because its key was used for another page. That page is closed, and another link can be created.
    KeyTaken,
}

/// The link of an attempt: `None` if it was used or has ended, an error if it was never created.
fn link_of(payment: &Payment, attempt: &Attempt) -> Result<Option<Link>> {
    if attempt.link().is_none_or(|link| link.provider_session_id.is_some()) {
        return Ok(attempt.open_link().cloned());
    }
    let message = match &attempt.state {
        AttemptState::Failed(failure) => failure.message.clone(),
        _ => format!(
            "the payment became {} before the link was created; read the payment",
            payment.state().as_str().to_uppercase()
        ),
    };
    Err(Error::precondition("PAYMENT_URL_REFUSED", format!("payment/{}", payment.id), message))
}
