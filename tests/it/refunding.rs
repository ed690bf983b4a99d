//! What tests of refunds share: a till whose customer has paid, calls about refunds, and what went back by Stripe's
//! word.

use paybridge::dev::sandbox::WebhookFault;
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{
    EventRefund, GetRefundRequest, ListEventsRequest, ListRefundsRequest, Money, Payment, PaymentState, Refund,
    RefundPaymentRequest, RefundState,
};
use tonic::Status;

use crate::cashier::{Cashier, at_stripe, until};

pub const REFUNDS: &str = "/v1/refunds";

/// A till whose customer `hooli` has paid `inv` with this method.
pub async fn paid_till(name: &str, method: &str, options: Options) -> (Cashier, Payment) {
    let mut cashier = Cashier::new(name, options).await;
    cashier.customer("hooli", method).await;
    let payment = paid(&mut cashier, "inv").await;
    (cashier, payment)
}

pub async fn paid(cashier: &mut Cashier, invoice: &str) -> Payment {
    cashier.pay("hooli", invoice).await;
    let payment = cashier.payment_in(invoice, PaymentState::Succeeded).await;
    cashier.all_delivered().await;
    payment
}

pub fn ask(request_id: &str, payment: &Payment, cents: Option<i64>) -> RefundPaymentRequest {
    RefundPaymentRequest {
        payment_id: payment.id.clone(),
        request_id: request_id.to_owned(),
        provider_charge_id: String::new(),
        amount: cents.map(|minor_units| Money { minor_units, currency_code: "EUR".to_owned() }),
    }
}

pub async fn refund(cashier: &Cashier, request: RefundPaymentRequest) -> Result<Refund, Status> {
    let mut payments = cashier.player.api.payments.clone();
    Ok(payments.refund_payment(request).await?.into_inner().refund.expect("a refund"))
}

pub async fn read(cashier: &Cashier, id: &str) -> Refund {
    let mut payments = cashier.player.api.payments.clone();
    let answer = payments.get_refund(GetRefundRequest { id: id.to_owned() }).await.expect("the refund is read");
    answer.into_inner().refund.expect("a refund")
}

/// A refund made by hand of all that an intent took.
pub async fn refund_by_hand(cashier: &Cashier, intent: &str) -> String {
    let made = at_stripe(cashier, REFUNDS, &format!("payment_intent={intent}")).await;
    made["id"].as_str().expect("an id").to_owned()
}

/// Waits until a refund is in a state.
pub async fn refund_in(cashier: &Cashier, id: &str, state: RefundState) -> Refund {
    until(&format!("the refund is {state:?}"), || async {
        Some(read(cashier, id).await).filter(|refund| refund.state() == state)
    })
    .await
}

pub async fn listed(cashier: &Cashier, payment: &Payment) -> Vec<Refund> {
    let list = ListRefundsRequest { payment_id: payment.id.clone(), page_size: 1, page_token: String::new() };
    let (mut found, mut list) = (Vec::new(), list);
    loop {
        let mut payments = cashier.player.api.payments.clone();
        let page = payments.list_refunds(list.clone()).await.expect("a page").into_inner();
        found.extend(page.refunds);
        if page.next_page_token.is_empty() {
            return found;
        }
        list.page_token = page.next_page_token;
    }
}

/// Everything that was told of refunds so far, in order: the log, for the stream may lag behind it.
pub async fn told(cashier: &Cashier) -> Vec<EventRefund> {
    let request = ListEventsRequest {
        after_position: 0,
        page_size: 1_000,
        webhook_types: vec!["payment.refund_updated".to_owned()],
    };
    let mut events = cashier.player.api.events.clone();
    let listed = events.list_events(request).await.expect("the log is read").into_inner().events;
    let refunds = listed.into_iter().map(|event| match event.object {
        Some(Object::Refund(refund)) => refund,
        other => panic!("not a refund: {other:?}"),
    });
    refunds.collect()
}

/// The states that were told of one refund of ours, in order.
pub async fn states_told(cashier: &Cashier, refund: &Refund) -> Vec<String> {
    let of_it = told(cashier).await.into_iter().filter(|told| told.lago_refund_id.as_deref() == Some(&refund.id));
    of_it.map(|told| told.status).collect()
}

/// The refunds that Stripe has made for a charge: the truth about what went back.
pub fn at_stripe_of(cashier: &Cashier, refund: &Refund) -> Vec<serde_json::Value> {
    let created = cashier.sandbox().events(&cashier.player.account);
    let created = created.iter().filter(|event| event["type"] == "refund.created");
    let made = created.map(|event| event["data"]["object"].clone());
    made.filter(|made| made["metadata"]["refund_id"] == refund.id.as_str()).collect()
}

/// The charge of the first payment, as the ledger has it: what was taken, and what went back.
pub fn taken_and_back(cashier: &Cashier, charge: &str) -> (i64, i64) {
    let entry = cashier.sandbox().ledger().into_iter().find(|entry| entry.charge == charge).expect("the charge");
    (entry.amount, entry.amount_refunded)
}

pub async fn end(cashier: Cashier) {
    cashier.at_rest(&["apply_delivery"]).await;
    cashier.end().await;
}

/// One refund was made, of 10.00, and nothing is unknown any more.
pub async fn made_once(cashier: &Cashier, refund: &Refund) {
    let made = refund_in(cashier, &refund.id, RefundState::Succeeded).await;
    assert!(made.outcome_unknown_time.is_none(), "nothing is unknown any more");
    cashier.all_delivered().await;
    cashier.at_rest(&["refund_payment"]).await;
    assert_eq!(at_stripe_of(cashier, refund).len(), 1, "one refund at Stripe for one request");
    assert_eq!(states_told(cashier, refund).await, ["succeeded"], "told once, and never as failed");
}

/// Nobody hears of refunds by webhook.
pub fn silence(cashier: &Cashier) {
    for event in ["refund.*", "charge.refunded"] {
        cashier.sandbox().add_webhook_fault(WebhookFault { event: event.to_owned(), ..WebhookFault::default() });
    }
}
