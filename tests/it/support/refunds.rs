//! Refunds: payments to refund, calls, and what Stripe and the log hold of them.

use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{
    CreateRefundRequest, EventRefund, GetRefundRequest, ListEventsRequest, ListRefundsRequest, Money, Payment,
    PaymentState, Refund, RefundState, create_refund_request, list_refunds_request,
};
use tonic::Status;

use crate::support::customers::object_id;
use crate::support::harness::{Harness, post_to_stripe};
use crate::support::wait::until;
use crate::support::webhooks::lose_webhooks;

/// The path of refunds at Stripe.
pub const REFUNDS: &str = "/v1/refunds";

/// A harness whose customer `hooli` has paid `inv` with this method.
pub async fn paid_harness(name: &str, method: &str, options: Options) -> (Harness, Payment) {
    let mut harness = Harness::new(name, options).await;
    harness.customer("hooli", method).await;
    let payment = pay_and_settle(&mut harness, "inv").await;
    (harness, payment)
}

/// Creates a payment of `hooli`'s, and waits until it has succeeded.
pub async fn pay_and_settle(harness: &mut Harness, invoice: &str) -> Payment {
    harness.pay("hooli", invoice).await;
    let payment = harness.payment_in(invoice, PaymentState::Succeeded).await;
    harness.all_delivered().await;
    payment
}

/// A request to refund so many cents of a payment's settling charge; `None` for all that is left.
pub fn refund_request(request_id: &str, payment: &Payment, cents: Option<i64>) -> CreateRefundRequest {
    CreateRefundRequest {
        payment: Some(create_refund_request::Payment::PaymentId(payment.id.clone())),
        request_id: request_id.to_owned(),
        provider_charge_id: String::new(),
        amount: cents.map(|minor_units| Money { minor_units, currency_code: "EUR".to_owned() }),
    }
}

/// Requests a refund.
pub async fn refund(harness: &Harness, request: CreateRefundRequest) -> Result<Refund, Status> {
    let mut payments = harness.billing.api.payments.clone();
    Ok(payments.create_refund(request).await?.into_inner().refund.expect("a refund"))
}

pub async fn get_refund(harness: &Harness, id: &str) -> Refund {
    let mut payments = harness.billing.api.payments.clone();
    let response = payments.get_refund(GetRefundRequest { id: id.to_owned() }).await.expect("the refund is read");
    response.into_inner().refund.expect("a refund")
}

/// Refunds all that an intent captured, in the Stripe Dashboard, and returns the refund's Stripe id.
pub async fn refund_in_dashboard(harness: &Harness, intent: &str) -> String {
    object_id(&post_to_stripe(harness, REFUNDS, &format!("payment_intent={intent}")).await)
}

/// Waits until a refund is in a state.
pub async fn refund_in(harness: &Harness, id: &str, state: RefundState) -> Refund {
    until(&format!("the refund is {state:?}"), async || {
        Some(get_refund(harness, id).await).filter(|refund| refund.state() == state)
    })
    .await
}

/// All refunds of a payment, newest first, read in pages of one.
pub async fn list_refunds(harness: &Harness, payment: &Payment) -> Vec<Refund> {
    let which = Some(list_refunds_request::Payment::InvoiceId(payment.invoice_id.clone()));
    let mut list = ListRefundsRequest { payment: which, page_size: 1, page_token: String::new() };
    let mut refunds = Vec::new();
    loop {
        let mut payments = harness.billing.api.payments.clone();
        let page = payments.list_refunds(list.clone()).await.expect("a page").into_inner();
        refunds.extend(page.refunds);
        if page.next_page_token.is_empty() {
            return refunds;
        }
        list.page_token = page.next_page_token;
    }
}

/// The logged refund events, in order. The stream may lag behind the log.
pub async fn refund_events(harness: &Harness) -> Vec<EventRefund> {
    let request = ListEventsRequest {
        page_size: 1_000,
        webhook_types: vec!["payment.refund_updated".to_owned()],
        ..ListEventsRequest::default()
    };
    let mut events = harness.billing.api.events.clone();
    let logged = events.list_events(request).await.expect("a page").into_inner().events;
    let refunds = logged.into_iter().map(|event| match event.object {
        Some(Object::Refund(refund)) => refund,
        other => panic!("not a refund: {other:?}"),
    });
    refunds.collect()
}

/// The statuses in the logged events about a refund that Paybridge made, in order.
pub async fn emitted_states(harness: &Harness, refund: &Refund) -> Vec<String> {
    let events = refund_events(harness).await.into_iter();
    let events = events.filter(|event| event.lago_refund_id.as_deref() == Some(&refund.id));
    events.map(|event| event.status).collect()
}

/// The refunds at Stripe that were created for a refund of Paybridge's.
pub fn stripe_refunds(harness: &Harness, refund: &Refund) -> Vec<serde_json::Value> {
    let events = harness.sandbox().events(&harness.billing.account);
    let created = events.iter().filter(|event| event["type"] == "refund.created");
    let objects = created.map(|event| event["data"]["object"].clone());
    objects.filter(|object| object["metadata"]["refund_id"] == refund.id.as_str()).collect()
}

/// What a charge captured, and how much of it was refunded, in Stripe's ledger.
pub fn captured_and_refunded(harness: &Harness, charge: &str) -> (i64, i64) {
    let entry = harness.sandbox().ledger().into_iter().find(|entry| entry.charge == charge).expect("the charge");
    (entry.amount, entry.amount_refunded)
}

/// Applies what was delivered, and shuts down.
pub async fn finish(harness: Harness) {
    harness.drain_jobs(&["apply_delivery"]).await;
    harness.shutdown().await;
}

/// Waits until a refund has succeeded, and checks that Stripe made it once and that its outcome is known.
pub async fn refunded_once(harness: &Harness, refund: &Refund) {
    let succeeded = refund_in(harness, &refund.id, RefundState::Succeeded).await;
    assert!(succeeded.outcome_unknown_time.is_none(), "the outcome is known");
    harness.all_delivered().await;
    harness.drain_jobs(&["refund_payment"]).await;
    assert_eq!(stripe_refunds(harness, refund).len(), 1, "one refund at Stripe for one request");
    assert_eq!(emitted_states(harness, refund).await, ["succeeded"], "emitted once, and never as failed");
}

/// Loses all webhooks about refunds from now on.
pub fn lose_refund_webhooks(harness: &Harness) {
    for event in ["refund.*", "charge.refunded"] {
        lose_webhooks(harness, event);
    }
}
