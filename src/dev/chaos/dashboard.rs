//! Clerks in Stripe's dashboard: they import customers, add cards, choose defaults and unset them, and take payments there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::book::Unset;
use super::callers::call;
use super::pause;
use super::plan::{Afterwards, CustomerPlan, InvoicePlan, PAYING_IBANS, Script, Wallet};
use super::workload::{PATIENCE, Workload};
use crate::dev::sandbox::HandPayment;
use crate::grpc::proto::{GetCustomerRequest, Payment, PaymentState, get_customer_request};

/// Cards that clerks pay with: one, and two whose refunds take their time, or fail after they had succeeded.
const HAND_CARDS: [&str; 3] = ["pm_card_visa", "pm_card_pendingRefund", "pm_card_refundFail"];

impl Workload {
    /// A customer that is at Stripe already, with what is in its wallet.
    pub(super) fn customer_at_stripe(&self, number: usize, plan: &CustomerPlan) -> anyhow::Result<String> {
        let organization = &self.organizations[number];
        let made = self.sandbox.create_customer_by_hand(&organization.account, &plan.external_id)?;
        let id = id_of(&made);
        match plan.wallet {
            Wallet::ImportedDebit => self.import_debit(number, plan, &id)?,
            Wallet::DefaultSource => self.import_source(&id)?,
            wallet => {
                let card = if wallet == Wallet::Refused { "pm_card_chargeCustomerFail" } else { "pm_card_visa" };
                let method = self.sandbox.attach_by_hand(&id, card)?;
                self.sandbox.set_default_by_hand(&id, Some(&id_of(&method)))?;
            }
        }
        Ok(id)
    }

    /// A bank account that no SetupIntent has stored, and that has perhaps been debited before.
    fn import_debit(&self, number: usize, plan: &CustomerPlan, id: &str) -> anyhow::Result<()> {
        let mut rng = self.rng(&format!("import {number} {}", plan.external_id));
        let method = id_of(&self.sandbox.attach_by_hand(id, PAYING_IBANS[0])?);
        if rng.chance(50) {
            self.sandbox.pay_by_hand(&HandPayment {
                customer: id.to_owned(),
                payment_method: method.clone(),
                amount: 1_900,
                currency: "eur".to_owned(),
                metadata: BTreeMap::new(),
            })?;
        }
        if rng.chance(50) {
            self.sandbox.set_default_by_hand(id, Some(&method))?;
        }
        Ok(())
    }

    /// A card as legacy integrations stored it, which is the default, and a newer one that nobody has chosen.
    fn import_source(&self, id: &str) -> anyhow::Result<()> {
        self.sandbox.add_source_by_hand(id, "tok_visa")?;
        let unchosen = id_of(&self.sandbox.attach_by_hand(id, "pm_card_mastercard")?);
        self.book.outside(|outside| _ = outside.unchosen.insert(unchosen, id.to_owned()));
        Ok(())
    }

    /// Somebody adds a card in Stripe's dashboard.
    pub(super) fn add_card(&self, customer: &str, card: &str) {
        if let Err(error) = self.sandbox.attach_by_hand(customer, card) {
            tracing::warn!(customer, "a card was not added: {error:#}");
        }
    }

    /// A customer has paid, and somebody changes its default at Stripe, once.
    pub(super) fn change_default(self: &Arc<Self>, organization: usize, external_id: &str, customer: String) {
        let Some((plan, file)) = self.customer(organization, external_id) else { return };
        let changes = matches!(plan.wallet, Wallet::Fickle | Wallet::Unset(_) | Wallet::DefaultSource);
        if !changes || file.mended.initialized() || file.mended.set(()).is_err() {
            return;
        }
        let (workload, wallet, external_id) = (Arc::clone(self), plan.wallet, external_id.to_owned());
        self.people.spawn(async move {
            let changed = match wallet {
                Wallet::Unset(afterwards) => {
                    workload.unset_default((organization, external_id), &customer, afterwards).await
                }
                Wallet::DefaultSource => workload.choose_another_source(organization, &customer),
                _ => workload.change_mind(&customer).await,
            };
            if let Err(error) = changed {
                tracing::warn!(customer, "the default was not changed at Stripe: {error:#}");
            }
        });
    }

    /// Other cards are added, one is chosen, and detached again.
    async fn change_mind(&self, customer: &str) -> anyhow::Result<()> {
        let chosen = id_of(&self.sandbox.attach_by_hand(customer, "pm_card_mastercard")?);
        self.sandbox.attach_by_hand(customer, "pm_card_amex")?;
        self.sandbox.set_default_by_hand(customer, Some(&chosen))?;
        pause(Duration::from_secs(3)).await;
        self.sandbox.detach_by_hand(&chosen)?;
        Ok(())
    }

    /// Every other customer gets another legacy card, which is chosen.
    fn choose_another_source(&self, organization: usize, customer: &str) -> anyhow::Result<()> {
        if self.rng(&format!("source {organization} {customer}")).chance(50) {
            let source = id_of(&self.sandbox.add_source_by_hand(customer, "tok_mastercard")?);
            self.sandbox.set_default_source_by_hand(customer, &source)?;
        }
        Ok(())
    }

    /// The default is unset, though its method stays attached. Once Paybridge has reported that, invoices of the customer
    /// find no default, until there is one again.
    async fn unset_default(
        &self,
        whose: (usize, String),
        customer: &str,
        afterwards: Afterwards,
    ) -> anyhow::Result<()> {
        let default = || {
            let found = self.sandbox.object(customer).unwrap_or_default();
            found["invoice_settings"]["default_payment_method"].as_str().map(str::to_owned)
        };
        // Paybridge may not have written it yet.
        let began = Instant::now();
        seen(PATIENCE, || default().is_some()).await;
        let Some(method) = default() else { return Ok(()) };
        self.book.outside(|outside| {
            let unset = Unset { customer: customer.to_owned(), method: method.clone(), ..Unset::default() };
            outside.unset.insert(whose.clone(), unset);
        });
        self.sandbox.set_default_by_hand(customer, None)?;
        seen(PATIENCE.saturating_sub(began.elapsed()), || self.book.is_unset_heard(&whose)).await;
        let mut rng = self.rng(&format!("unset {} {}", whose.0, whose.1));
        pause(Duration::from_millis(rng.between(1_000, 5_000))).await;
        match afterwards {
            Afterwards::Nothing => {}
            Afterwards::Chosen => {
                let now = self.now();
                self.book.outside(|outside| _ = outside.unset.get_mut(&whose).map(|unset| unset.until = Some(now)));
                self.sandbox.set_default_by_hand(customer, Some(&method))?;
            }
            Afterwards::Added => self.add_card(customer, "pm_card_mastercard"),
        }
        Ok(())
    }

    /// Somebody pays one of our own intents. Where it has been paid or canceled meanwhile, the dashboard says so.
    pub fn pay_intent(&self, intent: &str) {
        let paid = self.sandbox.pay_intent_by_hand(intent, "pm_card_visa");
        self.paid_by_hand.fetch_add(usize::from(paid.is_ok()), Ordering::Relaxed);
    }

    /// A clerk pays an invoice in Stripe's dashboard: our own intent, or with one of his own that bears the same marks.
    pub async fn pay_by_hand(&self, invoice: &InvoicePlan) {
        // A clerk finds it there once it is there.
        let has_intent = |payment: &Payment| {
            !payment.provider_payment_intent_id.is_empty() && payment.state() != PaymentState::Pending
        };
        let Some(payment) = self.payment_when(invoice, has_intent).await else { return };
        if invoice.script == Script::PaidByHand {
            self.pay_intent(&payment.provider_payment_intent_id);
            return;
        }
        let organization = &self.organizations[invoice.organization];
        let customer = get_customer_request::Customer::Id(payment.customer_id.clone());
        let mut rng = self.rng(&format!("beside-{}", invoice.id));
        let request = GetCustomerRequest { customer: Some(customer) };
        let answer = call(organization, &mut rng, &self.repeats, &request, |mut api, request| async move {
            api.customers.get_customer(request).await
        });
        let Some(customer) = answer.await.ok().and_then(|answer| answer.customer) else { return };
        let marks = [
            ("invoice_id", invoice.id.clone()),
            ("organization_id", organization.id.to_string()),
            ("payment_id", payment.id.clone()),
        ];
        let metadata: BTreeMap<String, String> = marks.map(|(name, value)| (name.to_owned(), value)).into();
        let paid = self.sandbox.pay_by_hand(&HandPayment {
            customer: customer.provider_customer_id,
            payment_method: (*rng.pick(&HAND_CARDS)).to_owned(),
            amount: invoice.amount,
            currency: invoice.currency.to_lowercase(),
            metadata,
        });
        match paid {
            Ok(intent) => {
                let id = id_of(&intent);
                self.book.outside(|outside| _ = outside.beside.insert(id));
            }
            Err(error) => tracing::warn!(invoice = invoice.id, "a payment by hand was refused: {error:#}"),
        }
    }
}

/// Looks until it is so, or the time is over.
async fn seen(within: Duration, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() && began.elapsed() < within {
        pause(Duration::from_millis(100)).await;
    }
}

/// The id of an object of Stripe's.
fn id_of(object: &Value) -> String {
    object["id"].as_str().unwrap_or_default().to_owned()
}
