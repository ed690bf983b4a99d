//! Users of the Stripe Dashboard: they import customers, add cards, choose and unset defaults, and take payments there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::callers::call;
use super::history::UnsetDefault;
use super::plan::{AfterUnset, CustomerPlan, CustomerProfile, InvoicePlan, PAYING_IBANS, Script};
use super::workload::{STATE_TIMEOUT, Workload};
use crate::clock::pause;
use crate::dev::sandbox::DashboardPayment;
use crate::grpc::proto::{GetCustomerRequest, Payment, PaymentState, get_customer_request};

/// Cards for payments in the Dashboard: one succeeds, refunds of one stay pending for a while, refunds of one fail
/// after they succeeded.
const DASHBOARD_CARDS: [&str; 3] = ["pm_card_visa", "pm_card_pendingRefund", "pm_card_refundFail"];

impl Workload {
    /// Creates a customer directly in Stripe, with the payment methods of its profile.
    pub(super) fn create_customer_in_stripe(&self, number: usize, plan: &CustomerPlan) -> anyhow::Result<String> {
        let organization = &self.organizations[number];
        let created = self.sandbox.create_customer_in_dashboard(&organization.account, &plan.external_id)?;
        let id = id_of(&created);
        match plan.profile {
            CustomerProfile::ImportedBankAccount => self.import_debit(number, plan, &id)?,
            CustomerProfile::DefaultSource => self.import_source(&id)?,
            profile => {
                let card = if profile == CustomerProfile::DeclinedCard {
                    "pm_card_chargeCustomerFail"
                } else {
                    "pm_card_visa"
                };
                let method = self.sandbox.attach_in_dashboard(&id, card)?;
                self.sandbox.set_default_in_dashboard(&id, Some(&id_of(&method)))?;
            }
        }
        Ok(id)
    }

    /// Adds a bank account that no SetupIntent stored, and that may have been debited before.
    fn import_debit(&self, number: usize, plan: &CustomerPlan, id: &str) -> anyhow::Result<()> {
        let mut rng = self.rng(&format!("import {number} {}", plan.external_id));
        let method = id_of(&self.sandbox.attach_in_dashboard(id, PAYING_IBANS[0])?);
        if rng.chance(50) {
            self.sandbox.pay_in_dashboard(&DashboardPayment {
                customer: id.to_owned(),
                payment_method: method.clone(),
                amount: 1_900,
                currency: "eur".to_owned(),
                metadata: BTreeMap::new(),
            })?;
        }
        if rng.chance(50) {
            self.sandbox.set_default_in_dashboard(id, Some(&method))?;
        }
        Ok(())
    }

    /// Adds a card as legacy integrations stored it, which is the default, and a newer one that nobody chose.
    fn import_source(&self, id: &str) -> anyhow::Result<()> {
        self.sandbox.add_legacy_source(id, "tok_visa")?;
        let unchosen = id_of(&self.sandbox.attach_in_dashboard(id, "pm_card_mastercard")?);
        self.history.external(|external| _ = external.unchosen_methods.insert(unchosen, id.to_owned()));
        Ok(())
    }

    /// Adds a card in the Dashboard.
    pub(super) fn add_card(&self, customer: &str, card: &str) {
        if let Err(error) = self.sandbox.attach_in_dashboard(customer, card) {
            tracing::warn!(customer, "a card was not added: {error:#}");
        }
    }

    /// Changes the default of a customer who has paid, once.
    pub(super) fn change_default(self: &Arc<Self>, organization: usize, external_id: &str, customer: String) {
        let Some((plan, state)) = self.customer(organization, external_id) else { return };
        let changes = matches!(
            plan.profile,
            CustomerProfile::ChangingDefault | CustomerProfile::UnsetDefault(_) | CustomerProfile::DefaultSource
        );
        if !changes || state.method_changed.initialized() || state.method_changed.set(()).is_err() {
            return;
        }
        let (workload, profile, external_id) = (Arc::clone(self), plan.profile, external_id.to_owned());
        self.actors.spawn(async move {
            let changed = match profile {
                CustomerProfile::UnsetDefault(after_unset) => {
                    workload.unset_default((organization, external_id), &customer, after_unset).await
                }
                CustomerProfile::DefaultSource => workload.choose_another_source(organization, &customer),
                _ => workload.switch_default(&customer).await,
            };
            if let Err(error) = changed {
                tracing::warn!(customer, "the default was not changed in the Dashboard: {error:#}");
            }
        });
    }

    /// Adds two cards, makes one the default, and detaches it again.
    async fn switch_default(&self, customer: &str) -> anyhow::Result<()> {
        let chosen = id_of(&self.sandbox.attach_in_dashboard(customer, "pm_card_mastercard")?);
        self.sandbox.attach_in_dashboard(customer, "pm_card_amex")?;
        self.sandbox.set_default_in_dashboard(customer, Some(&chosen))?;
        pause(Duration::from_secs(3)).await;
        self.sandbox.detach_in_dashboard(&chosen)?;
        Ok(())
    }

    /// Adds another legacy card to half of the customers and makes it the default.
    fn choose_another_source(&self, organization: usize, customer: &str) -> anyhow::Result<()> {
        if self.rng(&format!("source {organization} {customer}")).chance(50) {
            let source = id_of(&self.sandbox.add_legacy_source(customer, "tok_mastercard")?);
            self.sandbox.set_default_source(customer, &source)?;
        }
        Ok(())
    }

    /// Unsets the default, though its method stays attached. Once Paybridge has reported that, invoices of the customer
    /// have no default until there is one again.
    async fn unset_default(
        &self,
        whose: (usize, String),
        customer: &str,
        after_unset: AfterUnset,
    ) -> anyhow::Result<()> {
        let default = || {
            let found = self.sandbox.object(customer).unwrap_or_default();
            found["invoice_settings"]["default_payment_method"].as_str().map(str::to_owned)
        };
        // Paybridge may not have set it yet.
        let began = Instant::now();
        wait_until(STATE_TIMEOUT, || default().is_some()).await;
        let Some(method) = default() else { return Ok(()) };
        self.history.external(|external| {
            let unset =
                UnsetDefault { customer: customer.to_owned(), method: method.clone(), ..UnsetDefault::default() };
            external.unset_defaults.insert(whose.clone(), unset);
        });
        self.sandbox.set_default_in_dashboard(customer, None)?;
        wait_until(STATE_TIMEOUT.saturating_sub(began.elapsed()), || self.history.is_unset_reported(&whose)).await;
        let mut rng = self.rng(&format!("unset {} {}", whose.0, whose.1));
        pause(Duration::from_millis(rng.between(1_000, 5_000))).await;
        match after_unset {
            AfterUnset::Nothing => {}
            AfterUnset::ChosenAgain => {
                let now = self.now();
                self.history.external(|external| {
                    _ = external.unset_defaults.get_mut(&whose).map(|unset| unset.chosen_again_at = Some(now));
                });
                self.sandbox.set_default_in_dashboard(customer, Some(&method))?;
            }
            AfterUnset::CardAdded => self.add_card(customer, "pm_card_mastercard"),
        }
        Ok(())
    }

    /// Pays one of our intents. Stripe refuses if it has been paid or canceled meanwhile.
    pub fn pay_intent(&self, intent: &str) {
        let paid = self.sandbox.pay_intent_in_dashboard(intent, "pm_card_visa");
        self.paid_in_dashboard.fetch_add(usize::from(paid.is_ok()), Ordering::Relaxed);
    }

    /// Pays an invoice in the Dashboard: by our intent, or by a new one with the same metadata.
    pub async fn pay_in_dashboard(&self, invoice: &InvoicePlan) {
        // The intent can be paid only after it was created.
        let has_intent = |payment: &Payment| {
            !payment.provider_payment_intent_id.is_empty() && payment.state() != PaymentState::Pending
        };
        let Some(payment) = self.wait_for_payment(invoice, has_intent).await else { return };
        if invoice.script == Script::PaidInDashboard {
            self.pay_intent(&payment.provider_payment_intent_id);
            return;
        }
        let organization = &self.organizations[invoice.organization];
        let customer = get_customer_request::Customer::Id(payment.customer_id.clone());
        let mut rng = self.rng(&format!("beside-{}", invoice.id));
        let request = GetCustomerRequest { customer: Some(customer) };
        let response = call(organization, &mut rng, &self.calls, &request, |mut api, request| async move {
            api.customers.get_customer(request).await
        });
        let Some(customer) = response.await.ok().and_then(|response| response.customer) else { return };
        let metadata = [
            ("invoice_id", invoice.id.clone()),
            ("organization_id", organization.id.to_string()),
            ("payment_id", payment.id.clone()),
        ];
        let metadata: BTreeMap<String, String> = metadata.map(|(name, value)| (name.to_owned(), value)).into();
        let paid = self.sandbox.pay_in_dashboard(&DashboardPayment {
            customer: customer.provider_customer_id,
            payment_method: (*rng.pick(&DASHBOARD_CARDS)).to_owned(),
            amount: invoice.amount,
            currency: invoice.currency.to_lowercase(),
            metadata,
        });
        match paid {
            Ok(intent) => {
                let id = id_of(&intent);
                self.history.external(|external| _ = external.dashboard_intents.insert(id));
            }
            Err(error) => tracing::warn!(invoice = invoice.id, "a payment in the Dashboard failed: {error:#}"),
        }
    }
}

/// Polls until `condition` returns `true`, for at most `within`.
async fn wait_until(within: Duration, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() && began.elapsed() < within {
        pause(Duration::from_millis(100)).await;
    }
}

/// The id of a Stripe object.
fn id_of(object: &Value) -> String {
    object["id"].as_str().unwrap_or_default().to_owned()
}
