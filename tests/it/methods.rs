//! What can be charged: SEPA mandates wherever they come from, sources of the time before PaymentMethods, cards that are
//! renewed or expire.

use paybridge::dev::sandbox::{Action, Fault};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{CreateCustomerRequest, Payment, PaymentMethodKind, PaymentState};
use time::Duration;

use crate::cashier::{Cashier, at_stripe, until};
use crate::links::{BAD_IBAN, GOOD_IBAN};

const MANDATE_DATA: &str = "mandate_data[customer_acceptance][type]=offline";

/// Links a Stripe customer that was there before, and waits until its methods are read.
pub async fn import(cashier: &mut Cashier, external_id: &str, provider_customer_id: &str) {
    let request = CreateCustomerRequest {
        request_id: format!("customer-{external_id}"),
        external_id: external_id.to_owned(),
        provider_customer_id: provider_customer_id.to_owned(),
        provider_payment_methods: vec![PaymentMethodKind::Card.into(), PaymentMethodKind::SepaDebit.into()],
        ..CreateCustomerRequest::default()
    };
    // What was told of it before is nobody's by now: only what is read at the import counts.
    until("all is received", || async { cashier.sandbox().deliveries().is_empty().then_some(()) }).await;
    cashier.advance(Duration::minutes(3));
    cashier.all_delivered().await;
    cashier.player.api.customers.create_customer(request).await.expect("the customer is taken");
    cashier.at_rest(&["sync_customer", "import_payment_methods", "push_default_method"]).await;
}

/// Stripe's id of the customer's default; empty if there is none.
pub async fn default_of(cashier: &mut Cashier, external_id: &str) -> String {
    let methods = cashier.methods(external_id).await;
    let default = methods.into_iter().find(|method| method.is_default);
    default.map(|method| method.provider_payment_method_id).unwrap_or_default()
}

pub async fn default_becomes(cashier: &mut Cashier, external_id: &str, wanted: &str) {
    let began = std::time::Instant::now();
    loop {
        let default = default_of(cashier, external_id).await;
        if default == wanted {
            return;
        }
        assert!(began.elapsed().as_secs() < 45, "the default is {default:?} and not {wanted:?}");
        let _ = tokio::time::timeout(std::time::Duration::from_millis(25), std::future::pending::<()>()).await;
    }
}

pub fn id(object: &serde_json::Value) -> String {
    object["id"].as_str().expect("an id").to_owned()
}

/// A new customer at Stripe.
pub async fn at_stripe_only(cashier: &Cashier, body: &str) -> String {
    id(&at_stripe(cashier, "/v1/customers", body).await)
}

/// Attaches a method as the merchant's own code does, a while after what was there.
pub async fn attach(cashier: &Cashier, provider_id: &str, method: &str) -> String {
    cashier.advance(Duration::seconds(2));
    let body = format!("customer={provider_id}");
    id(&at_stripe(cashier, &format!("/v1/payment_methods/{method}/attach"), &body).await)
}

/// Stripe's default of a customer, by Stripe's order.
pub fn shown_default(cashier: &Cashier, provider_id: &str) -> String {
    let there = cashier.sandbox().object(provider_id).expect("a customer");
    let method = there["invoice_settings"]["default_payment_method"].as_str();
    method.or_else(|| there["default_source"].as_str()).unwrap_or_default().to_owned()
}

pub async fn count(cashier: &Cashier, kind: &str, method: &str) -> usize {
    let about =
        |object: &Option<Object>| matches!(object, Some(Object::PaymentMethod(it)) if it.provider_method_id == method);
    cashier.events().await.iter().filter(|event| event.webhook_type == kind && about(&event.object)).count()
}

pub fn charged(cashier: &Cashier, invoice: &str) -> Vec<String> {
    let charges = cashier.charges(invoice);
    let objects = charges.iter().filter_map(|charge| cashier.sandbox().object(&charge.charge));
    objects.map(|charge| charge["payment_method"].as_str().unwrap_or_default().to_owned()).collect()
}

pub async fn failed(cashier: &mut Cashier, invoice: &str) -> (Payment, String) {
    let payment = cashier.payment_in(invoice, PaymentState::Failed).await;
    let code = payment.failure.as_ref().map(|failure| failure.code.clone()).unwrap_or_default();
    (payment, code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debit_that_was_paid_on_a_link_is_charged_for_the_next_invoice() {
    let mut cashier = Cashier::new("sepa link", Options::default()).await;
    cashier.bare_customer("hooli").await;
    cashier.pay("hooli", "inv").await;
    let (lacking, code) = failed(&mut cashier, "inv").await;
    assert_eq!(code, "no_payment_method");
    let (session, _) = cashier.link("link", &lacking).await.expect("a link");
    cashier.sandbox().complete_session(&session, GOOD_IBAN, true).expect("the payer gives an IBAN");
    cashier.payment_in("inv", PaymentState::Processing).await;
    cashier.advance(Duration::days(6));
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    cashier.all_delivered().await;
    let method = default_of(&mut cashier, "hooli").await;
    assert!(method.starts_with("pm_"), "what was paid with is the default");
    cashier.pay("hooli", "inv-2").await;
    let next = cashier.payment_when("inv-2", "is decided", |it| it.state() != PaymentState::Pending).await;
    assert_eq!(next.state(), PaymentState::Processing, "{:?}", next.failure);
    until("the bank has it", || async { (charged(&cashier, "inv-2") == [method.clone()]).then_some(()) }).await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debit_that_a_payment_intent_has_stored_before_the_import_is_charged() {
    let mut cashier = Cashier::new("sepa import", Options::default()).await;
    let provider_id = at_stripe_only(&cashier, "name=Hooli").await;
    let method = "type=sepa_debit&sepa_debit[iban]=DE89370400440532013000&billing_details[name]=Hooli\
        &billing_details[email]=a%40hooli.test";
    let method = id(&at_stripe(&cashier, "/v1/payment_methods", method).await);
    let intent = format!(
        "amount=100&currency=eur&customer={provider_id}&payment_method={method}&payment_method_types[]=sepa_debit\
         &setup_future_usage=off_session&confirm=true&{MANDATE_DATA}"
    );
    assert_eq!(at_stripe(&cashier, "/v1/payment_intents", &intent).await["status"], "processing");
    // A key with the scopes that are usual for this may not read SetupIntents.
    let forbidden = Fault { times: None, ..Fault::once("GET", "/v1/setup_intents*", Action::Forbidden) };
    cashier.sandbox().add_fault(forbidden);
    import(&mut cashier, "hooli", &provider_id).await;
    let known = cashier.methods("hooli").await;
    assert!(format!("{known:?}").contains("mandate_"), "the charge names the mandate: {known:?}");
    cashier.pay("hooli", "inv").await;
    let next = cashier.payment_when("inv", "is decided", |it| it.state() != PaymentState::Pending).await;
    assert_eq!(next.state(), PaymentState::Processing, "{:?}", next.failure);
    let state = cashier.integration_now().await;
    assert_eq!(state.pause_reason, "", "what may not be read stops nothing");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_mandate_is_tried_and_displaces_no_card() {
    let mut cashier = Cashier::new("unknown mandate", Options::default()).await;
    let provider_id = cashier.bare_customer("hooli").await;
    let account = attach(&cashier, &provider_id, "pm_success_de").await;
    default_becomes(&mut cashier, "hooli", &account).await;
    cashier.pay("hooli", "inv").await;
    let (payment, code) = failed(&mut cashier, "inv").await;
    assert_eq!(code, "mandate_missing", "{payment:?}");
    assert_eq!(cashier.posts("/confirm").len(), 1, "Stripe's answer decides");
    let card = attach(&cashier, &provider_id, "pm_card_visa").await;
    default_becomes(&mut cashier, "hooli", &card).await;
    let other = attach(&cashier, &provider_id, "pm_success_at").await;
    until("it is told", || async { (count(&cashier, "payment_method.created", &other).await == 1).then_some(()) })
        .await;
    cashier.all_delivered().await;
    assert_eq!(default_of(&mut cashier, "hooli").await, card, "a card that works stays the default");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mandate_that_has_ended_stays_so_and_a_new_one_counts() {
    let mut cashier = Cashier::new("ended mandate", Options::default()).await;
    let provider_id = cashier.customer("hooli", BAD_IBAN).await;
    let method = default_of(&mut cashier, "hooli").await;
    cashier.pay("hooli", "inv").await;
    until("the bank has it", || async { (cashier.charges("inv").len() == 1).then_some(()) }).await;
    cashier.payment_in("inv", PaymentState::Processing).await;
    cashier.advance(Duration::days(6));
    cashier.payment_in("inv", PaymentState::Failed).await;
    cashier.all_delivered().await;
    let confirms = cashier.posts("/confirm").len();
    cashier.pay("hooli", "inv-2").await;
    let (_, code) = failed(&mut cashier, "inv-2").await;
    assert_eq!((code.as_str(), cashier.posts("/confirm").len()), ("mandate_missing", confirms), "nothing is sent");
    let body = format!(
        "customer={provider_id}&payment_method={method}&payment_method_types[]=sepa_debit&confirm=true&{MANDATE_DATA}"
    );
    assert_eq!(at_stripe(&cashier, "/v1/setup_intents", &body).await["status"], "succeeded");
    cashier.all_delivered().await;
    cashier.pay("hooli", "inv-3").await;
    let next = cashier.payment_when("inv-3", "is decided", |it| it.state() != PaymentState::Pending).await;
    assert_eq!(next.state(), PaymentState::Processing, "{:?}", next.failure);
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sepa_source_is_not_charged_and_the_failure_names_the_migration() {
    let mut cashier = Cashier::new("sepa source", Options::default()).await;
    let body = "type=sepa_debit&currency=eur&sepa_debit[iban]=DE89370400440532013000&owner[name]=Hooli";
    let source = id(&at_stripe(&cashier, "/v1/sources", body).await);
    let provider_id = at_stripe_only(&cashier, "name=Hooli").await;
    let bound = at_stripe(&cashier, &format!("/v1/customers/{provider_id}/sources"), &format!("source={source}")).await;
    assert_eq!(bound["object"], "source");
    import(&mut cashier, "hooli", &provider_id).await;
    assert_eq!(default_of(&mut cashier, "hooli").await, source);
    cashier.pay("hooli", "inv").await;
    let (payment, code) = failed(&mut cashier, "inv").await;
    let text = payment.failure.expect("a failure").message;
    assert_eq!(code, "payment_method_not_usable");
    assert!(text.contains(&source) && text.contains("migrate"), "{text}");
    assert!(cashier.posts("/confirm").is_empty(), "nothing is sent");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_card_that_the_network_renews_or_that_expires_this_month_is_reported_once() {
    let mut cashier = Cashier::new("expiring", Options::default()).await;
    let provider_id = cashier.bare_customer("hooli").await;
    // In the middle of a month, so that none ends meanwhile.
    let day = i64::from(cashier.scenery.stage.clock.now().day());
    cashier.advance(Duration::days(45 - day));
    let now = cashier.scenery.stage.clock.now();
    let (year, month) = (now.year(), u8::from(now.month()));
    let card = attach(&cashier, &provider_id, "pm_card_visa").await;
    let (path, expires) =
        (format!("/v1/payment_methods/{card}"), format!("card[exp_month]={month}&card[exp_year]={year}"));
    at_stripe(&cashier, &path, &expires).await;
    let later = attach(&cashier, &provider_id, "pm_card_visa").await;
    default_becomes(&mut cashier, "hooli", &later).await;
    cashier.all_delivered().await;
    for _ in 0..3 {
        cashier.advance(Duration::minutes(2));
        until("it is reported", || async {
            (count(&cashier, "payment_method.expiring", &card).await > 0).then_some(())
        })
        .await;
        cashier.at_rest(&["apply_delivery"]).await;
    }
    assert_eq!(count(&cashier, "payment_method.expiring", &card).await, 1, "once for its month");
    assert_eq!(count(&cashier, "payment_method.expiring", &later).await, 0);

    // Whether the first change was one to report depends on when the new card was read.
    let told = count(&cashier, "payment_method.updated", &card).await;
    cashier.sandbox().renew_card_by_hand(&card, 12, i64::from(year) + 4).expect("the network renews it");
    until("it is told", || async {
        (count(&cashier, "payment_method.updated", &card).await == told + 1).then_some(())
    })
    .await;
    at_stripe(&cashier, &path, &expires).await;
    until("it is told", || async {
        (count(&cashier, "payment_method.updated", &card).await == told + 2).then_some(())
    })
    .await;
    at_stripe(&cashier, &path, "billing_details[name]=Hooli").await;
    cashier.all_delivered().await;
    assert_eq!(count(&cashier, "payment_method.updated", &card).await, told + 2, "what is not shown here is not told");
    cashier.end().await;
}
