//! What becomes of an object that Stripe lists while an integration catches up. One that bears our metadata and is not
//! known is stored as it stands at Stripe, under the ids in its metadata, so that callers find it again. One that is
//! known is brought up to date.

use std::time::Duration;

use super::Run;
use super::customers::{customer_of, recover_link};
use crate::app::deliveries::{DeliveryOutcome, IntentSource};
use crate::app::payments::{PaymentContext, ReadTarget};
use crate::app::unit_of_work::Actor;
use crate::app::{App, if_found};
use crate::domain::customers::CustomerRef;
use crate::domain::jobs::Lease;
use crate::domain::payments::{Attempt, AttemptState, NewPayment, Payment, PaymentInput};
use crate::domain::signals::{DisputeSnapshot, IntentSnapshot, IntentStatus, RefundSnapshot};
use crate::domain::stripe_requests::Purpose;
use crate::domain::{Error, PaymentId, Result};
use crate::store;
use crate::stripe::Operation;
use crate::stripe::checkout_sessions::ListedSession;

/// The code of the error that reports an intent whose metadata was changed.
const METADATA_CHANGED: &str = "metadata_changed";

impl App {
    /// Whether an object with this metadata was made by this installation for the job's organization. Another
    /// installation may be a copy, with the same organizations.
    pub(super) fn is_own(&self, run: &Run<'_>, organization: Option<uuid::Uuid>, installation: Option<&str>) -> bool {
        let own = &self.0.settings.installation;
        organization == Some(run.lease.organization_id.0) && installation.is_none_or(|name| name == own)
    }

    /// Expires an open session of ours that is not known: somebody may have its URL, and it can take money.
    pub(super) async fn expire_unknown_session(&self, run: &Run<'_>, session: &ListedSession) -> Result<()> {
        let org = run.lease.organization_id;
        if !self.is_own(run, session.organization_id, session.installation.as_deref()) {
            return Ok(());
        }
        let mut tx = self.read(org).await?;
        let is_link = store::attempts::payment_of_session(&mut tx, org, &session.id).await?.is_some();
        let is_known = is_link
            || store::checkout_sessions::lock_by_provider_id(&mut tx, org, run.integration.id, &session.id)
                .await?
                .is_some();
        tx.close().await?;
        if is_known {
            return Ok(());
        }
        let expired = self.0.stripe.expire_checkout_session(&run.account.key, &session.id).await;
        if matches!(&expired, Err(error) if error.disposition() == crate::stripe::Disposition::Refused) {
            // It was completed meanwhile: its intent is in the list of intents, which is read later.
            return Ok(());
        }
        self.checked(run.account, Operation::CheckoutSessionExpire, expired).await?;
        tracing::warn!(integration.id = %run.integration.id, session.id = session.id, "unknown Checkout session expired");
        Ok(())
    }

    /// Brings the payment of an intent of ours up to date, or stores it.
    pub(super) async fn recover_intent(&self, run: &mut Run<'_>, intent: IntentSnapshot) -> Result<()> {
        if intent.has_changed_metadata(run.lease.organization_id, &self.0.settings.installation) {
            // Its creation may show what the metadata was.
            let is_found = self.events_reach_back(run).await?;
            return if is_found { Ok(()) } else { self.report_changed_metadata(run, &intent).await };
        }
        if !self.is_own(run, intent.organization_id, intent.installation.as_deref()) {
            return Ok(());
        }
        if self.adopt_listed_intent(run, &intent).await? {
            return Ok(());
        }
        let source = IntentSource {
            lease: run.lease,
            integration_id: run.integration.id,
            installation: &self.0.settings.installation,
            is_complete: true,
            is_recent: false,
        };
        match self.on_intent(&source, None, intent.clone()).await? {
            DeliveryOutcome::Applied | DeliveryOutcome::Ignored(_) => Ok(()),
            DeliveryOutcome::Unmatched(_) => self.recover_payment(run, &intent).await,
        }
    }

    /// Compares an intent with its creation: somebody may have edited its metadata, so that it was not recognized, or
    /// taken for that of another invoice.
    pub(super) async fn compare_with_creation(&self, run: &mut Run<'_>, created: IntentSnapshot) -> Result<()> {
        let Some(invoice_id) = created.invoice_id.clone() else { return Ok(()) };
        if !self.is_own(run, created.organization_id, created.installation.as_deref()) {
            return Ok(());
        }
        let Some(payment) = self.payment_paid_by(run, Some(&created.id)).await? else {
            let present = if_found(self.0.stripe.payment_intent(&run.account.key, &created.id).await);
            let present = self.checked(run.account, Operation::PaymentIntentRead, present).await?;
            let Some(present) = present else { return Ok(()) };
            return self.recover_intent(run, present.with_metadata_of(created)).await;
        };
        let mut work = self.begin_leased(run.lease).await?;
        let mut payment = store::payments::lock(&mut work.tx, work.org, payment).await?;
        if payment.invoice_id == invoice_id {
            return work.rollback().await;
        }
        let attempts = store::attempts::list(&mut work.tx, work.org, payment.id).await?;
        let collects = |id: &Option<String>| id.as_ref() == Some(&created.id);
        let is_collected = collects(&payment.provider_payment_intent_id)
            || attempts.iter().any(|attempt| collects(&attempt.provider_payment_intent_id));
        if !is_collected || store::payments::get_by_invoice(&mut work.tx, work.org, &invoice_id).await?.is_some() {
            work.rollback().await?;
            return self.report_changed_metadata(run, &created).await;
        }
        payment.invoice_id = invoice_id;
        store::payments::save(&mut work.tx, &mut payment, work.now).await?;
        work.commit().await
    }

    /// Makes an intent that is not known the payment's own, if the invoice has a payment and nothing else can collect it:
    /// it has no intent, or its own was canceled before this one was created. Returns whether it did: then the intent is
    /// applied, too.
    async fn adopt_listed_intent(&self, run: &Run<'_>, intent: &IntentSnapshot) -> Result<bool> {
        let Some(invoice) = intent.invoice_id.as_deref().filter(|_| intent.status != IntentStatus::Canceled) else {
            return Ok(false);
        };
        let actor = Actor::Job(run.lease);
        let Some(mut known) = self.payment_to_adopt(run, invoice, intent).await? else { return Ok(false) };
        if self.refresh_link(actor, known.id).await?.is_some() {
            let Some(refreshed) = self.payment_to_adopt(run, invoice, intent).await? else { return Ok(false) };
            known = refreshed;
        }
        if let Some(own) = &known.provider_payment_intent_id {
            let own = if_found(self.0.stripe.payment_intent(&run.account.key, own).await);
            let own = self.checked(run.account, Operation::PaymentIntentRead, own).await?;
            if own.is_some_and(|own| own.status != IntentStatus::Canceled) {
                return Ok(false);
            }
        }
        let session = if intent.is_of_link {
            let read = self.0.stripe.checkout_session_of(&run.account.key, &intent.id).await;
            self.checked(run.account, Operation::CheckoutSessionList, read).await?
        } else {
            None
        };
        let Some((mut work, mut context)) = self.begin_as_of(actor, known.id, known.version).await? else {
            return Err(changed_meanwhile(known.id));
        };
        // A link without a session here is the one that the intent was created for, or is never created.
        if context.open_link().is_some_and(|link| link.provider_session_id.is_some()) {
            work.rollback().await?;
            return Ok(false);
        }
        if let Some(attempt) = &mut context.attempt {
            attempt.finish(AttemptState::Canceled, None, work.now);
            store::attempts::save_outcome(&mut work.tx, work.org, attempt).await?;
        }
        if let Some(session) = session {
            context.payment = context.payment.before_link(intent);
            let number = context.payment.next_attempt_number();
            let target = Purpose::PaymentLink.of(&context.payment.invoice_id);
            let request = target.request(work.key_scope(), number, String::new(), work.now);
            let attempt = Attempt::new_link(&context.payment, request);
            store::attempts::insert(&mut work.tx, work.org, &attempt).await?;
            context.payment.attempt_number = number;
            context.attempt = Some(attempt);
            store::payments::save(&mut work.tx, &mut context.payment, work.now).await?;
            context.apply(&mut work, PaymentInput::LinkCreated(&session)).await?;
            context.apply(&mut work, PaymentInput::Link(&session, Some(intent))).await?;
        } else {
            context.payment = context.payment.recovered(intent);
            store::payments::save(&mut work.tx, &mut context.payment, work.now).await?;
            context.apply(&mut work, PaymentInput::Intent(intent)).await?;
        }
        work.commit().await?;
        Ok(true)
    }

    /// The invoice's payment, if it may adopt an intent that is not known.
    async fn payment_to_adopt(&self, run: &Run<'_>, invoice: &str, intent: &IntentSnapshot) -> Result<Option<Payment>> {
        let (org, integration) = (run.lease.organization_id, run.integration.id);
        let mut tx = self.read(org).await?;
        let is_known = store::payments::id_by_intent(&mut tx, org, integration, &intent.id).await?.is_some();
        let payment = store::payments::get_by_invoice(&mut tx, org, invoice).await?;
        tx.close().await?;
        Ok(payment.filter(|payment| {
            !is_known && payment.integration_id == integration && payment.may_be_collected_by(intent)
        }))
    }

    /// Stores the payment of an intent, as it stands at Stripe.
    async fn recover_payment(&self, run: &mut Run<'_>, intent: &IntentSnapshot) -> Result<()> {
        let (Some(invoice_id), Some(provider_customer)) = (&intent.invoice_id, &intent.provider_customer_id) else {
            return Ok(());
        };
        let mut work = self.begin_leased(run.lease).await?;
        let org = work.org;
        let mut found =
            store::customers::id_by_provider_id(&mut work.tx, org, run.integration.id, provider_customer).await?;
        if found.is_none()
            && let Some(customer) = customer_of(&work, run, intent, provider_customer)
        {
            let external_id = customer.external_id.clone();
            recover_link(&mut work, run, customer).await?;
            let stored = store::customers::get_by_external_id(&mut work.tx, org, &external_id).await?;
            found = stored.map(|stored| stored.id);
        }
        // It may have been deleted here meanwhile. Its payments are kept.
        let Some(customer) = found.or(intent.customer_id.map(Into::into)) else {
            work.rollback().await?;
            return self.report_changed_metadata(run, intent).await;
        };
        let customer = match store::customers::get_including_deleted(&mut work.tx, org, customer).await {
            Ok(customer) => customer,
            Err(Error::NotFound { .. }) => {
                work.rollback().await?;
                return self.report_changed_metadata(run, intent).await;
            }
            Err(error) => return Err(error),
        };
        let new = NewPayment {
            invoice_id: invoice_id.clone(),
            invoice_number: intent.invoice_number.clone().unwrap_or_default(),
            customer: CustomerRef::Id(customer.id),
            amount: intent.amount,
        };
        let id = intent.payment_id.unwrap_or_else(|| self.clock().new_id());
        let payment = Payment::new(id.into(), &new, &customer, run.integration.id, work.now);
        let payment = if intent.is_of_link { payment } else { payment.recovered(intent) };
        if !store::payments::insert(&mut work.tx, &payment).await? {
            // The invoice's payment has another intent, which was applied before.
            return work.rollback().await;
        }
        store::request_ids::mark_recovered(&mut work.tx, org, id, work.now).await?;
        if intent.is_of_link {
            work.commit().await?;
            return self.adopt_listed_intent(run, intent).await.map(|_| ());
        }
        let mut context = PaymentContext::load(&mut work, payment.id).await?;
        context.apply(&mut work, PaymentInput::Intent(intent)).await?;
        work.commit().await
    }

    /// An intent that is ours bears only a part of our metadata, so its invoice is not known. Nothing may be collected
    /// before that is repaired: it may have paid any invoice.
    async fn report_changed_metadata(&self, run: &mut Run<'_>, intent: &IntentSnapshot) -> Result<()> {
        let message = format!(
            "the metadata of the PaymentIntent {} was changed: put back what Paybridge had written (installation, \
             organization_id, payment_id, invoice_id, external_customer_id), or remove all of it if the intent does not \
             concern Paybridge. Nothing is collected until then",
            intent.id
        );
        self.report_fault(run, METADATA_CHANGED, &message).await?;
        Err(Error::internal(anyhow::anyhow!(message)))
    }

    /// Stores a refund of one of our payments, or brings it up to date.
    pub(super) async fn recover_refund(&self, run: &Run<'_>, refund: &RefundSnapshot) -> Result<()> {
        let Some(payment) = self.payment_paid_by(run, refund.provider_payment_intent_id.as_deref()).await? else {
            return Ok(());
        };
        let org = run.lease.organization_id;
        let mut tx = self.read(org).await?;
        let known = store::refunds::find_reported(&mut tx, org, payment, refund).await?;
        tx.close().await?;
        let is_current = known.is_some_and(|known| {
            known.provider_refund_id.as_ref() == Some(&refund.id) && known.status == refund.status
        });
        if is_current {
            return Ok(());
        }
        self.read_refunds_or_dispute(run.lease, payment, run.account, &ReadTarget::Refund(&refund.id)).await
    }

    /// Stores a dispute of one of our payments, or brings it up to date.
    pub(super) async fn recover_dispute(&self, run: &Run<'_>, dispute: &DisputeSnapshot) -> Result<()> {
        let Some(payment) = self.payment_paid_by(run, dispute.provider_payment_intent_id.as_deref()).await? else {
            return Ok(());
        };
        self.read_refunds_or_dispute(run.lease, payment, run.account, &ReadTarget::Dispute(&dispute.id)).await
    }

    async fn payment_paid_by(&self, run: &Run<'_>, intent: Option<&str>) -> Result<Option<PaymentId>> {
        let Some(intent) = intent else { return Ok(None) };
        let org = run.lease.organization_id;
        let mut tx = self.read(org).await?;
        let id = store::payments::id_by_intent(&mut tx, org, run.integration.id, intent).await?;
        tx.close().await?;
        Ok(id)
    }

    /// Reads a payment's link, or else its intent, from Stripe.
    pub(super) async fn refresh_whole_payment(&self, lease: &Lease, id: PaymentId) -> Result<()> {
        let actor = Actor::Job(lease);
        if self.refresh_link(actor, id).await?.is_none() {
            self.refresh_payment(actor, id).await?;
        }
        Ok(())
    }
}

fn changed_meanwhile(id: PaymentId) -> Error {
    Error::Unavailable {
        reason: "STRIPE_UNAVAILABLE",
        message: format!("the payment {id} changed while its intents were read"),
        retry_after: Duration::from_secs(1),
    }
}
