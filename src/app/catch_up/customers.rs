//! Customers that Stripe lists while an integration catches up.

use super::Run;
use crate::app::unit_of_work::UnitOfWork;
use crate::app::{App, event_payloads};
use crate::domain::Result;
use crate::domain::customers::{Customer, LinkState};
use crate::domain::events::EventType;
use crate::domain::jobs::JobKind;
use crate::domain::payment_methods::MethodKind;
use crate::domain::signals::{CustomerSnapshot, IntentSnapshot};
use crate::store;

impl App {
    /// Stores a customer of ours that is not known. One that was accepted anew meanwhile is linked.
    pub(super) async fn recover_customer(&self, run: &Run<'_>, found: CustomerSnapshot) -> Result<()> {
        let Some(external_id) = found.external_id.clone() else { return Ok(()) };
        if !self.is_own(run, found.organization_id, found.installation.as_deref()) {
            return Ok(());
        }
        let mut work = self.begin_leased(run.lease).await?;
        let id = found.customer_id.unwrap_or_else(|| self.clock().new_id());
        let customer = Customer {
            id: id.into(),
            organization_id: work.org,
            external_id,
            name: found.name,
            email: found.email,
            phone: found.phone,
            address: found.address,
            integration_id: Some(run.integration.id),
            link_state: LinkState::Linked,
            link_error: None,
            provider_customer_id: Some(found.id),
            provider_payment_methods: if found.kinds.is_empty() { vec![MethodKind::Card] } else { found.kinds },
            sync_with_provider: true,
            default_payment_method_id: None,
            unpushed_fields: Vec::new(),
            version: 1,
            create_time: work.now,
            update_time: work.now,
        };
        recover_link(&mut work, run, customer).await?;
        work.commit().await
    }
}

/// The customer that an intent's metadata names, if it does: one that the billing system had linked to a Stripe customer
/// of its own, which bears no metadata of ours.
pub(super) fn customer_of(
    work: &UnitOfWork,
    run: &Run<'_>,
    intent: &IntentSnapshot,
    provider_customer: &str,
) -> Option<Customer> {
    let (id, external_id) = (intent.customer_id?, intent.external_customer_id.clone()?);
    Some(Customer {
        id: id.into(),
        organization_id: work.org,
        external_id,
        name: String::new(),
        email: String::new(),
        phone: String::new(),
        address: None,
        integration_id: Some(run.integration.id),
        link_state: LinkState::Linked,
        link_error: None,
        provider_customer_id: Some(provider_customer.to_owned()),
        provider_payment_methods: vec![MethodKind::Card],
        sync_with_provider: false,
        default_payment_method_id: None,
        unpushed_fields: Vec::new(),
        version: 1,
        create_time: work.now,
        update_time: work.now,
    })
}

/// Stores a customer that Stripe has. If its external id is known, and waits for a Stripe customer, that one is linked.
pub(super) async fn recover_link(work: &mut UnitOfWork, run: &Run<'_>, found: Customer) -> Result<()> {
    let (org, integration) = (work.org, run.integration.id);
    let provider_id = found.provider_customer_id.clone();
    if let Some(provider_id) = &provider_id
        && store::customers::id_by_provider_id(&mut work.tx, org, integration, provider_id).await?.is_some()
    {
        return Ok(());
    }
    // A customer that was deleted here keeps its row, and its Stripe customer.
    if store::customers::get_including_deleted(&mut work.tx, org, found.id).await.is_ok() {
        return Ok(());
    }
    let known = store::customers::get_by_external_id(&mut work.tx, org, &found.external_id).await?;
    let customer = match known {
        None => {
            if !store::customers::insert(&mut work.tx, &found).await? {
                return Ok(());
            }
            store::request_ids::mark_recovered(&mut work.tx, org, found.id.0, work.now).await?;
            found
        }
        Some(known) => {
            let mut known = store::customers::lock(&mut work.tx, org, known.id).await?;
            let waits = known.link_state == LinkState::Pending
                && known.provider_customer_id.is_none()
                && known.integration_id == Some(integration);
            if !waits {
                return Ok(());
            }
            known.link_state = LinkState::Linked;
            known.link_error = None;
            known.provider_customer_id = provider_id;
            store::customers::save(&mut work.tx, &mut known, work.now).await?;
            known
        }
    };
    let event = EventType::CustomerPaymentProviderLinked;
    work.record_event(event_payloads::customer_created(event, &customer, run.integration));
    work.enqueue(JobKind::ImportPaymentMethods, customer.id.0);
    Ok(())
}
