//! A payment with everything that decides about it, read under the payment's lock.

use crate::app::tell::{self, About};
use crate::app::work::Work;
use crate::domain::customers::Customer;
use crate::domain::integrations::Integration;
use crate::domain::jobs::JobKind;
use crate::domain::payment_methods::PaymentMethod;
use crate::domain::payments::{Attempt, Change, Circumstances, Link, News, Notice, Payment, Step, plan};
use crate::domain::{PaymentId, Result};
use crate::store;

/// A locked payment and what belongs to it.
pub(in crate::app) struct Scene {
    pub payment: Payment,
    /// The newest attempt.
    pub attempt: Option<Attempt>,
    pub customer: Customer,
    pub integration: Integration,
    /// All of the customer's methods, detached ones too.
    pub methods: Vec<PaymentMethod>,
}

impl Scene {
    /// Locks the payment and reads the rest.
    pub(in crate::app) async fn load(work: &mut Work, id: PaymentId) -> Result<Self> {
        let org = work.org;
        let payment = store::payments::lock(&mut work.tx, org, id).await?;
        let attempt = match payment.attempt_number {
            0 => None,
            number => store::attempts::get(&mut work.tx, org, id, number).await?,
        };
        // Held as they are until the commit: whoever links the customer, chooses its default or mends the key meanwhile
        // finds this payment waiting, and asks for it again.
        let customer = store::customers::share(&mut work.tx, org, payment.customer_id).await?;
        let integration = store::integrations::share(&mut work.tx, org, payment.integration_id).await?;
        let methods = store::payment_methods::all(&mut work.tx, org, customer.id).await?;
        Ok(Self { payment, attempt, customer, integration, methods })
    }

    /// What is to be done next.
    pub(in crate::app) fn plan(&self) -> Step {
        plan(&self.payment, self.attempt.as_ref(), &self.integration, &self.customer, &self.methods)
    }

    /// Whether the customer's default has arrived for a payment that lacked one.
    pub(in crate::app) fn is_due(&self) -> bool {
        let default = self.customer.default_payment_method_id;
        let default = self.methods.iter().find(|method| Some(method.id) == default);
        self.payment.is_due_for(default, self.attempt.as_ref())
    }

    /// The newest attempt, if it is a link that holds the slot.
    pub(in crate::app) fn open_link(&self) -> Option<&Link> {
        self.attempt.as_ref().and_then(Attempt::open_link)
    }

    /// Takes in news: the payment and its newest attempt are saved, what is to be told is told, and the job that goes on
    /// with it is asked for (P4).
    pub(in crate::app) async fn news(&mut self, work: &mut Work, news: News<'_>) -> Result<Change> {
        let before = (self.payment.clone(), self.attempt.clone());
        let here = Circumstances { now: work.now, supports_3ds: self.integration.supports_3ds };
        // The intent that the news are of, where it is the payment's own.
        let own = match &news {
            News::Intent(intent) | News::Link(_, Some(intent)) => Some(intent.id.clone()),
            _ => None,
        };
        let change = self.payment.apply(self.attempt.as_mut(), news, here);
        if self.attempt != before.1
            && let Some(attempt) = &self.attempt
        {
            store::attempts::save_outcome(&mut work.tx, work.org, attempt).await?;
        }
        if self.payment != before.0 {
            store::payments::save(&mut work.tx, &mut self.payment, work.now).await?;
        }
        work.tell_all(tell::payment_changed(&self.about(), &change));
        for notice in &change.notices {
            if let Notice::AmountMismatch(receipt) = notice {
                tracing::error!(
                    payment.id = %self.payment.id, intent.id = %receipt.provider_payment_intent_id,
                    payment.amount = %self.payment.amount, intent.amount = %receipt.amount,
                    "a payment was settled with less than was due, or in another currency"
                );
            }
        }
        if let Some(receipt) = &change.settled_by {
            let is_own = own.as_ref() == Some(&receipt.provider_payment_intent_id);
            self.note_settlement(work, receipt, is_own).await?;
        }
        if self.payment.needs_work(&before.0, &change) {
            work.ask(JobKind::SubmitPayment, self.payment.id.0);
        }
        if let Some(asked) = self.payment.action_time.filter(|_| before.0.action_time.is_none()) {
            // The customer's time is limited. Whatever else moves is found by the sweep, should nobody tell.
            let end = asked + work.action_period();
            work.ask_at(JobKind::ReconcilePayment, self.payment.id.0, end);
        }
        if change.from != change.to {
            tracing::info!(
                payment.id = %self.payment.id, payment.state = change.to.as_str(),
                payment.state_before = change.from.as_str(), "a payment has changed its state"
            );
        }
        Ok(change)
    }

    /// Whom and what the payment's events speak of.
    pub(in crate::app) fn about(&self) -> About<'_> {
        let charged = self.attempt.as_ref().and_then(Attempt::method);
        About {
            payment: &self.payment,
            customer: &self.customer,
            integration: &self.integration,
            method: charged.and_then(|id| self.methods.iter().find(|method| method.id == id)),
        }
    }
}
