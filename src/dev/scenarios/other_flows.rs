//! Steps 12 to 16: payment links, 3-D Secure, manual payments, refunds and disputes.

use anyhow::{Context, Result};

use super::client::{BillingClient, check};
use super::context::ScenarioContext;
use super::customers::session_id;
use super::payments::{charges, create_customer_with_method, create_payment, successes};
use crate::grpc::proto::event::Object;
use crate::grpc::proto::{
    CreatePaymentUrlRequest, CreateRefundRequest, Event, Integration, Money, PaymentNextAction, PaymentState,
    RecordManualPaymentRequest, UpdateIntegrationRequest, create_payment_url_request, create_refund_request,
    record_manual_payment_request,
};

/// Stripe's test cards: one succeeds, one can be stored and declines every charge, one requires authentication, one is
/// disputed.
const CARD: &str = "4242424242424242";
const DECLINED_CARD: &str = "4000000000000341";
const CARD_WITH_3DS: &str = "4000002760003184";
const DISPUTED_CARD: &str = "4000000000000259";

pub(super) async fn payment_link(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 12").await?;
    create_customer_with_method(context, &mut billing, "hooli", &["card"], DECLINED_CARD).await?;
    let payment = create_payment(&mut billing, "hooli", "inv-12", 4900, "EUR").await?;
    billing.wait_for_event("invoice.payment_failure", "inv-12").await?;
    let declined = billing.payment("inv-12").await?.provider_payment_intent_id;
    context.reporter.print("the card was declined, and the customer gets a payment link");
    let request = CreatePaymentUrlRequest {
        payment: Some(create_payment_url_request::Payment::Id(payment.id)),
        request_id: "link-12".to_owned(),
        ..CreatePaymentUrlRequest::default()
    };
    let response = billing.api.payments.create_payment_url(request).await?.into_inner();
    let open = response.payment.context("a payment")?;
    check!(open.state() == PaymentState::RequiresAction, "the payment waits for the customer");
    check!(open.next_action() == PaymentNextAction::Pay, "the customer has to pay through the link");
    let declined = context.environment.sandbox.object(&declined);
    check!(declined.is_some_and(|intent| intent["status"] == "canceled"), "nothing else can collect the invoice");
    context.reporter.print("the customer pays on Stripe's page");
    context.environment.sandbox.complete_session(session_id(&response.payment_url)?, CARD, true)?;
    billing.wait_for_event("payment.succeeded", "inv-12").await?;
    check!(successes(&charges(context, &billing, "inv-12")) == 1, "one charge took money");
    Ok(())
}

pub(super) async fn three_d_secure(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, integration) = BillingClient::connected(context, "step 13").await?;
    let integration = Integration { id: integration.id, supports_3ds: true, ..Integration::default() };
    let request = UpdateIntegrationRequest { integration: Some(integration), update_mask: None };
    billing.api.integrations.update_integration(request).await?;
    create_customer_with_method(context, &mut billing, "hooli", &["card"], CARD_WITH_3DS).await?;
    create_payment(&mut billing, "hooli", "inv-13", 4900, "EUR").await?;
    billing.wait_for_event("payment.requires_action", "inv-13").await?;
    let waiting = billing.payment("inv-13").await?;
    check!(waiting.next_action() == PaymentNextAction::Authenticate, "the customer has to authenticate");
    check!(!waiting.next_action_url.is_empty(), "there is a page to send the customer to");
    context.reporter.print("the customer opens the page and confirms");
    context.environment.sandbox.authenticate(&waiting.provider_payment_intent_id, true)?;
    billing.wait_for_event("payment.succeeded", "inv-13").await?;
    let paid = billing.payment("inv-13").await?;
    check!(paid.provider_payment_intent_id == waiting.provider_payment_intent_id, "on the same PaymentIntent");
    check!(successes(&charges(context, &billing, "inv-13")) == 1, "one charge took money");
    Ok(())
}

pub(super) async fn paid_elsewhere(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 14").await?;
    create_customer_with_method(context, &mut billing, "hooli", &["card"], DECLINED_CARD).await?;
    let payment = create_payment(&mut billing, "hooli", "inv-14", 4900, "EUR").await?;
    billing.wait_for_event("invoice.payment_failure", "inv-14").await?;
    let declined = billing.payment("inv-14").await?.provider_payment_intent_id;
    context.reporter.print("a bank transfer arrives and is recorded");
    let request = RecordManualPaymentRequest {
        payment: Some(record_manual_payment_request::Payment::Id(payment.id)),
        request_id: "manual-14".to_owned(),
        reference: "bank transfer 4711".to_owned(),
        paid_time: None,
    };
    billing.api.payments.record_manual_payment(request).await?;
    billing.wait_for_event("payment.succeeded", "inv-14").await?;
    let paid = billing.payment("inv-14").await?;
    check!(paid.state() == PaymentState::Succeeded, "it is SUCCEEDED");
    let declined = context.environment.sandbox.object(&declined);
    check!(declined.is_some_and(|intent| intent["status"] == "canceled"), "the card can no longer be charged");
    check!(successes(&charges(context, &billing, "inv-14")) == 0, "nothing was charged");
    Ok(())
}

/// The status of the refund in an event.
fn refund_status(event: &Event) -> Option<String> {
    match &event.object {
        Some(Object::Refund(refund)) => Some(refund.status.clone()),
        _ => None,
    }
}

pub(super) async fn refund(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 15").await?;
    create_customer_with_method(context, &mut billing, "hooli", &["card"], CARD).await?;
    let payment = create_payment(&mut billing, "hooli", "inv-15", 4900, "EUR").await?;
    billing.wait_for_event("payment.succeeded", "inv-15").await?;
    context.reporter.print("19.00 EUR are refunded; the request is sent twice");
    let request = CreateRefundRequest {
        payment: Some(create_refund_request::Payment::PaymentId(payment.id)),
        request_id: "refund-15".to_owned(),
        amount: Some(Money { minor_units: 1900, currency_code: "EUR".to_owned() }),
        ..CreateRefundRequest::default()
    };
    billing.api.payments.create_refund(request.clone()).await?;
    billing.api.payments.create_refund(request).await?;
    let is_done = |event: &Event| refund_status(event).is_some_and(|status| status == "succeeded").then_some(());
    billing.wait_for("a refund that succeeded", is_done).await?;
    let refunded = billing.payment("inv-15").await?;
    check!(refunded.state() == PaymentState::Succeeded, "the payment stays SUCCEEDED");
    check!(refunded.amount_refunded.is_some_and(|amount| amount.minor_units == 1900), "19.00 EUR are refunded");
    let ledger = charges(context, &billing, "inv-15");
    check!(ledger.iter().map(|charge| charge.amount_refunded).sum::<i64>() == 1900, "Stripe made one refund");
    Ok(())
}

pub(super) async fn dispute(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 16").await?;
    create_customer_with_method(context, &mut billing, "hooli", &["card"], DISPUTED_CARD).await?;
    create_payment(&mut billing, "hooli", "inv-16", 4900, "EUR").await?;
    billing.wait_for_event("payment.succeeded", "inv-16").await?;
    context.reporter.print("the cardholder disputes the charge, and the merchant loses");
    let event = billing.wait_for_event("payment.dispute_updated", "inv-16").await?;
    let Some(Object::Dispute(dispute)) = event.object else { anyhow::bail!("the event has another object") };
    check!(dispute.amount_cents == Some(4900), "the whole amount is disputed");
    // Paybridge does not answer disputes: that takes the Stripe Dashboard or Stripe's API.
    let answered = reqwest::Client::builder()
        .no_proxy()
        .build()?
        .post(format!("{}/v1/disputes/{}", context.environment.sandbox.url(), dispute.provider_dispute_id))
        .bearer_auth(&billing.key)
        .header("content-type", "application/x-www-form-urlencoded")
        .body("evidence[uncategorized_text]=losing_evidence")
        .send()
        .await?;
    check!(answered.status().is_success(), "Stripe accepts the evidence");
    billing.wait_for_event("invoice.payment_dispute_lost", "inv-16").await?;
    check!(billing.payment("inv-16").await?.state() == PaymentState::Succeeded, "the payment stays SUCCEEDED");
    Ok(())
}
