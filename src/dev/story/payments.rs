//! Steps 7 to 11: collecting invoices.

use anyhow::{Context, Result};
use tonic::{Code, Status};

use super::Scenery;
use super::client::{Player, hold, refused, until};
use super::customers::{session_of, synced_customer, told_link};
use crate::dev::sandbox::LedgerEntry;
use crate::grpc::proto::create_payment_request::Customer;
use crate::grpc::proto::event::Object;
use crate::grpc::proto::{
    CreatePaymentRequest, Money, Payment, PaymentPendingReason, PaymentState, RetryPaymentRequest,
};

/// A customer that is linked, with a payment method stored through its Checkout page.
pub(super) async fn ready_customer(
    scenery: &Scenery,
    player: &mut Player,
    external_id: &str,
    allowed: &[&str],
    method: &str,
) -> Result<()> {
    synced_customer(player, external_id, allowed).await?;
    let link = told_link(player, external_id).await?;
    scenery.stage.sandbox.complete_session(session_of(&link.checkout_url)?, method, true)?;
    player
        .customer_when(external_id, "has a default method", |customer| !customer.default_payment_method_id.is_empty())
        .await?;
    Ok(())
}

/// Gives an invoice in.
pub(super) async fn start_payment(
    player: &mut Player,
    external_customer_id: &str,
    invoice: &str,
    minor_units: i64,
    currency: &str,
) -> Result<Payment, Status> {
    let request = CreatePaymentRequest {
        request_id: format!("pay-{invoice}"),
        invoice_id: invoice.to_owned(),
        invoice_number: invoice.to_uppercase(),
        customer: Some(Customer::ExternalCustomerId(external_customer_id.to_owned())),
        amount: Some(Money { minor_units, currency_code: currency.to_owned() }),
    };
    let answer = player.api.payments.create_payment(request).await?.into_inner();
    answer.payment.ok_or_else(|| Status::internal("the answer holds no payment"))
}

/// The charges of the player's account for an invoice.
pub(super) fn charges(scenery: &Scenery, player: &Player, invoice: &str) -> Vec<LedgerEntry> {
    let mut ledger = scenery.stage.sandbox.ledger();
    ledger.retain(|entry| {
        entry.account == player.account && entry.metadata.get("invoice_id").is_some_and(|id| id == invoice)
    });
    ledger
}

pub(super) fn successes(entries: &[LedgerEntry]) -> usize {
    entries.iter().filter(|entry| entry.status == "succeeded").count()
}

pub(super) async fn charge_once(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 7").await?;
    ready_customer(scenery, &mut player, "hooli", &["card"], "4242424242424242").await?;
    let accepted = start_payment(&mut player, "hooli", "inv-7", 4900, "EUR").await?;
    hold!(accepted.state() == PaymentState::Pending, "it is accepted as PENDING");
    player.told("payment.succeeded", "inv-7").await?;
    player.told("invoice.payment_status_updated", "inv-7").await?;
    let paid = player.payment("inv-7").await?;
    hold!(paid.state() == PaymentState::Succeeded, "it is SUCCEEDED");

    scenery.narrator.say("the same request again, the same invoice again, ten of them at once");
    let again = start_payment(&mut player, "hooli", "inv-7", 4900, "EUR").await?;
    hold!(again.id == paid.id, "the same request names the same payment");
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..10 {
        let mut api = player.api.clone();
        racers.spawn(async move {
            let request = CreatePaymentRequest {
                request_id: format!("race-{racer}"),
                invoice_id: "inv-7-race".to_owned(),
                customer: Some(Customer::ExternalCustomerId("hooli".to_owned())),
                amount: Some(Money { minor_units: 4900, currency_code: "EUR".to_owned() }),
                ..CreatePaymentRequest::default()
            };
            api.payments.create_payment(request).await
        });
    }
    let mut ids = std::collections::BTreeSet::new();
    while let Some(answer) = racers.join_next().await {
        ids.insert(answer??.into_inner().payment.context("a payment")?.id);
    }
    hold!(ids.len() == 1, "all ten name one payment");
    player.told("payment.succeeded", "inv-7-race").await?;
    for invoice in ["inv-7", "inv-7-race"] {
        let entries = charges(scenery, &player, invoice);
        hold!(entries.len() == 1, "one charge for {invoice}, not {}", entries.len());
        hold!(entries[0].amount == 4900 && entries[0].currency == "eur", "of 49.00 EUR");
        hold!(player.count("payment.succeeded", invoice).await? == 1, "told once");
    }
    let other = CreatePaymentRequest {
        request_id: "other-amount".to_owned(),
        invoice_id: "inv-7".to_owned(),
        customer: Some(Customer::ExternalCustomerId("hooli".to_owned())),
        amount: Some(Money { minor_units: 5000, currency_code: "EUR".to_owned() }),
        ..CreatePaymentRequest::default()
    };
    let answer = player.api.payments.create_payment(other).await;
    hold!(matches!(&answer, Err(status) if status.code() == Code::AlreadyExists), "another amount is refused");
    Ok(())
}

pub(super) async fn decline_and_retry(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 8").await?;
    // A card that can be stored, and declines every charge.
    ready_customer(scenery, &mut player, "hooli", &["card"], "4000000000000341").await?;
    start_payment(&mut player, "hooli", "inv-8", 4900, "EUR").await?;
    let told = player.told("invoice.payment_failure", "inv-8").await?;
    let Some(Object::PaymentProviderInvoicePaymentError(failure)) = told.object else {
        anyhow::bail!("the failure holds another object");
    };
    hold!(failure.provider_error.context("an error")?.error_code == "card_declined", "told with its code");
    hold!(failure.decline_code.is_some(), "and its decline code");
    hold!(failure.advice_code.is_some(), "and its advice");
    let failed = player.payment("inv-8").await?;
    hold!(failed.state() == PaymentState::Failed, "it is FAILED");
    let declined = failed.failure.clone().context("a failure")?;
    hold!(!declined.decline_code.is_empty() && !declined.advice_code.is_empty(), "the payment knows why");

    scenery.narrator.say("the customer adds a good card, and the payment is retried");
    let provider_id = player.customer("hooli").await?.provider_customer_id;
    scenery.stage.clock.advance(time::Duration::minutes(1));
    scenery.stage.sandbox.attach_by_hand(&provider_id, "pm_card_visa")?;
    let bad = player.customer("hooli").await?.default_payment_method_id;
    player.customer_when("hooli", "has another default", |customer| customer.default_payment_method_id != bad).await?;
    let retry = RetryPaymentRequest {
        id: failed.id.clone(),
        request_id: "retry-8".to_owned(),
        ..RetryPaymentRequest::default()
    };
    player.api.payments.retry_payment(retry).await?;
    player.told("payment.succeeded", "inv-8").await?;
    let paid = player.payment("inv-8").await?;
    hold!(paid.provider_payment_intent_id == failed.provider_payment_intent_id, "on the same PaymentIntent");
    hold!(paid.attempts.len() == 2, "with two attempts");
    hold!(successes(&charges(scenery, &player, "inv-8")) == 1, "one charge took money");
    hold!(player.count("invoice.payment_failure", "inv-8").await? == 1, "one refusal is told once");
    Ok(())
}

pub(super) async fn sepa(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 9").await?;
    let (narrator, clock) = (scenery.narrator, scenery.stage.clock.clone());
    ready_customer(scenery, &mut player, "good", &["sepa_debit"], "pm_success_de").await?;
    ready_customer(scenery, &mut player, "broke", &["sepa_debit"], "DE62370400440532013001").await?;
    start_payment(&mut player, "good", "inv-9", 4900, "EUR").await?;
    start_payment(&mut player, "broke", "inv-9-broke", 4900, "EUR").await?;
    player.told("payment.processing", "inv-9").await?;
    player.told("payment.processing", "inv-9-broke").await?;
    until("both debits are at the bank", || {
        ["inv-9", "inv-9-broke"]
            .iter()
            .all(|invoice| charges(scenery, &player, invoice).iter().any(|entry| entry.status == "pending"))
    })
    .await?;
    hold!(player.payment("inv-9").await?.state() == PaymentState::Processing, "it is PROCESSING");

    narrator.say("days pass");
    clock.advance(time::Duration::days(6));
    player.told("payment.succeeded", "inv-9").await?;
    player.told("invoice.payment_failure", "inv-9-broke").await?;
    player.told("invoice.payment_status_updated", "inv-9-broke").await?;
    hold!(player.payment("inv-9-broke").await?.state() == PaymentState::Failed, "the other one is FAILED");

    narrator.say("dollars can't be debited");
    let answer = start_payment(&mut player, "good", "inv-9-usd", 4900, "USD").await;
    refused(answer, Code::FailedPrecondition, "CURRENCY_NOT_SUPPORTED")?;
    hold!(player.payment("inv-9-usd").await.is_err(), "nothing is stored");
    hold!(charges(scenery, &player, "inv-9-usd").is_empty(), "nothing reached Stripe");
    Ok(())
}

pub(super) async fn small_amounts(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 10").await?;
    ready_customer(scenery, &mut player, "hooli", &["card"], "4242424242424242").await?;
    start_payment(&mut player, "hooli", "inv-10-zero", 0, "EUR").await?;
    player.told("payment.succeeded", "inv-10-zero").await?;
    hold!(charges(scenery, &player, "inv-10-zero").is_empty(), "nothing reached Stripe");
    let answer = start_payment(&mut player, "hooli", "inv-10-negative", -1, "EUR").await;
    refused(answer, Code::InvalidArgument, "INVALID_FIELDS")?;
    start_payment(&mut player, "hooli", "inv-10-small", 10, "EUR").await?;
    player.told("payment.pending", "inv-10-small").await?;
    let small = player.payment("inv-10-small").await?;
    hold!(small.state() == PaymentState::Pending, "too little is PENDING");
    hold!(small.pending_reason() == PaymentPendingReason::AmountTooSmall, "with amount_too_small");
    hold!(charges(scenery, &player, "inv-10-small").is_empty(), "nothing was charged");
    Ok(())
}

pub(super) async fn no_method(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 11").await?;
    synced_customer(&mut player, "hooli", &["card"]).await?;
    let link = told_link(&mut player, "hooli").await?;
    start_payment(&mut player, "hooli", "inv-11", 4900, "EUR").await?;
    player.told("invoice.payment_failure", "inv-11").await?;
    let failed = player.payment("inv-11").await?;
    hold!(failed.state() == PaymentState::Failed, "it is FAILED");
    hold!(failed.failure.context("a failure")?.code == "no_payment_method", "for want of a method");

    scenery.narrator.say("a method arrives, and the payment is tried again by itself");
    scenery.stage.sandbox.complete_session(session_of(&link.checkout_url)?, "4242424242424242", true)?;
    player.told("payment.succeeded", "inv-11").await?;
    let paid = player.payment("inv-11").await?;
    hold!(paid.attempts.len() == 1, "one attempt");
    hold!(charges(scenery, &player, "inv-11").len() == 1, "one charge");
    Ok(())
}
