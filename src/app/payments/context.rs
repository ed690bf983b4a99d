//! A payment with everything that its decisions depend on, read under the payment's lock.

use crate::app::event_payloads::{self, PaymentView};
use crate::app::unit_of_work::UnitOfWork;
use crate::domain::customers::Customer;
use crate::domain::integrations::Integration;
use crate::domain::jobs::JobKind;
use crate::domain::payment_methods::PaymentMethod;
use crate::domain::payments::{
    ApplyContext, Attempt, Link, Notice, Payment, PaymentInput, PlanContext, Step, Transition,
};
use crate::domain::{PaymentId, Result};
use crate::store;

/// A locked payment and its related rows.
pub(in crate::app) struct PaymentContext {
    pub payment: Payment,
    /// The newest attempt.
    pub attempt: Option<Attempt>,
    pub customer: Customer,
    pub integration: Integration,
    /// All of the customer's methods, including detached ones.
    pub methods: Vec<PaymentMethod>,
}

impl PaymentContext {
    /// Locks the payment and reads the related rows.
    pub(in crate::app) async fn load(work: &mut UnitOfWork, id: PaymentId) -> Result<Self> {
        let org = work.org;
        let payment = store::payments::lock(&mut work.tx, org, id).await?;
        let attempt = match payment.attempt_number {
            0 => None,
            number => store::attempts::get(&mut work.tx, org, id, number).await?,
        };
        // Share locks until the commit: a transaction that links the customer, chooses its default or rotates the key
        // meanwhile waits for this one, then finds the payment waiting and enqueues it again.
        let customer = store::customers::lock_shared(&mut work.tx, org, payment.customer_id).await?;
        let integration = store::integrations::lock_shared(&mut work.tx, org, payment.integration_id).await?;
        let methods = store::payment_methods::list_all(&mut work.tx, org, customer.id).await?;
        Ok(Self { payment, attempt, customer, integration, methods })
    }

    /// The next step for the payment.
    pub(in crate::app) fn plan(&self) -> Step {
        self.plan_context().plan()
    }

    /// Whether the customer's default has arrived for a payment that lacked one.
    pub(in crate::app) fn is_due(&self) -> bool {
        self.plan_context().is_due()
    }

    fn plan_context(&self) -> PlanContext<'_> {
        let Self { payment, attempt, customer, integration, methods } = self;
        PlanContext { payment, attempt: attempt.as_ref(), customer, integration, methods }
    }

    /// The newest attempt's link, if it is open and so holds the slot.
    pub(in crate::app) fn open_link(&self) -> Option<&Link> {
        self.attempt.as_ref().and_then(Attempt::open_link)
    }

    /// Applies an input: saves the payment and its newest attempt, emits events, and enqueues the follow-up job (P4).
    pub(in crate::app) async fn apply(&mut self, work: &mut UnitOfWork, input: PaymentInput<'_>) -> Result<Transition> {
        let before = (self.payment.clone(), self.attempt.clone());
        let apply_context = ApplyContext {
            now: work.now,
            supports_3ds: self.integration.supports_3ds,
            is_catching_up: self.integration.is_catching_up(),
        };
        // The intent of the input, if it is the payment's own.
        let own = match &input {
            PaymentInput::Intent(intent) | PaymentInput::Link(_, Some(intent)) => Some(intent.id.clone()),
            _ => None,
        };
        let transition = self.payment.apply(self.attempt.as_mut(), input, apply_context);
        if self.attempt != before.1
            && let Some(attempt) = &self.attempt
        {
            store::attempts::save_outcome(&mut work.tx, work.org, attempt).await?;
        }
        if self.payment != before.0 {
            store::payments::save(&mut work.tx, &mut self.payment, work.now).await?;
        }
        work.record_events(event_payloads::payment_changed(&self.view(), &transition));
        for notice in &transition.notices {
            if let Notice::AmountMismatch(receipt) = notice {
                tracing::error!(
                    payment.id = %self.payment.id, intent.id = %receipt.provider_payment_intent_id,
                    payment.amount = %self.payment.amount, intent.amount = %receipt.amount,
                    "payment settled with less than the amount due, or in another currency"
                );
            }
        }
        if let Some(receipt) = &transition.settled_by {
            let is_own = own.as_ref() == Some(&receipt.provider_payment_intent_id);
            self.record_settlement(work, receipt, is_own).await?;
        }
        if self.payment.needs_work(&before.0, &transition) {
            work.enqueue(JobKind::SubmitPayment, self.payment.id.0);
        }
        if let Some(action_time) = self.payment.action_time().filter(|_| before.0.action_time().is_none()) {
            // The customer's time to act is limited. Anything else in flight is found by the sweep if no event reports
            // it.
            let end = action_time + work.action_period();
            work.enqueue_at(JobKind::ReconcilePayment, self.payment.id.0, end);
        }
        if transition.from != transition.to {
            tracing::info!(
                payment.id = %self.payment.id, payment.state = transition.to.as_str(),
                payment.state_before = transition.from.as_str(), "payment state changed"
            );
        }
        Ok(transition)
    }

    /// The view from which the payment's events are built.
    pub(in crate::app) fn view(&self) -> PaymentView<'_> {
        let charged = self.attempt.as_ref().and_then(Attempt::method);
        PaymentView {
            payment: &self.payment,
            customer: &self.customer,
            integration: &self.integration,
            method: charged.and_then(|id| self.methods.iter().find(|method| method.id == id)),
        }
    }
}
