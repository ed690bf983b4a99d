//! Customers: what callers can ask for. Linking, creating and pushing to Stripe are done by a job (`sync`); payment
//! methods and the default are in `methods`, links to Checkout in `checkout`.

mod checkout;
mod default;
mod expiry;
mod mandates;
mod methods;
mod sync;

pub(super) use self::default::{Noted, forget_unset_read, may_be_ours, note_provider_default};
pub(super) use self::mandates::if_allowed;
pub(super) use self::methods::Learnt;

use time::OffsetDateTime;

use super::App;
use super::payments::hash_request;
use super::work::Work;
use crate::domain::customers::{Customer, CustomerRef, CustomerUpdate, IntegrationRef, LinkState, NewCustomer};
use crate::domain::integrations::Integration;
use crate::domain::jobs::JobKind;
use crate::domain::payment_methods::MethodKind;
use crate::domain::payments::{PaymentFilter, PaymentState};
use crate::domain::{CustomerId, Error, OrganizationId, Page, Result};
use crate::store;

impl App {
    /// Makes a customer. With `sync_with_provider` it is created in Stripe, with a `provider_customer_id` linked, by a
    /// job; with neither it lives here only.
    pub async fn create_customer(
        &self,
        org: OrganizationId,
        request_id: Option<String>,
        new: NewCustomer,
    ) -> Result<Customer> {
        check_one_link(new.provider_customer_id.as_deref(), new.sync_with_provider)?;
        let hash = customer_hash(&new);
        let mut work = self.begin(org).await?;
        if let Some(request_id) = &request_id {
            store::requests::claim(&mut work.tx, org, request_id).await?;
            if let Some(known) = store::requests::known(&mut work.tx, org, request_id, &hash).await? {
                return store::customers::get(&mut work.tx, org, known.into()).await;
            }
        }
        let wants_link = new.sync_with_provider || new.provider_customer_id.is_some();
        let integration = find_integration(&mut work, new.integration.as_ref(), wants_link).await?;
        let customer = new_customer(&work, self.clock().new_id().into(), new, integration.as_ref());
        if !store::customers::insert(&mut work.tx, &customer).await? {
            let known = store::customers::get_by_external_id(&mut work.tx, org, &customer.external_id).await?;
            return Err(Error::AlreadyExists {
                kind: "customer",
                id: known.map(|known| known.id.to_string()).unwrap_or_default(),
                message: format!("a customer with the external id {} exists; update that one", customer.external_id),
            });
        }
        if let Some(request_id) = &request_id {
            store::requests::take(&mut work.tx, org, request_id, &hash, customer.id.0, work.now).await?;
        }
        if wants_link {
            work.ask(JobKind::SyncCustomer, customer.id.0);
        }
        work.commit().await?;
        Ok(customer)
    }

    /// A customer.
    pub async fn get_customer(&self, org: OrganizationId, which: CustomerRef) -> Result<Customer> {
        let mut tx = self.read(org).await?;
        match which {
            CustomerRef::Id(id) => store::customers::get(&mut tx, org, id).await,
            CustomerRef::ExternalId(id) => store::customers::get_by_external_id(&mut tx, org, &id)
                .await?
                .ok_or_else(|| Error::not_found("customer", id)),
        }
    }

    /// A page of customers, newest first.
    pub async fn list_customers(&self, org: OrganizationId, page: Page) -> Result<Vec<Customer>> {
        store::customers::list(&mut *self.read(org).await?, org, None, page).await
    }

    /// Changes a customer. What Stripe knows of it is pushed by a job. `version` is the etag, if the caller gave one.
    pub async fn update_customer(
        &self,
        org: OrganizationId,
        id: CustomerId,
        version: Option<i64>,
        update: CustomerUpdate,
    ) -> Result<Customer> {
        let mut work = self.begin(org).await?;
        let mut customer = store::customers::lock(&mut work.tx, org, id).await?;
        if version.is_some_and(|version| version != customer.version) {
            return Err(Error::EtagMismatch { kind: "customer", id: id.to_string() });
        }
        let before = customer.clone();
        self.apply_update(&mut work, &mut customer, update).await?;
        store::customers::save(&mut work.tx, &mut customer, work.now).await?;
        if customer.provider_payment_methods != before.provider_payment_methods
            && let Some(integration) = customer.integration_id
        {
            let integration = store::integrations::get(&mut work.tx, org, integration).await?;
            self.choose_default(&mut work, &mut customer, &integration).await?;
        }
        if before.link_state == LinkState::Pending && customer.link_state != LinkState::Pending {
            sync::ask_for_waiting(&mut work, &customer).await?;
        }
        if customer.link_state == LinkState::Pending || customer.unpushed_fields != before.unpushed_fields {
            work.ask(JobKind::SyncCustomer, id.0);
        }
        work.commit().await?;
        Ok(customer)
    }

    async fn apply_update(&self, work: &mut Work, customer: &mut Customer, update: CustomerUpdate) -> Result<()> {
        let is_linked = customer.link_state == LinkState::Linked;
        let mut changed = Vec::new();
        let mut set = |field: &str, old: &mut String, new: Option<String>| {
            if let Some(new) = new.filter(|new| new != old) {
                *old = new;
                changed.push(field.to_owned());
            }
        };
        set("name", &mut customer.name, update.name);
        set("email", &mut customer.email, update.email);
        set("phone", &mut customer.phone, update.phone);
        if let Some(address) = update.address.filter(|address| *address != customer.address) {
            customer.address = address;
            changed.push("address".to_owned());
        }
        if is_linked {
            changed.retain(|field| !customer.unpushed_fields.contains(field));
            customer.unpushed_fields.extend(changed);
        }
        if let Some(kinds) = update.provider_payment_methods {
            customer.provider_payment_methods = or_card(kinds);
        }
        if let Some(sync) = update.sync_with_provider {
            customer.sync_with_provider = sync;
        }
        let new_provider_id =
            update.provider_customer_id.filter(|id| customer.provider_customer_id.as_ref() != Some(id) || !is_linked);
        check_one_link(new_provider_id.as_deref(), update.sync_with_provider == Some(true))?;
        let new_integration = match &update.integration {
            None => None,
            Some(which) => {
                find_integration(work, Some(which), false).await?.filter(|it| Some(it.id) != customer.integration_id)
            }
        };
        let is_created = customer.sync_with_provider && !is_linked && customer.link_state != LinkState::Pending;
        if new_provider_id.is_none() && new_integration.is_none() && !is_created {
            return Ok(());
        }
        if is_linked {
            self.unlink(work, customer, work.now).await?;
        }
        customer.provider_customer_id = new_provider_id;
        if let Some(integration) = new_integration {
            customer.integration_id = Some(integration.id);
        } else if customer.integration_id.is_none() {
            customer.integration_id = find_integration(work, None, true).await?.map(|found| found.id);
        }
        let wants_link = customer.provider_customer_id.is_some() || customer.sync_with_provider;
        customer.link_state = if wants_link { LinkState::Pending } else { LinkState::None };
        customer.link_error = None;
        Ok(())
    }

    /// The customer has no counterpart at Stripe any more: its methods can't be charged.
    pub(super) async fn unlink(&self, work: &mut Work, customer: &mut Customer, time: OffsetDateTime) -> Result<()> {
        for mut method in store::payment_methods::all(&mut work.tx, work.org, customer.id).await? {
            if method.detach_time.is_none() {
                method.detach_time = Some(time);
                store::payment_methods::upsert(&mut work.tx, &method).await?;
            }
        }
        let unknown = store::customers::ProviderDefault::default();
        store::customers::set_provider_default(&mut work.tx, work.org, customer.id, &unknown).await?;
        customer.link_state = LinkState::None;
        customer.provider_customer_id = None;
        customer.default_payment_method_id = None;
        customer.unpushed_fields.clear();
        Ok(())
    }

    /// Deletes a customer here; its history stays, and so does its counterpart at Stripe.
    pub async fn delete_customer(&self, org: OrganizationId, id: CustomerId) -> Result<()> {
        let mut work = self.begin(org).await?;
        let customer = store::customers::lock(&mut work.tx, org, id).await?;
        let moving = PaymentFilter {
            customer_id: Some(id),
            states: vec![PaymentState::Pending, PaymentState::Processing, PaymentState::RequiresAction],
            ..PaymentFilter::default()
        };
        let found = store::payments::list(&mut work.tx, org, &moving, Page { size: 1, after: None }).await?;
        if let Some(payment) = found.first() {
            let message = format!("the payment {} is not settled; cancel it or wait for it first", payment.id);
            return Err(Error::precondition("CUSTOMER_HAS_OPEN_PAYMENTS", format!("customer/{id}"), message));
        }
        store::customers::delete(&mut work.tx, &customer, work.now).await?;
        work.commit().await
    }
}

fn check_one_link(provider_customer_id: Option<&str>, sync_with_provider: bool) -> Result<()> {
    if provider_customer_id.is_some() && sync_with_provider {
        let text = "either link an existing Stripe customer by its id, or have one created, not both";
        return Err(Error::invalid("provider_customer_id", text));
    }
    Ok(())
}

/// The integration that a caller means; where none is named and a link needs one, the organization's only one.
async fn find_integration(
    work: &mut Work,
    which: Option<&IntegrationRef>,
    is_needed: bool,
) -> Result<Option<Integration>> {
    let mut live = store::integrations::live(&mut work.tx, work.org).await?;
    live.retain(Integration::accepts_work);
    match which {
        Some(IntegrationRef::Id(id)) => {
            let found = live.into_iter().find(|integration| integration.id == *id);
            found.map(Some).ok_or_else(|| Error::not_found("integration", id))
        }
        Some(IntegrationRef::Code(code)) => {
            let found = live.into_iter().find(|integration| integration.code == *code);
            found.map(Some).ok_or_else(|| Error::not_found("integration", code))
        }
        None if live.len() == 1 => Ok(live.pop()),
        None if is_needed => {
            let text = "name the integration: the organization does not have exactly one that takes new work";
            Err(Error::invalid("integration_id", text))
        }
        None => Ok(None),
    }
}

fn or_card(kinds: Vec<MethodKind>) -> Vec<MethodKind> {
    let mut distinct = Vec::with_capacity(kinds.len().max(1));
    for kind in kinds {
        if !distinct.contains(&kind) {
            distinct.push(kind);
        }
    }
    if distinct.is_empty() { vec![MethodKind::Card] } else { distinct }
}

fn new_customer(work: &Work, id: CustomerId, new: NewCustomer, integration: Option<&Integration>) -> Customer {
    let wants_link = new.sync_with_provider || new.provider_customer_id.is_some();
    Customer {
        id,
        organization_id: work.org,
        external_id: new.external_id,
        name: new.name,
        email: new.email,
        phone: new.phone,
        address: new.address,
        integration_id: integration.map(|integration| integration.id),
        link_state: if wants_link { LinkState::Pending } else { LinkState::None },
        link_error: None,
        provider_customer_id: new.provider_customer_id,
        provider_payment_methods: or_card(new.provider_payment_methods),
        sync_with_provider: new.sync_with_provider,
        default_payment_method_id: None,
        unpushed_fields: Vec::new(),
        version: 1,
        create_time: work.now,
        update_time: work.now,
    }
}

fn customer_hash(new: &NewCustomer) -> [u8; 32] {
    let kinds: Vec<_> = new.provider_payment_methods.iter().map(|kind| kind.as_str()).collect();
    let address = new.address.clone().unwrap_or_default();
    let integration = match &new.integration {
        None => String::new(),
        Some(IntegrationRef::Id(id)) => format!("id {id}"),
        Some(IntegrationRef::Code(code)) => format!("code {code}"),
    };
    hash_request(
        "CreateCustomer",
        &[
            &new.external_id,
            &new.name,
            &new.email,
            &new.phone,
            &address.line1,
            &address.line2,
            &address.city,
            &address.postal_code,
            &address.state,
            &address.country,
            &integration,
            new.provider_customer_id.as_deref().unwrap_or_default(),
            &kinds.join(","),
            if new.sync_with_provider { "sync" } else { "" },
        ],
    )
}
