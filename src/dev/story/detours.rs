//! Steps 12 to 16: invoices that are paid another way, and money that goes back.

use anyhow::{Context, Result};

use super::Scenery;
use super::client::{Player, hold};
use super::customers::session_of;
use super::payments::{charges, ready_customer, start_payment, successes};
use crate::grpc::proto::event::Object;
use crate::grpc::proto::{
    CreatePaymentUrlRequest, Event, Integration, Money, PaymentState, RecordManualPaymentRequest, RefundPaymentRequest,
    UpdateIntegrationRequest,
};

/// Stripe's test cards: one that pays, one that is stored and declines every charge, one whose bank wants to see its
/// holder, and one whose holder disputes.
const GOOD: &str = "4242424242424242";
const DECLINES: &str = "4000000000000341";
const WANTS_HOLDER: &str = "4000002760003184";
const DISPUTES: &str = "4000000000000259";

pub(super) async fn payment_link(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 12").await?;
    ready_customer(scenery, &mut player, "hooli", &["card"], DECLINES).await?;
    let payment = start_payment(&mut player, "hooli", "inv-12", 4900, "EUR").await?;
    player.told("invoice.payment_failure", "inv-12").await?;
    let declined = player.payment("inv-12").await?.provider_payment_intent_id;
    scenery.narrator.say("the card was declined, and the customer gets a link to pay this invoice");
    let request = CreatePaymentUrlRequest {
        id: payment.id,
        request_id: "link-12".to_owned(),
        ..CreatePaymentUrlRequest::default()
    };
    let answer = player.api.payments.create_payment_url(request).await?.into_inner();
    let open = answer.payment.context("a payment")?;
    hold!(open.state() == PaymentState::RequiresAction, "it waits for the customer");
    let declined = scenery.stage.sandbox.object(&declined);
    hold!(declined.is_some_and(|intent| intent["status"] == "canceled"), "nothing else can collect it meanwhile");
    scenery.narrator.say("the customer pays on Stripe's page");
    scenery.stage.sandbox.complete_session(session_of(&answer.payment_url)?, GOOD, true)?;
    player.told("payment.succeeded", "inv-12").await?;
    hold!(successes(&charges(scenery, &player, "inv-12")) == 1, "one charge took money");
    Ok(())
}

pub(super) async fn three_d_secure(scenery: &mut Scenery) -> Result<()> {
    let (mut player, integration) = Player::connected(scenery, "step 13").await?;
    let integration = Integration { id: integration.id, supports_3ds: true, ..Integration::default() };
    let request = UpdateIntegrationRequest { integration: Some(integration), update_mask: None };
    player.api.integrations.update_integration(request).await?;
    ready_customer(scenery, &mut player, "hooli", &["card"], WANTS_HOLDER).await?;
    start_payment(&mut player, "hooli", "inv-13", 4900, "EUR").await?;
    player.told("payment.requires_action", "inv-13").await?;
    let waiting = player.payment("inv-13").await?;
    hold!(!waiting.next_action_url.is_empty(), "there is a page to lead the customer to");
    scenery.narrator.say("the customer opens the page and confirms");
    scenery.stage.sandbox.authenticate(&waiting.provider_payment_intent_id, true)?;
    player.told("payment.succeeded", "inv-13").await?;
    let paid = player.payment("inv-13").await?;
    hold!(paid.provider_payment_intent_id == waiting.provider_payment_intent_id, "on the same PaymentIntent");
    hold!(successes(&charges(scenery, &player, "inv-13")) == 1, "one charge took money");
    Ok(())
}

pub(super) async fn paid_elsewhere(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 14").await?;
    ready_customer(scenery, &mut player, "hooli", &["card"], DECLINES).await?;
    let payment = start_payment(&mut player, "hooli", "inv-14", 4900, "EUR").await?;
    player.told("invoice.payment_failure", "inv-14").await?;
    let declined = player.payment("inv-14").await?.provider_payment_intent_id;
    scenery.narrator.say("a bank transfer comes in, and is recorded");
    let request = RecordManualPaymentRequest {
        id: payment.id,
        request_id: "manual-14".to_owned(),
        reference: "bank transfer 4711".to_owned(),
        paid_time: None,
    };
    player.api.payments.record_manual_payment(request).await?;
    player.told("payment.succeeded", "inv-14").await?;
    let paid = player.payment("inv-14").await?;
    hold!(paid.state() == PaymentState::Succeeded, "it is SUCCEEDED");
    let declined = scenery.stage.sandbox.object(&declined);
    hold!(declined.is_some_and(|intent| intent["status"] == "canceled"), "and nothing can charge the card any more");
    hold!(successes(&charges(scenery, &player, "inv-14")) == 0, "nothing was charged");
    Ok(())
}

/// The status of a refund that an event tells of.
fn refund_status(event: &Event) -> Option<String> {
    match &event.object {
        Some(Object::Refund(refund)) => Some(refund.status.clone()),
        _ => None,
    }
}

pub(super) async fn refund(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 15").await?;
    ready_customer(scenery, &mut player, "hooli", &["card"], GOOD).await?;
    let payment = start_payment(&mut player, "hooli", "inv-15", 4900, "EUR").await?;
    player.told("payment.succeeded", "inv-15").await?;
    scenery.narrator.say("19.00 EUR go back, asked for twice");
    let request = RefundPaymentRequest {
        payment_id: payment.id,
        request_id: "refund-15".to_owned(),
        amount: Some(Money { minor_units: 1900, currency_code: "EUR".to_owned() }),
        ..RefundPaymentRequest::default()
    };
    player.api.payments.refund_payment(request.clone()).await?;
    player.api.payments.refund_payment(request).await?;
    let is_done = |event: &Event| refund_status(event).is_some_and(|status| status == "succeeded").then_some(());
    player.event("a refund that succeeded", is_done).await?;
    let refunded = player.payment("inv-15").await?;
    hold!(refunded.state() == PaymentState::Succeeded, "the payment stays SUCCEEDED");
    hold!(refunded.amount_refunded.is_some_and(|amount| amount.minor_units == 1900), "19.00 EUR went back");
    let ledger = charges(scenery, &player, "inv-15");
    hold!(ledger.iter().map(|charge| charge.amount_refunded).sum::<i64>() == 1900, "and at Stripe once");
    Ok(())
}

pub(super) async fn dispute(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 16").await?;
    ready_customer(scenery, &mut player, "hooli", &["card"], DISPUTES).await?;
    start_payment(&mut player, "hooli", "inv-16", 4900, "EUR").await?;
    player.told("payment.succeeded", "inv-16").await?;
    scenery.narrator.say("the card's holder disputes the charge, and the merchant has no evidence");
    let told = player.told("payment.dispute_updated", "inv-16").await?;
    let Some(Object::Dispute(dispute)) = told.object else { anyhow::bail!("the event holds another object") };
    hold!(dispute.amount_cents == Some(4900), "of the whole amount");
    // Only Stripe's dashboard, or its API, answers a dispute.
    let answered = reqwest::Client::builder()
        .no_proxy()
        .build()?
        .post(format!("{}/v1/disputes/{}", scenery.stage.sandbox.url(), dispute.provider_dispute_id))
        .bearer_auth(&player.key)
        .header("content-type", "application/x-www-form-urlencoded")
        .body("evidence[uncategorized_text]=losing_evidence")
        .send()
        .await?;
    hold!(answered.status().is_success(), "Stripe takes the evidence");
    player.told("invoice.payment_dispute_lost", "inv-16").await?;
    hold!(player.payment("inv-16").await?.state() == PaymentState::Succeeded, "the payment stays SUCCEEDED");
    Ok(())
}
