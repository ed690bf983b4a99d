//! The job that collects a payment and closes what is open before another payment path is opened (`close`, `links`).
//! Charging has two steps: the PaymentIntent is created unconfirmed, so that no money can move, and its id is
//! committed; then that id is confirmed. Each body is committed before it is first sent, and sent again unchanged (P2).
//! If the process is killed at any point, the next worker reads what is committed and continues from there (P8).

use std::ops::ControlFlow;

use time::{Duration, OffsetDateTime};

use super::PaymentContext;
use crate::app::stripe_requests::{stopped, unplanned};
use crate::app::unit_of_work::{Actor, UnitOfWork};
use crate::app::{App, StripeAccount, if_found};
use crate::domain::integrations::IntegrationState;
use crate::domain::jobs::{Lease, Outcome};
use crate::domain::payment_methods::MethodKind;
use crate::domain::payments::{Attempt, AttemptState, Failure, PaymentInput, Step};
use crate::domain::signals::IntentSnapshot;
use crate::domain::stripe_requests::{KeyState, Next, Observed, Purpose, RequestTarget};
use crate::domain::{Error, PaymentId, PaymentMethodId, Result};
use crate::stripe::Operation;
use crate::{store, stripe};

/// The maximum number of steps per run of the job. A payment needs three: create the intent, prepare
/// the attempt, send it. It needs more if a local decision comes first, or an open payment path is closed.
const STEPS_MAX: usize = 10;

/// How long a payment of an integration that catches up waits before it is looked at again. It is looked at as soon as
/// the integration has caught up.
const CATCH_UP_PERIOD: Duration = Duration::MINUTE;

impl App {
    /// Runs the job of a payment that may have to be sent to Stripe.
    pub(in crate::app) async fn submit_payment(&self, lease: &Lease) -> Result<()> {
        let id: PaymentId = lease.object_id.into();
        let mut has_read_methods = false;
        let mut is_new_intent = false;
        for _ in 0..STEPS_MAX {
            let Some((mut work, mut context)) = self.begin_step(lease, id).await? else { return Ok(()) };
            if let Some(input) = precheck(&context) {
                context.apply(&mut work, input).await?;
                work.commit().await?;
                continue;
            }
            match context.plan() {
                Step::Idle => return work.end(Outcome::Done).await,
                // A method stored recently may be attached although its webhook has not arrived. One read per run, so that
                // a customer without methods costs one read and not one per step.
                step if step.lacks_method() && !has_read_methods => {
                    work.rollback().await?;
                    self.read_payment_methods(lease, context.customer.id).await?;
                    has_read_methods = true;
                }
                Step::Apply(input) => {
                    context.apply(&mut work, *input).await?;
                    if context.payment.pending_operation.is_none() {
                        return work.end(Outcome::Done).await;
                    }
                    work.commit().await?;
                }
                Step::CloseLink => {
                    work.rollback().await?;
                    if self.close_link(Actor::Job(lease), context).await?.is_break() {
                        return self.finish_job(lease).await.map(|_| ());
                    }
                }
                Step::CloseIntent => {
                    work.rollback().await?;
                    if self.close_intent(Actor::Job(lease), context).await?.is_break() {
                        return self.finish_job(lease).await.map(|_| ());
                    }
                }
                Step::CreateLink => {
                    work.rollback().await?;
                    match self.create_link(Actor::Job(lease), context).await {
                        Ok(_) | Err(Error::FailedPrecondition { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Step::CreateIntent { kinds } => match self.create_intent(lease, work, context, kinds).await? {
                    ControlFlow::Break(()) => return Ok(()),
                    ControlFlow::Continue(is_new) => is_new_intent = is_new,
                },
                Step::PrepareAttempt { method, kinds } => {
                    work.rollback().await?;
                    let mut intent = None;
                    // An intent that this run has created has no charge or error yet.
                    if context.attempt.is_some() || !is_new_intent {
                        intent = self.intent_before_confirm(lease, &context).await?;
                        if intent.is_none() {
                            continue;
                        }
                    }
                    self.prepare_attempt(lease, &context, intent.as_ref(), method, &kinds).await?;
                }
                Step::Resume => {
                    work.rollback().await?;
                    if self.resume(lease, context).await?.is_break() {
                        return Ok(());
                    }
                }
            }
        }
        Err(Error::internal(anyhow::anyhow!("the payment {id} does not settle within {STEPS_MAX} steps")))
    }

    /// Begins a step. `None`: the integration catches up, and the job has ended. What Stripe knows of the payment may not
    /// be known here yet.
    async fn begin_step(&self, lease: &Lease, id: PaymentId) -> Result<Option<(UnitOfWork, PaymentContext)>> {
        let mut work = self.begin_leased(lease).await?;
        let context = PaymentContext::load(&mut work, id).await?;
        if !context.integration.is_catching_up() {
            return Ok(Some((work, context)));
        }
        let again = work.now + CATCH_UP_PERIOD;
        work.end(Outcome::Postponed(again)).await?;
        Ok(None)
    }

    /// Reads the intent before a further confirmation, so that the attempt can record its charge and error. `None`: the
    /// payment has changed meanwhile, or the intent has a new outcome; plan again.
    async fn intent_before_confirm(&self, lease: &Lease, context: &PaymentContext) -> Result<Option<IntentSnapshot>> {
        let id = context.payment.id;
        let Some(intent) = self.refresh_payment(Actor::Job(lease), id).await? else { return Ok(None) };
        Ok(intent.awaits_confirmation().then_some(intent))
    }

    /// Stores the attempt and marks the payment as sent, in one transaction; the next step sends the confirmation. The
    /// partial unique index on open attempts is the slot (P1).
    async fn prepare_attempt(
        &self,
        lease: &Lease,
        planned: &PaymentContext,
        intent: Option<&IntentSnapshot>,
        method: PaymentMethodId,
        kinds: &[MethodKind],
    ) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        let mut context = PaymentContext::load(&mut work, planned.payment.id).await?;
        // Stop if the plan has changed. The version may differ, because reading the intent saves the payment.
        let is_same = context.payment.attempt_number == planned.payment.attempt_number
            && context.payment.provider_payment_intent_id == planned.payment.provider_payment_intent_id
            && context.payment.amount == planned.payment.amount;
        if !is_same || !matches!(context.plan(), Step::PrepareAttempt { .. }) {
            return work.commit().await;
        }
        let provider_method = context
            .methods
            .iter()
            .find(|known| known.id == method)
            .map(|known| known.provider_payment_method_id.clone())
            .ok_or_else(|| Error::not_found("payment method", method))?;
        let body = if context.payment.is_on_session() {
            let return_url = self.success_url(None, &context.integration);
            stripe::payment_intents::confirm_on_session_body(&provider_method, kinds, &return_url)
        } else {
            stripe::payment_intents::confirm_body(&provider_method, kinds)
        };
        let no_intent = || Error::internal(anyhow::anyhow!("a confirmation was planned without an intent"));
        let intent_id = context.payment.provider_payment_intent_id.as_deref().ok_or_else(no_intent)?;
        let number = context.payment.next_attempt_number();
        let request = Purpose::Confirmation.of(intent_id).request(work.key_scope(), number, body, work.now);
        let attempt = Attempt::new_confirmation(&context.payment, method, request, intent).ok_or_else(no_intent)?;
        store::attempts::insert(&mut work.tx, work.org, &attempt).await?;
        context.attempt = Some(attempt);
        context.apply(&mut work, PaymentInput::AttemptPrepared(number)).await?;
        work.commit().await
    }

    /// Sends the open attempt, or determines its outcome. In the first run nothing was sent yet, and the confirmation
    /// is sent at once; later runs read the intent first. `Break`: the job has ended.
    async fn resume(&self, lease: &Lease, context: PaymentContext) -> Result<JobFlow> {
        let is_first_send = lease.failures == 0 && context.payment.unknown_since.is_none();
        let Some(attempt) = context.attempt.clone().filter(Attempt::is_open) else {
            self.refresh_payment(Actor::Job(lease), context.payment.id).await?;
            return self.finish_job(lease).await;
        };
        if context.integration.state == IntegrationState::Paused {
            return self.finish_job(lease).await;
        }
        let now = self.clock().now();
        let mut observed = if is_first_send { Observed::Unsent } else { Observed::Unread };
        let mut intent = None;
        if attempt.request.next(observed, now) == Next::Read {
            intent = self.refresh_payment(Actor::Job(lease), context.payment.id).await?;
            let Some(intent) = &intent else { return self.finish_job(lease).await };
            observed = attempt.observed(intent);
        }
        match attempt.request.next(observed, now) {
            Next::Send => self.confirm(lease, &context, &attempt).await,
            Next::Done => self.finish_job(lease).await,
            Next::Wait(until) => {
                self.begin_leased(lease).await?.end(Outcome::RunAgain(until)).await?;
                Ok(JobFlow::Break(()))
            }
            Next::NewKey => self.supersede_attempt(lease, &attempt, intent.as_ref(), now).await,
            Next::Stop(reason) => Err(stopped(&target_of(&attempt), reason)),
            Next::Read | Next::Abandon => Err(unplanned(&target_of(&attempt))),
        }
    }

    /// Sends the confirmation: the stored body, under the attempt's own key.
    async fn confirm(&self, lease: &Lease, context: &PaymentContext, attempt: &Attempt) -> Result<JobFlow> {
        let id = context.payment.id;
        let account = self.stripe_account(lease.organization_id, context.payment.integration_id).await?;
        let intent_id = attempt.provider_payment_intent_id.as_deref().unwrap_or_default();
        let error = match self.0.stripe.confirm_payment_intent(&account.key, intent_id, &attempt.request).await {
            Ok(confirmed) => {
                let actor = Actor::Job(lease);
                if !confirmed.is_replayed
                    && let Some((mut work, mut current)) = self.begin_as_of(actor, id, context.payment.version).await?
                {
                    current.apply(&mut work, PaymentInput::Intent(&confirmed.object)).await?;
                    work.end(Outcome::Done).await?;
                    return Ok(JobFlow::Break(()));
                }
                // Something newer may have been applied during the call, or before it, so the intent decides.
                self.refresh_payment(actor, id).await?;
                return self.finish_job(lease).await;
            }
            Err(error) => error,
        };
        if let stripe::Error::Invalid(_) = &error
            && let Some(intent) = self.refresh_payment(Actor::Job(lease), id).await?
            && attempt.observed(&intent) == Observed::Present
        {
            // The intent changed independently of this request: its state counts, not the refusal.
            return self.finish_job(lease).await;
        }
        if error.is_api_key_error() {
            self.pause_integration(&account, Operation::PaymentIntentConfirm, &error).await?;
            let mut work = self.begin_leased(lease).await?;
            let context = PaymentContext::load(&mut work, id).await?;
            let is_paused = context.integration.state == IntegrationState::Paused;
            work.end(if is_paused { Outcome::Done } else { Outcome::Retry(error.to_string()) }).await?;
            return Ok(JobFlow::Break(()));
        }
        let is_detached = matches!(error, stripe::Error::Invalid(_))
            && self.record_detachment(lease, context, &account, attempt).await?;
        let mut work = self.begin_leased(lease).await?;
        let mut context = PaymentContext::load(&mut work, id).await?;
        // Skip the refusal if a webhook or a read has applied it already: applied twice, it would fail a later attempt.
        let is_ours = context.attempt.as_ref().is_some_and(|now| now.number == attempt.number && now.is_open());
        match error.disposition() {
            _ if !is_ours => work.end(Outcome::Done).await?,
            stripe::Disposition::Refused => {
                let failure = if is_detached { detached_failure(&context) } else { Failure::from(error.detail()) };
                context.apply(&mut work, PaymentInput::ConfirmRefused(failure)).await?;
                work.end(Outcome::Done).await?;
            }
            stripe::Disposition::NotDone => work.end(self.outcome_of(&error)).await?,
            stripe::Disposition::Unknown => {
                if let Some(key_state) = error.key_state(work.now)
                    && let Some(attempt) = &mut context.attempt
                    && attempt.request.key_state == KeyState::Usable
                {
                    attempt.request.key_state = key_state;
                    store::attempts::save_outcome(&mut work.tx, work.org, attempt).await?;
                }
                context.apply(&mut work, PaymentInput::Unknown).await?;
                work.end(Outcome::Retry(error.to_string())).await?;
            }
        }
        Ok(JobFlow::Break(()))
    }

    /// Whether the method that a confirmation was to charge is detached at Stripe, which may be why it was refused. If
    /// so, the detachment is recorded before the payment fails.
    async fn record_detachment(
        &self,
        lease: &Lease,
        context: &PaymentContext,
        account: &StripeAccount,
        attempt: &Attempt,
    ) -> Result<bool> {
        let Some(charged) = context.methods.iter().find(|method| Some(method.id) == attempt.method()) else {
            return Ok(false);
        };
        let read = if_found(self.0.stripe.payment_method(&account.key, &charged.provider_payment_method_id).await);
        let read = self.checked(account, Operation::PaymentMethodRead, read).await?;
        if read.is_some_and(|read| read.provider_customer_id.is_some()) {
            return Ok(false);
        }
        let mut work = self.begin_leased(lease).await?;
        let mut customer = match store::customers::lock(&mut work.tx, work.org, charged.customer_id).await {
            Ok(customer) => customer,
            // A payment outlives its customer; a deleted customer's methods are no longer updated.
            Err(Error::NotFound { .. }) => {
                work.rollback().await?;
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        let integration = store::integrations::get(&mut work.tx, work.org, charged.integration_id).await?;
        let mut method = store::payment_methods::get(&mut work.tx, work.org, charged.id).await?;
        let now = work.now;
        method.is_detach_read |= method.detach_time.is_none();
        self.detach(&mut work, &mut customer, &integration, &mut method, now).await?;
        work.commit().await?;
        Ok(true)
    }

    /// The attempt's key cannot be sent again, and the intent shows no trace of it: the same body is sent under a new
    /// key on the same intent, which can succeed only once (P2).
    async fn supersede_attempt(
        &self,
        lease: &Lease,
        attempt: &Attempt,
        intent: Option<&IntentSnapshot>,
        now: OffsetDateTime,
    ) -> Result<JobFlow> {
        let mut work = self.begin_leased(lease).await?;
        let mut context = PaymentContext::load(&mut work, attempt.payment_id).await?;
        let is_same = context.attempt.as_ref().is_some_and(|newest| newest.number == attempt.number);
        if let Some(old) = context.attempt.as_mut().filter(|newest| is_same && newest.is_open()) {
            old.state = AttemptState::Superseded;
            old.finish_time = Some(now);
            store::attempts::save_outcome(&mut work.tx, work.org, old).await?;
            let request = attempt.request.under_new_key(&target_of(attempt), work.key_scope(), now);
            let next = attempt.under_new_key(request, intent);
            store::attempts::insert(&mut work.tx, work.org, &next).await?;
            context.payment.attempt_number = next.number;
            store::payments::save(&mut work.tx, &mut context.payment, work.now).await?;
        }
        work.commit().await?;
        Ok(JobFlow::Continue(()))
    }

    /// Ends the job. A payment still in flight is read by the sweep if no event reports it.
    async fn finish_job(&self, lease: &Lease) -> Result<JobFlow> {
        self.begin_leased(lease).await?.end(Outcome::Done).await?;
        Ok(JobFlow::Break(()))
    }
}

/// The requests that confirm an attempt's intent.
fn target_of(attempt: &Attempt) -> RequestTarget {
    Purpose::Confirmation.of(attempt.provider_payment_intent_id.as_deref().unwrap_or_default())
}

/// An input to apply before anything is planned.
fn precheck(context: &PaymentContext) -> Option<PaymentInput<'static>> {
    if context.payment.pending_operation.is_some() && context.integration.state == IntegrationState::Disconnected {
        return Some(PaymentInput::IntegrationDisconnected);
    }
    // The only retry that Paybridge starts on its own.
    context.is_due().then_some(PaymentInput::MethodAttached)
}

/// The failure of a payment whose method was detached at Stripe before its confirmation.
fn detached_failure(context: &PaymentContext) -> Failure {
    if context.customer.default_payment_method_id.is_none() {
        return Failure::no_payment_method();
    }
    let text = "the payment method was detached at Stripe; retry to charge the customer's current default";
    Failure::ours("payment_method_not_usable", text)
}

/// Whether the job continues or has ended.
pub(super) type JobFlow = ControlFlow<()>;
