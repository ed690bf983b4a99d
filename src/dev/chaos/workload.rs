//! The billing systems: they make customers, give invoices in, withdraw some, and act on the events that they are told,
//! as the people around them do. What is acknowledged to them goes into the book.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

use super::book::Book;
use super::callers::{Organization, Repeats, call};
use super::plan::{CustomerPlan, InvoicePlan, Plan, Script, Wallet};
use super::{REST_WITHIN, lock, pause};
use crate::dev::rng::Rng;
use crate::dev::sandbox::Sandbox;
use crate::grpc::proto::create_payment_request::Customer;
use crate::grpc::proto::{
    CancelPaymentRequest, CreateCustomerRequest, CreatePaymentRequest, GetPaymentRequest, Money, Payment,
    PaymentMethodKind, PaymentState, get_payment_request,
};

/// How many callers give invoices in at the same time.
const CALLERS: usize = 12;
/// How many unsettled payments there are before callers wait, so that the faults strike payments of every age.
const BACKLOG_MAX: usize = 200;
/// How long a caller waits for a payment to be as it wants it, real time. Some never are, and whoever waits keeps the
/// system from rest: it must be well within the time that it is given for that.
pub(super) const PATIENCE: Duration = Duration::from_secs(REST_WITHIN.as_secs() / 2);

/// See the module's text.
pub(super) struct Workload {
    pub plan: Plan,
    pub organizations: Vec<Arc<Organization>>,
    pub book: Arc<Book>,
    pub sandbox: Sandbox,
    pub seed: u64,
    /// How many payments are accepted and not settled, as the database shows it.
    pub backlog: Arc<AtomicUsize>,
    pub repeats: Repeats,
    /// How often a clerk has paid one of our intents in the dashboard.
    pub paid_by_hand: AtomicUsize,
    /// What people do on their own time: pay a link, mend a card, retry.
    pub people: TaskTracker,
    next: AtomicUsize,
    customers: Vec<Vec<CustomerFile>>,
    retries: Mutex<HashMap<(usize, String), u64>>,
}

/// What is known of a customer.
#[derive(Default)]
pub(super) struct CustomerFile {
    /// It was acknowledged.
    made: OnceCell<()>,
    /// A better card was added, or another default chosen.
    pub mended: OnceCell<()>,
    /// An invoice was paid on a page, so that there is a method for the others.
    pub paid_on_page: OnceCell<()>,
}

impl Workload {
    pub fn new(
        plan: Plan,
        organizations: Vec<Arc<Organization>>,
        book: Arc<Book>,
        sandbox: Sandbox,
        seed: u64,
        backlog: Arc<AtomicUsize>,
    ) -> Self {
        let files = |of: &Vec<CustomerPlan>| of.iter().map(|_| CustomerFile::default()).collect();
        let customers = plan.organizations.iter().map(files).collect();
        let (repeats, people) = (Repeats::default(), TaskTracker::new());
        let (next, retries) = (AtomicUsize::new(0), Mutex::default());
        let paid_by_hand = AtomicUsize::new(0);
        Self {
            plan,
            organizations,
            book,
            sandbox,
            seed,
            backlog,
            repeats,
            paid_by_hand,
            people,
            next,
            customers,
            retries,
        }
    }

    /// Gives all invoices in, spread over `at_least`; returns when each was answered.
    pub async fn give_all_in(self: &Arc<Self>, at_least: Duration) {
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
                    workload.give_in(invoice).await;
                }
            });
        }
        while callers.join_next().await.is_some() {}
    }

    pub fn customer(&self, organization: usize, external_id: &str) -> Option<(&CustomerPlan, &CustomerFile)> {
        let index = self.plan.organizations[organization].iter().position(|plan| plan.external_id == external_id)?;
        Some((&self.plan.organizations[organization][index], &self.customers[organization][index]))
    }

    /// The chance of one affair, the same in every run of a seed.
    pub fn rng(&self, affair: &str) -> Rng {
        Rng::named(self.seed, affair)
    }

    /// The time by the clock that everybody shares, unix seconds.
    pub fn now(&self) -> i64 {
        self.sandbox.seconds()
    }

    /// What the customer of an invoice pays with.
    pub fn wallet_of(&self, organization: usize, invoice: &str) -> Option<Wallet> {
        let is_it = |plan: &&InvoicePlan| plan.organization == organization && plan.id == invoice;
        let plan = self.plan.invoices.iter().find(is_it)?;
        Some(self.plan.organizations[organization][plan.customer].wallet)
    }

    /// Plays an invoice's script.
    pub async fn give_in(self: &Arc<Self>, invoice: &InvoicePlan) {
        let wallet = self.plan.organizations[invoice.organization][invoice.customer].wallet;
        self.book.invoice(invoice.organization, &invoice.id, |told| {
            told.amounts.insert(invoice.amount);
            told.given_in = self.now();
            told.is_withdrawn = invoice.script.withdraws();
            told.must_be_paid = wallet.must_pay() && invoice.script.lets_be_paid();
        });
        self.ensure_customer(invoice).await;
        if invoice.script == Script::Repeated {
            self.give_in_repeatedly(invoice).await;
            return;
        }
        let Some(payment) = self.create(invoice, &format!("pay-{}", invoice.id)).await else { return };
        match invoice.script {
            Script::Canceled => {
                self.cancel(invoice, &payment).await;
            }
            Script::Reopened => {
                self.cancel(invoice, &payment).await;
                let is_closed =
                    |payment: &Payment| matches!(payment.state(), PaymentState::Canceled | PaymentState::Succeeded);
                self.payment_when(invoice, is_closed).await;
                self.create(invoice, &format!("again-{}", invoice.id)).await;
            }
            Script::PaidByHand | Script::PaidBeside => {
                let (workload, invoice) = (Arc::clone(self), invoice.clone());
                self.people.spawn(async move { workload.pay_by_hand(&invoice).await });
            }
            Script::Moves(first, second) => {
                let (workload, invoice) = (Arc::clone(self), invoice.clone());
                self.people.spawn(async move { workload.make_moves(&invoice, &payment, (first, second)).await });
            }
            Script::Repriced(payer, amount) => {
                let (workload, invoice) = (Arc::clone(self), invoice.clone());
                self.people.spawn(async move { workload.reprice(&invoice, &payment, payer, amount).await });
            }
            Script::Plain | Script::Repeated | Script::Nothing | Script::TooSmall => {}
        }
    }

    /// Makes the customer, unless that was done before.
    async fn ensure_customer(&self, invoice: &InvoicePlan) {
        let plan = &self.plan.organizations[invoice.organization][invoice.customer];
        let file = &self.customers[invoice.organization][invoice.customer];
        file.made.get_or_init(|| self.make_customer(invoice.organization, plan)).await;
    }

    async fn make_customer(&self, number: usize, plan: &CustomerPlan) {
        let organization = &self.organizations[number];
        let card = PaymentMethodKind::Card.into();
        let kinds =
            if plan.wallet.takes_debits() { vec![PaymentMethodKind::SepaDebit.into(), card] } else { vec![card] };
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
            match self.customer_at_stripe(number, plan) {
                Ok(id) => request.provider_customer_id = id,
                Err(error) => self.refused(number, &plan.external_id, &format!("at Stripe: {error:#}")),
            }
        }
        let mut rng = self.rng(&request.request_id);
        let made = call(organization, &mut rng, &self.repeats, &request, |mut api, request| async move {
            api.customers.create_customer(request).await
        });
        if let Err(status) = made.await {
            self.refused(number, &plan.external_id, &shown(&status));
        }
    }

    /// CreatePayment, until it is answered. What it is answered goes into the book.
    pub async fn create(&self, invoice: &InvoicePlan, request_id: &str) -> Option<Payment> {
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
        let answer = call(organization, &mut rng, &self.repeats, &request, |mut api, request| async move {
            api.payments.create_payment(request).await
        });
        match answer.await {
            Ok(answer) => {
                let payment = answer.payment?;
                self.book.invoice(invoice.organization, &invoice.id, |told| {
                    told.payments.insert(payment.id.clone());
                });
                Some(payment)
            }
            // Its amount was changed, and it was given in again with the old one.
            Err(status) if status.code() == Code::AlreadyExists && matches!(invoice.script, Script::Moves(..)) => None,
            Err(status) => {
                self.refused(invoice.organization, &invoice.id, &shown(&status));
                None
            }
        }
    }

    /// Writes down an answer that no caller should get.
    pub fn refused(&self, organization: usize, what: &str, why: &str) {
        self.book.invoice(organization, what, |told| told.refusals.push(why.to_owned()));
    }

    /// Five callers at once, on any of the processes: two repeat a request, three know nothing of each other.
    async fn give_in_repeatedly(self: &Arc<Self>, invoice: &InvoicePlan) {
        let mut callers = JoinSet::new();
        for name in ["pay", "pay", "other", "third", "fourth"] {
            let (workload, invoice) = (Arc::clone(self), invoice.clone());
            callers.spawn(async move { workload.create(&invoice, &format!("{name}-{}", invoice.id)).await });
        }
        while callers.join_next().await.is_some() {}
    }

    pub async fn cancel(&self, invoice: &InvoicePlan, payment: &Payment) {
        let mut rng = self.rng(&format!("cancel-{}", invoice.id));
        pause(Duration::from_millis(rng.below(1_500))).await;
        let request = CancelPaymentRequest { id: payment.id.clone() };
        let organization = &self.organizations[invoice.organization];
        let answer = call(organization, &mut rng, &self.repeats, &request, |mut api, request| async move {
            api.payments.cancel_payment(request).await
        });
        if let Err(status) = answer.await
            && status.code() != Code::FailedPrecondition
        {
            self.refused(invoice.organization, &invoice.id, &shown(&status));
        }
    }

    /// Asks until the payment is as wanted, or for as long as patience lasts.
    pub async fn payment_when(&self, invoice: &InvoicePlan, wanted: impl Fn(&Payment) -> bool) -> Option<Payment> {
        let began = Instant::now();
        let mut rng = self.rng(&format!("look-{}", invoice.id));
        let organization = &self.organizations[invoice.organization];
        while began.elapsed() < PATIENCE {
            let request =
                GetPaymentRequest { payment: Some(get_payment_request::Payment::InvoiceId(invoice.id.clone())) };
            let answer = call(organization, &mut rng, &self.repeats, &request, |mut api, request| async move {
                api.payments.get_payment(request).await
            });
            if let Some(payment) = answer.await.ok().and_then(|answer| answer.payment).filter(&wanted) {
                return Some(payment);
            }
            pause(Duration::from_millis(200)).await;
        }
        None
    }

    /// Which try of an invoice this is, counted from 1.
    pub fn count_retry(&self, organization: usize, invoice: &str) -> u64 {
        let mut retries = lock(&self.retries);
        let count = retries.entry((organization, invoice.to_owned())).or_default();
        *count += 1;
        *count
    }
}

/// A status as the book keeps it.
pub(super) fn shown(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
