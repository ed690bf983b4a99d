//! Links to Checkout pages that store a payment method and move no money.

use crate::app::payments::hash_request;
use crate::app::work::Work;
use crate::app::{App, KEY_AGE_MAX, tell};
use crate::domain::checkout_sessions::{CheckoutSession, SessionState};
use crate::domain::customers::Customer;
use crate::domain::integrations::{Integration, MOVE_CUSTOMER};
use crate::domain::jobs::{Lease, Outcome};
use crate::domain::signals::SessionSnapshot;
use crate::domain::{CheckoutSessionId, CustomerId, Error, OrganizationId, Result};
use crate::store::requests::{FrozenRequest, Purpose};
use crate::{store, stripe};

impl App {
    /// Makes a link to a page where the customer stores a payment method.
    pub async fn create_checkout_url(
        &self,
        org: OrganizationId,
        request_id: Option<String>,
        customer: CustomerId,
        success_url: Option<String>,
    ) -> Result<CheckoutSession> {
        let id = customer.to_string();
        let hash = hash_request("CreateCheckoutUrl", &[&id, success_url.as_deref().unwrap_or_default()]);
        let mut work = self.begin(org).await?;
        let known = match &request_id {
            Some(request_id) => {
                store::requests::claim(&mut work.tx, org, request_id).await?;
                store::requests::known(&mut work.tx, org, request_id, &hash).await?
            }
            None => None,
        };
        let session_id = if let Some(known) = known {
            work.abandon().await?;
            known.into()
        } else {
            let customer = store::customers::get(&mut work.tx, org, customer).await?;
            let integration = linked_integration(&mut work, &customer).await?;
            let session = self.new_session(&mut work, &customer, &integration, success_url, false).await?;
            if let Some(request_id) = &request_id {
                store::requests::take(&mut work.tx, org, request_id, &hash, session.id.0, work.now).await?;
            }
            work.commit().await?;
            session.id
        };
        self.make_session(org, session_id).await
    }

    /// Writes a session that is to be made, with its frozen request.
    pub(super) async fn new_session(
        &self,
        work: &mut Work,
        customer: &Customer,
        integration: &Integration,
        success_url: Option<String>,
        tell: bool,
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
            tell,
            create_time: work.now,
        };
        store::checkout_sessions::insert(&mut work.tx, &session).await?;
        let provider_id = customer.provider_customer_id.as_deref().unwrap_or_default();
        let kinds = &customer.provider_payment_methods;
        let body = stripe::checkout_sessions::setup_body(&session, provider_id, kinds);
        work.freeze(Purpose::CheckoutSession, session.id.0, 1, body).await?;
        Ok(session)
    }

    /// Makes the session at Stripe, unless that was done before.
    async fn make_session(&self, org: OrganizationId, id: CheckoutSessionId) -> Result<CheckoutSession> {
        let mut tx = self.read(org).await?;
        let session = store::checkout_sessions::lock(&mut tx, org, id).await?;
        let frozen = store::requests::newest_frozen(&mut tx, org, Purpose::CheckoutSession, id.0).await?;
        tx.close().await?;
        if session.state == SessionState::Failed {
            let message = "Stripe refused to make this link; ask for another one under a new request_id";
            return Err(Error::precondition("CHECKOUT_REFUSED", format!("customer/{}", session.customer_id), message));
        }
        let Some(frozen) = frozen.filter(|_| session.state == SessionState::Creating) else { return Ok(session) };
        if self.clock().now() - frozen.create_time > KEY_AGE_MAX {
            return self.session_failed(&session, "Stripe could not be reached for too long; ask for a new link").await;
        }
        let access = self.access(org, session.integration_id).await?;
        match self.0.stripe.create_checkout_session(&access.key, &frozen.idempotency_key, &frozen.body).await {
            Ok(made) => self.session_made(org, id, &made).await,
            Err(error) if error.verdict() == stripe::Verdict::Refused => {
                self.session_failed(&session, &error.to_string()).await
            }
            Err(error) => {
                if matches!(error, stripe::Error::Unknown { replayed: true, .. }) {
                    self.freeze_session_anew(org, id, &frozen).await?;
                }
                Err(self.stripe_trouble(&access, "checkout_session.create", &error).await)
            }
        }
    }

    /// The request's key replays a stored error for a day and will never say anything else: the same body goes next time
    /// under another one. A page that was made all the same has no link that anybody knows, moves no money, and ends by
    /// itself.
    async fn freeze_session_anew(
        &self,
        org: OrganizationId,
        id: CheckoutSessionId,
        dead: &FrozenRequest,
    ) -> Result<()> {
        let mut work = self.begin(org).await?;
        let session = store::checkout_sessions::lock(&mut work.tx, org, id).await?;
        let purpose = Purpose::CheckoutSession;
        let newest = store::requests::newest_frozen(&mut work.tx, org, purpose, id.0).await?;
        if session.state == SessionState::Creating && newest.is_some_and(|newest| newest.number == dead.number) {
            work.freeze(purpose, id.0, dead.number + 1, dead.body.clone()).await?;
        }
        work.commit().await
    }

    async fn session_made(
        &self,
        org: OrganizationId,
        id: CheckoutSessionId,
        made: &SessionSnapshot,
    ) -> Result<CheckoutSession> {
        let mut work = self.begin(org).await?;
        let mut session = store::checkout_sessions::lock(&mut work.tx, org, id).await?;
        if session.state != SessionState::Creating {
            return Ok(session);
        }
        session.state = SessionState::Open;
        session.provider_session_id = Some(made.id.clone());
        session.url.clone_from(&made.url);
        session.expire_time = Some(made.expire_time);
        store::checkout_sessions::save(&mut work.tx, &session).await?;
        if session.tell {
            let customer = store::customers::get_even_deleted(&mut work.tx, org, session.customer_id).await?;
            let integration = store::integrations::get(&mut work.tx, org, session.integration_id).await?;
            work.tell(tell::checkout_url("customer.checkout_url_generated", &customer, &integration, &session));
        }
        work.commit().await?;
        Ok(session)
    }

    /// Stripe refused to make it: told where nobody waits for the answer, and returned as an error where somebody does.
    async fn session_failed(&self, session: &CheckoutSession, message: &str) -> Result<CheckoutSession> {
        let org = session.organization_id;
        let mut work = self.begin(org).await?;
        let mut session = store::checkout_sessions::lock(&mut work.tx, org, session.id).await?;
        session.state = SessionState::Failed;
        store::checkout_sessions::save(&mut work.tx, &session).await?;
        if session.tell {
            let customer = store::customers::get_even_deleted(&mut work.tx, org, session.customer_id).await?;
            let integration = store::integrations::get(&mut work.tx, org, session.integration_id).await?;
            work.tell(tell::customer_error(&customer, &integration, message, "checkout_session_refused"));
        }
        work.commit().await?;
        Err(Error::precondition("CHECKOUT_REFUSED", format!("customer/{}", session.customer_id), message))
    }

    /// The job of a session to be made.
    pub(in crate::app) async fn make_checkout_session(&self, lease: &Lease) -> Result<()> {
        match self.make_session(lease.organization_id, lease.object_id.into()).await {
            Ok(_) | Err(Error::FailedPrecondition { .. }) => {}
            Err(error) => return Err(error),
        }
        self.begin_leased(lease).await?.end(Outcome::Done).await
    }
}

/// The integration of a customer that is really linked.
async fn linked_integration(work: &mut Work, customer: &Customer) -> Result<Integration> {
    let subject = || format!("customer/{}", customer.id);
    let Some(id) = customer.integration_id.filter(|_| customer.linked_provider_id().is_some()) else {
        let message = "the customer has no Stripe customer yet; have one created, or link one, first";
        return Err(Error::precondition("CUSTOMER_NOT_LINKED", subject(), message));
    };
    let integration = store::integrations::get(&mut work.tx, work.org, id).await?;
    integration.check_accepts_work(format!("integration/{id}"), MOVE_CUSTOMER)?;
    Ok(integration)
}
