//! Evidence from the sandbox: its ledger, objects and events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::{Evidence, Intent, PaymentRow, StripeCustomer, StripeEvent, StripeRefund, Tenant};
use crate::dev::chaos::callers::Organization;
use crate::dev::sandbox::Sandbox;

/// A string in a Stripe object; empty if there is none.
fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The organization and the caller's request id in a refund's metadata; empty if there is none.
fn request_of(refund: &Value) -> String {
    let request = text(refund, "/metadata/request_id");
    if request.is_empty() { request } else { format!("{request} of {}", text(refund, "/metadata/organization_id")) }
}

/// The payments in the database. Objects in Stripe name the payment that they were created for; after a restoration of
/// the database it may exist no more, and its invoice may have another one.
struct Payments {
    ids: BTreeSet<String>,
    by_invoice: BTreeMap<(String, String), String>,
}

impl Payments {
    fn of(payments: &[PaymentRow]) -> Self {
        let by_invoice = payments.iter().map(|row| ((row.organization.clone(), row.invoice.clone()), row.id.clone()));
        Self { ids: payments.iter().map(|row| row.id.clone()).collect(), by_invoice: by_invoice.collect() }
    }

    /// The named payment if it exists, else that of the invoice, else the named one.
    fn present(&self, named: String, organization: String, invoice: String) -> String {
        if self.ids.contains(&named) {
            return named;
        }
        self.by_invoice.get(&(organization, invoice)).cloned().unwrap_or(named)
    }
}

impl Evidence {
    /// Reads the sandbox. The database was read before.
    pub fn read_sandbox(&mut self, sandbox: &Sandbox, organizations: &[Arc<Organization>]) {
        let payments = Payments::of(&self.payments);
        self.charges = sandbox.ledger();
        for charge in &mut self.charges {
            let named = |name: &str| charge.metadata.get(name).cloned().unwrap_or_default();
            let payment = payments.present(named("payment_id"), named("organization_id"), named("invoice_id"));
            if !payment.is_empty() {
                charge.metadata.insert("payment_id".to_owned(), payment);
            }
        }
        for intent in sandbox.objects("payment_intent") {
            let named = |name: &str| text(&intent, &format!("/metadata/{name}"));
            let payment = payments.present(named("payment_id"), named("organization_id"), named("invoice_id"));
            self.intents.insert(text(&intent, "/id"), Intent { status: text(&intent, "/status"), payment });
        }
        self.read_methods(sandbox);
        for refund in sandbox.objects("refund") {
            self.stripe_refunds.push(StripeRefund {
                id: text(&refund, "/id"),
                charge: text(&refund, "/charge"),
                amount: refund["amount"].as_i64().unwrap_or_default(),
                status: text(&refund, "/status"),
                refund_id: text(&refund, "/metadata/refund_id"),
                request: request_of(&refund),
            });
        }
        for dispute in sandbox.objects("dispute") {
            let about = (text(&dispute, "/charge"), text(&dispute, "/status"));
            self.stripe_disputes.insert(text(&dispute, "/id"), about);
        }
        self.lost = sandbox.lost_events().into_iter().collect();
        let waiting = sandbox.deliveries().into_iter();
        self.undelivered = waiting.map(|it| format!("{} {} ({})", it.event, it.kind, it.last_response)).collect();
        // All our endpoints subscribe to the same types, and polling the list ingests the same ones.
        let endpoints = sandbox.objects("webhook_endpoint");
        let enabled = endpoints.iter().find_map(|endpoint| endpoint["enabled_events"].as_array()).cloned();
        let enabled = enabled.unwrap_or_default();
        for organization in organizations {
            self.tenants.push(Tenant { id: organization.id.to_string(), account: organization.account.clone() });
            let acknowledged: BTreeMap<_, _> = sandbox.acknowledged(&organization.account).into_iter().collect();
            for event in sandbox.events(&organization.account) {
                if event["type"] == "customer.updated" {
                    let default = text(&event, "/data/object/invoice_settings/default_payment_method");
                    self.became_default.insert((text(&event, "/data/object/id"), default));
                }
                if enabled.contains(&event["type"]) {
                    self.stripe_events.push(StripeEvent {
                        account: organization.account.clone(),
                        id: text(&event, "/id"),
                        kind: text(&event, "/type"),
                        object: text(&event, "/data/object/id"),
                        created: event["created"].as_i64().unwrap_or_default() * 1_000_000,
                        acknowledged: acknowledged.get(event["id"].as_str().unwrap_or_default()).copied(),
                    });
                }
            }
        }
    }

    /// Reads defaults, the payment method of each charge, and mandates.
    fn read_methods(&mut self, sandbox: &Sandbox) {
        for charge in sandbox.objects("charge") {
            self.charged_methods.insert(text(&charge, "/id"), text(&charge, "/payment_method"));
        }
        for customer in sandbox.objects("customer") {
            let chosen = text(&customer, "/invoice_settings/default_payment_method");
            let source = text(&customer, "/default_source");
            self.stripe_customers.insert(text(&customer, "/id"), StripeCustomer { chosen, source });
        }
        for mandate in sandbox.objects("mandate") {
            let of_method = self.mandates.entry(text(&mandate, "/payment_method")).or_default();
            of_method.insert(text(&mandate, "/id"), text(&mandate, "/status"));
        }
    }
}
