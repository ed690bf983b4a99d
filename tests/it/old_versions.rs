//! The events list is rendered in the API version that the account has as its default, which may be years old.

use paybridge::dev::stage::Options;
use paybridge::grpc::proto::PaymentState;

use crate::cashier::{Cashier, until};
use crate::links::{DECLINING, GOOD_CARD, WANTS_HOLDER};

/// Before it, a PaymentIntent has `charges` in place of `latest_charge`.
const WITH_CHARGES: &str = "2020-08-27";
/// Before 2019-02-11, methods are called sources.
const WITH_SOURCES: &str = "2018-11-08";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_events_in_an_old_api_version_fill_the_same_fields_as_new_ones() {
    for version in [WITH_CHARGES, WITH_SOURCES] {
        let options = Options { polls_events: true, ..Options::default() };
        let mut cashier = Cashier::new("old account", options).await;
        cashier.sandbox().set_account_version(&cashier.player.account, version);
        let provider_id = cashier.customer("hooli", DECLINING).await;
        cashier.pay("hooli", "declined").await;
        let failed = cashier.payment_in("declined", PaymentState::Failed).await;
        // A person pays the open intent: only the list reports it.
        let method = cashier.add_method("hooli", &provider_id, GOOD_CARD).await;
        let intent = &failed.provider_payment_intent_id;
        let by_hand = cashier.sandbox().pay_intent_by_hand(intent, &method).expect("it is paid");
        let paid = cashier.payment_in("declined", PaymentState::Succeeded).await;
        assert_eq!(by_hand["latest_charge"], paid.provider_charge_id.as_str(), "{version}");
        // A bank that wants to see the card's holder: `requires_action`, once called `requires_source_action`.
        cashier.add_method("hooli", &provider_id, WANTS_HOLDER).await;
        cashier.pay("hooli", "held").await;
        cashier.payment_in("held", PaymentState::Failed).await;
        let database = cashier.database().await;
        until("all events are dealt with", || async {
            let query = "SELECT count(*) FROM deliveries WHERE state = 'received'";
            let left: i64 = database.query_one(query, &[]).await.expect("a count").get(0);
            (left == 0).then_some(())
        })
        .await;
        let query = "SELECT event_type, reason FROM deliveries WHERE state = 'parked'";
        let parked = database.query(query, &[]).await.expect("a look");
        let parked: Vec<(String, String)> = parked.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert!(parked.is_empty(), "{version}: {parked:?}");
        let query = "SELECT count(*) FROM deliveries WHERE body::text LIKE '%' || $1 || '%'";
        let old: i64 = database.query_one(query, &[&version]).await.expect("a count").get(0);
        assert!(old > 0, "the list is rendered in {version}");
        cashier.end().await;
    }
}
