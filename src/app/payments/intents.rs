//! Creates a payment's intent, unconfirmed: no money can move yet. Its id is committed before anything else is done
//! with it. An intent whose creation stays unknown is looked up in the customer's list (P2).

use std::ops::ControlFlow::{self, Continue};

use super::PaymentContext;
use super::submit::JobFlow;
use crate::app::stripe_requests::{stopped, unplanned};
use crate::app::unit_of_work::UnitOfWork;
use crate::app::{App, StripeAccount};
use crate::domain::integrations::IntegrationState;
use crate::domain::jobs::{Lease, Outcome};
use crate::domain::payment_methods::MethodKind;
use crate::domain::payments::{Failure, PaymentInput, PaymentState, PendingReason};
use crate::domain::signals::{IntentSnapshot, IntentStatus};
use crate::domain::stripe_requests::{Next, Observed, Purpose, StripeRequest};
use crate::domain::{Error, Result};
use crate::stripe::Operation;
use crate::{store, stripe};

/// What the list of a customer's intents shows of a creation.
enum Found {
    /// An intent that can be adopted.
    Open(Box<IntentSnapshot>),
    /// Only intents that take no money: canceled, known as closed, or unconfirmed and of another amount.
    OnlyHarmless,
    /// None, or one of another amount that was confirmed.
    Nothing,
}

impl App {
    /// Creates the intent. `Break`: the job has ended. Otherwise, whether the payment's intent was created just now, so
    /// that nobody can have confirmed it.
    pub(super) async fn create_intent(
        &self,
        lease: &Lease,
        mut work: UnitOfWork,
        context: PaymentContext,
        kinds: Vec<MethodKind>,
    ) -> Result<ControlFlow<(), bool>> {
        let (org, payment) = (work.org, &context.payment);
        let provider_customer = context.provider_customer()?.to_owned();
        let target = Purpose::PaymentIntent.of(&payment.invoice_id);
        let newest = store::stripe_requests::get(&mut work.tx, org, &target).await?.into_open();
        let mut request = if let Some(request) = newest.filter(|request| request.generation >= payment.intent_number) {
            request
        } else {
            let body = stripe::payment_intents::create_body(work.installation(), payment, &provider_customer, &kinds);
            work.prepare(&target, payment.intent_number, body).await?
        };
        let now = work.now;
        work.commit().await?;
        let account = self.stripe_account(org, payment.integration_id).await?;
        let mut observed = Observed::Unread;
        loop {
            match request.next(observed, now) {
                Next::Send => match self.0.stripe.create_payment_intent(&account.key, &request).await {
                    Ok(created) if !created.is_replayed => {
                        return self
                            .adopt_intent(lease, &context, &request, &created.object)
                            .await
                            .map(|()| Continue(true));
                    }
                    Ok(replayed) => {
                        let intent = self.read_intent(&account, &replayed.object.id).await?;
                        if intent.status != IntentStatus::Canceled {
                            return self
                                .adopt_intent(lease, &context, &request, &intent)
                                .await
                                .map(|()| Continue(false));
                        }
                        observed = Observed::Spent;
                    }
                    Err(error) => {
                        if !self.note_key_state(lease, &target, &mut request, &error).await? {
                            let flow = self.on_creation_error(lease, &context, &account, &request, &error).await?;
                            return Ok(flow.map_continue(|()| false));
                        }
                    }
                },
                Next::Read => {
                    observed = match self.find_created_intent(&context, &account, &request, &provider_customer).await? {
                        Found::Open(intent) => {
                            return self
                                .adopt_intent(lease, &context, &request, &intent)
                                .await
                                .map(|()| Continue(false));
                        }
                        Found::OnlyHarmless => Observed::Spent,
                        Found::Nothing => Observed::Absent,
                    };
                }
                Next::NewKey => {
                    return self.request_next_intent(lease, &context, &request).await.map(|()| Continue(false));
                }
                Next::Stop(reason) => return Err(stopped(&target, reason)),
                Next::Wait(_) | Next::Done | Next::Abandon => return Err(unplanned(&target)),
            }
        }
    }

    /// Stores the id of the intent, before anything else is done with it. A response that arrives after the payment was
    /// canceled and reopened is of an earlier round, perhaps for another amount: its intent stays unconfirmed and takes
    /// no money.
    async fn adopt_intent(
        &self,
        lease: &Lease,
        context: &PaymentContext,
        request: &StripeRequest,
        intent: &IntentSnapshot,
    ) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        let mut current = PaymentContext::load(&mut work, context.payment.id).await?;
        if !current.awaits(request) {
            return work.commit().await;
        }
        let is_ours = intent.amount == current.payment.amount
            && intent.provider_customer_id.as_deref() == current.customer.linked_provider_id();
        let payment = &mut current.payment;
        if is_ours {
            payment.provider_payment_intent_id = Some(intent.id.clone());
        } else {
            payment.intent_number = request.generation + 1;
        }
        payment.unknown_since = None;
        store::payments::save(&mut work.tx, payment, work.now).await?;
        work.commit().await
    }

    /// The next step creates an intent under another key.
    async fn request_next_intent(
        &self,
        lease: &Lease,
        context: &PaymentContext,
        request: &StripeRequest,
    ) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        let mut current = PaymentContext::load(&mut work, context.payment.id).await?;
        if current.awaits(request) {
            current.payment.intent_number = request.generation + 1;
            store::payments::save(&mut work.tx, &mut current.payment, work.now).await?;
        }
        work.commit().await
    }

    /// Looks up the intent in the customer's list. Of duplicates one is kept and the others are canceled.
    async fn find_created_intent(
        &self,
        context: &PaymentContext,
        account: &StripeAccount,
        request: &StripeRequest,
        provider_customer: &str,
    ) -> Result<Found> {
        let (org, payment) = (account.org, &context.payment);
        let since = request.list_from();
        let found = self.0.stripe.find_payment_intents(&account.key, provider_customer, since, payment).await;
        let mut found = self.checked(account, Operation::PaymentIntentList, found).await?;
        let installation = &self.0.settings.installation;
        found.retain(|intent| intent.installation.as_ref().is_none_or(|name| name == installation));
        // Intents of earlier attempts and of links are known and closed.
        let mut tx = self.read(org).await?;
        let attempts = store::attempts::list(&mut tx, org, payment.id).await?;
        tx.close().await?;
        let is_known =
            |id: &str| attempts.iter().any(|attempt| attempt.provider_payment_intent_id.as_deref() == Some(id));
        let is_open = |intent: &&IntentSnapshot| {
            intent.status != IntentStatus::Canceled && intent.amount == payment.amount && !is_known(&intent.id)
        };
        let mut open: Vec<&IntentSnapshot> = found.iter().filter(is_open).collect();
        // The newest, but rather one that was confirmed.
        open.sort_by_key(|intent| intent.awaits_confirmation());
        let Some((kept, duplicates)) = open.split_first() else {
            let is_harmless = |intent: &IntentSnapshot| {
                intent.status == IntentStatus::Canceled || intent.awaits_confirmation() || is_known(&intent.id)
            };
            let is_spent = !found.is_empty() && found.iter().all(is_harmless);
            return Ok(if is_spent { Found::OnlyHarmless } else { Found::Nothing });
        };
        for duplicate in duplicates.iter().filter(|duplicate| duplicate.awaits_confirmation()) {
            if let Err(error) = self.0.stripe.cancel_payment_intent(&account.key, &duplicate.id).await {
                tracing::warn!(intent.id = %duplicate.id, %error, "unconfirmed duplicate intent not canceled");
            }
        }
        Ok(Found::Open(Box::new((*kept).clone())))
    }

    /// The creation failed, or its outcome is unknown.
    async fn on_creation_error(
        &self,
        lease: &Lease,
        context: &PaymentContext,
        account: &StripeAccount,
        request: &StripeRequest,
        error: &stripe::Error,
    ) -> Result<JobFlow> {
        let id = context.payment.id;
        if error.is_api_key_error() {
            self.pause_integration(account, Operation::PaymentIntentCreate, error).await?;
            let mut work = self.begin_leased(lease).await?;
            let mut context = PaymentContext::load(&mut work, id).await?;
            if context.integration.state != IntegrationState::Paused {
                // The key was replaced meanwhile, or the integration is not active yet: retried later.
                work.end(Outcome::Retry(error.to_string())).await?;
                return Ok(JobFlow::Break(()));
            }
            context.apply(&mut work, PaymentInput::Wait(PendingReason::IntegrationPaused)).await?;
            work.end(Outcome::Done).await?;
            return Ok(JobFlow::Break(()));
        }
        let mut work = self.begin_leased(lease).await?;
        let mut context = PaymentContext::load(&mut work, id).await?;
        if !context.awaits(request) {
            // The response is of an earlier round of the payment.
            work.commit().await?;
            return Ok(JobFlow::Continue(()));
        }
        match error.disposition() {
            stripe::Disposition::Refused => {
                let input = if error.code() == Some("amount_too_small") {
                    PaymentInput::Wait(PendingReason::AmountTooSmall)
                } else {
                    PaymentInput::Refused(Failure::from(error.detail()))
                };
                // The next attempt may have another body or another minimum amount, so it needs another key.
                context.payment.intent_number = request.generation + 1;
                context.apply(&mut work, input).await?;
                work.end(Outcome::Done).await?;
            }
            stripe::Disposition::NotDone => work.end(self.outcome_of(error)).await?,
            stripe::Disposition::Unknown => {
                context.apply(&mut work, PaymentInput::Unknown).await?;
                work.end(Outcome::Retry(error.to_string())).await?;
            }
        }
        Ok(JobFlow::Break(()))
    }
}

impl PaymentContext {
    /// Whether the payment still waits for the intent that `request` creates.
    fn awaits(&self, request: &StripeRequest) -> bool {
        self.payment.state() == PaymentState::Pending
            && self.payment.provider_payment_intent_id.is_none()
            && self.payment.intent_number == request.generation
    }

    fn provider_customer(&self) -> Result<&str> {
        self.customer
            .linked_provider_id()
            .ok_or_else(|| Error::internal(anyhow::anyhow!("an intent was planned for a customer without a link")))
    }
}
