//! Steps 1 and 18: connecting and disconnecting.

use anyhow::{Context, Result};
use tonic::Code;

use super::Scenery;
use super::client::{Player, hold, refused, until};
use super::payments::{ready_customer, start_payment};
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

pub(super) async fn connect(scenery: &mut Scenery) -> Result<()> {
    let mut player = Player::enter(scenery, "step 1").await?;
    let (narrator, sandbox) = (scenery.narrator, scenery.stage.sandbox.clone());

    narrator.say("a wrong key, a publishable key and a restricted key without a permission are refused");
    let answer = player.api.integrations.create_integration(request("wrong", "sk_test_wrong")).await;
    refused(answer, Code::FailedPrecondition, "KEY_REJECTED")?;
    let answer = player.api.integrations.create_integration(request("public", "pk_test_wrong")).await;
    refused(answer, Code::FailedPrecondition, "KEY_NOT_SECRET")?;
    let without_payments: Vec<&str> =
        SCOPES.iter().map(|scope| scope.permission).filter(|name| *name != "rak_payment_intent_write").collect();
    sandbox.add_key("rk_test_narrow", &player.account, Some(&without_payments));
    let answer = player.api.integrations.create_integration(request("narrow", "rk_test_narrow")).await;
    let status = refused(answer, Code::FailedPrecondition, "KEY_LACKS_PERMISSION")?;
    hold!(status.message().contains("PaymentIntents: Write"), "the refusal names the missing permission");

    narrator.say("a good one is connected, and a webhook endpoint registered");
    let integration = player.connect_stripe().await?;
    hold!(integration.state() == IntegrationState::Active, "the integration is active");
    hold!(integration.provider_account_id == player.account, "it knows its account");
    hold!(!format!("{integration:?}").contains(&player.key), "the answer does not hold the key");
    let endpoint = sandbox.object(&integration.provider_webhook_endpoint_id).context("the endpoint is at Stripe")?;
    hold!(endpoint["status"] == "enabled", "the endpoint is enabled");
    hold!(endpoint["metadata"]["integration_id"] == integration.id.as_str(), "the endpoint names the integration");
    player
        .event("payment_provider.connected", |event| (event.webhook_type == "payment_provider.connected").then_some(()))
        .await?;
    let checked = player.api.integrations.check_integration(CheckIntegrationRequest { id: integration.id.clone() });
    let findings = checked.await?.into_inner().findings;
    hold!(!findings.is_empty(), "the check finds something");
    hold!(findings.iter().all(|finding| finding.state() == IntegrationFindingState::Ok), "all is well");
    Ok(())
}

pub(super) async fn disconnect(scenery: &mut Scenery) -> Result<()> {
    let (mut player, integration) = Player::connected(scenery, "step 18").await?;
    let (narrator, sandbox, clock) = (scenery.narrator, scenery.stage.sandbox.clone(), scenery.stage.clock.clone());
    ready_customer(scenery, &mut player, "leaving", &["sepa_debit"], "pm_success_de").await?;
    start_payment(&mut player, "leaving", "inv-18", 4900, "EUR").await?;
    player.told("payment.processing", "inv-18").await?;

    narrator.say("the integration is asked to go, with a debit in flight: it waits");
    let ask = DeleteIntegrationRequest { id: integration.id.clone(), force: false };
    let going = player.api.integrations.delete_integration(ask).await?.into_inner().integration;
    hold!(going.context("an integration")?.state() == IntegrationState::Disconnecting, "it is disconnecting");
    let endpoint = integration.provider_webhook_endpoint_id.clone();
    hold!(sandbox.object(&endpoint).is_some(), "the endpoint is still there");
    let refused_payment = start_payment(&mut player, "leaving", "inv-18-late", 100, "EUR").await;
    hold!(refused_payment.is_err(), "new payments are refused");

    narrator.say("days pass, the bank pays, and only then it goes");
    until("the debit is pending at the bank", || {
        sandbox.ledger().iter().any(|entry| entry.account == player.account && entry.status == "pending")
    })
    .await?;
    clock.advance(time::Duration::days(6));
    player.told("payment.succeeded", "inv-18").await?;
    clock.advance(time::Duration::minutes(2));
    player
        .event("payment_provider.disconnected", |event| {
            (event.webhook_type == "payment_provider.disconnected").then_some(())
        })
        .await?;
    until("the endpoint is gone at Stripe", || sandbox.object(&endpoint).is_none()).await?;
    let read = player.api.integrations.get_integration(GetIntegrationRequest { id: integration.id });
    let gone = read.await?.into_inner().integration.context("history stays")?;
    hold!(gone.state() == IntegrationState::Disconnected, "it is disconnected");
    hold!(player.payment("inv-18").await?.state() == PaymentState::Succeeded, "the payment is history");
    Ok(())
}
