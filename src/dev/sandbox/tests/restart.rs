//! The state file.

use time::Duration;

use super::super::{ACCOUNT, Options};
use super::{Caller, id, sandbox_with};

#[tokio::test]
async fn the_state_survives_a_restart() {
    let folder = std::env::temp_dir().join(format!("sandbox-{}", super::super::state::new_id("test")));
    std::fs::create_dir_all(&folder).unwrap();
    let options = Options { state_file: Some(folder.join("state.json")), limits: None, ..Options::default() };
    let first = sandbox_with(options.clone()).await;
    let caller = Caller::new(&first);
    let customer = id(&caller.keyed("key-1", "/v1/customers", &[]).await.ok());
    first.add_key("rk_test_some", ACCOUNT, Some(&["rak_customer_read"]));
    let method = id(&first.attach_in_dashboard(&customer, "DE89370400440532013000").unwrap());
    let form = [
        ("amount", "4900"),
        ("currency", "eur"),
        ("payment_method_types[]", "sepa_debit"),
        ("customer", &*customer),
        ("payment_method", &*method),
        ("confirm", "true"),
    ];
    caller.post("/v1/payment_intents", &form).await.ok();
    let form = [("mode", "setup"), ("currency", "eur"), ("success_url", "https://example.com")];
    let session = id(&caller.post("/v1/checkout/sessions", &form).await.ok());
    let (ledger, events) = (first.ledger(), first.events(ACCOUNT));
    first.stop().await;
    assert!(caller.send(caller.request("GET", "/v1/account", &[])).await.is_err(), "the sandbox has stopped");

    let second = sandbox_with(options.clone()).await;
    let caller = Caller::new(&second);
    assert_eq!((second.ledger(), second.events(ACCOUNT)), (ledger, events));
    let again = caller.keyed("key-1", "/v1/customers", &[]).await;
    assert_eq!((again.header("idempotent-replayed"), id(&again.body)), ("true", customer));
    let link = second.object(&session).unwrap()["url"].clone();
    assert_eq!(link, format!("{}/c/pay/{session}", second.url()), "links have the new address");
    Caller::with_key(&second, "rk_test_some").get("/v1/customers", &[]).await.ok();
    second.advance(Duration::days(5));
    assert_eq!(second.ledger()[0].status, "succeeded", "timers survive");
    second.stop().await;

    std::fs::write(folder.join("state.json"), "nonsense").unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let failed = super::super::Sandbox::start(listener, crate::clock::Clock::system(), options);
    assert!(failed.unwrap_err().to_string().contains("is not a state file of the sandbox"));
    std::fs::remove_dir_all(folder).unwrap();
}
