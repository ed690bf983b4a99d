//! Setup-mode Checkout sessions: links to pages where a customer stores a payment method. They move no money.

use crate::app::request_hash::hash_request;
use crate::app::stripe_requests::{sent_again, unplanned};
use crate::app::unit_of_work::UnitOfWork;
use crate::app::{App, event_payloads};
use crate::domain::checkout_sessions::{CheckoutSession, SessionState};
use crate::domain::customers::Customer;
use crate::domain::events::EventType;
use crate::domain::integrations::{Integration, MOVE_CUSTOMER};
use crate::domain::jobs::{Lease, Outcome};
use crate::domain::signals::{SessionSnapshot, SessionStatus};
use crate::domain::stripe_requests::{Next, Observed, Purpose, StripeRequest};
use crate::domain::{CheckoutSessionId, CustomerId, Error, OrganizationId, Result};
use crate::store::request_ids::CallerRequest;
use crate::stripe::Operation;
use crate::{store, stripe};

/// How the billing system receives the URL of a session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum UrlReport {
    /// In the response to its call.
    Response,
    /// By an event.
    Event,
}

impl App {
    /// Creates a link to a page where the customer stores a payment method.
    pub async fn create_checkout_url(
        &self,
        org: OrganizationId,
        request_id: String,
        customer: CustomerId,
        success_url: Option<String>,
    ) -> Result<CheckoutSession> {
        let id = customer.to_string();
        let body_hash = hash_request("CreateCheckoutUrl", &[&id, success_url.as_deref().unwrap_or_default()]);
        let request = CallerRequest { id: request_id, body_hash };
        let mut work = self.begin(org).await?;
        store::request_ids::lock(&mut work.tx, org, &request.id).await?;
        let known = store::request_ids::resource_of(&mut work.tx, org, &request).await?;
        let session_id = if let Some(known) = known {
            work.rollback().await?;
            known.into()
        } else {
            let customer = store::customers::get(&mut work.tx, org, customer).await?;
            let integration = linked_integration(&mut work, &customer).await?;
            let session =
                self.new_session(&mut work, &customer, &integration, success_url, UrlReport::Response).await?;
            store::request_ids::insert(&mut work.tx, org, &request, session.id.0, work.now).await?;
            work.commit().await?;
            session.id
        };
        self.create_session(org, session_id).await
    }

    /// Writes a session and its prepared request, to be created at Stripe.
    pub(super) async fn new_session(
        &self,
        work: &mut UnitOfWork,
        customer: &Customer,
        integration: &Integration,
        success_url: Option<String>,
        report: UrlReport,
    ) -> Result<CheckoutSession> {
        let success_url = self.success_url(success_url, integration);
        let session = CheckoutSession {
            id: self.clock().new_id().into(),
            organization_id: work.org,
            customer_id: customer.id,
            integration_id: integration.id,
            state: SessionState::Creating,
            success_url,
            provider_session_id: None,
            url: None,
            expire_time: None,
            reports_url: report == UrlReport::Event,
            create_time: work.now,
        };
        store::checkout_sessions::insert(&mut work.tx, &session).await?;
        let provider_id = customer.provider_customer_id.as_deref().unwrap_or_default();
        let kinds = &customer.provider_payment_methods;
        let body = stripe::checkout_sessions::setup_body(work.installation(), &session, provider_id, kinds);
        work.prepare(&Purpose::CheckoutSession.of(session.id), 1, body).await?;
        Ok(session)
    }

    /// Creates the session at Stripe, unless that was done before.
    async fn create_session(&self, org: OrganizationId, id: CheckoutSessionId) -> Result<CheckoutSession> {
        let mut tx = self.read(org).await?;
        let session = store::checkout_sessions::lock(&mut tx, org, id).await?;
        let target = Purpose::CheckoutSession.of(id);
        let request = store::stripe_requests::get(&mut tx, org, &target).await?.into_open();
        tx.close().await?;
        if session.state == SessionState::Failed {
            let message = "Stripe refused to create this link; request another one with a new request_id";
            return Err(Error::precondition("CHECKOUT_REFUSED", format!("customer/{}", session.customer_id), message));
        }
        let Some(mut request) = request.filter(|_| session.state == SessionState::Creating) else { return Ok(session) };
        let account = self.stripe_account(org, session.integration_id).await?;
        let now = self.clock().now();
        let mut observed = Observed::Unread;
        loop {
            match request.next(observed, now) {
                Next::Send => match self.0.stripe.create_checkout_session(&account.key, &request).await {
                    Ok(created) if !created.is_replayed => {
                        return self.on_session_created(org, id, &created.object).await;
                    }
                    Ok(replayed) => {
                        let read = self.read_session(&account, &replayed.object.id).await?;
                        if read.status != SessionStatus::Expired {
                            return self.on_session_created(org, id, &read).await;
                        }
                        observed = Observed::Spent;
                    }
                    Err(error) if error.disposition() == stripe::Disposition::Refused => {
                        return self.fail_session(&session, &error.to_string()).await;
                    }
                    Err(error) => match error.key_state(now) {
                        Some(key_state) => request.key_state = key_state,
                        None => return self.checked(&account, Operation::CheckoutSessionCreate, Err(error)).await,
                    },
                },
                // If Stripe created a session all the same, nobody has its URL; it moves no money and expires.
                Next::NewKey => {
                    self.prepare_session_with_new_key(org, id, &request).await?;
                    return Err(sent_again());
                }
                Next::Abandon => {
                    return self
                        .fail_session(&session, "Stripe was unreachable for too long; request a new link")
                        .await;
                }
                Next::Read | Next::Wait(_) | Next::Done | Next::Stop(_) => return Err(unplanned(&target)),
            }
        }
    }

    /// Prepares the same body under a new key, unless another call has done so or has created the session.
    async fn prepare_session_with_new_key(
        &self,
        org: OrganizationId,
        id: CheckoutSessionId,
        replaced: &StripeRequest,
    ) -> Result<()> {
        let mut work = self.begin(org).await?;
        let session = store::checkout_sessions::lock(&mut work.tx, org, id).await?;
        let target = Purpose::CheckoutSession.of(id);
        let requests = store::stripe_requests::get(&mut work.tx, org, &target).await?;
        let generation = replaced.generation + 1;
        if session.state == SessionState::Creating && requests.next_generation == generation {
            work.prepare(&target, generation, replaced.body.clone()).await?;
        }
        work.commit().await
    }

    async fn on_session_created(
        &self,
        org: OrganizationId,
        id: CheckoutSessionId,
        created: &SessionSnapshot,
    ) -> Result<CheckoutSession> {
        let mut work = self.begin(org).await?;
        let mut session = store::checkout_sessions::lock(&mut work.tx, org, id).await?;
        if session.state != SessionState::Creating {
            return Ok(session);
        }
        session.state = SessionState::Open;
        session.provider_session_id = Some(created.id.clone());
        session.url.clone_from(&created.url);
        session.expire_time = Some(created.expire_time);
        store::checkout_sessions::save(&mut work.tx, &session).await?;
        if session.reports_url {
            let customer = store::customers::get_including_deleted(&mut work.tx, org, session.customer_id).await?;
            let integration = store::integrations::get(&mut work.tx, org, session.integration_id).await?;
            work.record_event(event_payloads::checkout_url(
                EventType::CustomerCheckoutUrlGenerated,
                &customer,
                &integration,
                &session,
            ));
        }
        work.commit().await?;
        Ok(session)
    }

    /// Marks a session as failed. The failure is reported by an event if no caller waits, and returned as an error.
    async fn fail_session(&self, session: &CheckoutSession, message: &str) -> Result<CheckoutSession> {
        let org = session.organization_id;
        let mut work = self.begin(org).await?;
        let mut session = store::checkout_sessions::lock(&mut work.tx, org, session.id).await?;
        session.state = SessionState::Failed;
        store::checkout_sessions::save(&mut work.tx, &session).await?;
        if session.reports_url {
            let customer = store::customers::get_including_deleted(&mut work.tx, org, session.customer_id).await?;
            let integration = store::integrations::get(&mut work.tx, org, session.integration_id).await?;
            work.record_event(event_payloads::customer_error(
                &customer,
                &integration,
                message,
                "checkout_session_refused",
            ));
        }
        work.commit().await?;
        Err(Error::precondition("CHECKOUT_REFUSED", format!("customer/{}", session.customer_id), message))
    }

    /// Runs the job that creates a session at Stripe.
    pub(in crate::app) async fn create_checkout_session(&self, lease: &Lease) -> Result<()> {
        match self.create_session(lease.organization_id, lease.object_id.into()).await {
            Ok(_) | Err(Error::FailedPrecondition { .. }) => {}
            Err(error) => return Err(error),
        }
        self.begin_leased(lease).await?.end(Outcome::Done).await
    }
}

/// The integration of a linked customer.
async fn linked_integration(work: &mut UnitOfWork, customer: &Customer) -> Result<Integration> {
    let subject = || format!("customer/{}", customer.id);
    let Some(id) = customer.integration_id.filter(|_| customer.linked_provider_id().is_some()) else {
        let message = "the customer has no Stripe customer yet; create or link one first";
        return Err(Error::precondition("CUSTOMER_NOT_LINKED", subject(), message));
    };
    let integration = store::integrations::get(&mut work.tx, work.org, id).await?;
    integration.check_accepts_work(format!("integration/{id}"), MOVE_CUSTOMER)?;
    Ok(integration)
}
