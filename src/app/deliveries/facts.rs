//! What Stripe tells about methods, customers and sessions. Most of it is fetched rather than believed, so that an old
//! snapshot never overwrites a newer one (P6).

use time::OffsetDateTime;

use super::apply::Verdict;
use crate::app::customers::{Learnt, Noted, forget_unset_read, if_allowed, may_be_ours, note_provider_default};
use crate::app::work::{Hand, Work};
use crate::app::{Access, App, tell};
use crate::domain::checkout_sessions::SessionState;
use crate::domain::customers::{Customer, LinkState};
use crate::domain::integrations::Integration;
use crate::domain::jobs::{JobKind, Lease};
use crate::domain::payment_methods::MethodKind;
use crate::domain::signals::{
    DefaultChange, MandateSnapshot, MethodSnapshot, SessionSnapshot, SessionStatus, SetupSnapshot,
};
use crate::domain::{Error, IntegrationId, Result};
use crate::store;

/// How often a read is repeated because the customer changed under it.
const READS_MAX: usize = 5;

/// Where something that is told comes from: a delivery, or a read.
pub(in crate::app) struct About<'a> {
    /// The job that works on it.
    pub lease: &'a Lease,
    /// On whose account it happened.
    pub integration_id: IntegrationId,
    /// When it happened.
    pub event_time: OffsetDateTime,
    /// The idempotency key of the request that brought it about, if that is known.
    pub request_key: Option<&'a str>,
}

/// What an event says about a method.
struct Told<'a> {
    method: &'a str,
    attach_time: Option<OffsetDateTime>,
    choose_time: Option<OffsetDateTime>,
    unset_time: Option<OffsetDateTime>,
    /// What became of Stripe's default, if that is what is told.
    default_change: Option<&'a DefaultChange>,
    mandate: Option<MandateSnapshot>,
}

impl<'a> Told<'a> {
    fn about(method: &'a str) -> Self {
        Self { method, attach_time: None, choose_time: None, unset_time: None, default_change: None, mandate: None }
    }
}

fn unknown_customer() -> Verdict {
    Verdict::Unknown("no customer of ours is linked to this Stripe customer".to_owned())
}

impl App {
    async fn delivery_access(&self, about: &About<'_>) -> Result<Access> {
        self.access(about.lease.organization_id, about.integration_id).await
    }

    /// Locks the customer with this Stripe id, within a new change.
    pub(in crate::app) async fn customer_of(
        &self,
        about: &About<'_>,
        provider_id: &str,
    ) -> Result<Option<(Work, Customer, Integration)>> {
        let mut work = self.begin_leased(about.lease).await?;
        let (org, integration) = (work.org, about.integration_id);
        let id = store::customers::id_by_provider_id(&mut work.tx, org, integration, provider_id).await?;
        let Some(id) = id else { return Ok(None) };
        let customer = store::customers::lock(&mut work.tx, org, id).await?;
        if customer.link_state != LinkState::Linked {
            return Ok(None);
        }
        let integration = store::integrations::get(&mut work.tx, org, integration).await?;
        Ok(Some((work, customer, integration)))
    }

    /// The customer with this Stripe id, if it is ours, before anything is fetched for it; and whether its import is still
    /// to come.
    async fn seen_customer(&self, about: &About<'_>, provider_id: &str) -> Result<Option<(Customer, bool)>> {
        let (org, integration) = (about.lease.organization_id, about.integration_id);
        let mut tx = self.read(org).await?;
        let mut seen = None;
        if let Some(id) = store::customers::id_by_provider_id(&mut tx, org, integration, provider_id).await? {
            let customer = store::customers::get(&mut tx, org, id).await?;
            let awaits_import = store::jobs::is_asked(&mut tx, org, JobKind::ImportPaymentMethods, id.0).await?;
            seen = Some((customer, awaits_import)).filter(|(customer, _)| customer.link_state == LinkState::Linked);
        }
        tx.close().await?;
        Ok(seen)
    }

    /// Reads a method of a customer of ours and lets the customer learn it. What was read counts only if the customer did
    /// not change meanwhile: else the method may have been detached since, and it is read again (P6).
    async fn learn_current(&self, about: &About<'_>, provider_customer: &str, told: &Told<'_>) -> Result<Verdict> {
        let mut is_imported = false;
        for _ in 0..READS_MAX {
            let Some((seen, awaits_import)) = self.seen_customer(about, provider_customer).await? else {
                return Ok(unknown_customer());
            };
            if awaits_import && !is_imported {
                // Nobody knows its default at Stripe yet: what is only attached would be taken for it.
                self.read_payment_methods(about.lease, seen.id).await?;
                is_imported = true;
                continue;
            }
            let Some((snapshot, mandates)) = self.current_method(about, told).await? else {
                return Ok(Verdict::Ignored("Stripe does not know the payment method".to_owned()));
            };
            let Some((mut work, mut customer, integration)) = self.customer_of(about, provider_customer).await? else {
                return Ok(unknown_customer());
            };
            if customer.version != seen.version {
                work.abandon().await?;
                continue;
            }
            let learnt = Learnt {
                snapshot: &snapshot,
                attach_time: told.attach_time,
                choose_time: told.choose_time,
                unset_time: told.unset_time,
                is_unset_read: false,
                mandates: &mandates,
                revives: false,
            };
            if let Some(change) = told.default_change {
                match note_provider_default(&mut work, &customer, change, about.event_time).await? {
                    Noted::Unordered => {
                        work.abandon().await?;
                        self.read_payment_methods(about.lease, customer.id).await?;
                        return Ok(Verdict::Applied);
                    }
                    // A default that is to be written may wait for this.
                    Noted::Changed => work.ask(JobKind::PushDefaultMethod, customer.id.0),
                    Noted::Unchanged => {}
                }
            }
            if let Some(time) = told.unset_time {
                forget_unset_read(&mut work, &customer, time).await?;
            }
            self.learn_method(&mut work, &mut customer, &integration, learnt).await?;
            work.commit().await?;
            return Ok(Verdict::Applied);
        }
        Err(Error::internal(anyhow::anyhow!("a customer keeps changing while its payment method is read")))
    }

    /// A method as it is at Stripe now, with its mandates if it is a SEPA method; `None` if Stripe does not know it. The
    /// mandates are read along, because an invoice may be charged to the method as soon as it is known.
    async fn current_method(
        &self,
        about: &About<'_>,
        told: &Told<'_>,
    ) -> Result<Option<(MethodSnapshot, Vec<MandateSnapshot>)>> {
        let access = self.delivery_access(about).await?;
        let method = match self.0.stripe.payment_method(&access.key, told.method).await {
            Ok(method) => method,
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(self.stripe_trouble(&access, "payment_method.read", &error).await),
        };
        let is_sepa = method.kind == MethodKind::SepaDebit.as_str();
        let mandates = match (&told.mandate, method.provider_customer_id.as_deref().filter(|_| is_sepa)) {
            (Some(mandate), _) => vec![mandate.clone()],
            (None, None) => Vec::new(),
            (None, Some(customer)) => match self.mandates_of(&access, customer, &[&method.id]).await {
                Ok(mandates) => mandates,
                Err(error) => return Err(self.stripe_trouble(&access, "mandate.read", &error).await),
            },
        };
        Ok(Some((method, mandates)))
    }

    /// A method was attached or updated, or stored through a SetupIntent: it is read, since it may be detached by now.
    pub(super) async fn method_told(
        &self,
        about: &About<'_>,
        method: &str,
        provider_customer: Option<&str>,
        attach_time: Option<OffsetDateTime>,
        mandate: Option<MandateSnapshot>,
    ) -> Result<Verdict> {
        let Some(provider_customer) = provider_customer else {
            return Ok(Verdict::Ignored("the payment method belongs to no customer".to_owned()));
        };
        let told = Told { attach_time, mandate, ..Told::about(method) };
        self.learn_current(about, provider_customer, &told).await
    }

    /// A SetupIntent succeeded: its method is attached, and for SEPA has a mandate.
    pub(super) async fn setup_succeeded(&self, about: &About<'_>, setup: SetupSnapshot) -> Result<Verdict> {
        let Some(method) = setup.provider_payment_method_id else {
            return Ok(Verdict::Ignored("the SetupIntent has no payment method".to_owned()));
        };
        let customer = setup.provider_customer_id.as_deref();
        let mandate = setup.provider_mandate_id.map(|id| MandateSnapshot {
            id,
            provider_payment_method_id: method.clone(),
            is_active: true,
        });
        self.method_told(about, &method, customer, Some(about.event_time), mandate).await
    }

    pub(super) async fn method_detached(&self, about: &About<'_>, method: &str) -> Result<Verdict> {
        let mut work = self.begin_leased(about.lease).await?;
        let (org, integration) = (work.org, about.integration_id);
        let Some(id) = store::payment_methods::customer_of(&mut work.tx, org, integration, method).await? else {
            // Somebody may be reading it just now, still attached; afterwards it is known.
            return Ok(Verdict::Unknown("the payment method is not known".to_owned()));
        };
        let mut customer = store::customers::lock(&mut work.tx, org, id).await?;
        let integration = store::integrations::get(&mut work.tx, org, integration).await?;
        let all = store::payment_methods::all(&mut work.tx, org, id).await?;
        if let Some(mut found) = all.into_iter().find(|known| known.provider_payment_method_id == method) {
            if found.detach_time.is_none() {
                self.detach(&mut work, &mut customer, &integration, &mut found, about.event_time).await?;
            } else if found.is_detach_read || found.detach_time != Some(about.event_time) {
                // A read found it detached before, at a time that was not Stripe's. Whether a default was unset by hand or
                // for that depends on the right one.
                (found.detach_time, found.is_detach_read) = (Some(about.event_time), false);
                store::payment_methods::upsert(&mut work.tx, &found).await?;
                self.choose_default(&mut work, &mut customer, &integration).await?;
            }
        }
        work.commit().await?;
        Ok(Verdict::Applied)
    }

    /// Another default counts at Stripe. `is_ours`: whether we wrote it, where the event says so; what it hides is no choice
    /// if it only says what is known.
    pub(super) async fn default_changed(
        &self,
        about: &About<'_>,
        provider_customer: &str,
        change: &DefaultChange,
        is_ours: Option<bool>,
    ) -> Result<Verdict> {
        let is_choice = if let Some(is_ours) = is_ours {
            !is_ours
        } else {
            let Some((mut work, customer, _)) = self.customer_of(about, provider_customer).await? else {
                return Ok(unknown_customer());
            };
            let known = store::customers::provider_default(&mut work.tx, work.org, customer.id).await?;
            let is_ours = may_be_ours(&mut work.tx, &customer, change.to.as_deref(), work.now).await?;
            work.abandon().await?;
            known.time.is_none() || (known.method != change.to && !is_ours)
        };
        if is_choice {
            return self.default_chosen(about, provider_customer, change).await;
        }
        self.default_told(about, provider_customer, change).await?;
        Ok(Verdict::Applied)
    }

    /// Somebody chose a default at Stripe, or none in the place of one.
    async fn default_chosen(
        &self,
        about: &About<'_>,
        provider_customer: &str,
        change: &DefaultChange,
    ) -> Result<Verdict> {
        let time = Some(about.event_time);
        let (method, choose_time, unset_time) = match (&change.to, &change.from) {
            (Some(chosen), _) => (chosen, time, None),
            (None, Some(unset)) => (unset, None, time),
            (None, None) => return Ok(Verdict::Applied),
        };
        let told = Told { choose_time, unset_time, default_change: Some(change), ..Told::about(method) };
        let verdict = self.learn_current(about, provider_customer, &told).await?;
        if matches!(verdict, Verdict::Ignored(_)) {
            self.default_told(about, provider_customer, change).await?;
        }
        Ok(verdict)
    }

    pub(super) async fn customer_deleted(&self, about: &About<'_>, provider_customer: &str) -> Result<Verdict> {
        let Some((mut work, mut customer, integration)) = self.customer_of(about, provider_customer).await? else {
            return Ok(unknown_customer());
        };
        let told = tell::customer_deleted(&customer, &integration);
        self.unlink(&mut work, &mut customer, about.event_time).await?;
        store::customers::save(&mut work.tx, &mut customer, work.now).await?;
        work.tell(told);
        work.commit().await?;
        Ok(Verdict::Applied)
    }

    /// A mandate began, was used, or has ended; the default may follow from it.
    pub(super) async fn mandate_told(&self, about: &About<'_>, mandate: &MandateSnapshot) -> Result<Verdict> {
        let mut work = self.begin_leased(about.lease).await?;
        let (org, integration) = (work.org, about.integration_id);
        let method = &mandate.provider_payment_method_id;
        let Some(id) = store::payment_methods::customer_of(&mut work.tx, org, integration, method).await? else {
            return Ok(Verdict::Unknown("the mandate's payment method is not known".to_owned()));
        };
        let mut customer = store::customers::lock(&mut work.tx, org, id).await?;
        let integration = store::integrations::get(&mut work.tx, org, integration).await?;
        let all = store::payment_methods::all(&mut work.tx, org, id).await?;
        if let Some(mut found) = all.into_iter().find(|known| known.provider_payment_method_id == *method) {
            found.mandates.note(&mandate.id, mandate.is_active);
            store::payment_methods::upsert(&mut work.tx, &found).await?;
            self.choose_default(&mut work, &mut customer, &integration).await?;
        }
        work.commit().await?;
        Ok(Verdict::Applied)
    }

    /// A Checkout session was used, or ended unused. Both are final, so the order does not matter. That it was used is
    /// noted only after its method is learnt: one that is noted as used is not asked about again (P8).
    pub(in crate::app) async fn session_told(&self, about: &About<'_>, session: &SessionSnapshot) -> Result<Verdict> {
        let (org, integration) = (about.lease.organization_id, about.integration_id);
        let mut tx = self.read(org).await?;
        let known = store::checkout_sessions::lock_by_provider_id(&mut tx, org, integration, &session.id).await?;
        let payment = store::attempts::payment_of_session(&mut tx, org, &session.id).await?;
        tx.close().await?;
        match (known, payment) {
            (Some(_), _) => {}
            (None, Some(payment)) => {
                self.refresh_link(Hand::Job(about.lease), payment).await?;
                return Ok(Verdict::Applied);
            }
            (None, None) => return Ok(Verdict::Unknown("the Checkout session was not made by us".to_owned())),
        }
        let setup = session.provider_setup_intent_id.as_deref().filter(|_| session.status == SessionStatus::Complete);
        let verdict = match setup {
            Some(setup) => {
                let access = self.delivery_access(about).await?;
                // Without the permission to read it, `payment_method.attached` alone tells of what was stored.
                match if_allowed(self.0.stripe.setup_intent(&access.key, setup).await) {
                    Ok(Some(Some(setup))) => self.setup_succeeded(about, setup).await?,
                    Ok(Some(None) | None) => Verdict::Applied,
                    Err(error) => return Err(self.stripe_trouble(&access, "setup_intent.read", &error).await),
                }
            }
            None => Verdict::Applied,
        };
        self.note_session(about, session).await?;
        Ok(verdict)
    }

    async fn note_session(&self, about: &About<'_>, session: &SessionSnapshot) -> Result<()> {
        let mut work = self.begin_leased(about.lease).await?;
        let (org, integration) = (work.org, about.integration_id);
        let known = store::checkout_sessions::lock_by_provider_id(&mut work.tx, org, integration, &session.id).await?;
        let Some(mut known) = known else { return work.abandon().await };
        let was_open = known.state == SessionState::Open;
        known.state = match session.status {
            SessionStatus::Complete => SessionState::Complete,
            SessionStatus::Expired => SessionState::Expired,
            SessionStatus::Open => known.state,
        };
        store::checkout_sessions::save(&mut work.tx, &known).await?;
        if was_open && known.state == SessionState::Expired {
            let customer = store::customers::get_even_deleted(&mut work.tx, org, known.customer_id).await?;
            let integration = store::integrations::get(&mut work.tx, org, integration).await?;
            work.tell(tell::checkout_url("customer.checkout_url_expired", &customer, &integration, &known));
        }
        work.commit().await
    }
}
