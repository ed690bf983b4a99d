//! What a restricted key may do, found out without doing anything: reads of one object, and for writes POSTs to ids that
//! cannot exist. Stripe looks at the permission before it looks for the object, so 403 means that the permission is
//! missing, and 404 proves that it is there.
//!
//! A secret key (`sk_…`) may do everything, and needs no probe beyond [`Client::account`].

use tokio::task::JoinSet;

use super::client::{Call, Client};
use super::error::Error;
use super::object::Acknowledged;
use super::pace::ApiKey;

/// One permission that we need.
#[derive(Debug, PartialEq, Eq)]
pub struct Scope {
    /// Stripe's name for it, as its messages and its key pages have it.
    pub permission: &'static str,
    /// What we need it for, for people.
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
    ["refund", "dispute", "event", "webhook"].contains(&object)
}

impl Scope {
    /// What it is a permission on: `refund`, `payment_intent`, …
    pub fn object(&self) -> &'static str {
        let named = self.permission.trim_start_matches("rak_");
        named.rsplit_once('_').map_or(named, |(object, _)| object)
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

const fn read(permission: &'static str, needed_to: &'static str, route: &'static str) -> Scope {
    Scope { permission, needed_to, probe: Probe::Read(route) }
}

const fn write(permission: &'static str, needed_to: &'static str, route: &'static str, id: &'static str) -> Scope {
    Scope { permission, needed_to, probe: Probe::Write(route, id) }
}

/// Everything that we need. A permission to write includes the one to read.
pub static SCOPES: [Scope; 10] = [
    read("rak_account_read", "check the key", "/v1/account"),
    write("rak_customer_write", "create, link and change customers", "/v1/customers/{id}", "cus_paybridgeprobe"),
    write(
        "rak_payment_method_write",
        "list and detach payment methods",
        "/v1/payment_methods/{id}/detach",
        "pm_paybridgeprobe",
    ),
    write(
        "rak_checkout_session_write",
        "make Checkout links",
        "/v1/checkout/sessions/{id}/expire",
        "cs_test_paybridgeprobe",
    ),
    read("rak_setup_intent_read", "see which payment method a link has stored", "/v1/setup_intents"),
    write("rak_payment_intent_write", "charge invoices", "/v1/payment_intents/{id}/cancel", "pi_paybridgeprobe"),
    write("rak_refund_write", "make and follow refunds", "/v1/refunds/{id}", "re_paybridgeprobe"),
    read("rak_dispute_read", "follow disputes", "/v1/disputes"),
    read("rak_event_read", "find what webhooks missed", "/v1/events"),
    write("rak_webhook_write", "register the webhook endpoint", "/v1/webhook_endpoints/{id}", "we_paybridgeprobe"),
];

impl Client {
    /// Finds out what the key may do, all probes side by side, in the order of [`SCOPES`]. Fails only if Stripe does not
    /// accept the key at all.
    pub async fn probe_scopes(&self, key: &ApiKey) -> Result<Vec<Finding>, Error> {
        let mut probes = JoinSet::new();
        for (index, scope) in SCOPES.iter().enumerate() {
            let (client, key) = (self.clone(), key.clone());
            probes.spawn(async move { (index, client.probe(&key, scope.probe).await) });
        }
        let mut findings = Vec::with_capacity(SCOPES.len());
        for (index, outcome) in probes.join_all().await {
            if matches!(outcome, Err(Error::Unauthorized(_))) {
                return outcome.map(|()| Vec::new());
            }
            let scope = &SCOPES[index];
            findings.push((index, Finding { scope, proof: proof(scope.probe, outcome) }));
        }
        findings.sort_by_key(|(index, _)| *index);
        Ok(findings.into_iter().map(|(_, finding)| finding).collect())
    }

    async fn probe(&self, key: &ApiKey, probe: Probe) -> Result<(), Error> {
        // A key of its own for every probe: a replayed answer would tell of permissions that were.
        let idempotency_key = self.clock.new_id().to_string();
        let call = match probe {
            Probe::Read("/v1/account") => Call::get("/v1/account", None, ""),
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
        script.client().probe_scopes(&key()).await.unwrap()
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

    #[tokio::test]
    async fn a_key_that_is_not_accepted_is_not_a_list_of_missing_permissions() {
        let script = Script::new(|_| answer(401, FORBIDDEN)).await;
        let outcome = script.client().probe_scopes(&key()).await;
        assert!(matches!(outcome, Err(Error::Unauthorized(_))));
    }
}
