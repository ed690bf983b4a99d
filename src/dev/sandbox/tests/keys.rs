//! Keys: whose they are, and what they may do.

use super::super::{ACCOUNT, Limits, Options};
use super::{Caller, sandbox, with};

#[tokio::test]
async fn wrong_publishable_and_revoked_keys_are_refused_each_with_its_own_reason() {
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
async fn a_restricted_key_can_do_what_its_permissions_say_and_tells_what_it_lacks_before_what_exists() {
    let sandbox = sandbox().await;
    sandbox.add_key("rk_test_some", ACCOUNT, Some(&["rak_customer_write", "rak_event_read"]));
    let caller = Caller::with_key(&sandbox, "rk_test_some");
    caller.post("/v1/customers", &[]).await.ok();
    caller.get("/v1/customers", &[]).await.ok();
    caller.get("/v1/events", &[]).await.ok();
    // The probe of a permission to write: an id that can't exist.
    caller.post("/v1/customers/cus_none", &[]).await.error(404, "resource_missing");
    for (path, scope) in [
        ("/v1/payment_intents/pi_none", "rak_payment_intent_write"),
        ("/v1/refunds/re_none", "rak_refund_write"),
        ("/v1/checkout/sessions/cs_none/expire", "rak_checkout_session_write"),
        ("/v1/webhook_endpoints/we_none", "rak_webhook_write"),
    ] {
        let reply = caller.post(path, &[]).await;
        let message = reply.error(403, "")["message"].as_str().unwrap();
        assert!(message.contains(scope) && message.contains(ACCOUNT), "{message}");
    }
    let reply = caller.get("/v1/account", &[]).await;
    assert!(reply.error(403, "")["message"].as_str().unwrap().contains("rak_accounts_kyc_basic_read"));
    sandbox.hide_account("rk_test_some");
    let reply = caller.get("/v1/account", &[]).await;
    let message = reply.error(403, "")["message"].as_str().unwrap();
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
async fn accounts_see_nothing_of_each_other() {
    let sandbox = sandbox().await;
    let key = sandbox.add_account("acct_second", "US", "usd");
    let (first, second) = (Caller::new(&sandbox), Caller::with_key(&sandbox, &key));
    let customer = first.customer().await;
    second.get(&format!("/v1/customers/{customer}"), &[]).await.error(404, "resource_missing");
    assert_eq!(second.get("/v1/account", &[]).await.ok()["id"], "acct_second");
    assert_eq!(second.get("/v1/events", &[]).await.ok()["data"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn test_and_live_mode_are_two_worlds() {
    let sandbox = sandbox().await;
    sandbox.add_key("sk_live_fake", ACCOUNT, None);
    let (test, live) = (Caller::new(&sandbox), Caller::with_key(&sandbox, "sk_live_fake"));
    let customer = test.customer().await;
    live.get(&format!("/v1/customers/{customer}"), &[]).await.error(404, "resource_missing");
    assert_eq!(live.post("/v1/customers", &[]).await.ok()["livemode"], true);
}

#[tokio::test]
async fn the_limiter_answers_429_with_its_reason() {
    let limits = Limits { endpoint: 2, test: 3, live: 3 };
    let sandbox = with(Options { limits: Some(limits), ..Options::default() }).await;
    let caller = Caller::new(&sandbox);
    let mut limited = None;
    for _ in 0..50 {
        let reply = caller.get("/v1/account", &[]).await;
        if reply.status == 429 {
            limited = Some(reply);
            break;
        }
    }
    let limited = limited.expect("fifty requests are more than two a second");
    limited.error(429, "rate_limit");
    assert_eq!(limited.header("stripe-rate-limited-reason"), "endpoint-rate");
}
