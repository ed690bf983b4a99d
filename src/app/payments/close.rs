//! Closing the open way to pay, so that another one may be opened (P1): the payment's intent is canceled, or its link's
//! page ended, and only Stripe's answer counts. What it was closed for is an errand on the payment, which is carried out
//! with that answer.

use std::time::Duration;

use super::submit::Flow;
use super::{Scene, hash_request};
use crate::app::App;
use crate::app::work::{Hand, Work};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::payments::{Errand, Manual, News, Objection, Payment, PaymentState};
use crate::domain::signals::{IntentStatus, SessionStatus};
use crate::domain::{Error, Money, OrganizationId, PaymentId, Result};
use crate::store;
use crate::stripe;

/// How far a caller's clock may be ahead, or its time zone off.
const CLOCKS_APART_MAX: Duration = Duration::from_hours(24);

impl App {
    /// Asks for a payment to be canceled. The answer is its present state; `CANCELED` is told by an event.
    pub async fn cancel_payment(&self, org: OrganizationId, id: PaymentId) -> Result<Payment> {
        self.cancel_by(Hand::Caller(org), id).await
    }

    /// As [`cancel_payment`](Self::cancel_payment), by whosever hand it is.
    pub(in crate::app) async fn cancel_by(&self, hand: Hand<'_>, id: PaymentId) -> Result<Payment> {
        let mut work = self.begin_by(hand).await?;
        let mut scene = Scene::load(&mut work, id).await?;
        match scene.payment.state {
            PaymentState::Canceled => return Ok(scene.payment),
            PaymentState::Succeeded => {
                let message =
                    "the payment is SUCCEEDED, which is final; money that was taken is given back by a refund";
                return Err(Error::precondition("PAYMENT_NOT_CANCELABLE", format!("payment/{id}"), message));
            }
            _ => {}
        }
        ask(&mut work, &mut scene, Errand::Cancel, &CANCEL).await?;
        work.commit().await?;
        Ok(scene.payment)
    }

    /// The job of a payment whose cancellation a process of the release before payment links has accepted, beside this one
    /// (P8): it has noted when, and asked for this job. It becomes an errand, as our own do.
    pub(in crate::app) async fn take_cancellation_over(&self, lease: &Lease) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        let mut scene = Scene::load(&mut work, lease.object_id.into()).await?;
        let errand = Errand::Cancel;
        if scene.payment.cancel_request_time.is_some()
            && scene.payment.objection(scene.attempt.as_ref(), &errand).is_none()
        {
            scene.news(&mut work, News::Asked(errand)).await?;
        }
        work.end(Outcome::Done).await
    }

    /// Changes what is to be collected. Where something at Stripe could take the old amount, it is closed first, and the
    /// answer still shows the old amount.
    pub async fn update_payment(
        &self,
        org: OrganizationId,
        id: PaymentId,
        version: Option<i64>,
        amount: Option<Money>,
    ) -> Result<Payment> {
        let mut work = self.begin(org).await?;
        let mut scene = Scene::load(&mut work, id).await?;
        if version.is_some_and(|version| version != scene.payment.version) {
            return Err(Error::EtagMismatch { kind: "payment", id: id.to_string() });
        }
        // While a change waits, the present amount is a change, too, and the one that waits is asked for again.
        let waits = matches!(scene.payment.errand, Some(Errand::ChangeAmount { .. }));
        let Some(amount) = amount.filter(|amount| waits || *amount != scene.payment.amount) else {
            return Ok(scene.payment);
        };
        if let Some(objection) = amount.objection() {
            return Err(Error::invalid("payment.amount.minor_units", objection));
        }
        if amount.currency != scene.payment.amount.currency {
            let text = format!("must stay {}: an invoice keeps its currency", scene.payment.amount.currency);
            return Err(Error::invalid("payment.amount.currency_code", text));
        }
        let errand = scene.payment.amount_change(amount.minor_units);
        ask(&mut work, &mut scene, errand, &UPDATE).await?;
        work.commit().await?;
        Ok(scene.payment)
    }

    /// Records that the invoice was paid elsewhere, in full. It counts once nothing at Stripe can take money for it.
    pub async fn record_manual_payment(
        &self,
        org: OrganizationId,
        request_id: String,
        id: PaymentId,
        reference: String,
        paid_time: Option<time::OffsetDateTime>,
    ) -> Result<Payment> {
        let paid_text = paid_time.map(|time| time.unix_timestamp_nanos().to_string()).unwrap_or_default();
        let hash = hash_request("RecordManualPayment", &[&id.to_string(), &reference, &paid_text]);
        let mut work = self.begin(org).await?;
        if paid_time.is_some_and(|time| time > work.now + CLOCKS_APART_MAX) {
            return Err(Error::invalid("paid_time", "is in the future"));
        }
        store::requests::claim(&mut work.tx, org, &request_id).await?;
        let is_known = store::requests::known(&mut work.tx, org, &request_id, &hash).await?.is_some();
        let mut scene = Scene::load(&mut work, id).await?;
        if is_known {
            return Ok(scene.payment);
        }
        store::requests::take(&mut work.tx, org, &request_id, &hash, id.0, work.now).await?;
        let manual = Manual { reference, time: paid_time.unwrap_or(work.now) };
        ask(&mut work, &mut scene, Errand::RecordManual(manual), &RECORD).await?;
        work.commit().await?;
        Ok(scene.payment)
    }

    /// Cancels the payment's intent. Whether it was canceled, refused or the answer was lost: the intent itself says where
    /// it stands. `Break`: it can't be closed now, and what it was to be closed for waits for the outcome.
    pub(super) async fn close_intent(&self, hand: Hand<'_>, scene: Scene) -> Result<Flow> {
        let id = scene.payment.id;
        let Some(intent_id) = &scene.payment.provider_payment_intent_id else { return Ok(Flow::Continue(())) };
        let access = self.access(hand.org(), scene.payment.integration_id).await?;
        // Every cancel has a key of its own, so that none is answered with an earlier refusal or a stored 500 for a day; to
        // cancel twice harms nobody.
        let idempotency_key = format!("paybridge-cancel-{}", self.clock().new_id());
        let refusal = match self.0.stripe.cancel_payment_intent(&access.key, intent_id, &idempotency_key).await {
            Ok(_) => None,
            Err(error) if matches!(error.verdict(), stripe::Verdict::Refused | stripe::Verdict::Unknown) => Some(error),
            Err(error) => return Err(self.stripe_trouble(&access, "payment_intent.cancel", &error).await),
        };
        let Some(intent) = self.refresh_payment(hand, id).await? else { return Ok(Flow::Continue(())) };
        match intent.status {
            IntentStatus::Canceled | IntentStatus::Succeeded => Ok(Flow::Continue(())),
            IntentStatus::Processing => self.cannot_close(hand, id).await,
            _ => Err(not_closed(id, "the PaymentIntent is not canceled", refusal.as_ref())),
        }
    }

    /// Ends the page of the payment's open link. Whether it was ended, used or the answer was lost: the page itself says.
    /// `Break`: it was used, and what it was to be ended for waits for the outcome.
    pub(super) async fn close_link(&self, hand: Hand<'_>, scene: Scene) -> Result<Flow> {
        let id = scene.payment.id;
        let Some(session_id) = scene.open_link().and_then(|link| link.provider_session_id.clone()) else {
            return Ok(Flow::Continue(()));
        };
        let access = self.access(hand.org(), scene.payment.integration_id).await?;
        let idempotency_key = format!("paybridge-expire-{}", self.clock().new_id());
        let ended = self.0.stripe.expire_checkout_session(&access.key, &session_id, &idempotency_key).await;
        let refusal = match ended {
            Ok(_) => None,
            Err(error) if matches!(error.verdict(), stripe::Verdict::Refused | stripe::Verdict::Unknown) => Some(error),
            Err(error) => return Err(self.stripe_trouble(&access, "checkout_session.expire", &error).await),
        };
        match self.refresh_link(hand, id).await?.map(|session| session.status) {
            None | Some(SessionStatus::Expired) => Ok(Flow::Continue(())),
            Some(SessionStatus::Complete) => self.cannot_close(hand, id).await,
            Some(SessionStatus::Open) => Err(not_closed(id, "the payment link is not ended", refusal.as_ref())),
        }
    }

    /// The bank works on it: it goes on, and whoever wanted it canceled is told so.
    async fn cannot_close(&self, hand: Hand<'_>, id: PaymentId) -> Result<Flow> {
        let mut work = self.begin_by(hand).await?;
        let mut scene = Scene::load(&mut work, id).await?;
        if scene.payment.is_moving() {
            scene.news(&mut work, News::CannotClose).await?;
        }
        let waits = scene.payment.is_moving() && scene.payment.errand.is_some();
        work.commit().await?;
        Ok(if waits { Flow::Break(()) } else { Flow::Continue(()) })
    }
}

/// What a caller is told where a payment's state does not allow something: a reason, and what would be allowed.
pub(super) struct Allowed(&'static str, &'static str);

const CANCEL: Allowed =
    Allowed("PAYMENT_NOT_CANCELABLE", "only one that is neither SUCCEEDED nor CANCELED can be canceled");
const UPDATE: Allowed =
    Allowed("PAYMENT_NOT_UPDATABLE", "only a PENDING or FAILED one, or one with an open link, can change its amount");
const RECORD: Allowed =
    Allowed("PAYMENT_SETTLED", "only one that is neither SUCCEEDED nor CANCELED can be paid elsewhere");
pub(super) const RETRY: Allowed = Allowed(
    "PAYMENT_NOT_RETRYABLE",
    "only a FAILED one, a PENDING one that waits, or one with an open link can be retried",
);
pub(super) const LINK: Allowed = Allowed("PAYMENT_URL_REFUSED", "only a PENDING or FAILED one can have a link");

/// Takes an errand on, or says why it can't be.
pub(super) async fn ask(work: &mut Work, scene: &mut Scene, errand: Errand, allowed: &Allowed) -> Result<()> {
    if let Some(objection) = scene.payment.objection(scene.attempt.as_ref(), &errand) {
        return Err(refused(objection, &scene.payment, allowed));
    }
    scene.news(work, News::Asked(errand)).await?;
    if scene.payment.errand.is_some() {
        // Also where it was asked for before, and nothing is new about the payment: its job may be parked (P8).
        work.ask(JobKind::SubmitPayment, scene.payment.id.0);
    }
    Ok(())
}

/// What a caller is told whose wish the payment does not allow now.
pub(super) fn refused(objection: Objection, payment: &Payment, allowed: &Allowed) -> Error {
    let subject = format!("payment/{}", payment.id);
    let state = payment.state.as_str().to_uppercase();
    match objection {
        Objection::State => {
            let Allowed(reason, what) = allowed;
            Error::precondition(reason, subject, format!("the payment is {state}; {what}"))
        }
        Objection::Busy => {
            let message = "an earlier change waits for Stripe's answer, or for the bank's where it has the payment already; \
                           try again later";
            Error::precondition("PAYMENT_BUSY", subject, message)
        }
    }
}

/// It is open still. A lost answer is tried again; a refusal that nobody expected is a failure of the job's own.
fn not_closed(id: PaymentId, message: &str, refusal: Option<&stripe::Error>) -> Error {
    match refusal.filter(|error| error.verdict() == stripe::Verdict::Refused) {
        Some(error) => {
            Error::precondition("PAYMENT_NOT_CLOSED", format!("payment/{id}"), format!("{message}: {error}"))
        }
        None => Error::Unavailable {
            reason: "STRIPE_UNAVAILABLE",
            message: format!("{message} yet"),
            retry_after: Duration::from_secs(5),
        },
    }
}
