//! Steps 7 to 11: collecting invoices.

use anyhow::{Context, Result};
use tonic::{Code, Status};

use super::client::{BillingClient, check, expect_error, wait_until};
use super::context::ScenarioContext;
use super::customers::{create_synced_customer, session_id, wait_for_checkout_url};
use crate::dev::sandbox::LedgerEntry;
use crate::grpc::proto::create_payment_request::Customer;
use crate::grpc::proto::event::Object;
use crate::grpc::proto::{
    CreatePaymentRequest, Money, Payment, PaymentPendingReason, PaymentState, RetryPaymentRequest,
    retry_payment_request,
};

/// Creates a customer in Stripe whose default payment method was stored through its Checkout page.
pub(super) async fn create_customer_with_method(
    context: &ScenarioContext,
    billing: &mut BillingClient,
    external_id: &str,
    allowed: &[&str],
    method: &str,
) -> Result<()> {
    create_synced_customer(billing, external_id, allowed).await?;
    let link = wait_for_checkout_url(billing, external_id).await?;
    context.environment.sandbox.complete_session(session_id(&link.checkout_url)?, method, true)?;
    billing
        .wait_for_customer(external_id, "has a default method", |customer| {
            !customer.default_payment_method_id.is_empty()
        })
        .await?;
    Ok(())
}

/// Requests the collection of an invoice.
pub(super) async fn create_payment(
    billing: &mut BillingClient,
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
    let response = billing.api.payments.create_payment(request).await?.into_inner();
    response.payment.ok_or_else(|| Status::internal("the response has no payment"))
}

/// The charges in the client's Stripe account for an invoice.
pub(super) fn charges(context: &ScenarioContext, billing: &BillingClient, invoice: &str) -> Vec<LedgerEntry> {
    let mut ledger = context.environment.sandbox.ledger();
    ledger.retain(|entry| {
        entry.account == billing.account && entry.metadata.get("invoice_id").is_some_and(|id| id == invoice)
    });
    ledger
}

pub(super) fn successes(entries: &[LedgerEntry]) -> usize {
    entries.iter().filter(|entry| entry.status == "succeeded").count()
}

pub(super) async fn charge_once(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 7").await?;
    create_customer_with_method(context, &mut billing, "hooli", &["card"], "4242424242424242").await?;
    let accepted = create_payment(&mut billing, "hooli", "inv-7", 4900, "EUR").await?;
    check!(accepted.state() == PaymentState::Pending, "it is accepted as PENDING");
    billing.wait_for_event("payment.succeeded", "inv-7").await?;
    billing.wait_for_event("invoice.payment_status_updated", "inv-7").await?;
    let paid = billing.payment("inv-7").await?;
    check!(paid.state() == PaymentState::Succeeded, "it is SUCCEEDED");

    context.reporter.print("the same request is repeated, then the same invoice is submitted ten times at once");
    let again = create_payment(&mut billing, "hooli", "inv-7", 4900, "EUR").await?;
    check!(again.id == paid.id, "the same request names the same payment");
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..10 {
        let mut api = billing.api.clone();
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
    while let Some(response) = racers.join_next().await {
        ids.insert(response??.into_inner().payment.context("a payment")?.id);
    }
    check!(ids.len() == 1, "all ten name one payment");
    billing.wait_for_event("payment.succeeded", "inv-7-race").await?;
    for invoice in ["inv-7", "inv-7-race"] {
        let entries = charges(context, &billing, invoice);
        check!(entries.len() == 1, "one charge for {invoice}, not {}", entries.len());
        check!(entries[0].amount == 4900 && entries[0].currency == "eur", "of 49.00 EUR");
        check!(billing.count_events("payment.succeeded", invoice).await? == 1, "and is reported once");
    }
    let other = CreatePaymentRequest {
        request_id: "other-amount".to_owned(),
        invoice_id: "inv-7".to_owned(),
        customer: Some(Customer::ExternalCustomerId("hooli".to_owned())),
        amount: Some(Money { minor_units: 5000, currency_code: "EUR".to_owned() }),
        ..CreatePaymentRequest::default()
    };
    let response = billing.api.payments.create_payment(other).await;
    check!(matches!(&response, Err(status) if status.code() == Code::AlreadyExists), "another amount is refused");
    Ok(())
}

pub(super) async fn decline_and_retry(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 8").await?;
    // A card that can be stored and declines every charge.
    create_customer_with_method(context, &mut billing, "hooli", &["card"], "4000000000000341").await?;
    create_payment(&mut billing, "hooli", "inv-8", 4900, "EUR").await?;
    let event = billing.wait_for_event("invoice.payment_failure", "inv-8").await?;
    let Some(Object::PaymentProviderInvoicePaymentError(failure)) = event.object else {
        anyhow::bail!("the event has another object");
    };
    check!(failure.provider_error.context("an error")?.error_code == "card_declined", "the event has the error code");
    check!(failure.decline_code.is_some(), "and the decline code");
    check!(failure.advice_code.is_some(), "and the advice code");
    let failed = billing.payment("inv-8").await?;
    check!(failed.state() == PaymentState::Failed, "it is FAILED");
    let declined = failed.failure.clone().context("a failure")?;
    check!(!declined.decline_code.is_empty() && !declined.advice_code.is_empty(), "the payment has both codes");

    context.reporter.print("the customer adds a good card and the payment is retried");
    let provider_id = billing.customer("hooli").await?.provider_customer_id;
    context.environment.clock.advance(time::Duration::minutes(1));
    context.environment.sandbox.attach_in_dashboard(&provider_id, "pm_card_visa")?;
    let bad = billing.customer("hooli").await?.default_payment_method_id;
    billing
        .wait_for_customer("hooli", "has another default", |customer| customer.default_payment_method_id != bad)
        .await?;
    let retry = RetryPaymentRequest {
        payment: Some(retry_payment_request::Payment::Id(failed.id.clone())),
        request_id: "retry-8".to_owned(),
        ..RetryPaymentRequest::default()
    };
    billing.api.payments.retry_payment(retry).await?;
    billing.wait_for_event("payment.succeeded", "inv-8").await?;
    let paid = billing.payment("inv-8").await?;
    check!(paid.provider_payment_intent_id == failed.provider_payment_intent_id, "on the same PaymentIntent");
    check!(paid.attempts.len() == 2, "with two attempts");
    check!(successes(&charges(context, &billing, "inv-8")) == 1, "one charge took money");
    check!(billing.count_events("invoice.payment_failure", "inv-8").await? == 1, "the decline is reported once");
    Ok(())
}

pub(super) async fn sepa(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 9").await?;
    let (reporter, clock) = (context.reporter, context.environment.clock.clone());
    create_customer_with_method(context, &mut billing, "good", &["sepa_debit"], "pm_success_de").await?;
    create_customer_with_method(context, &mut billing, "broke", &["sepa_debit"], "DE62370400440532013001").await?;
    create_payment(&mut billing, "good", "inv-9", 4900, "EUR").await?;
    create_payment(&mut billing, "broke", "inv-9-broke", 4900, "EUR").await?;
    billing.wait_for_event("payment.processing", "inv-9").await?;
    billing.wait_for_event("payment.processing", "inv-9-broke").await?;
    wait_until("both debits are pending at the bank", || {
        ["inv-9", "inv-9-broke"]
            .iter()
            .all(|invoice| charges(context, &billing, invoice).iter().any(|entry| entry.status == "pending"))
    })
    .await?;
    check!(billing.payment("inv-9").await?.state() == PaymentState::Processing, "it is PROCESSING");

    reporter.print("days pass");
    clock.advance(time::Duration::days(6));
    billing.wait_for_event("payment.succeeded", "inv-9").await?;
    billing.wait_for_event("invoice.payment_failure", "inv-9-broke").await?;
    billing.wait_for_event("invoice.payment_status_updated", "inv-9-broke").await?;
    check!(billing.payment("inv-9-broke").await?.state() == PaymentState::Failed, "the other payment is FAILED");

    reporter.print("a debit in US dollars is refused");
    let response = create_payment(&mut billing, "good", "inv-9-usd", 4900, "USD").await;
    expect_error(response, Code::FailedPrecondition, "CURRENCY_NOT_SUPPORTED")?;
    check!(billing.payment("inv-9-usd").await.is_err(), "nothing is stored");
    check!(charges(context, &billing, "inv-9-usd").is_empty(), "nothing reached Stripe");
    Ok(())
}

pub(super) async fn small_amounts(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 10").await?;
    create_customer_with_method(context, &mut billing, "hooli", &["card"], "4242424242424242").await?;
    create_payment(&mut billing, "hooli", "inv-10-zero", 0, "EUR").await?;
    billing.wait_for_event("payment.succeeded", "inv-10-zero").await?;
    check!(charges(context, &billing, "inv-10-zero").is_empty(), "nothing reached Stripe");
    let response = create_payment(&mut billing, "hooli", "inv-10-negative", -1, "EUR").await;
    expect_error(response, Code::InvalidArgument, "INVALID_FIELDS")?;
    create_payment(&mut billing, "hooli", "inv-10-small", 10, "EUR").await?;
    billing.wait_for_event("payment.pending", "inv-10-small").await?;
    let small = billing.payment("inv-10-small").await?;
    check!(small.state() == PaymentState::Pending, "a payment below the minimum is PENDING");
    check!(small.pending_reason() == PaymentPendingReason::AmountTooSmall, "with the reason AMOUNT_TOO_SMALL");
    check!(charges(context, &billing, "inv-10-small").is_empty(), "nothing was charged");
    Ok(())
}

pub(super) async fn no_method(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 11").await?;
    create_synced_customer(&mut billing, "hooli", &["card"]).await?;
    let link = wait_for_checkout_url(&mut billing, "hooli").await?;
    create_payment(&mut billing, "hooli", "inv-11", 4900, "EUR").await?;
    billing.wait_for_event("invoice.payment_failure", "inv-11").await?;
    let failed = billing.payment("inv-11").await?;
    check!(failed.state() == PaymentState::Failed, "it is FAILED");
    check!(failed.failure.context("a failure")?.code == "no_payment_method", "because there is no payment method");

    context.reporter.print("the customer adds a payment method, and the payment is retried automatically");
    context.environment.sandbox.complete_session(session_id(&link.checkout_url)?, "4242424242424242", true)?;
    billing.wait_for_event("payment.succeeded", "inv-11").await?;
    let paid = billing.payment("inv-11").await?;
    check!(paid.attempts.len() == 1, "one attempt");
    check!(charges(context, &billing, "inv-11").len() == 1, "one charge");
    Ok(())
}
