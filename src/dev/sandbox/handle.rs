//! What tests, the demo and the control plane do with a running sandbox: read the truth, make things go wrong, and
//! act as the people around Stripe, whose doings no API call of Paybridge's has caused.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::Duration;

use super::Sandbox;
use super::act::{Act, Call};
use super::charges::{self, LedgerEntry};
use super::checkout_sessions::{self, Payer};
use super::confirmation;
use super::customers;
use super::faults::{Fault, WebhookFault};
use super::mandates;
use super::payment_intents;
use super::payment_methods;
use super::refusal::Answer;
use super::setup_intents;
use super::shared::Recorded;
use super::sources;
use super::state::{Delivery, Key, is_live, new_id, text};
use super::test_methods::{self, Known};
use super::timers::{self, Due};

/// A webhook that has not been acknowledged yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// `evt_…`
    pub event: String,
    /// The event's type.
    pub kind: String,
    /// `we_…`
    pub endpoint: String,
    /// Tries so far.
    pub attempts: u32,
    /// The endpoint's answer to the last try: a status, or why there was none; empty before the first.
    pub last_answer: String,
}

/// A payment that somebody makes in Stripe's dashboard.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HandPayment {
    /// `cus_…`
    pub customer: String,
    /// A method of the customer's, or a shared test id.
    pub payment_method: String,
    /// Minor units.
    pub amount: i64,
    /// Lower case.
    pub currency: String,
    /// The intent's metadata.
    pub metadata: BTreeMap<String, String>,
}

impl Sandbox {
    /// Every charge of every account, oldest first within an account: the truth about money.
    pub fn ledger(&self) -> Vec<LedgerEntry> {
        self.0.read(|inner| inner.state.accounts.values().flat_map(charges::ledger).collect())
    }

    /// The requests to `/v1` so far, oldest first (the last 50,000).
    pub fn requests(&self) -> Vec<Recorded> {
        self.0.look(|inner| inner.requests.iter().cloned().collect())
    }

    /// Forgets the recorded requests.
    pub fn forget_requests(&self) {
        self.0.look(|inner| inner.requests.clear());
    }

    /// Makes requests go wrong from now on.
    pub fn add_fault(&self, fault: Fault) {
        self.0.look(|inner| inner.faults.push(fault));
    }

    /// Makes webhooks go wrong from now on.
    pub fn add_webhook_fault(&self, fault: WebhookFault) {
        self.0.look(|inner| inner.webhook_faults.push(fault));
    }

    /// The rules that are not used up.
    pub fn faults(&self) -> (Vec<Fault>, Vec<WebhookFault>) {
        self.0.look(|inner| (inner.faults.clone(), inner.webhook_faults.clone()))
    }

    /// Nothing goes wrong any more.
    pub fn clear_faults(&self) {
        self.0.look(|inner| {
            inner.faults.clear();
            inner.webhook_faults.clear();
        });
    }

    /// Moves the sandbox's clock, and everybody's who shares it; what is due by then has happened on return.
    pub fn advance(&self, by: Duration) {
        self.0.clock.advance(by);
        self.0.with(|_| ());
    }

    /// Opens an account with a secret key of its own, and returns the key.
    pub fn add_account(&self, id: &str, country: &str, currency: &str) -> String {
        let key = new_id("sk_test");
        self.0.with(|inner| {
            let now = self.0.seconds();
            inner.state.account(id, false, country, currency, now);
        });
        self.add_key(&key, id, None);
        key
    }

    /// Makes `key` a key of the account: with all permissions, or with those named (`rak_customer_write`, …). Its
    /// prefix decides between test and live mode.
    pub fn add_key(&self, key: &str, account: &str, scopes: Option<&[&str]>) {
        let scopes = scopes.map(|scopes| scopes.iter().map(|scope| (*scope).to_owned()).collect());
        self.0.with(|inner| {
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

    /// From now on the 403s that the key is answered with don't name its account.
    pub fn hide_account(&self, key: &str) {
        self.0.with(|inner| inner.state.keys.get_mut(key).map(|key| key.hides_account = true));
    }

    /// From now on the key is answered with 401.
    pub fn revoke_key(&self, key: &str) {
        self.0.with(|inner| inner.state.keys.get_mut(key).map(|key| key.revoked = true));
    }

    /// An object as it is now, whatever account holds it.
    pub fn object(&self, id: &str) -> Option<Value> {
        self.0
            .read(|inner| inner.state.holder(id).and_then(|slot| inner.state.accounts[&slot].objects.get(id).cloned()))
    }

    /// Makes `version` the default API version of an account's test mode: what its events list renders in.
    pub fn set_account_version(&self, account: &str, version: &str) {
        self.0.with(|inner| {
            if let Some(known) = inner.state.accounts.get_mut(account) {
                known.api_version = Some(version.to_owned());
            }
        });
    }

    /// The secret that an endpoint's webhooks are signed with: Stripe tells it once, tests may ask again.
    pub fn webhook_secret(&self, endpoint: &str) -> Option<String> {
        self.0.look(|inner| {
            let accounts = inner.state.accounts.values();
            accounts.filter_map(|account| account.hidden.get(endpoint)).map(|hidden| hidden.secret.clone()).next()
        })
    }

    /// The events of an account's test mode that the list still has, oldest first.
    pub fn events(&self, account: &str) -> Vec<Value> {
        self.0.read(|inner| {
            let events = inner.state.accounts.get(account).into_iter().flat_map(|account| &account.events);
            events.filter_map(|event| serde_json::from_str(&event.body).ok()).collect()
        })
    }

    /// The webhooks that have not been acknowledged yet.
    pub fn deliveries(&self) -> Vec<Waiting> {
        self.0.look(|inner| {
            let waiting = inner.state.accounts.values().flat_map(|account| account.mail.waiting());
            waiting.map(shown).collect()
        })
    }

    /// Makes a customer in the dashboard of an account's test mode.
    pub fn create_customer_by_hand(&self, account: &str, name: &str) -> anyhow::Result<Value> {
        let params = json!({ "name": name });
        let call = Call { ids: Vec::new(), path: String::new(), params };
        let answer = self.0.by_hand(account, |act| customers::create(act, &call));
        let answer = answer.with_context(|| format!("there is no account {account}"))?;
        answer.map_err(|refusal| anyhow!("{}", refusal.error["message"].as_str().unwrap_or_default()))
    }

    /// Attaches a method as someone in the dashboard would: a shared test id, a card number or an IBAN (which comes
    /// with a mandate).
    pub fn attach_by_hand(&self, customer: &str, method: &str) -> anyhow::Result<Value> {
        self.by_hand(customer, |act| {
            customers::existing(act, customer)?;
            let made = by_any_name(act, method)?;
            let attached = payment_methods::attach_to(act, text(&made, "/id"), customer)?;
            if text(&attached, "/type") == "sepa_debit" {
                mandates::make(act, text(&attached, "/id"));
            }
            Ok(attached)
        })
    }

    /// Sets a customer's default method as someone in the dashboard would; `None` for none.
    pub fn set_default_by_hand(&self, customer: &str, method: Option<&str>) -> anyhow::Result<Value> {
        self.by_hand(customer, |act| customers::set_default(act, customer, &json!(method)))
    }

    /// Adds a card by its token, as integrations of the time before PaymentMethods do; the first is the `default_source`.
    pub fn add_source_by_hand(&self, customer: &str, token: &str) -> anyhow::Result<Value> {
        self.by_hand(customer, |act| sources::attach_to(act, token, customer))
    }

    /// Sets a customer's `default_source` as such an integration does.
    pub fn set_default_source_by_hand(&self, customer: &str, source: &str) -> anyhow::Result<Value> {
        let params = json!({ "default_source": source });
        self.by_hand(customer, |act| {
            customers::update(act, &Call { ids: vec![customer.to_owned()], path: String::new(), params })
        })
    }

    /// The network of a card tells Stripe of the new month and year of expiry.
    pub fn renew_card_by_hand(&self, method: &str, exp_month: i64, exp_year: i64) -> anyhow::Result<Value> {
        self.by_hand(method, |act| {
            let old = act.find("payment_method", method)?;
            let mut new = old.clone();
            new["card"]["exp_month"] = exp_month.into();
            new["card"]["exp_year"] = exp_year.into();
            act.change("payment_method.automatically_updated", &old, &new);
            Ok(new)
        })
    }

    /// Detaches a method as someone in the dashboard would.
    pub fn detach_by_hand(&self, method: &str) -> anyhow::Result<Value> {
        self.by_hand(method, |act| payment_methods::detach(act, &call(method)))
    }

    /// Deletes a customer as someone in the dashboard would.
    pub fn delete_customer_by_hand(&self, customer: &str) -> anyhow::Result<Value> {
        self.by_hand(customer, |act| customers::delete(act, &call(customer)))
    }

    /// Takes a payment in the dashboard: a new intent that Paybridge knows nothing of.
    pub fn pay_by_hand(&self, payment: &HandPayment) -> anyhow::Result<Value> {
        self.by_hand(&payment.customer, |act| {
            let params = json!({
                "amount": payment.amount, "currency": payment.currency, "customer": payment.customer, "confirm": true,
                "off_session": true, "payment_method": payment.payment_method, "metadata": payment.metadata,
            });
            payment_intents::create(act, &Call { ids: Vec::new(), path: String::new(), params })
        })
    }

    /// Confirms an existing intent in the dashboard.
    pub fn pay_intent_by_hand(&self, intent: &str, method: &str) -> anyhow::Result<Value> {
        self.by_hand(intent, |act| {
            let params = json!({ "payment_method": method, "off_session": true });
            let mut found = act.find("payment_intent", intent)?;
            found["automatic_payment_methods"] = Value::Null;
            let method = confirmation::check(act, &found, &params)?;
            confirmation::confirm(act, &found, &params, &method)
        })
    }

    /// Plays the payer on a session's page: a card number or an IBAN, and, if the bank asks, the proof.
    pub fn complete_session(&self, session: &str, method: &str, prove: bool) -> anyhow::Result<Value> {
        self.by_hand(session, |act| {
            let customer = act.get("checkout.session", session).unwrap_or_default();
            let customer = act.get("customer", text(&customer, "/customer")).unwrap_or_default();
            let mut payer = Payer {
                name: Some(text(&customer, "/name"))
                    .filter(|name| !name.is_empty())
                    .unwrap_or("Jenny Rosen")
                    .to_owned(),
                email: text(&customer, "/email").to_owned(),
                ..Payer::default()
            };
            match test_methods::shared(method) {
                Some(Known::Card(number)) => number.clone_into(&mut payer.card),
                Some(Known::Iban(iban)) => iban.clone_into(&mut payer.iban),
                None if method.starts_with(|letter: char| letter.is_ascii_digit()) => {
                    method.clone_into(&mut payer.card);
                }
                None => method.clone_into(&mut payer.iban),
            }
            let intent = checkout_sessions::submit(act, session, &payer)?;
            if text(&intent, "/status") == "requires_action" {
                authenticate(act, text(&intent, "/id"), prove)?;
            }
            act.find("checkout.session", session)
        })
    }

    /// The payer leaves the page: nothing happens, until the session's time is over.
    pub fn abandon_session(&self, session: &str) -> anyhow::Result<Value> {
        self.by_hand(session, |act| act.find("checkout.session", session))
    }

    /// Ends a session before its time.
    pub fn expire_session(&self, session: &str) -> anyhow::Result<Value> {
        self.by_hand(session, |act| checkout_sessions::expire(act, &call(session)))
    }

    /// Plays the payer on a 3-D Secure page, for a payment or a setup intent.
    pub fn authenticate(&self, intent: &str, succeeds: bool) -> anyhow::Result<Value> {
        self.by_hand(intent, |act| authenticate(act, intent, succeeds))
    }

    /// Lets the banks answer all pending debits now, or that of one payment intent; returns how many.
    pub fn settle(&self, intent: Option<&str>) -> usize {
        self.0.with(|inner| {
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
                let which = |due: &Due| matches!(due, Due::Settle { charge } if charges.contains(charge));
                settled += timers::hurry(account, &self.0.settings, now, micros, which);
            }
            settled
        })
    }

    /// Makes an endpoint one of another API version (`None`: the account's own), as if it had been registered so: no call
    /// can change that.
    pub fn set_endpoint_version(&self, endpoint: &str, version: Option<&str>) -> anyhow::Result<Value> {
        self.by_hand(endpoint, |act| {
            let mut found = act.find("webhook_endpoint", endpoint)?;
            found["api_version"] = json!(version);
            act.put(&found);
            Ok(found)
        })
    }

    /// Sends an event again to every endpoint that wants it, as the dashboard's button does.
    ///
    /// # Errors
    /// No account has the event.
    pub fn resend(&self, event: &str) -> anyhow::Result<()> {
        self.0.with(|inner| {
            for account in inner.state.accounts.values_mut() {
                let known = account.events.iter().find(|known| known.id == event);
                let Some((number, kind)) = known.map(|known| (known.number, known.kind.clone())) else { continue };
                let (now, now_micros) = (self.0.seconds(), self.0.micros());
                let mut act = Act { account, now, now_micros, cause: None, settings: &self.0.settings };
                act.send(event, number, &kind);
                return Ok(());
            }
            bail!("no such event: {event}")
        })
    }

    fn by_hand(&self, object: &str, act: impl FnOnce(&mut Act) -> Answer) -> anyhow::Result<Value> {
        let answer = self.0.by_hand_at(object, act).with_context(|| format!("no account has {object}"))?;
        answer.map_err(|refusal| anyhow!("{}", refusal.error["message"].as_str().unwrap_or_default()))
    }
}

fn call(id: &str) -> Call {
    Call { ids: vec![id.to_owned()], path: String::new(), params: json!({}) }
}

fn shown(delivery: &Delivery) -> Waiting {
    Waiting {
        event: delivery.event.clone(),
        kind: delivery.kind.clone(),
        endpoint: delivery.endpoint.clone(),
        attempts: delivery.attempt,
        last_answer: delivery.last_answer.clone(),
    }
}

/// A method by id, shared test id, card number or IBAN.
fn by_any_name(act: &mut Act, method: &str) -> Answer {
    if method.starts_with("pm_") {
        payment_methods::own_or_shared(act, method, "payment_method")
    } else if method.starts_with(|letter: char| letter.is_ascii_digit()) {
        payment_methods::from_card_entry(act, method)
    } else {
        payment_methods::by_iban(act, method, &json!({ "name": "Jenny Rosen", "email": "jenny@example.com" }))
    }
}

/// The payer's answer to the bank, for either kind of intent.
pub(super) fn authenticate(act: &mut Act, intent: &str, succeeds: bool) -> Answer {
    if act.get("payment_intent", intent).is_some() {
        confirmation::authenticate(act, intent, succeeds)
    } else {
        setup_intents::authenticate(act, intent, succeeds)
    }
}
