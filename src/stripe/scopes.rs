//! What a restricted key may do, found out without doing anything: reads of one object, and for writes POSTs to ids that
//! cannot exist. Stripe looks at the permission before it looks for the object, so 403 means that the permission is
//! missing, and 404 proves that it is there.
//!
//! A secret key (`sk_…`) may do everything, and needs no probe. To read the account is none of these permissions: Stripe
//! offers it to few restricted keys.

use tokio::task::JoinSet;

use super::client::{Call, Client};
use super::error::Error;
use super::object::Acknowledged;
use super::pace::ApiKey;

/// One permission that we use.
#[derive(Debug, PartialEq, Eq)]
pub struct Scope {
    /// Stripe's name for it in its messages.
    pub permission: &'static str,
    /// What the page for restricted keys in Stripe's dashboard calls it: the row and what to choose there.
    pub title: &'static str,
    /// What we use it for, for people; completes "to …".
    pub needed_to: &'static str,
    probe: Probe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Read(&'static str),
    Write(&'static str, &'static str),
}

/// Whether invoices can be collected without what Stripe calls `object`: `refund`, `payment_intent`, …
pub fn is_beside_collecting(object: &str) -> bool {
    ["refund", "dispute", "event", "webhook", "setup_intent"].contains(&object)
}

impl Scope {
    /// What it is a permission on: `refund`, `payment_intent`, …
    pub fn object(&self) -> &'static str {
        let named = self.permission.trim_start_matches("rak_");
        named.rsplit_once('_').map_or(named, |(object, _)| object)
    }

    /// Whether nothing can be collected without it. Where nobody posts webhooks (`polls_events`) the events list is all
    /// that reports outcomes; where Stripe posts them, an endpoint has to be registered, unless there is one.
    pub fn is_needed(&self, polls_events: bool, has_endpoint: bool) -> bool {
        match self.object() {
            "event" => polls_events,
            "webhook" => !polls_events && !has_endpoint,
            object => !is_beside_collecting(object),
        }
    }
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The key may.
    Proved,
    /// The key may not.
    Missing,
    /// Stripe's answer decides nothing; for people, why.
    Unproved(String),
}

/// One permission and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The permission.
    pub scope: &'static Scope,
    /// What was found.
    pub proof: Proof,
}

/// What the probes of a key found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Every permission, in the order of [`SCOPES`].
    pub findings: Vec<Finding>,
    /// The account that a refusal named; see [`Error::named_account`].
    pub account: Option<String>,
}

/// Every permission that we use. One to write includes the one to read.
pub static SCOPES: [Scope; 9] = [
    Scope {
        permission: "rak_customer_write",
        title: "Customers: Write",
        needed_to: "create, link and change customers",
        probe: Probe::Write("/v1/customers/{id}", "cus_paybridgeprobe"),
    },
    Scope {
        permission: "rak_payment_method_write",
        title: "PaymentMethods: Write",
        needed_to: "list and detach payment methods",
        probe: Probe::Write("/v1/payment_methods/{id}/detach", "pm_paybridgeprobe"),
    },
    Scope {
        permission: "rak_checkout_session_write",
        title: "Checkout Sessions: Write",
        needed_to: "create pages that store a payment method or pay an invoice",
        probe: Probe::Write("/v1/checkout/sessions/{id}/expire", "cs_test_paybridgeprobe"),
    },
    Scope {
        permission: "rak_payment_intent_write",
        title: "PaymentIntents: Write",
        needed_to: "charge invoices",
        probe: Probe::Write("/v1/payment_intents/{id}/cancel", "pi_paybridgeprobe"),
    },
    Scope {
        permission: "rak_webhook_write",
        title: "Webhook Endpoints: Write",
        needed_to: "register and repair the webhook endpoint",
        probe: Probe::Write("/v1/webhook_endpoints/{id}", "we_paybridgeprobe"),
    },
    Scope {
        permission: "rak_event_read",
        title: "Events: Read",
        needed_to: "find what webhooks missed, and everything where no webhooks are posted",
        probe: Probe::Read("/v1/events"),
    },
    Scope {
        permission: "rak_refund_write",
        title: "Charges and Refunds: Write",
        needed_to: "create and follow refunds, and learn SEPA mandates from charges",
        probe: Probe::Write("/v1/refunds/{id}", "re_paybridgeprobe"),
    },
    Scope {
        permission: "rak_setup_intent_read",
        title: "SetupIntents: Read",
        needed_to: "learn the mandates of SEPA payment methods before they are first charged",
        probe: Probe::Read("/v1/setup_intents"),
    },
    Scope {
        permission: "rak_dispute_read",
        title: "Disputes: Read",
        needed_to: "follow disputes",
        probe: Probe::Read("/v1/disputes"),
    },
];

impl Client {
    /// Finds out what the key may do, all probes at once. Fails only if Stripe does not accept the key at all.
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
        // A key of its own for every probe: a replayed answer would report permissions that were.
        let idempotency_key = self.clock.new_id().to_string();
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
    use super::super::scripted::{Script, answer, key};
    use super::*;

    const MISSING: &str = r#"{"error":{"type":"invalid_request_error","code":"resource_missing","message":"No such"}}"#;
    const FORBIDDEN: &str = r#"{"error":{"type":"invalid_request_error","message":"Having the 'rak_x' permission"}}"#;

    async fn findings(script: &Script) -> Vec<Finding> {
        script.client().probe_scopes(&key()).await.unwrap().findings
    }

    #[tokio::test]
    async fn each_permission_is_proved_missing_or_left_open() {
        let script = Script::new(|request| match (request.method.as_str(), request.path()) {
            ("POST", "/v1/payment_intents/pi_paybridgeprobe/cancel") | ("GET", "/v1/disputes") => {
                answer(403, FORBIDDEN)
            }
            ("POST", _) => answer(404, MISSING),
            ("GET", "/v1/events") => answer(429, ""),
            _ => answer(200, r#"{"object":"list","data":[]}"#),
        })
        .await;
        for finding in findings(&script).await {
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
    async fn no_probe_has_a_body_and_every_post_has_a_key_of_its_own() {
        let script = Script::new(|_| answer(404, MISSING)).await;
        findings(&script).await;
        findings(&script).await;
        let requests = script.requests();
        assert!(requests.iter().all(|request| request.body.is_empty()));
        let mut keys: Vec<_> = requests.iter().filter_map(|request| request.header("idempotency-key")).collect();
        let posts = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!((keys.len(), posts), (12, 12));
    }

    /// The page for restricted keys has the same words, so that nobody has to guess.
    #[test]
    fn the_readme_lists_every_scope_and_whether_collecting_needs_it() {
        let readme = include_str!("../../README.md");
        for scope in &SCOPES {
            let needed = match (scope.is_needed(false, false), scope.is_needed(true, false)) {
                (true, true) => "always",
                (true, false) => "with webhooks",
                (false, true) => "without webhooks",
                (false, false) => "no",
            };
            let row = format!("| {} | `{}` | {} | {needed} |", scope.title, scope.permission, scope.needed_to);
            assert!(readme.contains(&row), "README.md must hold: {row}");
        }
    }

    #[tokio::test]
    async fn a_key_that_is_not_accepted_is_not_a_list_of_missing_permissions() {
        let script = Script::new(|_| answer(401, FORBIDDEN)).await;
        let outcome = script.client().probe_scopes(&key()).await;
        assert!(matches!(outcome, Err(Error::Unauthorized(_))));
    }
}
