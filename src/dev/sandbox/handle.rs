//! The interface of a running sandbox for tests, the demo and the control plane: it reads the ledger, adds faults, and
//! performs what payers, banks and people in the Stripe Dashboard do without an API request of Paybridge's.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::Duration;

use super::api_error::ApiResult;
use super::charges::{self, LedgerEntry};
use super::checkout_sessions::{self, Payer};
use super::confirmation;
use super::customers;
use super::detachment;
use super::dispatch;
use super::faults::{Fault, WebhookFault};
use super::mandates;
use super::payment_intents;
use super::payment_methods;
use super::setup_intents;
use super::shared::{RecordedRequest, Sandbox};
use super::sources;
use super::state::{Key, is_live, new_id, text};
use super::test_methods::{self, TestMethod};
use super::timers::TimerAction;
use super::transaction::{Call, Transaction};
use super::webhook_queue::Delivery;

/// A webhook that has not been acknowledged yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingDelivery {
    /// `evt_…`
    pub event: String,
    /// The event's type.
    pub kind: String,
    /// `we_…`
    pub endpoint: String,
    /// The number of attempts so far.
    pub attempts: u32,
    /// The HTTP status of the last attempt, or why there was no response. Empty before the first attempt.
    pub last_response: String,
}

/// A payment to be made in the Stripe Dashboard.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DashboardPayment {
    /// `cus_…`
    pub customer: String,
    /// A payment method of the customer, or a shared test id.
    pub payment_method: String,
    /// Minor units.
    pub amount: i64,
    /// ISO 4217, in lower case.
    pub currency: String,
    /// The metadata of the PaymentIntent.
    pub metadata: BTreeMap<String, String>,
}

impl Sandbox {
    /// Every charge of every account, oldest first within an account.
    pub fn ledger(&self) -> Vec<LedgerEntry> {
        self.0.read(|inner| inner.state.accounts.values().flat_map(charges::ledger).collect())
    }

    /// The latest requests to `/v1`, oldest first, up to [`super::Options::requests_kept`].
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.0.with_lock(|inner| inner.requests.iter().cloned().collect())
    }

    /// Discards the recorded requests.
    pub fn clear_requests(&self) {
        self.0.with_lock(|inner| inner.requests.clear());
    }

    /// Adds a fault for requests.
    pub fn add_fault(&self, fault: Fault) {
        self.0.with_lock(|inner| inner.faults.push(fault));
    }

    /// Adds a fault for webhooks.
    pub fn add_webhook_fault(&self, fault: WebhookFault) {
        self.0.with_lock(|inner| inner.webhook_faults.push(fault));
    }

    /// The active faults.
    pub fn faults(&self) -> (Vec<Fault>, Vec<WebhookFault>) {
        self.0.with_lock(|inner| (inner.faults.clone(), inner.webhook_faults.clone()))
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.0.with_lock(|inner| {
            inner.faults.clear();
            inner.webhook_faults.clear();
        });
    }

    /// Advances the clock, for everything that shares it, and runs the timers that are due by then.
    pub fn advance(&self, by: Duration) {
        self.0.clock.advance(by);
        self.0.update(|_| ());
    }

    /// Creates an account and returns its secret key.
    pub fn add_account(&self, id: &str, country: &str, currency: &str) -> String {
        let key = new_id("sk_test");
        self.0.update(|inner| {
            let now = self.0.seconds();
            inner.state.account(id, false, country, currency, now);
        });
        self.add_key(&key, id, None);
        key
    }

    /// Adds a key to an account, with all permissions or only with `scopes` (`rak_customer_write`, …). Its prefix
    /// decides between test and live mode.
    pub fn add_key(&self, key: &str, account: &str, scopes: Option<&[&str]>) {
        let scopes = scopes.map(|scopes| scopes.iter().map(|scope| (*scope).to_owned()).collect());
        self.0.update(|inner| {
            let (mut country, mut currency) = ("DE".to_owned(), "eur".to_owned());
            if let Some(known) = inner.state.accounts.get(account) {
                (country, currency) = (known.country.clone(), known.default_currency.clone());
            }
            let now = self.0.seconds();
            inner.state.account(account, is_live(key), &country, &currency, now);
            let known = Key { account: account.to_owned(), scopes, revoked: false, hides_account: false };
            inner.state.keys.insert(key.to_owned(), known);
        });
    }

    /// Makes the 403s for this key omit the account's id.
    pub fn hide_account(&self, key: &str) {
        self.0.update(|inner| inner.state.keys.get_mut(key).map(|key| key.hides_account = true));
    }

    /// Makes requests with this key fail with a 401.
    pub fn revoke_key(&self, key: &str) {
        self.0.update(|inner| inner.state.keys.get_mut(key).map(|key| key.revoked = true));
    }

    /// An object of any account.
    pub fn object(&self, id: &str) -> Option<Value> {
        self.0
            .read(|inner| inner.state.holder(id).and_then(|slot| inner.state.accounts[&slot].objects.get(id).cloned()))
    }

    /// Sets the default API version of an account's test mode, in which its events list is rendered.
    pub fn set_account_version(&self, account: &str, version: &str) {
        self.0.update(|inner| {
            if let Some(known) = inner.state.accounts.get_mut(account) {
                known.api_version = Some(version.to_owned());
            }
        });
    }

    /// The signing secret of a webhook endpoint. The API returns it only once.
    pub fn webhook_secret(&self, endpoint: &str) -> Option<String> {
        self.0.with_lock(|inner| {
            let accounts = inner.state.accounts.values();
            accounts
                .filter_map(|account| account.internals.get(endpoint))
                .map(|internals| internals.secret.clone())
                .next()
        })
    }

    /// The events of an account's test mode that have not been pruned, oldest first.
    pub fn events(&self, account: &str) -> Vec<Value> {
        self.0.read(|inner| {
            let events = inner.state.accounts.get(account).into_iter().flat_map(|account| &account.events);
            events.filter_map(|event| serde_json::from_str(&event.body).ok()).collect()
        })
    }

    /// The webhooks that have not been acknowledged yet.
    pub fn deliveries(&self) -> Vec<PendingDelivery> {
        self.0.with_lock(|inner| {
            let pending = inner.state.accounts.values().flat_map(|account| account.webhooks.pending());
            pending.map(pending_delivery).collect()
        })
    }

    /// Creates a customer in the Dashboard of an account's test mode.
    pub fn create_customer_in_dashboard(&self, account: &str, name: &str) -> anyhow::Result<Value> {
        let params = json!({ "name": name });
        let call = Call { ids: Vec::new(), path: String::new(), params };
        let result = self.0.transact(account, |tx| customers::create(tx, &call));
        let result = result.with_context(|| format!("there is no account {account}"))?;
        result.map_err(|api_error| anyhow!("{}", api_error.error["message"].as_str().unwrap_or_default()))
    }

    /// Attaches a payment method in the Dashboard. `method` is a shared test id, a card number, or an IBAN, which gets
    /// a mandate.
    pub fn attach_in_dashboard(&self, customer: &str, method: &str) -> anyhow::Result<Value> {
        self.transact(customer, |tx| {
            tx.existing("customer", customer)?;
            let resolved = payment_methods::resolve(tx, method)?;
            let attached = payment_methods::attach_to(tx, text(&resolved, "/id"), customer)?;
            if text(&attached, "/type") == "sepa_debit" {
                mandates::create(tx, text(&attached, "/id"));
            }
            Ok(attached)
        })
    }

    /// Sets or clears a customer's default payment method in the Dashboard.
    pub fn set_default_in_dashboard(&self, customer: &str, method: Option<&str>) -> anyhow::Result<Value> {
        self.transact(customer, |tx| customers::set_default(tx, customer, &json!(method)))
    }

    /// Adds a card by its token, as integrations older than PaymentMethods do. The first becomes the `default_source`.
    pub fn add_legacy_source(&self, customer: &str, token: &str) -> anyhow::Result<Value> {
        self.transact(customer, |tx| sources::attach_to(tx, token, customer))
    }

    /// Sets a customer's `default_source`, as such integrations do.
    pub fn set_default_source(&self, customer: &str, source: &str) -> anyhow::Result<Value> {
        let params = json!({ "default_source": source });
        self.transact(customer, |tx| {
            customers::update(tx, &Call { ids: vec![customer.to_owned()], path: String::new(), params })
        })
    }

    /// Changes a card's expiry date as a card network's automatic update does.
    pub fn renew_card(&self, method: &str, exp_month: i64, exp_year: i64) -> anyhow::Result<Value> {
        self.transact(method, |tx| {
            let old = tx.find("payment_method", method)?;
            let mut new = old.clone();
            new["card"]["exp_month"] = exp_month.into();
            new["card"]["exp_year"] = exp_year.into();
            tx.change("payment_method.automatically_updated", &old, &new);
            Ok(new)
        })
    }

    /// Detaches a payment method in the Dashboard.
    pub fn detach_in_dashboard(&self, method: &str) -> anyhow::Result<Value> {
        self.transact(method, |tx| detachment::detach(tx, &call(method)))
    }

    /// Deletes a customer in the Dashboard.
    pub fn delete_customer_in_dashboard(&self, customer: &str) -> anyhow::Result<Value> {
        self.transact(customer, |tx| customers::delete(tx, &call(customer)))
    }

    /// Makes a payment in the Dashboard: creates and confirms a PaymentIntent that Paybridge did not create.
    pub fn pay_in_dashboard(&self, payment: &DashboardPayment) -> anyhow::Result<Value> {
        self.transact(&payment.customer, |tx| {
            let params = json!({
                "amount": payment.amount, "currency": payment.currency, "customer": payment.customer, "confirm": true,
                "off_session": true, "payment_method": payment.payment_method, "metadata": payment.metadata,
            });
            payment_intents::create(tx, &Call { ids: Vec::new(), path: String::new(), params })
        })
    }

    /// Confirms an existing PaymentIntent in the Dashboard.
    pub fn pay_intent_in_dashboard(&self, intent: &str, method: &str) -> anyhow::Result<Value> {
        self.transact(intent, |tx| {
            let params = json!({ "payment_method": method, "off_session": true });
            let mut found = tx.find("payment_intent", intent)?;
            found["automatic_payment_methods"] = Value::Null;
            let method = confirmation::check(tx, &found, &params)?;
            confirmation::confirm(tx, &found, &params, &method)
        })
    }

    /// Completes a Checkout Session as its payer, with a card number, an IBAN or a shared test id. If the bank requires
    /// authentication, it succeeds or fails as `authenticates` says.
    pub fn complete_session(&self, session: &str, method: &str, authenticates: bool) -> anyhow::Result<Value> {
        self.transact(session, |tx| {
            let customer = tx.get("checkout.session", session).unwrap_or_default();
            let customer = tx.get("customer", text(&customer, "/customer")).unwrap_or_default();
            let mut payer = Payer {
                name: Some(text(&customer, "/name"))
                    .filter(|name| !name.is_empty())
                    .unwrap_or("Jenny Rosen")
                    .to_owned(),
                email: text(&customer, "/email").to_owned(),
                ..Payer::default()
            };
            match test_methods::shared(method) {
                Some(TestMethod::Card(number)) => number.clone_into(&mut payer.card),
                Some(TestMethod::Iban(iban)) => iban.clone_into(&mut payer.iban),
                None if method.starts_with(|letter: char| letter.is_ascii_digit()) => {
                    method.clone_into(&mut payer.card);
                }
                None => method.clone_into(&mut payer.iban),
            }
            let intent = checkout_sessions::submit(tx, session, &payer)?;
            if text(&intent, "/status") == "requires_action" {
                authenticate(tx, text(&intent, "/id"), authenticates)?;
            }
            tx.find("checkout.session", session)
        })
    }

    /// Leaves a Checkout Session as its payer: the session stays open until it expires.
    pub fn abandon_session(&self, session: &str) -> anyhow::Result<Value> {
        self.transact(session, |tx| tx.find("checkout.session", session))
    }

    /// Expires a Checkout Session.
    pub fn expire_session(&self, session: &str) -> anyhow::Result<Value> {
        self.transact(session, |tx| checkout_sessions::expire(tx, &call(session)))
    }

    /// Completes or fails 3-D Secure as the payer, for a PaymentIntent or a SetupIntent.
    pub fn authenticate(&self, intent: &str, succeeds: bool) -> anyhow::Result<Value> {
        self.transact(intent, |tx| authenticate(tx, intent, succeeds))
    }

    /// Settles all pending debits now, or that of one PaymentIntent. Returns their number.
    pub fn settle(&self, intent: Option<&str>) -> usize {
        self.0.update(|inner| {
            let (now, micros) = (self.0.seconds(), self.0.micros());
            let mut settled = 0;
            for account in inner.state.accounts.values_mut() {
                let charges: Vec<String> = account
                    .objects
                    .values()
                    .filter(|object| text(object, "/object") == "charge" && text(object, "/status") == "pending")
                    .filter(|charge| intent.is_none_or(|intent| text(charge, "/payment_intent") == intent))
                    .map(|charge| text(charge, "/id").to_owned())
                    .collect();
                let is_settlement =
                    |action: &TimerAction| matches!(action, TimerAction::Settle { charge } if charges.contains(charge));
                settled += dispatch::run_now(account, &self.0.settings, now, micros, is_settlement);
            }
            settled
        })
    }

    /// Sets the API version of a webhook endpoint; `None` is the account's default. The API cannot change it after
    /// creation.
    pub fn set_endpoint_version(&self, endpoint: &str, version: Option<&str>) -> anyhow::Result<Value> {
        self.transact(endpoint, |tx| {
            let mut found = tx.find("webhook_endpoint", endpoint)?;
            found["api_version"] = json!(version);
            tx.put(&found);
            Ok(found)
        })
    }

    /// Sends an event again to every subscribed endpoint, as the Dashboard's Resend button does.
    ///
    /// # Errors
    /// No account has the event.
    pub fn resend(&self, event: &str) -> anyhow::Result<()> {
        self.0.update(|inner| {
            for account in inner.state.accounts.values_mut() {
                let known = account.events.iter().find(|known| known.id == event);
                let Some((number, kind)) = known.map(|known| (known.number, known.kind.clone())) else { continue };
                let (now, now_micros) = (self.0.seconds(), self.0.micros());
                let mut tx = Transaction { account, now, now_micros, cause: None, settings: &self.0.settings };
                tx.send(event, number, &kind);
                return Ok(());
            }
            bail!("no account has the event {event}")
        })
    }

    fn transact(&self, object: &str, f: impl FnOnce(&mut Transaction) -> ApiResult) -> anyhow::Result<Value> {
        let result = self.0.transact_on(object, f).with_context(|| format!("no account has {object}"))?;
        result.map_err(|api_error| anyhow!("{}", api_error.error["message"].as_str().unwrap_or_default()))
    }
}

fn call(id: &str) -> Call {
    Call { ids: vec![id.to_owned()], path: String::new(), params: json!({}) }
}

fn pending_delivery(delivery: &Delivery) -> PendingDelivery {
    PendingDelivery {
        event: delivery.event.clone(),
        kind: delivery.kind.clone(),
        endpoint: delivery.endpoint.clone(),
        attempts: delivery.attempt,
        last_response: delivery.last_response.clone(),
    }
}

/// Completes or fails 3-D Secure for a PaymentIntent or a SetupIntent.
pub(super) fn authenticate(tx: &mut Transaction, intent: &str, succeeds: bool) -> ApiResult {
    if tx.get("payment_intent", intent).is_some() {
        confirmation::authenticate(tx, intent, succeeds)
    } else {
        setup_intents::authenticate(tx, intent, succeeds)
    }
}
