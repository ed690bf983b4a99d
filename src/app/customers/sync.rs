//! The job that creates a customer at Stripe, links it, or pushes its changes.

use super::checkout::UrlReport;
use crate::app::stripe_requests::{sent_again, stopped, unplanned};
use crate::app::unit_of_work::UnitOfWork;
use crate::app::{App, StripeAccount, event_payloads, stripe_unavailable};
use crate::domain::customers::{Customer, LinkState};
use crate::domain::events::EventType;
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::stripe_requests::{IdempotencyKey, Next, Observed, Purpose, RequestTarget, StripeRequest};
use crate::domain::{Error, IntegrationId, Result};
use crate::stripe::Operation;
use crate::{store, stripe};

/// The fields that a customer has at Stripe, too.
const PUSHED_FIELDS: [&str; 4] = ["name", "email", "phone", "address"];

impl App {
    /// Synchronizes a customer with its Stripe customer.
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
        let account = self.stripe_account(lease.organization_id, integration).await?;
        let mut work = self.begin_leased(lease).await?;
        let now = work.now;
        let target = target_of(customer);
        let requests = store::stripe_requests::get(&mut work.tx, work.org, &target).await?;
        let next_generation = requests.next_generation;
        let mut request = if let Some(request) = requests.into_open() {
            request
        } else {
            let body = stripe::customers::create_body(work.installation(), customer);
            work.prepare(&target, next_generation, body).await?
        };
        work.commit().await?;
        let mut observed = Observed::Unread;
        loop {
            match request.next(observed, now) {
                Next::Send => match self.0.stripe.create_customer(&account.key, &request).await {
                    Ok(created) if !created.is_replayed => {
                        return self.on_linked(lease, customer, &created.object.id, Some(&request)).await;
                    }
                    Ok(replayed) => {
                        let found = self.read_customer(&account, &replayed.object.id).await?;
                        if !found.deleted {
                            return self.on_linked(lease, customer, &found.id, Some(&request)).await;
                        }
                        observed = Observed::Spent;
                    }
                    Err(error) => {
                        if !self.note_key_state(lease, &target, &mut request, &error).await? {
                            return self.map_creation_error(lease, customer, &account, &request, error).await;
                        }
                    }
                },
                Next::Read => match self.find_provider_customer(&account, customer, &request).await? {
                    Some(found) => return self.on_linked(lease, customer, &found.id, Some(&request)).await,
                    None => observed = Observed::Absent,
                },
                Next::NewKey => {
                    let mut work = self.begin_leased(lease).await?;
                    let body = stripe::customers::create_body(work.installation(), customer);
                    work.prepare(&target, request.generation + 1, body).await?;
                    work.commit().await?;
                    return Err(sent_again());
                }
                Next::Stop(reason) => return Err(stopped(&target, reason)),
                Next::Wait(_) | Next::Done | Next::Abandon => return Err(unplanned(&target)),
            }
        }
    }

    /// Reads a Stripe customer.
    pub(super) async fn read_customer(
        &self,
        account: &StripeAccount,
        id: &str,
    ) -> Result<stripe::customers::ProviderCustomer> {
        self.checked(account, Operation::CustomerRead, self.0.stripe.customer(&account.key, id).await).await
    }

    /// Looks up the Stripe customer that a request may have created.
    async fn find_provider_customer(
        &self,
        account: &StripeAccount,
        customer: &Customer,
        request: &StripeRequest,
    ) -> Result<Option<stripe::customers::ProviderCustomer>> {
        match self.0.stripe.find_customer(&account.key, request.list_from(), customer).await {
            // A duplicate takes no money. It is better than a customer who is never created.
            Err(stripe::Error::Unknown { reason: stripe::UnknownCause::TooLong, .. }) => Ok(None),
            found => self.checked(account, Operation::CustomerList, found).await,
        }
    }

    async fn link_provider_customer(
        &self,
        lease: &Lease,
        customer: &Customer,
        integration: IntegrationId,
        provider_id: &str,
    ) -> Result<()> {
        let account = self.stripe_account(lease.organization_id, integration).await?;
        match self.0.stripe.customer(&account.key, provider_id).await {
            Ok(found) if found.deleted => {
                let message = format!("the Stripe customer {provider_id} was deleted; link another one");
                self.on_link_failed(lease, customer, &message, "resource_missing", None).await
            }
            Ok(found) => self.on_linked(lease, customer, &found.id, None).await,
            Err(error) if error.is_api_key_error() => {
                self.pause_integration(&account, Operation::CustomerLink, &error).await?;
                self.begin_leased(lease).await?.end(Outcome::Done).await
            }
            Err(error) if error.disposition() == stripe::Disposition::Refused => {
                let code = error.code().unwrap_or("invalid_request").to_owned();
                self.on_link_failed(lease, customer, &error.to_string(), &code, None).await
            }
            Err(error) => Err(stripe_unavailable(&error)),
        }
    }

    async fn map_creation_error(
        &self,
        lease: &Lease,
        customer: &Customer,
        account: &StripeAccount,
        request: &StripeRequest,
        error: stripe::Error,
    ) -> Result<()> {
        if error.is_api_key_error() {
            // The link stays pending, and is resumed when the key is rotated.
            self.pause_integration(account, Operation::CustomerCreate, &error).await?;
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        }
        if error.disposition() == stripe::Disposition::Refused {
            let code = error.code().unwrap_or("invalid_request").to_owned();
            return self.on_link_failed(lease, customer, &error.to_string(), &code, Some(request)).await;
        }
        Err(stripe_unavailable(&error))
    }

    /// The customer is linked: reports it, and enqueues what waited for it. `request` created the Stripe customer;
    /// without it, the customer existed before. A response for a link that has changed meanwhile is discarded.
    async fn on_linked(
        &self,
        lease: &Lease,
        seen: &Customer,
        provider_id: &str,
        request: Option<&StripeRequest>,
    ) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        let (org, now) = (work.org, work.now);
        let mut customer = store::customers::lock(&mut work.tx, org, seen.id).await?;
        let Some(integration) = customer.integration_id.filter(|_| customer.has_same_link(seen)) else {
            return work.end(Outcome::RunAgain(now)).await;
        };
        let integration = store::integrations::get(&mut work.tx, org, integration).await?;
        customer.link_state = LinkState::Linked;
        customer.link_error = None;
        customer.provider_customer_id = Some(provider_id.to_owned());
        if let Some(request) = request {
            store::stripe_requests::finish(&mut work.tx, org, &target_of(seen), request.generation, now).await?;
            if stripe::customers::create_body(work.installation(), &customer) != request.body {
                // It was changed while it was being created.
                customer.unpushed_fields = PUSHED_FIELDS.map(str::to_owned).to_vec();
                work.enqueue(JobKind::SyncCustomer, customer.id.0);
            }
            // We created it without a default.
            let none = store::customers::ProviderDefault { method: None, time: Some(now) };
            store::customers::set_provider_default(&mut work.tx, org, customer.id, &none).await?;
            work.record_event(event_payloads::customer_created(
                EventType::CustomerPaymentProviderCreated,
                &customer,
                &integration,
            ));
            let session = self.new_session(&mut work, &customer, &integration, None, UrlReport::Event).await?;
            work.enqueue(JobKind::CreateCheckoutSession, session.id.0);
        } else {
            work.record_event(event_payloads::customer_created(
                EventType::CustomerPaymentProviderLinked,
                &customer,
                &integration,
            ));
            work.enqueue(JobKind::ImportPaymentMethods, customer.id.0);
        }
        store::customers::save(&mut work.tx, &mut customer, now).await?;
        enqueue_waiting_payments(&mut work, &customer).await?;
        work.end(Outcome::Done).await
    }

    async fn on_link_failed(
        &self,
        lease: &Lease,
        seen: &Customer,
        message: &str,
        code: &str,
        request: Option<&StripeRequest>,
    ) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        let (org, now) = (work.org, work.now);
        let mut customer = store::customers::lock(&mut work.tx, org, seen.id).await?;
        if let Some(request) = request {
            store::stripe_requests::finish(&mut work.tx, org, &target_of(seen), request.generation, now).await?;
        }
        let Some(integration) = customer.integration_id.filter(|_| customer.has_same_link(seen)) else {
            return work.end(Outcome::RunAgain(now)).await;
        };
        let integration = store::integrations::get(&mut work.tx, org, integration).await?;
        customer.link_state = LinkState::Failed;
        customer.link_error = Some(message.to_owned());
        store::customers::save(&mut work.tx, &mut customer, now).await?;
        work.record_event(event_payloads::customer_error(&customer, &integration, message, code));
        enqueue_waiting_payments(&mut work, &customer).await?;
        work.end(Outcome::Done).await
    }

    /// Pushes changed fields. Pushing them twice is harmless.
    async fn push_customer(
        &self,
        lease: &Lease,
        customer: &Customer,
        integration: IntegrationId,
        provider_id: &str,
    ) -> Result<()> {
        let body = stripe::customers::update_body(&customer.unpushed());
        let mut refusal = None;
        if !body.is_empty() {
            let account = self.stripe_account(lease.organization_id, integration).await?;
            let idempotency_key = IdempotencyKey::unique("push", self.clock().new_id());
            match self.0.stripe.update_customer(&account.key, provider_id, &idempotency_key, &body).await {
                Ok(_) => {}
                Err(error) if error.disposition() == stripe::Disposition::Refused => refusal = Some(error),
                Err(error) => return Err(self.map_stripe_error(&account, Operation::CustomerUpdate, &error).await),
            }
        }
        let mut work = self.begin_leased(lease).await?;
        let org = work.org;
        let mut current = store::customers::lock(&mut work.tx, org, customer.id).await?;
        if current.version != customer.version {
            let now = work.now;
            return work.end(Outcome::RunAgain(now)).await;
        }
        current.unpushed_fields.clear();
        store::customers::save(&mut work.tx, &mut current, work.now).await?;
        if let Some(error) = refusal {
            let integration = store::integrations::get(&mut work.tx, org, integration).await?;
            let code = error.code().unwrap_or("invalid_request");
            work.record_event(event_payloads::customer_error(&current, &integration, &error.to_string(), code));
        }
        work.end(Outcome::Done).await
    }
}

/// The requests that create a customer at Stripe.
fn target_of(customer: &Customer) -> RequestTarget {
    Purpose::Customer.of(&customer.external_id)
}

/// Enqueues the payments that wait for the customer. Call it with the customer locked: a transaction that saw its
/// earlier state has committed its wait by now.
pub(super) async fn enqueue_waiting_payments(work: &mut UnitOfWork, customer: &Customer) -> Result<()> {
    for payment in store::payments::ids_waiting_for(&mut work.tx, work.org, customer.id).await? {
        work.enqueue(JobKind::SubmitPayment, payment);
    }
    Ok(())
}
