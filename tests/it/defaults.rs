//! Which payment method is the default: by Stripe's rules, by its events in any order, and by reads.

use paybridge::dev::sandbox::{Action, Effect, Fault, RecordedRequest, WebhookFault};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{CreateCustomerRequest, PaymentMethodKind, PaymentState, SetDefaultPaymentMethodRequest};
use time::Duration;

use crate::support::customers::{
    attach_method, charged_methods, default_method, failed_payment, import_customer, method_event_count, object_id,
    stripe_customer, stripe_default, until_default_is,
};
use crate::support::harness::{Harness, post_to_stripe, post_to_stripe_with_key};
use crate::support::wait::until;

const UNSET: &str = "invoice_settings[default_payment_method]=";

/// Sends an event that was lost, and waits until it is applied. It does not wait longer: the reads some minutes later
/// would hide a mistake.
async fn deliver(harness: &Harness, event: &serde_json::Value) {
    harness.sandbox().resend(&object_id(event)).expect("it is sent");
    until("it is received", async || harness.sandbox().deliveries().is_empty().then_some(())).await;
    harness.drain_jobs(&["apply_delivery"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_default_source_is_charged_before_a_newer_method_that_is_not_the_default() {
    let mut harness = Harness::new("default source", Options::default()).await;
    let provider_id = stripe_customer(&harness, "name=Hooli&source=tok_visa").await;
    let card = stripe_default(&harness, &provider_id);
    assert!(card.starts_with("card_"), "{card}");
    let newer = attach_method(&harness, &provider_id, "pm_card_mastercard").await;
    harness.advance(Duration::seconds(2));
    import_customer(&mut harness, "hooli", &provider_id).await;
    assert_eq!(default_method(&mut harness, "hooli").await, card);
    harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(charged_methods(&harness, "inv"), std::slice::from_ref(&card));
    assert_eq!(stripe_default(&harness, &provider_id), card, "it is not overwritten");
    let written = harness.posts(&format!("/v1/customers/{provider_id}"));
    assert!(written.is_empty(), "{written:?}");

    // Stripe's order: `invoice_settings.default_payment_method`, then `default_source`.
    harness.advance(Duration::seconds(2));
    let path = format!("/v1/customers/{provider_id}");
    post_to_stripe(&harness, &path, &format!("{UNSET}{newer}")).await;
    until_default_is(&mut harness, "hooli", &newer).await;
    harness.advance(Duration::seconds(2));
    post_to_stripe(&harness, &path, UNSET).await;
    until_default_is(&mut harness, "hooli", &card).await;
    harness.advance(Duration::seconds(2));
    let second = object_id(&post_to_stripe(&harness, &format!("{path}/sources"), "source=tok_amex").await);
    until_default_is(&mut harness, "hooli", &second).await;
    harness.all_delivered().await;
    harness.advance(Duration::seconds(2));
    post_to_stripe(&harness, &path, UNSET).await;
    harness.advance(Duration::seconds(2));
    post_to_stripe(&harness, &path, &format!("default_source={second}")).await;
    post_to_stripe(&harness, &path, &format!("default_source={card}")).await;
    until_default_is(&mut harness, "hooli", &card).await;
    harness.shutdown().await;
}

/// The event of the newer method comes first: Stripe's default is read before a default is chosen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_method_that_is_attached_before_the_import_is_not_chosen() {
    let mut harness = Harness::new("import, late", Options::default()).await;
    let provider_id = stripe_customer(&harness, "name=Hooli&source=tok_visa").await;
    let card = stripe_default(&harness, &provider_id);
    let before = harness.sandbox().events(&harness.billing.account).len();
    let event = "*".to_owned();
    harness.sandbox().add_webhook_fault(WebhookFault { event, times: None, ..WebhookFault::default() });
    let newer = attach_method(&harness, &provider_id, "pm_card_mastercard").await;
    harness.sandbox().clear_faults();
    let events = harness.sandbox().events(&harness.billing.account).split_off(before);
    let is_read = |request: &RecordedRequest| request.method == "GET" && request.path.ends_with("/payment_methods");
    let reads = |harness: &Harness| harness.sandbox().requests().iter().filter(|request| is_read(request)).count();
    let path = format!("/v1/customers/{provider_id}/payment_methods");
    let failure = Action::ServerError { work: Effect::NotDone };
    harness.sandbox().add_fault(Fault { times: Some(3), ..Fault::once("GET", &path, failure) });
    let request = CreateCustomerRequest {
        request_id: "import".to_owned(),
        external_id: "hooli".to_owned(),
        provider_customer_id: provider_id.clone(),
        provider_payment_methods: vec![PaymentMethodKind::Card.into()],
        ..CreateCustomerRequest::default()
    };
    harness.billing.api.customers.create_customer(request).await.expect("the customer is accepted");
    until("the import has failed", async || (reads(&harness) >= 3).then_some(())).await;

    deliver(&harness, &events[0]).await;
    assert_eq!(default_method(&mut harness, "hooli").await, card);
    harness.drain_jobs(&["import_payment_methods", "push_default_method"]).await;
    assert_eq!(method_event_count(&harness, "payment_method.set_as_default", &newer).await, 0);
    assert_eq!(stripe_default(&harness, &provider_id), card);
    let written = harness.posts(&format!("/v1/customers/{provider_id}"));
    assert!(written.is_empty(), "{written:?}");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_that_is_unset_at_stripe_leaves_none_until_a_method_is_added() {
    let mut harness = Harness::new("unset", Options::default()).await;
    let provider_id = harness.customer("hooli", "pm_card_visa").await;
    let first = default_method(&mut harness, "hooli").await;
    harness.add_method("hooli", &provider_id, "pm_card_mastercard").await;
    let second = default_method(&mut harness, "hooli").await;
    harness.all_delivered().await;
    assert_eq!(stripe_default(&harness, &provider_id), second);
    harness.advance(Duration::seconds(2));
    post_to_stripe(&harness, &format!("/v1/customers/{provider_id}"), UNSET).await;
    until_default_is(&mut harness, "hooli", "").await;
    until("the event is emitted", async || {
        (method_event_count(&harness, "payment_method.unset_as_default", &second).await == 1).then_some(())
    })
    .await;
    assert_eq!(harness.methods("hooli").await.len(), 2, "both are still attached");
    harness.pay("hooli", "inv").await;
    let (_, code) = failed_payment(&mut harness, "inv").await;
    assert_eq!(code, "no_payment_method");
    assert_eq!((harness.charges("inv").len(), stripe_default(&harness, &provider_id).as_str()), (0, ""));
    // That the former default is detached later changes nothing.
    harness.advance(Duration::minutes(1));
    harness.sandbox().detach_in_dashboard(&second).expect("detached");
    until("the event is emitted", async || {
        (method_event_count(&harness, "payment_method.detached", &second).await == 1).then_some(())
    })
    .await;
    assert_eq!(default_method(&mut harness, "hooli").await, "", "{first} does not replace it");
    let third = attach_method(&harness, &provider_id, "pm_card_amex").await;
    until_default_is(&mut harness, "hooli", &third).await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(charged_methods(&harness, "inv"), [third]);
    harness.shutdown().await;
}

/// A request of Paybridge's that Stripe performs late is not the merchant's choice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unset_default_that_our_own_late_write_replaced_is_unset_again() {
    let mut harness = Harness::new("late write", Options::default()).await;
    let provider_id = harness.customer("hooli", "pm_card_visa").await;
    let first = default_method(&mut harness, "hooli").await;
    harness.all_delivered().await;
    harness.advance(Duration::seconds(2));
    let path = format!("/v1/customers/{provider_id}");
    post_to_stripe(&harness, &path, UNSET).await;
    until_default_is(&mut harness, "hooli", "").await;
    harness.all_delivered().await;
    harness.advance(Duration::seconds(2));
    post_to_stripe_with_key(&harness, Some("paybridge-default-late"), &path, &format!("{UNSET}{first}")).await;
    harness.all_delivered().await;
    assert_eq!(stripe_default(&harness, &provider_id), "");
    assert_eq!(default_method(&mut harness, "hooli").await, "");
    harness.shutdown().await;
}

/// A customer with two cards. The older one was made the default through Paybridge, by a write that got a 500 and a
/// second one that succeeded, and was then unset at Stripe. `work` says what Stripe does of the first write. Returns
/// the Stripe ids of the customer and of the older card.
async fn unset_after_an_unknown_write(harness: &mut Harness, work: Effect) -> (String, String) {
    let provider_id = harness.customer("hooli", "pm_card_visa").await;
    let first = harness.methods("hooli").await.remove(0);
    harness.add_method("hooli", &provider_id, "pm_card_mastercard").await;
    harness.all_delivered().await;
    harness.fault("/v1/customers/*", 1, Action::ServerError { work });
    let (choice, chosen) = (SetDefaultPaymentMethodRequest { id: first.id }, first.provider_payment_method_id);
    harness.billing.api.customers.set_default_payment_method(choice).await.expect("the choice is accepted");
    until("it is written", async || (stripe_default(harness, &provider_id) == chosen).then_some(())).await;
    harness.all_delivered().await;
    harness.advance(Duration::seconds(2));
    post_to_stripe(harness, &format!("/v1/customers/{provider_id}"), UNSET).await;
    until_default_is(harness, "hooli", "").await;
    harness.all_delivered().await;
    (provider_id, chosen)
}

/// The events are late, and a read finds Paybridge's own write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_read_does_not_mistake_our_own_late_write_for_a_choice() {
    let mut harness = Harness::new("late write, read", Options::default()).await;
    let done_later = Effect::DoneLater { seconds: 60 };
    let (provider_id, chosen) = unset_after_an_unknown_write(&mut harness, done_later).await;
    let event = "customer.updated".to_owned();
    harness.sandbox().add_webhook_fault(WebhookFault { event, times: None, ..WebhookFault::default() });
    until("the late write is done", async || {
        harness.advance_slowly(Duration::seconds(10));
        (stripe_default(&harness, &provider_id) == chosen).then_some(())
    })
    .await;
    harness.pay("hooli", "inv").await;
    assert_eq!(failed_payment(&mut harness, "inv").await.1, "no_payment_method");
    assert_eq!(default_method(&mut harness, "hooli").await, "");
    until_stripe_default_is_unset(&harness, &provider_id).await;
    harness.shutdown().await;
}

/// Waits until Stripe's default is unset again: no event has explained it.
async fn until_stripe_default_is_unset(harness: &Harness, provider_id: &str) {
    until("the default is unset at Stripe", async || {
        harness.advance_slowly(Duration::seconds(10));
        stripe_default(harness, provider_id).is_empty().then_some(())
    })
    .await;
}

/// The merchant chooses the method that a write of Paybridge's may have set. Only the event shows that it is a choice;
/// it counts although Paybridge has meanwhile unset the default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_choice_that_our_own_write_replaced_counts_once_its_event_arrives() {
    let mut harness = Harness::new("late event of a choice", Options::default()).await;
    let (provider_id, chosen) = unset_after_an_unknown_write(&mut harness, Effect::NotDone).await;
    let path = format!("/v1/customers/{provider_id}");
    let before = harness.sandbox().events(&harness.billing.account).len();
    let event = "customer.updated".to_owned();
    harness.sandbox().add_webhook_fault(WebhookFault { event, times: None, ..WebhookFault::default() });
    harness.advance(Duration::seconds(2));
    post_to_stripe(&harness, &path, &format!("{UNSET}{chosen}")).await;
    let events = harness.sandbox().events(&harness.billing.account).split_off(before);
    harness.pay("hooli", "inv").await;
    assert_eq!(failed_payment(&mut harness, "inv").await.1, "no_payment_method");
    until_stripe_default_is_unset(&harness, &provider_id).await;

    harness.sandbox().clear_faults();
    deliver(&harness, &events[0]).await;
    until_default_is(&mut harness, "hooli", &chosen).await;
    until("it is written to Stripe again", async || {
        harness.advance_slowly(Duration::seconds(10));
        (stripe_default(&harness, &provider_id) == chosen).then_some(())
    })
    .await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(default_method(&mut harness, "hooli").await, chosen);
    harness.shutdown().await;
}

/// A response that Stripe replays for an idempotency key does not show the present state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_that_is_chosen_again_is_written_again() {
    let mut harness = Harness::new("chosen again", Options::default()).await;
    let provider_id = harness.customer("hooli", "pm_card_visa").await;
    harness.add_method("hooli", &provider_id, "pm_card_mastercard").await;
    let methods = harness.methods("hooli").await;
    for method in [&methods[0], &methods[1], &methods[0], &methods[1]] {
        let request = SetDefaultPaymentMethodRequest { id: method.id.clone() };
        harness.billing.api.customers.set_default_payment_method(request).await.expect("the choice is accepted");
        harness.all_delivered().await;
        assert_eq!(stripe_default(&harness, &provider_id), method.provider_payment_method_id);
    }
    harness.shutdown().await;
}

/// Stripe unsets a default that is detached: that is not the merchant's choice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_detaching_the_default_is_not_unsetting_it_in_any_order_of_the_events() {
    for is_reversed in [false, true] {
        let mut harness = Harness::new("detached default", Options::default()).await;
        let provider_id = harness.customer("hooli", "pm_card_visa").await;
        let first = default_method(&mut harness, "hooli").await;
        harness.add_method("hooli", &provider_id, "pm_card_mastercard").await;
        let second = default_method(&mut harness, "hooli").await;
        harness.all_delivered().await;
        harness.advance(Duration::seconds(2));
        let before = harness.sandbox().events(&harness.billing.account).len();
        harness.sandbox().add_webhook_fault(WebhookFault::default());
        harness.sandbox().detach_in_dashboard(&second).expect("detached");
        let mut events = harness.sandbox().events(&harness.billing.account).split_off(before);
        harness.sandbox().clear_faults();
        assert_eq!(events.len(), 2, "{events:?}");
        if is_reversed {
            events.reverse();
        }
        for event in events {
            harness.sandbox().resend(&object_id(&event)).expect("it is sent");
            harness.all_delivered().await;
        }
        until_default_is(&mut harness, "hooli", &first).await;
        assert_eq!(method_event_count(&harness, "payment_method.unset_as_default", &second).await, 0);
        harness.shutdown().await;
    }
}

/// Stripe's times are whole seconds: of two choices in one second, the one that Stripe shows counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_of_two_choices_in_one_second_the_later_counts_in_any_order_of_their_events() {
    for is_reversed in [false, true] {
        let mut harness = Harness::new("one second", Options::default()).await;
        let provider_id = harness.customer("hooli", "pm_card_visa").await;
        let first = default_method(&mut harness, "hooli").await;
        harness.add_method("hooli", &provider_id, "pm_card_mastercard").await;
        let second = default_method(&mut harness, "hooli").await;
        harness.all_delivered().await;
        let path = format!("/v1/customers/{provider_id}");
        // From the second card to the first and back: no event alone shows which choice was the later.
        let mut events = loop {
            harness.advance(Duration::seconds(2));
            let before = harness.sandbox().events(&harness.billing.account).len();
            harness.sandbox().add_webhook_fault(WebhookFault::default());
            post_to_stripe(&harness, &path, &format!("{UNSET}{first}")).await;
            post_to_stripe(&harness, &path, &format!("{UNSET}{second}")).await;
            harness.sandbox().clear_faults();
            let events = harness.sandbox().events(&harness.billing.account).split_off(before);
            if events[0]["created"] == events[1]["created"] {
                break events;
            }
        };
        assert_eq!(events.len(), 2, "{events:?}");
        if is_reversed {
            events.reverse();
        }
        for event in events {
            deliver(&harness, &event).await;
        }
        assert_eq!(default_method(&mut harness, "hooli").await, second, "reversed: {is_reversed}");
        assert_eq!(stripe_default(&harness, &provider_id), second);
        harness.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_choice_whose_event_is_missing_is_found_by_a_read() {
    let mut harness = Harness::new("missing choice", Options::default()).await;
    let provider_id = harness.customer("hooli", "pm_card_visa").await;
    let first = default_method(&mut harness, "hooli").await;
    harness.add_method("hooli", &provider_id, "pm_card_mastercard").await;
    harness.all_delivered().await;
    harness.advance(Duration::seconds(2));
    harness.sandbox().add_webhook_fault(WebhookFault::default());
    post_to_stripe(&harness, &format!("/v1/customers/{provider_id}"), &format!("{UNSET}{first}")).await;
    harness.sandbox().clear_faults();
    let third = attach_method(&harness, &provider_id, "pm_card_amex").await;
    until_default_is(&mut harness, "hooli", &third).await;
    let harness_ref = &harness;
    until("the choice counts", async || {
        harness_ref.advance_slowly(Duration::seconds(20));
        let events = harness_ref.billing.events();
        let chosen = events.iter().rev().find_map(|event| match &event.object {
            Some(Object::PaymentMethod(it)) if event.webhook_type == "payment_method.set_as_default" => {
                Some(it.provider_method_id.clone())
            }
            _ => None,
        });
        (chosen.as_ref() == Some(&first)).then_some(())
    })
    .await;
    assert_eq!(stripe_default(&harness, &provider_id), first, "the choice is not overwritten");
    harness.shutdown().await;
}

/// A read does not show when the default was unset. A card that was added later is the default once the events show
/// that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_an_unset_default_found_by_a_read_is_dated_by_its_late_event() {
    let mut harness = Harness::new("late unset", Options::default()).await;
    let provider_id = harness.customer("hooli", "pm_card_visa").await;
    harness.all_delivered().await;
    let before = harness.sandbox().events(&harness.billing.account).len();
    harness.sandbox().add_webhook_fault(WebhookFault::default());
    let second = attach_method(&harness, &provider_id, "pm_card_mastercard").await;
    harness.advance(Duration::seconds(10));
    post_to_stripe(&harness, &format!("/v1/customers/{provider_id}"), UNSET).await;
    harness.advance(Duration::seconds(10));
    let third = attach_method(&harness, &provider_id, "pm_card_amex").await;
    harness.sandbox().clear_faults();
    let late = harness.sandbox().events(&harness.billing.account).split_off(before);
    assert_eq!(late.len(), 3, "{late:?}");

    harness.sandbox().resend(&object_id(&late[0])).expect("it is sent");
    until_default_is(&mut harness, "hooli", &second).await;
    until("a read finds no default", async || {
        harness.advance_slowly(Duration::seconds(20));
        (method_event_count(&harness, "payment_method.unset_as_default", &second).await == 1).then_some(())
    })
    .await;
    assert_eq!(default_method(&mut harness, "hooli").await, "");
    for event in &late[1..] {
        deliver(&harness, event).await;
    }
    until_default_is(&mut harness, "hooli", &third).await;
    harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(charged_methods(&harness, "inv"), [third]);
    harness.shutdown().await;
}
