//! API keys, their permissions, and the rate limiter.

use super::super::{ACCOUNT, Limits, Options};
use super::{Caller, sandbox, sandbox_with};

#[tokio::test]
async fn unknown_publishable_and_revoked_keys_are_rejected_with_their_reason() {
    let sandbox = sandbox().await;
    let wrong = Caller::with_key(&sandbox, "sk_test_wrongwrongwrong").get("/v1/account", &[]).await;
    let error = wrong.error(401, "");
    assert!(error["message"].as_str().unwrap().starts_with("Invalid API Key provided: sk_test_"), "{error}");
    assert!(!error["message"].as_str().unwrap().contains("wrongwrong"), "a key is masked: {error}");
    Caller::with_key(&sandbox, "pk_test_sandbox").get("/v1/account", &[]).await.error(401, "secret_key_required");
    sandbox.add_key("sk_test_second", ACCOUNT, None);
    Caller::with_key(&sandbox, "sk_test_second").get("/v1/account", &[]).await.ok();
    sandbox.revoke_key("sk_test_second");
    Caller::with_key(&sandbox, "sk_test_second").get("/v1/account", &[]).await.error(401, "api_key_expired");
}

#[tokio::test]
async fn a_missing_permission_is_reported_before_a_missing_object() {
    let sandbox = sandbox().await;
    sandbox.add_key("rk_test_some", ACCOUNT, Some(&["rak_customer_write", "rak_event_read"]));
    let caller = Caller::with_key(&sandbox, "rk_test_some");
    caller.post("/v1/customers", &[]).await.ok();
    caller.get("/v1/customers", &[]).await.ok();
    caller.get("/v1/events", &[]).await.ok();
    // How Paybridge probes a write permission: with an id that cannot exist.
    caller.post("/v1/customers/cus_none", &[]).await.error(404, "resource_missing");
    for (path, scope) in [
        ("/v1/payment_intents/pi_none", "rak_payment_intent_write"),
        ("/v1/refunds/re_none", "rak_refund_write"),
        ("/v1/checkout/sessions/cs_none/expire", "rak_checkout_session_write"),
        ("/v1/webhook_endpoints/we_none", "rak_webhook_write"),
    ] {
        let response = caller.post(path, &[]).await;
        let message = response.error(403, "")["message"].as_str().unwrap();
        assert!(message.contains(scope) && message.contains(ACCOUNT), "{message}");
    }
    let response = caller.get("/v1/account", &[]).await;
    assert!(response.error(403, "")["message"].as_str().unwrap().contains("rak_accounts_kyc_basic_read"));
    sandbox.hide_account("rk_test_some");
    let response = caller.get("/v1/account", &[]).await;
    let message = response.error(403, "")["message"].as_str().unwrap();
    assert!(message.contains("permission") && !message.contains(ACCOUNT), "{message}");
}

#[tokio::test]
async fn a_key_that_may_write_charges_may_write_refunds() {
    let sandbox = sandbox().await;
    sandbox.add_key("rk_test_charges", ACCOUNT, Some(&["rak_charge_write"]));
    let caller = Caller::with_key(&sandbox, "rk_test_charges");
    caller.post("/v1/refunds/re_none", &[]).await.error(404, "resource_missing");
    caller.get("/v1/refunds", &[]).await.ok();
    sandbox.add_key("rk_test_reading", ACCOUNT, Some(&["rak_charge_read"]));
    let caller = Caller::with_key(&sandbox, "rk_test_reading");
    caller.get("/v1/refunds", &[]).await.ok();
    assert_eq!(caller.post("/v1/refunds/re_none", &[]).await.status, 403);
}

#[tokio::test]
async fn accounts_are_isolated() {
    let sandbox = sandbox().await;
    let key = sandbox.add_account("acct_second", "US", "usd");
    let (first, second) = (Caller::new(&sandbox), Caller::with_key(&sandbox, &key));
    let customer = first.customer().await;
    second.get(&format!("/v1/customers/{customer}"), &[]).await.error(404, "resource_missing");
    assert_eq!(second.get("/v1/account", &[]).await.ok()["id"], "acct_second");
    assert_eq!(second.get("/v1/events", &[]).await.ok()["data"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn test_and_live_mode_are_isolated() {
    let sandbox = sandbox().await;
    sandbox.add_key("sk_live_fake", ACCOUNT, None);
    let (test, live) = (Caller::new(&sandbox), Caller::with_key(&sandbox, "sk_live_fake"));
    let customer = test.customer().await;
    live.get(&format!("/v1/customers/{customer}"), &[]).await.error(404, "resource_missing");
    assert_eq!(live.post("/v1/customers", &[]).await.ok()["livemode"], true);
}

#[tokio::test]
async fn the_rate_limiter_responds_429_with_its_reason() {
    let limits = Limits { endpoint: 2, test: 3, live: 3 };
    let sandbox = sandbox_with(Options { limits: Some(limits), ..Options::default() }).await;
    let caller = Caller::new(&sandbox);
    let mut limited = None;
    for _ in 0..50 {
        let response = caller.get("/v1/account", &[]).await;
        if response.status == 429 {
            limited = Some(response);
            break;
        }
    }
    let limited = limited.expect("fifty requests exceed two per second");
    limited.error(429, "rate_limit");
    assert_eq!(limited.header("stripe-rate-limited-reason"), "endpoint-rate");
}
