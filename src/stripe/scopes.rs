//! Probes the permissions of a restricted key without side effects: reads of one object, and for writes POSTs to ids
//! that cannot exist. Stripe checks the permission before it looks for the object, so 403 means that the permission is
//! missing, and 404 proves it.
//!
//! A secret key (`sk_…`) has all permissions and needs no probe. Reading the account is not among them: Stripe offers
//! it to few restricted keys.

use tokio::task::JoinSet;

use super::call::Call;
use super::client::Client;
use super::error::Error;
use super::object::Acknowledged;
use super::operation::Operation;
use super::rate_limit::ApiKey;
use crate::domain::integrations::EventSource;

/// One permission that we use.
#[derive(Debug, PartialEq, Eq)]
pub struct Scope {
    /// Stripe's name for it in messages.
    pub permission: &'static str,
    /// The row and the choice on the Stripe Dashboard's page for restricted keys.
    pub title: &'static str,
    /// What we use it for; completes "to …".
    pub usage: &'static str,
    /// An operation that needs it.
    operation: Operation,
    probe: Probe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Read(&'static str),
    Write(&'static str, &'static str),
}

impl Scope {
    /// Whether collecting needs it for an integration whose events come from `source`.
    pub fn is_needed(&self, source: EventSource) -> bool {
        match self.operation {
            Operation::EventList => source == EventSource::List,
            Operation::WebhookEndpointUpdate => source == EventSource::NewEndpoint,
            operation => !operation.is_optional(),
        }
    }
}

/// The result of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The key has the permission.
    Proved,
    /// The key lacks the permission.
    Missing,
    /// Stripe's response is inconclusive; the reason, for people.
    Unproved(String),
}

/// A permission and the result of its probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The probed permission.
    pub scope: &'static Scope,
    /// The probe's result.
    pub proof: Proof,
}

/// The results of all probes of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Every permission, in the order of [`SCOPES`].
    pub findings: Vec<Finding>,
    /// The account that a 403 named; see [`Error::named_account`].
    pub account: Option<String>,
}

/// Every permission that we use. Write permissions include reading.
pub static SCOPES: [Scope; 9] = [
    Scope {
        permission: "rak_customer_write",
        title: "Customers: Write",
        usage: "create, link and change customers",
        operation: Operation::CustomerUpdate,
        probe: Probe::Write("/v1/customers/{id}", "cus_paybridgeprobe"),
    },
    Scope {
        permission: "rak_payment_method_write",
        title: "PaymentMethods: Write",
        usage: "list and detach payment methods",
        operation: Operation::PaymentMethodDetach,
        probe: Probe::Write("/v1/payment_methods/{id}/detach", "pm_paybridgeprobe"),
    },
    Scope {
        permission: "rak_checkout_session_write",
        title: "Checkout Sessions: Write",
        usage: "create pages that store a payment method or pay an invoice",
        operation: Operation::CheckoutSessionExpire,
        probe: Probe::Write("/v1/checkout/sessions/{id}/expire", "cs_test_paybridgeprobe"),
    },
    Scope {
        permission: "rak_payment_intent_write",
        title: "PaymentIntents: Write",
        usage: "charge invoices",
        operation: Operation::PaymentIntentCancel,
        probe: Probe::Write("/v1/payment_intents/{id}/cancel", "pi_paybridgeprobe"),
    },
    Scope {
        permission: "rak_webhook_write",
        title: "Webhook Endpoints: Write",
        usage: "register and repair the webhook endpoint",
        operation: Operation::WebhookEndpointUpdate,
        probe: Probe::Write("/v1/webhook_endpoints/{id}", "we_paybridgeprobe"),
    },
    Scope {
        permission: "rak_event_read",
        title: "Events: Read",
        usage: "find what webhooks missed, or everything without webhooks",
        operation: Operation::EventList,
        probe: Probe::Read("/v1/events"),
    },
    Scope {
        permission: "rak_refund_write",
        title: "Charges and Refunds: Write",
        usage: "create and follow refunds, and read SEPA mandates from charges",
        operation: Operation::RefundCreate,
        probe: Probe::Write("/v1/refunds/{id}", "re_paybridgeprobe"),
    },
    Scope {
        permission: "rak_setup_intent_read",
        title: "SetupIntents: Read",
        usage: "read the mandates of SEPA payment methods before their first charge",
        operation: Operation::SetupIntentRead,
        probe: Probe::Read("/v1/setup_intents"),
    },
    Scope {
        permission: "rak_dispute_read",
        title: "Disputes: Read",
        usage: "follow disputes",
        operation: Operation::DisputeRead,
        probe: Probe::Read("/v1/disputes"),
    },
];

impl Client {
    /// Probes all permissions concurrently. Fails only if Stripe rejects the key.
    pub async fn probe_scopes(&self, key: &ApiKey) -> Result<Probed, Error> {
        let mut probes = JoinSet::new();
        for (index, scope) in SCOPES.iter().enumerate() {
            let (client, key) = (self.clone(), key.clone());
            probes.spawn(async move { (index, client.probe(&key, scope.probe).await) });
        }
        let mut outcomes = probes.join_all().await;
        outcomes.sort_by_key(|(index, _)| *index);
        let mut probed = Probed { findings: Vec::with_capacity(SCOPES.len()), account: None };
        for (index, outcome) in outcomes {
            if let Err(error) = &outcome {
                if matches!(error, Error::Unauthorized(_)) {
                    return Err(error.clone());
                }
                probed.account = probed.account.or_else(|| error.named_account().map(str::to_owned));
            }
            let scope = &SCOPES[index];
            probed.findings.push(Finding { scope, proof: proof(scope.probe, outcome) });
        }
        Ok(probed)
    }

    async fn probe(&self, key: &ApiKey, probe: Probe) -> Result<(), Error> {
        // A new idempotency key for every probe: a replayed response would report earlier permissions.
        let idempotency_key = self.unique_key("probe");
        let call = match probe {
            Probe::Read(route) => Call::get(route, None, "limit=1"),
            Probe::Write(route, id) => Call::post(route, Some(id), &idempotency_key, ""),
        };
        self.send::<Acknowledged>(key, call).await.map(|_| ())
    }
}

fn proof(probe: Probe, outcome: Result<(), Error>) -> Proof {
    match (probe, outcome) {
        (_, Ok(())) => Proof::Proved,
        (Probe::Write(..), Err(error)) if error.is_missing() => Proof::Proved,
        (_, Err(Error::Forbidden { .. })) => Proof::Missing,
        (_, Err(error)) => Proof::Unproved(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scripted::{ScriptedServer, key, response};
    use super::*;

    const MISSING: &str = r#"{"error":{"type":"invalid_request_error","code":"resource_missing","message":"No such"}}"#;
    const FORBIDDEN: &str = r#"{"error":{"type":"invalid_request_error","message":"Having the 'rak_x' permission"}}"#;

    async fn findings(server: &ScriptedServer) -> Vec<Finding> {
        server.client().probe_scopes(&key()).await.unwrap().findings
    }

    #[tokio::test]
    async fn each_permission_is_proved_missing_or_unproved() {
        let server = ScriptedServer::new(|request| match (request.method.as_str(), request.path()) {
            ("POST", "/v1/payment_intents/pi_paybridgeprobe/cancel") | ("GET", "/v1/disputes") => {
                response(403, FORBIDDEN)
            }
            ("POST", _) => response(404, MISSING),
            ("GET", "/v1/events") => response(429, ""),
            _ => response(200, r#"{"object":"list","data":[]}"#),
        })
        .await;
        for finding in findings(&server).await {
            let permission = finding.scope.permission;
            match permission {
                "rak_payment_intent_write" | "rak_dispute_read" => {
                    assert_eq!(finding.proof, Proof::Missing, "{permission}");
                }
                "rak_event_read" => assert!(matches!(finding.proof, Proof::Unproved(_)), "{permission}"),
                _ => assert_eq!(finding.proof, Proof::Proved, "{permission}"),
            }
        }
    }

    #[tokio::test]
    async fn no_probe_has_a_body_and_every_post_has_a_unique_key() {
        let server = ScriptedServer::new(|_| response(404, MISSING)).await;
        findings(&server).await;
        findings(&server).await;
        let requests = server.requests();
        assert!(requests.iter().all(|request| request.body.is_empty()));
        let mut keys: Vec<_> = requests.iter().filter_map(|request| request.header("idempotency-key")).collect();
        let posts = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!((keys.len(), posts), (12, 12));
    }

    /// The page uses the Dashboard's words.
    #[test]
    fn the_documentation_lists_every_scope_and_whether_collecting_needs_it() {
        let page = include_str!("../../docs/operations.md");
        for scope in &SCOPES {
            let needed = match [EventSource::NewEndpoint, EventSource::List].map(|source| scope.is_needed(source)) {
                [true, true] => "always",
                [true, false] => "with webhooks",
                [false, true] => "without webhooks",
                [false, false] => "no",
            };
            let row = format!("| {} | `{}` | {} | {needed} |", scope.title, scope.permission, scope.usage);
            assert!(page.contains(&row), "docs/operations.md must contain: {row}");
        }
    }

    #[tokio::test]
    async fn a_rejected_key_is_an_error_and_not_a_list_of_missing_permissions() {
        let server = ScriptedServer::new(|_| response(401, FORBIDDEN)).await;
        let outcome = server.client().probe_scopes(&key()).await;
        assert!(matches!(outcome, Err(Error::Unauthorized(_))));
    }
}
