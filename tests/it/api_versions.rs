//! The events list is rendered in the account's default API version, which may be years old.

use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::PaymentState;

use crate::support::customers::{CHALLENGE_CARD, DECLINING_CARD, GOOD_CARD};
use crate::support::harness::Harness;
use crate::support::wait::until;

/// In this version, a PaymentIntent has `charges` instead of `latest_charge`.
const WITH_CHARGES: &str = "2020-08-27";
/// Before 2019-02-11, payment methods are called sources.
const WITH_SOURCES: &str = "2018-11-08";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_events_in_an_old_api_version_have_the_same_effect_as_new_ones() {
    for version in [WITH_CHARGES, WITH_SOURCES] {
        let options = Options { polls_events: true, ..Options::default() };
        let mut harness = Harness::new("old account", options).await;
        harness.sandbox().set_account_version(&harness.billing.account, version);
        let provider_id = harness.customer("hooli", DECLINING_CARD).await;
        harness.pay("hooli", "declined").await;
        let failed = harness.payment_in("declined", PaymentState::Failed).await;
        // The open intent is paid in the Stripe Dashboard: only the list reports it.
        let method = harness.add_method("hooli", &provider_id, GOOD_CARD).await;
        let intent = &failed.provider_payment_intent_id;
        let intent = harness.sandbox().pay_intent_in_dashboard(intent, &method).expect("it is paid");
        let paid = harness.payment_in("declined", PaymentState::Succeeded).await;
        assert_eq!(intent["latest_charge"], paid.provider_charge_id.as_str(), "{version}");
        // A card that needs authentication: `requires_action`, formerly `requires_source_action`.
        harness.add_method("hooli", &provider_id, CHALLENGE_CARD).await;
        harness.pay("hooli", "challenged").await;
        harness.payment_in("challenged", PaymentState::Failed).await;
        let database = harness.database().await;
        until("all deliveries are processed", async || {
            let query = "SELECT count(*) FROM deliveries WHERE state = 'received'";
            let left: i64 = database.query_one(query, &[]).await.expect("a count").get(0);
            (left == 0).then_some(())
        })
        .await;
        let query = "SELECT event_type, reason FROM deliveries WHERE state = 'parked'";
        let parked = database.query(query, &[]).await.expect("rows");
        let parked: Vec<(String, String)> = parked.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert!(parked.is_empty(), "{version}: {parked:?}");
        let query = "SELECT count(*) FROM deliveries WHERE body::text LIKE '%' || $1 || '%'";
        let rendered: i64 = database.query_one(query, &[&version]).await.expect("a count").get(0);
        assert!(rendered > 0, "the list is rendered in {version}");
        harness.shutdown().await;
    }
}
