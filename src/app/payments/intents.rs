//! Creates a payment's intent, unconfirmed: no money can move yet. Its id is committed before anything else is done
//! with it. An intent whose creation stays unknown is looked up in the customer's list (P2).

use time::Duration;

use super::PaymentContext;
use super::submit::JobFlow;
use crate::app::unit_of_work::UnitOfWork;
use crate::app::{App, KEY_AGE_MAX, StripeAccount};
use crate::domain::integrations::IntegrationState;
use crate::domain::jobs::{Lease, Outcome};
use crate::domain::payment_methods::MethodKind;
use crate::domain::payments::{Failure, PaymentInput, PaymentState, PendingReason};
use crate::domain::signals::{IntentSnapshot, IntentStatus};
use crate::domain::{Error, Result};
use crate::store::stripe_requests::{Purpose, StripeRequest};
use crate::{store, stripe};

impl App {
    /// Creates the intent. `Break`: the job has ended.
    pub(super) async fn create_intent(
        &self,
        lease: &Lease,
        mut work: UnitOfWork,
        context: PaymentContext,
        kinds: Vec<MethodKind>,
    ) -> Result<JobFlow> {
        let (org, payment) = (work.org, &context.payment);
        let provider_customer = context.provider_customer()?.to_owned();
        let newest = store::stripe_requests::newest(&mut work.tx, org, Purpose::PaymentIntent.of(payment.id)).await?;
        let request = if let Some(request) = newest.filter(|request| request.number >= payment.intent_number) {
            request
        } else {
            let body = stripe::payment_intents::create_body(payment, &provider_customer, &kinds);
            work.prepare(Purpose::PaymentIntent.of(payment.id), payment.intent_number, body).await?
        };
        let now = work.now;
        work.commit().await?;
        let account = self.stripe_account(org, payment.integration_id).await?;
        if now - request.create_time > KEY_AGE_MAX {
            return self.find_created_intent(lease, context, &account, &request, &provider_customer).await;
        }
        let response = self.0.stripe.create_payment_intent(&account.key, &request.idempotency_key, &request.body).await;
        match response {
            Ok(intent) => self.adopt_intent(lease, &context, &request, &intent).await,
            Err(stripe::Error::Unknown { replayed: true, .. }) => {
                self.find_created_intent(lease, context, &account, &request, &provider_customer).await
            }
            Err(error) => self.on_creation_error(lease, &context, &account, &request, &error).await,
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
    ) -> Result<JobFlow> {
        let mut work = self.begin_leased(lease).await?;
        let mut current = PaymentContext::load(&mut work, context.payment.id).await?;
        if !current.awaits(request) {
            work.commit().await?;
            return Ok(JobFlow::Continue(()));
        }
        let is_ours = intent.amount == current.payment.amount
            && intent.provider_customer_id.as_deref() == current.customer.linked_provider_id();
        let payment = &mut current.payment;
        if is_ours {
            payment.provider_payment_intent_id = Some(intent.id.clone());
        } else {
            payment.intent_number = request.number + 1;
        }
        payment.unknown_since = None;
        store::payments::save(&mut work.tx, payment, work.now).await?;
        work.commit().await?;
        Ok(JobFlow::Continue(()))
    }

    /// The key no longer reveals the creation's outcome: the intent is looked up in the customer's list and, if
    /// absent, created under a new key. Of duplicates one is kept and the others are canceled.
    async fn find_created_intent(
        &self,
        lease: &Lease,
        context: PaymentContext,
        account: &StripeAccount,
        request: &StripeRequest,
        provider_customer: &str,
    ) -> Result<JobFlow> {
        let since = request.create_time - Duration::minutes(5);
        let found =
            self.0.stripe.find_payment_intents(&account.key, provider_customer, since, context.payment.id).await;
        let found = match found {
            Ok(found) => found,
            Err(error) => return Err(self.map_stripe_error(account, "payment_intent.list", &error).await),
        };
        // Intents of earlier attempts and of links are known and closed.
        let mut tx = self.read(lease.organization_id).await?;
        let attempts = store::attempts::list(&mut tx, lease.organization_id, context.payment.id).await?;
        tx.close().await?;
        let is_known =
            |id: &str| attempts.iter().any(|attempt| attempt.provider_payment_intent_id.as_deref() == Some(id));
        let is_open = |intent: &&IntentSnapshot| {
            intent.status != IntentStatus::Canceled && intent.amount == context.payment.amount && !is_known(&intent.id)
        };
        let mut open = found.iter().filter(is_open);
        let Some(kept) = open.next() else {
            let mut work = self.begin_leased(lease).await?;
            let mut context = PaymentContext::load(&mut work, context.payment.id).await?;
            if context.awaits(request) {
                context.payment.intent_number = request.number + 1;
                store::payments::save(&mut work.tx, &mut context.payment, work.now).await?;
            }
            work.commit().await?;
            return Ok(JobFlow::Continue(()));
        };
        for duplicate in open {
            let idempotency_key = format!("paybridge-cancel_duplicate-{}", duplicate.id);
            if let Err(error) = self.0.stripe.cancel_payment_intent(&account.key, &duplicate.id, &idempotency_key).await
            {
                tracing::warn!(intent.id = %duplicate.id, %error, "unconfirmed duplicate intent not canceled");
            }
        }
        self.adopt_intent(lease, &context, request, kept).await
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
            self.pause_integration(account, "payment_intent.create", error).await?;
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
                context.payment.intent_number = request.number + 1;
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
        self.payment.state == PaymentState::Pending
            && self.payment.provider_payment_intent_id.is_none()
            && self.payment.intent_number == request.number
    }

    fn provider_customer(&self) -> Result<&str> {
        self.customer
            .linked_provider_id()
            .ok_or_else(|| Error::internal(anyhow::anyhow!("an intent was planned for a customer without a link")))
    }
}
