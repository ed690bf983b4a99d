//! Customers: what callers can request. Jobs create, link and push customers at Stripe (`sync`); payment methods are in
//! `methods`, Stripe's default in `default`, setup-mode Checkout sessions in `checkout`.

mod checkout;
mod default;
mod expiry;
mod mandates;
mod methods;
mod sync;

pub(super) use self::default::{DefaultUpdate, clear_unset_read, may_be_our_write, record_provider_default};
pub(super) use self::methods::MethodUpdate;

use time::OffsetDateTime;

use super::App;
use super::request_hash::hash_request;
use super::unit_of_work::UnitOfWork;
use crate::domain::customers::{Customer, CustomerRef, CustomerUpdate, IntegrationRef, LinkState, NewCustomer};
use crate::domain::integrations::Integration;
use crate::domain::jobs::JobKind;
use crate::domain::payment_methods::MethodKind;
use crate::domain::payments::{PaymentFilter, PaymentState};
use crate::domain::{CustomerId, Error, OrganizationId, Page, Result};
use crate::store;
use crate::store::request_ids::CallerRequest;

impl App {
    /// Creates a customer. A job creates it at Stripe if `sync_with_provider` is set, or links it if
    /// `provider_customer_id` is. With neither it exists here only.
    pub async fn create_customer(&self, org: OrganizationId, request_id: String, new: NewCustomer) -> Result<Customer> {
        check_one_link(new.provider_customer_id.as_deref(), new.sync_with_provider)?;
        let request = CallerRequest { id: request_id, body_hash: customer_hash(&new) };
        let mut work = self.begin(org).await?;
        store::request_ids::lock(&mut work.tx, org, &request.id).await?;
        if let Some(known) = store::request_ids::resource_of(&mut work.tx, org, &request).await? {
            return store::customers::get(&mut work.tx, org, known.into()).await;
        }
        let wants_link = new.sync_with_provider || new.provider_customer_id.is_some();
        let integration = match &new.integration {
            Some(which) => Some(named_integration(&mut work, which).await?),
            None if wants_link => Some(only_integration(&mut work).await?.ok_or_else(unnamed_integration)?),
            None => only_integration(&mut work).await?,
        };
        let customer = new_customer(&work, self.clock().new_id().into(), new, integration.as_ref());
        if !store::customers::insert(&mut work.tx, &customer).await? {
            let known = store::customers::get_by_external_id(&mut work.tx, org, &customer.external_id).await?;
            if let Some(known) = &known
                && store::request_ids::claim_recovered(&mut work.tx, org, known.id.0).await?
            {
                store::request_ids::insert(&mut work.tx, org, &request, known.id.0, work.now).await?;
                let known = known.clone();
                work.commit().await?;
                return Ok(known);
            }
            return Err(Error::AlreadyExists {
                kind: "customer",
                id: known.map(|known| known.id.to_string()).unwrap_or_default(),
                message: format!("a customer with the external id {} exists; update that one", customer.external_id),
            });
        }
        store::request_ids::insert(&mut work.tx, org, &request, customer.id.0, work.now).await?;
        if wants_link {
            work.enqueue(JobKind::SyncCustomer, customer.id.0);
        }
        work.commit().await?;
        Ok(customer)
    }

    /// Reads a customer, by its id or its external id.
    pub async fn get_customer(&self, org: OrganizationId, which: CustomerRef) -> Result<Customer> {
        let mut tx = self.read(org).await?;
        match which {
            CustomerRef::Id(id) => store::customers::get(&mut tx, org, id).await,
            CustomerRef::ExternalId(id) => store::customers::get_by_external_id(&mut tx, org, &id)
                .await?
                .ok_or_else(|| Error::not_found("customer", id)),
        }
    }

    /// The id of a customer. It need not exist if the caller names it by this id.
    pub async fn customer_id(&self, org: OrganizationId, which: CustomerRef) -> Result<CustomerId> {
        match which {
            CustomerRef::Id(id) => Ok(id),
            CustomerRef::ExternalId(_) => Ok(self.get_customer(org, which).await?.id),
        }
    }

    /// A page of customers, newest first.
    pub async fn list_customers(&self, org: OrganizationId, page: Page) -> Result<Vec<Customer>> {
        store::customers::list(&mut *self.read(org).await?, org, None, page).await
    }

    /// Changes a customer. A job pushes the fields that Stripe has, too. `version` is the etag, if the caller gave one.
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
            sync::enqueue_waiting_payments(&mut work, &customer).await?;
        }
        if customer.link_state == LinkState::Pending || customer.unpushed_fields != before.unpushed_fields {
            work.enqueue(JobKind::SyncCustomer, id.0);
        }
        work.commit().await?;
        Ok(customer)
    }

    async fn apply_update(&self, work: &mut UnitOfWork, customer: &mut Customer, update: CustomerUpdate) -> Result<()> {
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
                Some(named_integration(work, which).await?).filter(|it| Some(it.id) != customer.integration_id)
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
            customer.integration_id = Some(only_integration(work).await?.ok_or_else(unnamed_integration)?.id);
        }
        let wants_link = customer.provider_customer_id.is_some() || customer.sync_with_provider;
        customer.link_state = if wants_link { LinkState::Pending } else { LinkState::None };
        customer.link_error = None;
        Ok(())
    }

    /// Unlinks a customer: it no longer has a Stripe customer, so its methods cannot be charged.
    pub(super) async fn unlink(
        &self,
        work: &mut UnitOfWork,
        customer: &mut Customer,
        time: OffsetDateTime,
    ) -> Result<()> {
        for mut method in store::payment_methods::list_all(&mut work.tx, work.org, customer.id).await? {
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

    /// Deletes a customer here. Its history is kept, and so is its Stripe customer.
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
            let message = format!("the payment {} is not settled; cancel it or wait for its outcome first", payment.id);
            return Err(Error::precondition("CUSTOMER_HAS_OPEN_PAYMENTS", format!("customer/{id}"), message));
        }
        store::customers::delete(&mut work.tx, &customer, work.now).await?;
        work.commit().await
    }
}

fn check_one_link(provider_customer_id: Option<&str>, sync_with_provider: bool) -> Result<()> {
    if provider_customer_id.is_some() && sync_with_provider {
        let text = "set either provider_customer_id, to link a Stripe customer, or sync_with_provider, to create one";
        return Err(Error::invalid("provider_customer_id", text));
    }
    Ok(())
}

/// The organization's integrations that accept new work.
async fn accepting_integrations(work: &mut UnitOfWork) -> Result<Vec<Integration>> {
    let mut live = store::integrations::live(&mut work.tx, work.org).await?;
    live.retain(Integration::accepts_work);
    Ok(live)
}

/// The integration that a caller names.
async fn named_integration(work: &mut UnitOfWork, which: &IntegrationRef) -> Result<Integration> {
    let mut accepting = accepting_integrations(work).await?.into_iter();
    match which {
        IntegrationRef::Id(id) => accepting.find(|it| it.id == *id).ok_or_else(|| Error::not_found("integration", id)),
        IntegrationRef::Code(code) => {
            accepting.find(|it| it.code == *code).ok_or_else(|| Error::not_found("integration", code))
        }
    }
}

/// The integration of a customer for which none is named: the only one that accepts new work.
async fn only_integration(work: &mut UnitOfWork) -> Result<Option<Integration>> {
    let mut accepting = accepting_integrations(work).await?;
    Ok(accepting.pop().filter(|_| accepting.is_empty()))
}

/// The error if a link needs an integration, and none is named.
fn unnamed_integration() -> Error {
    let text = "name the integration: the organization does not have exactly one that accepts new work";
    Error::invalid("integration_id", text)
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

fn new_customer(work: &UnitOfWork, id: CustomerId, new: NewCustomer, integration: Option<&Integration>) -> Customer {
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
