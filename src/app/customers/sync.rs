//! The job of a customer that is to be created at Stripe, linked, or pushed.

use crate::app::work::Work;
use crate::app::{Access, App, KEY_AGE_MAX, stripe_unavailable, tell};
use crate::domain::customers::{Customer, LinkState};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::{Error, IntegrationId, Result};
use crate::store::requests::{FrozenRequest, Purpose};
use crate::{store, stripe};

/// The fields that a customer has at Stripe, too.
const PUSHED_FIELDS: [&str; 4] = ["name", "email", "phone", "address"];

impl App {
    /// Brings a customer and its counterpart at Stripe together.
    pub(in crate::app) async fn sync_customer(&self, lease: &Lease) -> Result<()> {
        let org = lease.organization_id;
        let mut tx = self.read(org).await?;
        let found = store::customers::get(&mut tx, org, lease.object_id.into()).await;
        tx.close().await?;
        let customer = match found {
            Ok(customer) => customer,
            Err(Error::NotFound { .. }) => return self.begin_leased(lease).await?.end(Outcome::Done).await,
            Err(error) => return Err(error),
        };
        let Some(integration) = customer.integration_id else {
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        };
        match (customer.link_state, &customer.provider_customer_id) {
            (LinkState::Pending, None) => self.create_provider_customer(lease, &customer, integration).await,
            (LinkState::Pending, Some(id)) => self.link_provider_customer(lease, &customer, integration, id).await,
            (LinkState::Linked, Some(id)) => self.push_customer(lease, &customer, integration, id).await,
            _ => self.begin_leased(lease).await?.end(Outcome::Done).await,
        }
    }

    async fn create_provider_customer(
        &self,
        lease: &Lease,
        customer: &Customer,
        integration: IntegrationId,
    ) -> Result<()> {
        let access = self.access(lease.organization_id, integration).await?;
        let frozen = self.customer_request(lease, customer).await?;
        match self.0.stripe.create_customer(&access.key, &frozen.idempotency_key, &frozen.body).await {
            Ok(created) => self.linked(lease, customer, &created.id, Some(&frozen)).await,
            Err(error) => self.creation_trouble(lease, customer, &access, &frozen, error).await,
        }
    }

    /// The frozen creation; a new one once its key is too old.
    async fn customer_request(&self, lease: &Lease, customer: &Customer) -> Result<FrozenRequest> {
        let mut work = self.begin_leased(lease).await?;
        let (org, now) = (work.org, work.now);
        let newest = store::requests::newest_frozen(&mut work.tx, org, Purpose::Customer, customer.id.0).await?;
        let number = match newest {
            Some(frozen) if !frozen.is_finished && now - frozen.create_time <= KEY_AGE_MAX => {
                work.abandon().await?;
                return Ok(frozen);
            }
            Some(frozen) => frozen.number + 1,
            None => 1,
        };
        let body = stripe::customers::create_body(customer);
        let frozen = work.freeze(Purpose::Customer, customer.id.0, number, body).await?;
        work.commit().await?;
        Ok(frozen)
    }

    async fn link_provider_customer(
        &self,
        lease: &Lease,
        customer: &Customer,
        integration: IntegrationId,
        provider_id: &str,
    ) -> Result<()> {
        let access = self.access(lease.organization_id, integration).await?;
        match self.0.stripe.customer(&access.key, provider_id).await {
            Ok(found) if found.deleted => {
                let message = format!("the Stripe customer {provider_id} was deleted; link another one");
                self.link_failed(lease, customer, &message, "resource_missing", None).await
            }
            Ok(found) => self.linked(lease, customer, &found.id, None).await,
            Err(error) if error.is_key_trouble() => {
                self.pause_integration(&access, "customer.link", &error).await?;
                self.begin_leased(lease).await?.end(Outcome::Done).await
            }
            Err(error) if error.verdict() == stripe::Verdict::Refused => {
                let code = error.code().unwrap_or("invalid_request").to_owned();
                self.link_failed(lease, customer, &error.to_string(), &code, None).await
            }
            Err(error) => Err(stripe_unavailable(&error)),
        }
    }

    async fn creation_trouble(
        &self,
        lease: &Lease,
        customer: &Customer,
        access: &Access,
        frozen: &FrozenRequest,
        error: stripe::Error,
    ) -> Result<()> {
        if error.is_key_trouble() {
            // The link stays pending, and is taken up again when the key is mended.
            self.pause_integration(access, "customer.create", &error).await?;
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        }
        if error.verdict() == stripe::Verdict::Refused {
            let code = error.code().unwrap_or("invalid_request").to_owned();
            return self.link_failed(lease, customer, &error.to_string(), &code, Some(frozen)).await;
        }
        if matches!(error, stripe::Error::Unknown { replayed: true, .. }) {
            // This key will never say anything else; a customer made twice can take no money twice.
            let mut work = self.begin_leased(lease).await?;
            let body = frozen.body.clone();
            let number = frozen.number + 1;
            work.freeze(Purpose::Customer, customer.id.0, number, body).await?;
            work.commit().await?;
        }
        Err(stripe_unavailable(&error))
    }

    /// The customer has its counterpart: told, and whatever waited for it goes on. `frozen` made it; without it, it was
    /// there before. An answer about a link that was changed meanwhile counts for nothing.
    async fn linked(
        &self,
        lease: &Lease,
        seen: &Customer,
        provider_id: &str,
        frozen: Option<&FrozenRequest>,
    ) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        let (org, now) = (work.org, work.now);
        let mut customer = store::customers::lock(&mut work.tx, org, seen.id).await?;
        let Some(integration) = customer.integration_id.filter(|_| customer.has_same_link(seen)) else {
            return work.end(Outcome::Again(now)).await;
        };
        let integration = store::integrations::get(&mut work.tx, org, integration).await?;
        customer.link_state = LinkState::Linked;
        customer.link_error = None;
        customer.provider_customer_id = Some(provider_id.to_owned());
        if let Some(frozen) = frozen {
            store::requests::finish(&mut work.tx, org, Purpose::Customer, seen.id.0, frozen.number, now).await?;
            if stripe::customers::create_body(&customer) != frozen.body {
                // It was changed while it was being created.
                customer.unpushed_fields = PUSHED_FIELDS.map(str::to_owned).to_vec();
                work.ask(JobKind::SyncCustomer, customer.id.0);
            }
            // We made it, and without a default.
            let none = store::customers::ProviderDefault { method: None, time: Some(now) };
            store::customers::set_provider_default(&mut work.tx, org, customer.id, &none).await?;
            work.tell(tell::customer_created("customer.payment_provider_created", &customer, &integration));
            let session = self.new_session(&mut work, &customer, &integration, None, true).await?;
            work.ask(JobKind::CreateCheckoutSession, session.id.0);
        } else {
            work.tell(tell::customer_created("customer.payment_provider_linked", &customer, &integration));
            work.ask(JobKind::ImportPaymentMethods, customer.id.0);
        }
        store::customers::save(&mut work.tx, &mut customer, now).await?;
        ask_for_waiting(&mut work, &customer).await?;
        work.end(Outcome::Done).await
    }

    async fn link_failed(
        &self,
        lease: &Lease,
        seen: &Customer,
        message: &str,
        code: &str,
        frozen: Option<&FrozenRequest>,
    ) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        let (org, now) = (work.org, work.now);
        let mut customer = store::customers::lock(&mut work.tx, org, seen.id).await?;
        if let Some(frozen) = frozen {
            store::requests::finish(&mut work.tx, org, Purpose::Customer, seen.id.0, frozen.number, now).await?;
        }
        let Some(integration) = customer.integration_id.filter(|_| customer.has_same_link(seen)) else {
            return work.end(Outcome::Again(now)).await;
        };
        let integration = store::integrations::get(&mut work.tx, org, integration).await?;
        customer.link_state = LinkState::Failed;
        customer.link_error = Some(message.to_owned());
        store::customers::save(&mut work.tx, &mut customer, now).await?;
        work.tell(tell::customer_error(&customer, &integration, message, code));
        ask_for_waiting(&mut work, &customer).await?;
        work.end(Outcome::Done).await
    }

    /// Carries over what was changed here. The key names the row's version, and so its content: sent again, it is the
    /// same body. It names the try, too, so that none is answered with a stored 500 for a day.
    async fn push_customer(
        &self,
        lease: &Lease,
        customer: &Customer,
        integration: IntegrationId,
        provider_id: &str,
    ) -> Result<()> {
        let body = stripe::customers::update_body(&customer.unpushed());
        let mut told = None;
        if !body.is_empty() {
            let access = self.access(lease.organization_id, integration).await?;
            let (version, nth) = (customer.version, lease.failures);
            let idempotency_key = format!("paybridge-push-{}-{version}-{nth}", customer.id);
            match self.0.stripe.update_customer(&access.key, provider_id, &idempotency_key, &body).await {
                Ok(_) => {}
                Err(error) if error.verdict() == stripe::Verdict::Refused => told = Some(error),
                Err(error) => return Err(self.stripe_trouble(&access, "customer.update", &error).await),
            }
        }
        let mut work = self.begin_leased(lease).await?;
        let org = work.org;
        let mut now_customer = store::customers::lock(&mut work.tx, org, customer.id).await?;
        if now_customer.version != customer.version {
            let now = work.now;
            return work.end(Outcome::Again(now)).await;
        }
        now_customer.unpushed_fields.clear();
        store::customers::save(&mut work.tx, &mut now_customer, work.now).await?;
        if let Some(error) = told {
            let integration = store::integrations::get(&mut work.tx, org, integration).await?;
            let code = error.code().unwrap_or("invalid_request");
            work.tell(tell::customer_error(&now_customer, &integration, &error.to_string(), code));
        }
        work.end(Outcome::Done).await
    }
}

/// Asks for the payments that waited for the customer. After the customer's lock: whoever found it as it was before has
/// committed its wait by now.
pub(super) async fn ask_for_waiting(work: &mut Work, customer: &Customer) -> Result<()> {
    for payment in store::payments::ids_waiting_for(&mut work.tx, work.org, customer.id).await? {
        work.ask(JobKind::SubmitPayment, payment);
    }
    Ok(())
}
