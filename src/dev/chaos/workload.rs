//! The billing systems: they create customers, submit invoices, cancel some, and react to events, as do payers and
//! Dashboard users. What is acknowledged to them goes into the history.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

use super::callers::{Calls, Organization, call};
use super::history::History;
use super::plan::{CustomerPlan, CustomerProfile, InvoicePlan, Plan, Script};
use super::polling::QUIESCE_TIMEOUT;
use super::requests::Request;
use crate::clock::pause;
use crate::dev::rng::Rng;
use crate::dev::sandbox::Sandbox;
use crate::grpc::proto::create_payment_request::Customer;
use crate::grpc::proto::{
    CancelPaymentRequest, CreateCustomerRequest, CreatePaymentRequest, GetPaymentRequest, Money, Payment,
    PaymentMethodKind, PaymentState, cancel_payment_request, get_payment_request,
};

/// The number of concurrent callers that submit invoices.
const CALLERS: usize = 12;
/// The number of unsettled payments above which callers wait, so that faults hit payments of every age.
const BACKLOG_MAX: usize = 200;
/// How long a caller waits for a payment to reach a state. Real time. Some never do, and a waiting caller keeps the
/// system from being quiescent, so this is well below [`QUIESCE_TIMEOUT`].
pub(super) const STATE_TIMEOUT: Duration = Duration::from_secs(QUIESCE_TIMEOUT.as_secs() / 2);

pub(super) struct Workload {
    pub plan: Plan,
    pub organizations: Vec<Arc<Organization>>,
    pub history: Arc<History>,
    pub sandbox: Sandbox,
    pub seed: u64,
    /// The number of accepted and unsettled payments, as the database shows it.
    pub backlog: Arc<AtomicUsize>,
    pub calls: Calls,
    /// How often one of our intents was paid in the Stripe Dashboard.
    pub paid_in_dashboard: AtomicUsize,
    /// Tasks of actors, such as paying a link, replacing a card or retrying.
    pub actors: TaskTracker,
    next: AtomicUsize,
    customers: Vec<Vec<CustomerState>>,
    retries: Mutex<HashMap<(usize, String), u64>>,
}

/// The state of a customer's creation and follow-ups.
#[derive(Default)]
pub(super) struct CustomerState {
    /// Its creation was acknowledged.
    created: OnceCell<()>,
    /// A better card was added, or the default was changed.
    pub method_changed: OnceCell<()>,
    /// An invoice was paid by a link, which stored a method for the others.
    pub paid_by_link: OnceCell<()>,
}

impl Workload {
    pub fn new(
        plan: Plan,
        organizations: Vec<Arc<Organization>>,
        history: Arc<History>,
        sandbox: Sandbox,
        seed: u64,
    ) -> Self {
        let states = |of: &Vec<CustomerPlan>| of.iter().map(|_| CustomerState::default()).collect();
        let customers = plan.organizations.iter().map(states).collect();
        let (calls, actors) = (Calls::default(), TaskTracker::new());
        let (next, retries) = (AtomicUsize::new(0), Mutex::default());
        let paid_in_dashboard = AtomicUsize::new(0);
        Self {
            plan,
            organizations,
            history,
            sandbox,
            seed,
            backlog: Arc::default(),
            calls,
            paid_in_dashboard,
            actors,
            next,
            customers,
            retries,
        }
    }

    /// Submits all invoices, spread over `at_least`. Returns when each has a response.
    pub async fn submit_invoices(self: &Arc<Self>, at_least: Duration) {
        let began = Instant::now();
        let count = u32::try_from(self.plan.invoices.len()).unwrap_or(u32::MAX).max(1);
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let workload = Arc::clone(self);
            callers.spawn(async move {
                loop {
                    let number = workload.next.fetch_add(1, Ordering::Relaxed);
                    let Some(invoice) = workload.plan.invoices.get(number) else { return };
                    let not_before = at_least * u32::try_from(number).unwrap_or(u32::MAX) / count;
                    pause(not_before.saturating_sub(began.elapsed())).await;
                    while workload.backlog.load(Ordering::Relaxed) > BACKLOG_MAX {
                        pause(Duration::from_millis(50)).await;
                    }
                    workload.submit_invoice(invoice).await;
                }
            });
        }
        while callers.join_next().await.is_some() {}
    }

    pub fn customer(&self, organization: usize, external_id: &str) -> Option<(&CustomerPlan, &CustomerState)> {
        let index = self.plan.organizations[organization].iter().position(|plan| plan.external_id == external_id)?;
        Some((&self.plan.organizations[organization][index], &self.customers[organization][index]))
    }

    /// The random numbers for one purpose, the same in every run of a seed. See [`Rng::named`].
    pub fn rng(&self, purpose: &str) -> Rng {
        Rng::named(self.seed, purpose)
    }

    /// The sandbox's time, in Unix seconds.
    pub fn now(&self) -> i64 {
        self.sandbox.seconds()
    }

    /// The profile of an invoice's customer.
    pub fn profile_of(&self, organization: usize, invoice: &str) -> Option<CustomerProfile> {
        let is_it = |plan: &&InvoicePlan| plan.organization == organization && plan.id == invoice;
        let plan = self.plan.invoices.iter().find(is_it)?;
        Some(self.plan.organizations[organization][plan.customer].profile)
    }

    /// Runs the script of an invoice.
    pub async fn submit_invoice(self: &Arc<Self>, invoice: &InvoicePlan) {
        let profile = self.plan.organizations[invoice.organization][invoice.customer].profile;
        self.history.invoice(invoice.organization, &invoice.id, |record| {
            record.amounts.insert(invoice.amount);
            record.submitted_at = self.now();
            record.is_cancel_requested = invoice.script.cancels();
            record.must_be_paid = profile.must_pay() && invoice.script.allows_payment();
        });
        self.ensure_customer(invoice).await;
        if invoice.script == Script::Repeated {
            self.submit_concurrently(invoice).await;
            return;
        }
        if self.create_payment(invoice, &format!("pay-{}", invoice.id)).await.is_none() {
            return;
        }
        match invoice.script {
            Script::Canceled => {
                self.cancel_payment(invoice).await;
            }
            Script::Reopened => {
                self.cancel_payment(invoice).await;
                let is_closed =
                    |payment: &Payment| matches!(payment.state(), PaymentState::Canceled | PaymentState::Succeeded);
                self.wait_for_payment(invoice, is_closed).await;
                self.create_payment(invoice, &format!("again-{}", invoice.id)).await;
            }
            Script::PaidInDashboard | Script::PaidByOtherIntent => {
                let (workload, invoice) = (Arc::clone(self), invoice.clone());
                self.actors.spawn(async move { workload.pay_in_dashboard(&invoice).await });
            }
            Script::Operations(first, second) => {
                let (workload, invoice) = (Arc::clone(self), invoice.clone());
                self.actors.spawn(async move { workload.perform_operations(&invoice, (first, second)).await });
            }
            Script::AmountChanged(payer, amount) => {
                let (workload, invoice) = (Arc::clone(self), invoice.clone());
                self.actors.spawn(async move { workload.change_amount_while_open(&invoice, payer, amount).await });
            }
            Script::Plain | Script::Repeated | Script::ZeroAmount | Script::TooSmall => {}
        }
    }

    /// Creates the customer unless that was done before.
    async fn ensure_customer(&self, invoice: &InvoicePlan) {
        let plan = &self.plan.organizations[invoice.organization][invoice.customer];
        let state = &self.customers[invoice.organization][invoice.customer];
        state.created.get_or_init(|| self.create_customer(invoice.organization, plan)).await;
    }

    async fn create_customer(&self, number: usize, plan: &CustomerPlan) {
        let card = PaymentMethodKind::Card.into();
        let kinds =
            if plan.profile.allows_debits() { vec![PaymentMethodKind::SepaDebit.into(), card] } else { vec![card] };
        let mut request = CreateCustomerRequest {
            request_id: format!("make-{}", plan.external_id),
            external_id: plan.external_id.clone(),
            name: "Hooli".to_owned(),
            email: "billing@hooli.test".to_owned(),
            sync_with_provider: !plan.is_linked,
            provider_payment_methods: kinds,
            ..CreateCustomerRequest::default()
        };
        if plan.is_linked {
            match self.create_customer_in_stripe(number, plan) {
                Ok(id) => request.provider_customer_id = id,
                Err(error) => {
                    self.record_error(number, &plan.external_id, &format!("creation in Stripe failed: {error:#}"));
                }
            }
        }
        self.send_customer(number, request).await;
    }

    /// Calls CreateCustomer until there is a response.
    pub async fn send_customer(&self, number: usize, request: CreateCustomerRequest) {
        let mut rng = self.rng(&request.request_id);
        let pending = self.calls.restorations.begin(Request::CreateCustomer(number, Box::new(request.clone())));
        let organization = &self.organizations[number];
        let created = call(organization, &mut rng, &self.calls, &request, |mut api, request| async move {
            api.customers.create_customer(request).await
        });
        match created.await {
            Ok(_) => pending.acknowledge(""),
            Err(status) => self.record_error(number, &request.external_id, &format_status(&status)),
        }
    }

    /// Calls CreatePayment until there is a response, and records it.
    pub async fn create_payment(&self, invoice: &InvoicePlan, request_id: &str) -> Option<Payment> {
        let plan = &self.plan.organizations[invoice.organization][invoice.customer];
        let request = CreatePaymentRequest {
            request_id: request_id.to_owned(),
            invoice_id: invoice.id.clone(),
            invoice_number: invoice.id.to_uppercase(),
            customer: Some(Customer::ExternalCustomerId(plan.external_id.clone())),
            amount: Some(Money { minor_units: invoice.amount, currency_code: invoice.currency.to_owned() }),
        };
        let mut rng = self.rng(request_id);
        let organization = &self.organizations[invoice.organization];
        let pending = self.calls.restorations.begin(Request::CreatePayment(invoice.clone(), request_id.to_owned()));
        let response = call(organization, &mut rng, &self.calls, &request, |mut api, request| async move {
            api.payments.create_payment(request).await
        });
        match response.await {
            Ok(response) => {
                let payment = response.payment?;
                pending.acknowledge(&payment.id);
                self.history.invoice(invoice.organization, &invoice.id, |record| {
                    record.payments.insert(payment.id.clone());
                });
                Some(payment)
            }
            // The amount was changed, and the invoice was submitted again with the old one.
            Err(status) if status.code() == Code::AlreadyExists && self.may_have_another_amount(invoice) => {
                let payment = self.wait_for_payment(invoice, |_| true).await;
                if let Some(payment) = &payment {
                    self.history.invoice(invoice.organization, &invoice.id, |record| {
                        record.payments.insert(payment.id.clone());
                    });
                }
                None
            }
            Err(status) => {
                self.record_error(invoice.organization, &invoice.id, &format_status(&status));
                None
            }
        }
    }

    /// Whether somebody may have changed the amount before the invoice is submitted again: by the script, or, after a
    /// restoration, before all was repeated.
    fn may_have_another_amount(&self, invoice: &InvoicePlan) -> bool {
        match invoice.script {
            Script::Operations(..) => true,
            Script::AmountChanged(..) => self.calls.restorations.count() > 0,
            _ => false,
        }
    }

    /// Records a response that no caller should get.
    pub fn record_error(&self, organization: usize, what: &str, why: &str) {
        self.history.invoice(organization, what, |record| record.unexpected_errors.push(why.to_owned()));
    }

    /// Five concurrent callers, on any of the processes: two repeat a request, three are independent.
    async fn submit_concurrently(self: &Arc<Self>, invoice: &InvoicePlan) {
        let mut callers = JoinSet::new();
        for name in ["pay", "pay", "other", "third", "fourth"] {
            let (workload, invoice) = (Arc::clone(self), invoice.clone());
            callers.spawn(async move { workload.create_payment(&invoice, &format!("{name}-{}", invoice.id)).await });
        }
        while callers.join_next().await.is_some() {}
    }

    /// Cancels a payment after a moment.
    pub async fn cancel_payment(&self, invoice: &InvoicePlan) {
        let mut rng = self.rng(&format!("cancel-{}", invoice.id));
        pause(Duration::from_millis(rng.below(1_500))).await;
        let which = cancel_payment_request::Payment::InvoiceId(invoice.id.clone());
        let request = CancelPaymentRequest { payment: Some(which) };
        let organization = &self.organizations[invoice.organization];
        let pending = self.calls.restorations.begin(Request::CancelPayment(invoice.clone()));
        let response = call(organization, &mut rng, &self.calls, &request, |mut api, request| async move {
            api.payments.cancel_payment(request).await
        });
        match response.await {
            Ok(_) => pending.acknowledge(""),
            Err(status) if status.code() == Code::FailedPrecondition => {}
            Err(status) => self.record_error(invoice.organization, &invoice.id, &format_status(&status)),
        }
    }

    /// Polls a payment until `wanted` returns `true`, for at most [`STATE_TIMEOUT`].
    pub async fn wait_for_payment(&self, invoice: &InvoicePlan, wanted: impl Fn(&Payment) -> bool) -> Option<Payment> {
        let began = Instant::now();
        let mut rng = self.rng(&format!("look-{}", invoice.id));
        let organization = &self.organizations[invoice.organization];
        while began.elapsed() < STATE_TIMEOUT {
            let request =
                GetPaymentRequest { payment: Some(get_payment_request::Payment::InvoiceId(invoice.id.clone())) };
            let response = call(organization, &mut rng, &self.calls, &request, |mut api, request| async move {
                api.payments.get_payment(request).await
            });
            if let Some(payment) = response.await.ok().and_then(|response| response.payment).filter(&wanted) {
                return Some(payment);
            }
            pause(Duration::from_millis(200)).await;
        }
        None
    }

    /// Counts the retries of an invoice, from 1.
    pub fn count_retry(&self, organization: usize, invoice: &str) -> u64 {
        let mut retries = self.retries.lock();
        let count = retries.entry((organization, invoice.to_owned())).or_default();
        *count += 1;
        *count
    }
}

/// Formats a status for the history.
pub(super) fn format_status(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
