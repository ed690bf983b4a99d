//! Steps 1 and 18: connecting and disconnecting a Stripe account.

use anyhow::{Context, Result};
use tonic::Code;

use super::client::{BillingClient, check, expect_error, wait_until};
use super::context::ScenarioContext;
use super::payments::{create_customer_with_method, create_payment};
use crate::grpc::proto::{
    CheckIntegrationRequest, CreateIntegrationRequest, DeleteIntegrationRequest, GetIntegrationRequest,
    IntegrationFindingState, IntegrationState, PaymentState,
};
use crate::stripe::scopes::SCOPES;

fn request(code: &str, key: &str) -> CreateIntegrationRequest {
    CreateIntegrationRequest {
        request_id: format!("connect-{code}"),
        code: code.to_owned(),
        name: "Stripe".to_owned(),
        secret_key: key.to_owned(),
        ..CreateIntegrationRequest::default()
    }
}

pub(super) async fn connect(context: &mut ScenarioContext) -> Result<()> {
    let mut billing = BillingClient::create(context, "step 1").await?;
    let (reporter, sandbox) = (context.reporter, context.environment.sandbox.clone());

    reporter.print("a wrong key, a publishable key and a restricted key without a permission are refused");
    let response = billing.api.integrations.create_integration(request("wrong", "sk_test_wrong")).await;
    expect_error(response, Code::FailedPrecondition, "KEY_REJECTED")?;
    let response = billing.api.integrations.create_integration(request("public", "pk_test_wrong")).await;
    expect_error(response, Code::FailedPrecondition, "KEY_NOT_SECRET")?;
    let without_payments: Vec<&str> =
        SCOPES.iter().map(|scope| scope.permission).filter(|name| *name != "rak_payment_intent_write").collect();
    sandbox.add_key("rk_test_narrow", &billing.account, Some(&without_payments));
    let response = billing.api.integrations.create_integration(request("narrow", "rk_test_narrow")).await;
    let status = expect_error(response, Code::FailedPrecondition, "KEY_LACKS_PERMISSION")?;
    check!(status.message().contains("PaymentIntents: Write"), "the error names the missing permission");

    reporter.print("a valid key is accepted, and a webhook endpoint is registered");
    let integration = billing.connect_stripe().await?;
    check!(integration.state() == IntegrationState::Active, "the integration is active");
    check!(integration.provider_account_id == billing.account, "it has the account's id");
    check!(!format!("{integration:?}").contains(&billing.key), "the response does not contain the key");
    let endpoint =
        sandbox.object(&integration.provider_webhook_endpoint_id).context("the endpoint exists in Stripe")?;
    check!(endpoint["status"] == "enabled", "the endpoint is enabled");
    check!(endpoint["metadata"]["integration_id"] == integration.id.as_str(), "the endpoint names the integration");
    billing
        .wait_for("payment_provider.connected", |event| {
            (event.webhook_type == "payment_provider.connected").then_some(())
        })
        .await?;
    let checked = billing.api.integrations.check_integration(CheckIntegrationRequest { id: integration.id.clone() });
    let findings = checked.await?.into_inner().findings;
    check!(!findings.is_empty(), "the check returns findings");
    check!(findings.iter().all(|finding| finding.state() == IntegrationFindingState::Ok), "every finding is OK");
    Ok(())
}

pub(super) async fn disconnect(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, integration) = BillingClient::connected(context, "step 18").await?;
    let (reporter, sandbox, clock) =
        (context.reporter, context.environment.sandbox.clone(), context.environment.clock.clone());
    create_customer_with_method(context, &mut billing, "leaving", &["sepa_debit"], "pm_success_de").await?;
    create_payment(&mut billing, "leaving", "inv-18", 4900, "EUR").await?;
    billing.wait_for_event("payment.processing", "inv-18").await?;

    reporter.print("disconnecting is requested while a debit is in flight: the integration waits");
    let request = DeleteIntegrationRequest { id: integration.id.clone(), force: false };
    let disconnecting = billing.api.integrations.delete_integration(request).await?.into_inner().integration;
    check!(disconnecting.context("an integration")?.state() == IntegrationState::Disconnecting, "it is disconnecting");
    let endpoint = integration.provider_webhook_endpoint_id.clone();
    check!(sandbox.object(&endpoint).is_some(), "the endpoint still exists");
    let refused_payment = create_payment(&mut billing, "leaving", "inv-18-late", 100, "EUR").await;
    check!(refused_payment.is_err(), "new payments are refused");

    reporter.print("days pass, the bank pays, and only then the integration is disconnected");
    wait_until("the debit is pending at the bank", || {
        sandbox.ledger().iter().any(|entry| entry.account == billing.account && entry.status == "pending")
    })
    .await?;
    clock.advance(time::Duration::days(6));
    billing.wait_for_event("payment.succeeded", "inv-18").await?;
    clock.advance(time::Duration::minutes(2));
    billing
        .wait_for("payment_provider.disconnected", |event| {
            (event.webhook_type == "payment_provider.disconnected").then_some(())
        })
        .await?;
    wait_until("the endpoint is deleted in Stripe", || sandbox.object(&endpoint).is_none()).await?;
    let read = billing.api.integrations.get_integration(GetIntegrationRequest { id: integration.id });
    let disconnected = read.await?.into_inner().integration.context("the integration is still readable")?;
    check!(disconnected.state() == IntegrationState::Disconnected, "it is disconnected");
    check!(billing.payment("inv-18").await?.state() == PaymentState::Succeeded, "the payment is still readable");
    Ok(())
}
