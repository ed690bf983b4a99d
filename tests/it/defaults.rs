//! Which payment method is the default: by Stripe's order, by what its events say in any order, and by reads.

use paybridge::dev::sandbox::{Action, Effect, Fault, Recorded, WebhookFault};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{CreateCustomerRequest, PaymentMethodKind, PaymentState, SetDefaultPaymentMethodRequest};
use time::Duration;

use crate::cashier::{Cashier, at_stripe, at_stripe_under, until};
use crate::methods::{
    at_stripe_only, attach, charged, count, default_becomes, default_of, failed, id, import, shown_default,
};

const UNSET: &str = "invoice_settings[default_payment_method]=";

/// Sends an event that was held back, and waits until it is applied. Not longer: what is read some minutes later would
/// repair what it left wrong.
async fn deliver(cashier: &Cashier, event: &serde_json::Value) {
    cashier.sandbox().resend(&id(event)).expect("it is sent");
    until("it is received", || async { cashier.sandbox().deliveries().is_empty().then_some(()) }).await;
    cashier.at_rest(&["apply_delivery"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_default_source_is_charged_before_a_newer_method_that_nobody_chose() {
    let mut cashier = Cashier::new("default source", Options::default()).await;
    let provider_id = at_stripe_only(&cashier, "name=Hooli&source=tok_visa").await;
    let card = shown_default(&cashier, &provider_id);
    assert!(card.starts_with("card_"), "{card}");
    let newer = attach(&cashier, &provider_id, "pm_card_mastercard").await;
    cashier.advance(Duration::seconds(2));
    import(&mut cashier, "hooli", &provider_id).await;
    assert_eq!(default_of(&mut cashier, "hooli").await, card);
    cashier.pay("hooli", "inv").await;
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(charged(&cashier, "inv"), std::slice::from_ref(&card));
    assert_eq!(shown_default(&cashier, &provider_id), card, "nothing is written over it");
    let written = cashier.posts(&format!("/v1/customers/{provider_id}"));
    assert!(written.is_empty(), "{written:?}");

    // Stripe's order: the chosen method first; unset, the old one counts again.
    cashier.advance(Duration::seconds(2));
    let path = format!("/v1/customers/{provider_id}");
    at_stripe(&cashier, &path, &format!("{UNSET}{newer}")).await;
    default_becomes(&mut cashier, "hooli", &newer).await;
    cashier.advance(Duration::seconds(2));
    at_stripe(&cashier, &path, UNSET).await;
    default_becomes(&mut cashier, "hooli", &card).await;
    cashier.advance(Duration::seconds(2));
    let second = id(&at_stripe(&cashier, &format!("{path}/sources"), "source=tok_amex").await);
    default_becomes(&mut cashier, "hooli", &second).await;
    cashier.all_delivered().await;
    cashier.advance(Duration::seconds(2));
    at_stripe(&cashier, &path, UNSET).await;
    cashier.advance(Duration::seconds(2));
    at_stripe(&cashier, &path, &format!("default_source={second}")).await;
    at_stripe(&cashier, &path, &format!("default_source={card}")).await;
    default_becomes(&mut cashier, "hooli", &card).await;
    cashier.end().await;
}

/// The same where the news of the newer method comes first: its default at Stripe is read before anything is chosen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_method_that_is_attached_before_the_import_is_not_chosen() {
    let mut cashier = Cashier::new("import, late", Options::default()).await;
    let provider_id = at_stripe_only(&cashier, "name=Hooli&source=tok_visa").await;
    let card = shown_default(&cashier, &provider_id);
    let before = cashier.sandbox().events(&cashier.player.account).len();
    let event = "*".to_owned();
    cashier.sandbox().add_webhook_fault(WebhookFault { event, times: None, ..WebhookFault::default() });
    let newer = attach(&cashier, &provider_id, "pm_card_mastercard").await;
    cashier.sandbox().clear_faults();
    let news = cashier.sandbox().events(&cashier.player.account).split_off(before);
    let is_read = |request: &Recorded| request.method == "GET" && request.path.ends_with("/payment_methods");
    let reads = |cashier: &Cashier| cashier.sandbox().requests().iter().filter(|request| is_read(request)).count();
    let path = format!("/v1/customers/{provider_id}/payment_methods");
    let unread = Action::ServerError { work: Effect::NotDone };
    cashier.sandbox().add_fault(Fault { times: Some(3), ..Fault::once("GET", &path, unread) });
    let request = CreateCustomerRequest {
        request_id: "import".to_owned(),
        external_id: "hooli".to_owned(),
        provider_customer_id: provider_id.clone(),
        provider_payment_methods: vec![PaymentMethodKind::Card.into()],
        ..CreateCustomerRequest::default()
    };
    cashier.player.api.customers.create_customer(request).await.expect("the customer is taken");
    until("the import has failed", || async { (reads(&cashier) >= 3).then_some(()) }).await;

    deliver(&cashier, &news[0]).await;
    assert_eq!(default_of(&mut cashier, "hooli").await, card);
    cashier.at_rest(&["import_payment_methods", "push_default_method"]).await;
    assert_eq!(count(&cashier, "payment_method.set_as_default", &newer).await, 0);
    assert_eq!(shown_default(&cashier, &provider_id), card);
    let written = cashier.posts(&format!("/v1/customers/{provider_id}"));
    assert!(written.is_empty(), "{written:?}");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_that_is_unset_at_stripe_leaves_none_until_one_is_added() {
    let mut cashier = Cashier::new("unset", Options::default()).await;
    let provider_id = cashier.customer("hooli", "pm_card_visa").await;
    let first = default_of(&mut cashier, "hooli").await;
    cashier.add_method("hooli", &provider_id, "pm_card_mastercard").await;
    let second = default_of(&mut cashier, "hooli").await;
    cashier.all_delivered().await;
    assert_eq!(shown_default(&cashier, &provider_id), second);
    cashier.advance(Duration::seconds(2));
    at_stripe(&cashier, &format!("/v1/customers/{provider_id}"), UNSET).await;
    default_becomes(&mut cashier, "hooli", "").await;
    until("it is told", || async {
        (count(&cashier, "payment_method.unset_as_default", &second).await == 1).then_some(())
    })
    .await;
    assert_eq!(cashier.methods("hooli").await.len(), 2, "both are still attached");
    cashier.pay("hooli", "inv").await;
    let (_, code) = failed(&mut cashier, "inv").await;
    assert_eq!(code, "no_payment_method");
    assert_eq!((cashier.charges("inv").len(), shown_default(&cashier, &provider_id).as_str()), (0, ""));
    // Detached afterwards it was still unset by hand.
    cashier.advance(Duration::minutes(1));
    cashier.sandbox().detach_by_hand(&second).expect("detached");
    until("it is told", || async { (count(&cashier, "payment_method.detached", &second).await == 1).then_some(()) })
        .await;
    assert_eq!(default_of(&mut cashier, "hooli").await, "", "{first} is not charged in its place");
    let third = attach(&cashier, &provider_id, "pm_card_amex").await;
    default_becomes(&mut cashier, "hooli", &third).await;
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(charged(&cashier, "inv"), [third]);
    cashier.end().await;
}

/// A request of ours that Stripe carries out late is nobody's choice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_choice_of_none_that_our_own_late_write_has_replaced_is_written_again() {
    let mut cashier = Cashier::new("late write", Options::default()).await;
    let provider_id = cashier.customer("hooli", "pm_card_visa").await;
    let first = default_of(&mut cashier, "hooli").await;
    cashier.all_delivered().await;
    cashier.advance(Duration::seconds(2));
    let path = format!("/v1/customers/{provider_id}");
    at_stripe(&cashier, &path, UNSET).await;
    default_becomes(&mut cashier, "hooli", "").await;
    cashier.all_delivered().await;
    cashier.advance(Duration::seconds(2));
    at_stripe_under(&cashier, Some("paybridge-default-late"), &path, &format!("{UNSET}{first}")).await;
    cashier.all_delivered().await;
    assert_eq!(shown_default(&cashier, &provider_id), "");
    assert_eq!(default_of(&mut cashier, "hooli").await, "");
    cashier.end().await;
}

/// A customer with two cards whose older one was chosen here, by a write that Stripe answered with a 500 and one that it
/// took, and then unset at Stripe. `work` is what becomes of the first write. Returns the customer's id at Stripe, and the
/// card's.
async fn unset_with_a_write_in_doubt(cashier: &mut Cashier, work: Effect) -> (String, String) {
    let provider_id = cashier.customer("hooli", "pm_card_visa").await;
    let first = cashier.methods("hooli").await.remove(0);
    cashier.add_method("hooli", &provider_id, "pm_card_mastercard").await;
    cashier.all_delivered().await;
    cashier.fault("/v1/customers/*", 1, Action::ServerError { work });
    let (choice, chosen) = (SetDefaultPaymentMethodRequest { id: first.id }, first.provider_payment_method_id);
    cashier.player.api.customers.set_default_payment_method(choice).await.expect("it is chosen");
    until("it is written", || async { (shown_default(cashier, &provider_id) == chosen).then_some(()) }).await;
    cashier.all_delivered().await;
    cashier.advance(Duration::seconds(2));
    at_stripe(cashier, &format!("/v1/customers/{provider_id}"), UNSET).await;
    default_becomes(cashier, "hooli", "").await;
    cashier.all_delivered().await;
    (provider_id, chosen)
}

/// The same where the events about it are late: a read shows our own write, and takes it for nobody's choice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_read_does_not_take_our_own_late_write_for_a_choice() {
    let mut cashier = Cashier::new("late write, read", Options::default()).await;
    let done_later = Effect::DoneLater { seconds: 60 };
    let (provider_id, chosen) = unset_with_a_write_in_doubt(&mut cashier, done_later).await;
    let event = "customer.updated".to_owned();
    cashier.sandbox().add_webhook_fault(WebhookFault { event, times: None, ..WebhookFault::default() });
    until("the late write is done", || async {
        cashier.advance(Duration::seconds(10));
        (shown_default(&cashier, &provider_id) == chosen).then_some(())
    })
    .await;
    cashier.pay("hooli", "inv").await;
    assert_eq!(failed(&mut cashier, "inv").await.1, "no_payment_method");
    assert_eq!(default_of(&mut cashier, "hooli").await, "");
    nothing_becomes_stripes_default(&cashier, &provider_id).await;
    cashier.end().await;
}

/// Once the event that would explain Stripe's default has been waited for in vain.
async fn nothing_becomes_stripes_default(cashier: &Cashier, provider_id: &str) {
    until("nothing is the default at Stripe, too", || async {
        cashier.advance(Duration::seconds(10));
        shown_default(cashier, provider_id).is_empty().then_some(())
    })
    .await;
}

/// Somebody chooses the very method that a write of ours may have set: what that looks like is not theirs until the event
/// says so, and then it is, although ours has been written again meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_choice_that_a_write_of_ours_has_replaced_counts_by_its_late_event() {
    let mut cashier = Cashier::new("late event of a choice", Options::default()).await;
    let (provider_id, chosen) = unset_with_a_write_in_doubt(&mut cashier, Effect::NotDone).await;
    let path = format!("/v1/customers/{provider_id}");
    let before = cashier.sandbox().events(&cashier.player.account).len();
    let event = "customer.updated".to_owned();
    cashier.sandbox().add_webhook_fault(WebhookFault { event, times: None, ..WebhookFault::default() });
    cashier.advance(Duration::seconds(2));
    at_stripe(&cashier, &path, &format!("{UNSET}{chosen}")).await;
    let told = cashier.sandbox().events(&cashier.player.account).split_off(before);
    cashier.pay("hooli", "inv").await;
    assert_eq!(failed(&mut cashier, "inv").await.1, "no_payment_method");
    nothing_becomes_stripes_default(&cashier, &provider_id).await;

    cashier.sandbox().clear_faults();
    deliver(&cashier, &told[0]).await;
    default_becomes(&mut cashier, "hooli", &chosen).await;
    until("it is written to Stripe again", || async {
        cashier.advance(Duration::seconds(10));
        (shown_default(&cashier, &provider_id) == chosen).then_some(())
    })
    .await;
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(default_of(&mut cashier, "hooli").await, chosen);
    cashier.end().await;
}

/// An answer that Stripe repeats for an idempotency key says nothing of what it has now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_that_is_chosen_again_is_written_again() {
    let mut cashier = Cashier::new("chosen again", Options::default()).await;
    let provider_id = cashier.customer("hooli", "pm_card_visa").await;
    cashier.add_method("hooli", &provider_id, "pm_card_mastercard").await;
    let methods = cashier.methods("hooli").await;
    for method in [&methods[0], &methods[1], &methods[0], &methods[1]] {
        let request = SetDefaultPaymentMethodRequest { id: method.id.clone() };
        cashier.player.api.customers.set_default_payment_method(request).await.expect("it is chosen");
        cashier.all_delivered().await;
        assert_eq!(shown_default(&cashier, &provider_id), method.provider_payment_method_id);
    }
    cashier.end().await;
}

/// Stripe unsets a default that is detached: nobody has chosen to have none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_default_that_is_detached_is_no_choice_of_none_in_any_order_of_its_events() {
    for is_reversed in [false, true] {
        let mut cashier = Cashier::new("detached default", Options::default()).await;
        let provider_id = cashier.customer("hooli", "pm_card_visa").await;
        let first = default_of(&mut cashier, "hooli").await;
        cashier.add_method("hooli", &provider_id, "pm_card_mastercard").await;
        let second = default_of(&mut cashier, "hooli").await;
        cashier.all_delivered().await;
        cashier.advance(Duration::seconds(2));
        let before = cashier.sandbox().events(&cashier.player.account).len();
        cashier.sandbox().add_webhook_fault(WebhookFault::default());
        cashier.sandbox().detach_by_hand(&second).expect("detached");
        let mut events = cashier.sandbox().events(&cashier.player.account).split_off(before);
        cashier.sandbox().clear_faults();
        assert_eq!(events.len(), 2, "{events:?}");
        if is_reversed {
            events.reverse();
        }
        for event in events {
            cashier.sandbox().resend(&id(&event)).expect("it is sent");
            cashier.all_delivered().await;
        }
        default_becomes(&mut cashier, "hooli", &first).await;
        assert_eq!(count(&cashier, "payment_method.unset_as_default", &second).await, 0);
        cashier.end().await;
    }
}

/// Stripe's times are whole seconds: of two choices in one second, what counts is what Stripe shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_of_two_choices_in_one_second_the_later_counts_in_any_order_of_their_events() {
    for is_reversed in [false, true] {
        let mut cashier = Cashier::new("one second", Options::default()).await;
        let provider_id = cashier.customer("hooli", "pm_card_visa").await;
        let first = default_of(&mut cashier, "hooli").await;
        cashier.add_method("hooli", &provider_id, "pm_card_mastercard").await;
        let second = default_of(&mut cashier, "hooli").await;
        cashier.all_delivered().await;
        let path = format!("/v1/customers/{provider_id}");
        // From the second one back to the second one: no event alone says which of them was the later.
        let mut events = loop {
            cashier.advance(Duration::seconds(2));
            let before = cashier.sandbox().events(&cashier.player.account).len();
            cashier.sandbox().add_webhook_fault(WebhookFault::default());
            at_stripe(&cashier, &path, &format!("{UNSET}{first}")).await;
            at_stripe(&cashier, &path, &format!("{UNSET}{second}")).await;
            cashier.sandbox().clear_faults();
            let events = cashier.sandbox().events(&cashier.player.account).split_off(before);
            if events[0]["created"] == events[1]["created"] {
                break events;
            }
        };
        assert_eq!(events.len(), 2, "{events:?}");
        if is_reversed {
            events.reverse();
        }
        for event in events {
            deliver(&cashier, &event).await;
        }
        assert_eq!(default_of(&mut cashier, "hooli").await, second, "reversed: {is_reversed}");
        assert_eq!(shown_default(&cashier, &provider_id), second);
        cashier.end().await;
    }
}

/// The choice is read where its event is missing, and not written over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_choice_whose_event_is_missing_is_found_by_a_read() {
    let mut cashier = Cashier::new("missing choice", Options::default()).await;
    let provider_id = cashier.customer("hooli", "pm_card_visa").await;
    let first = default_of(&mut cashier, "hooli").await;
    cashier.add_method("hooli", &provider_id, "pm_card_mastercard").await;
    cashier.all_delivered().await;
    cashier.advance(Duration::seconds(2));
    cashier.sandbox().add_webhook_fault(WebhookFault::default());
    at_stripe(&cashier, &format!("/v1/customers/{provider_id}"), &format!("{UNSET}{first}")).await;
    cashier.sandbox().clear_faults();
    let third = attach(&cashier, &provider_id, "pm_card_amex").await;
    default_becomes(&mut cashier, "hooli", &third).await;
    let cashier_ref = &cashier;
    until("the choice counts", || async {
        cashier_ref.advance(Duration::seconds(20));
        let events = cashier_ref.player.events();
        let chosen = events.iter().rev().find_map(|event| match &event.object {
            Some(Object::PaymentMethod(it)) if event.webhook_type == "payment_method.set_as_default" => {
                Some(it.provider_method_id.clone())
            }
            _ => None,
        });
        (chosen.as_ref() == Some(&first)).then_some(())
    })
    .await;
    assert_eq!(shown_default(&cashier, &provider_id), first, "it was not written over");
    cashier.end().await;
}

/// A read can't say when the default was unset: a card that was added after that is the default, once the events say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_default_that_a_read_found_unset_counts_from_when_its_late_event_says() {
    let mut cashier = Cashier::new("late unset", Options::default()).await;
    let provider_id = cashier.customer("hooli", "pm_card_visa").await;
    cashier.all_delivered().await;
    let before = cashier.sandbox().events(&cashier.player.account).len();
    cashier.sandbox().add_webhook_fault(WebhookFault::default());
    let second = attach(&cashier, &provider_id, "pm_card_mastercard").await;
    cashier.advance(Duration::seconds(10));
    at_stripe(&cashier, &format!("/v1/customers/{provider_id}"), UNSET).await;
    cashier.advance(Duration::seconds(10));
    let third = attach(&cashier, &provider_id, "pm_card_amex").await;
    cashier.sandbox().clear_faults();
    let late = cashier.sandbox().events(&cashier.player.account).split_off(before);
    assert_eq!(late.len(), 3, "{late:?}");

    cashier.sandbox().resend(&id(&late[0])).expect("it is sent");
    default_becomes(&mut cashier, "hooli", &second).await;
    until("a read finds that there is none", || async {
        cashier.advance(Duration::seconds(20));
        (count(&cashier, "payment_method.unset_as_default", &second).await == 1).then_some(())
    })
    .await;
    assert_eq!(default_of(&mut cashier, "hooli").await, "");
    for event in &late[1..] {
        deliver(&cashier, event).await;
    }
    default_becomes(&mut cashier, "hooli", &third).await;
    cashier.pay("hooli", "inv").await;
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(charged(&cashier, "inv"), [third]);
    cashier.end().await;
}
