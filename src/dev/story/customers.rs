//! Steps 2 to 6: customers, links to Checkout, payment methods and the default.

use std::time::Instant;

use anyhow::{Context, Result};
use tonic::Code;

use super::Scenery;
use super::client::{PATIENCE, Player, hold, refused, until};
use crate::grpc::proto::event::Object;
use crate::grpc::proto::{
    CreateCheckoutUrlRequest, CreateCustomerRequest, Customer, ListPaymentMethodsRequest, PaymentMethodKind,
    PaymentProviderCustomerCheckoutUrl, ProviderLinkState,
};

/// The kinds by Stripe's names.
pub(super) fn kinds(names: &[&str]) -> Vec<i32> {
    names
        .iter()
        .map(|name| match *name {
            "sepa_debit" => PaymentMethodKind::SepaDebit.into(),
            _ => PaymentMethodKind::Card.into(),
        })
        .collect()
}

/// Makes a customer that is to be created in Stripe.
pub(super) async fn synced_customer(player: &mut Player, external_id: &str, allowed: &[&str]) -> Result<Customer> {
    let request = CreateCustomerRequest {
        request_id: format!("customer-{external_id}"),
        external_id: external_id.to_owned(),
        name: "Hooli".to_owned(),
        email: "billing@hooli.test".to_owned(),
        sync_with_provider: true,
        provider_payment_methods: kinds(allowed),
        ..CreateCustomerRequest::default()
    };
    player.api.customers.create_customer(request).await?.into_inner().customer.context("a customer")
}

/// Waits for the link that is told by an event.
pub(super) async fn told_link(player: &mut Player, external_id: &str) -> Result<PaymentProviderCustomerCheckoutUrl> {
    player
        .event("customer.checkout_url_generated", |event| match &event.object {
            Some(Object::PaymentProviderCustomerCheckoutUrl(link))
                if event.webhook_type == "customer.checkout_url_generated"
                    && link.external_customer_id == external_id =>
            {
                Some(link.clone())
            }
            _ => None,
        })
        .await
}

/// The id of the session that a link leads to.
pub(super) fn session_of(url: &str) -> Result<&str> {
    url.rsplit('/').next().filter(|id| id.starts_with("cs_")).context("the link leads to no session")
}

async fn method_told(player: &mut Player, webhook_type: &str, method: &str) -> Result<()> {
    let what = format!("{webhook_type} of {method}");
    player
        .event(&what, |event| match &event.object {
            Some(Object::PaymentMethod(told)) => {
                (event.webhook_type == webhook_type && told.provider_method_id == method).then_some(())
            }
            _ => None,
        })
        .await
}

/// The Stripe ids of a customer's methods, and which of them is the default.
async fn methods(player: &mut Player, customer: &Customer) -> Result<(Vec<String>, Option<String>)> {
    let request =
        ListPaymentMethodsRequest { customer_id: customer.id.clone(), ..ListPaymentMethodsRequest::default() };
    let found = player.api.customers.list_payment_methods(request).await?.into_inner().payment_methods;
    let default = found.iter().find(|method| method.is_default);
    let default = default.map(|method| method.provider_payment_method_id.clone());
    Ok((found.into_iter().map(|method| method.provider_payment_method_id).collect(), default))
}

pub(super) async fn create(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 2").await?;
    let (narrator, sandbox) = (scenery.narrator, scenery.stage.sandbox.clone());

    narrator.say("without the option the customer lives here only");
    let plain = CreateCustomerRequest { external_id: "plain".to_owned(), ..CreateCustomerRequest::default() };
    let plain = player.api.customers.create_customer(plain).await?.into_inner().customer.context("a customer")?;
    hold!(plain.provider_link_state() == ProviderLinkState::None, "it is not linked");

    narrator.say("with sync_with_provider it is created in Stripe, and its id comes back");
    synced_customer(&mut player, "hooli", &["card"]).await?;
    player
        .event("customer.payment_provider_created", |event| {
            (event.webhook_type == "customer.payment_provider_created").then_some(())
        })
        .await?;
    let hooli = player.customer("hooli").await?;
    let there = sandbox.object(&hooli.provider_customer_id).context("the customer is at Stripe")?;
    hold!(there["metadata"]["external_customer_id"] == "hooli", "Stripe's customer names ours");
    let created = sandbox
        .requests()
        .into_iter()
        .filter(|request| request.method == "POST" && request.path == "/v1/customers")
        .filter(|request| request.account.as_deref() == Some(player.account.as_str()))
        .count();
    hold!(created == 1, "one customer was created in Stripe, not {created}");

    narrator.say("what Stripe refuses is told");
    let bad = CreateCustomerRequest {
        external_id: "bad".to_owned(),
        email: "nobody@nowhere".to_owned(),
        sync_with_provider: true,
        ..CreateCustomerRequest::default()
    };
    player.api.customers.create_customer(bad).await?;
    player
        .event("customer.payment_provider_error", |event| match &event.object {
            Some(Object::PaymentProviderCustomerError(told)) => (told.external_customer_id == "bad").then_some(()),
            _ => None,
        })
        .await?;
    let both = CreateCustomerRequest {
        external_id: "both".to_owned(),
        sync_with_provider: true,
        provider_customer_id: "cus_x".to_owned(),
        ..CreateCustomerRequest::default()
    };
    let answer = player.api.customers.create_customer(both).await;
    refused(answer, Code::InvalidArgument, "INVALID_FIELDS")?;
    Ok(())
}

pub(super) async fn checkout_link(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 3").await?;
    let (narrator, sandbox, clock) = (scenery.narrator, scenery.stage.sandbox.clone(), scenery.stage.clock.clone());
    let customer = synced_customer(&mut player, "hooli_1234", &["sepa_debit", "card"]).await?;
    let link = told_link(&mut player, "hooli_1234").await?;
    let expected = PaymentProviderCustomerCheckoutUrl {
        lago_customer_id: customer.id.clone(),
        external_customer_id: "hooli_1234".to_owned(),
        payment_provider: "stripe".to_owned(),
        payment_provider_code: "stripe".to_owned(),
        checkout_url: link.checkout_url.clone(),
    };
    hold!(link == expected, "the payload is Lago's");

    narrator.say("the page offers the allowed kinds only");
    let page = reqwest::get(&link.checkout_url).await?.text().await?;
    hold!(page.contains("IBAN"), "it takes an IBAN");
    hold!(page.to_lowercase().contains("card number"), "it takes a card");
    synced_customer(&mut player, "card-only", &["card"]).await?;
    let card_only = told_link(&mut player, "card-only").await?;
    hold!(!reqwest::get(&card_only.checkout_url).await?.text().await?.contains("IBAN"), "it takes no IBAN");

    narrator.say("it ends after 24 hours, and a new one can be asked for");
    clock.advance(time::Duration::hours(23));
    let session = session_of(&link.checkout_url)?;
    hold!(sandbox.object(session).context("a session")?["status"] == "open", "it is open after 23 hours");
    clock.advance(time::Duration::hours(2));
    player
        .event("customer.checkout_url_expired", |event| match &event.object {
            Some(Object::PaymentProviderCustomerCheckoutUrl(ended)) if event.webhook_type.ends_with("_expired") => {
                (ended.checkout_url == link.checkout_url).then_some(())
            }
            _ => None,
        })
        .await?;
    let ask = CreateCheckoutUrlRequest { customer_id: customer.id, ..CreateCheckoutUrlRequest::default() };
    let anew = player.api.customers.create_checkout_url(ask).await?.into_inner();
    hold!(anew.checkout_url != link.checkout_url, "the new link is another one");
    hold!(anew.expire_time.is_some(), "the new link says when it ends");
    Ok(())
}

pub(super) async fn complete_checkout(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 4").await?;
    let (narrator, sandbox) = (scenery.narrator, scenery.stage.sandbox.clone());
    synced_customer(&mut player, "hooli", &["card"]).await?;
    let link = told_link(&mut player, "hooli").await?;
    narrator.say("the customer gives a card");
    sandbox.complete_session(session_of(&link.checkout_url)?, "4242424242424242", true)?;
    let stored = player
        .event("payment_method.set_as_default", |event| match &event.object {
            Some(Object::PaymentMethod(method)) => {
                (event.webhook_type == "payment_method.set_as_default").then(|| method.clone())
            }
            _ => None,
        })
        .await?;
    let customer = player.customer("hooli").await?;
    hold!(customer.default_payment_method_id == stored.lago_id, "the method is the default here");
    until("the method is the default at Stripe", || {
        let there = sandbox.object(&customer.provider_customer_id).unwrap_or_default();
        there["invoice_settings"]["default_payment_method"] == stored.provider_method_id.as_str()
    })
    .await?;
    let charges = sandbox.ledger().into_iter().filter(|entry| entry.account == player.account).count();
    hold!(charges == 0, "no money moved");
    Ok(())
}

pub(super) async fn link(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 5").await?;
    let (narrator, sandbox) = (scenery.narrator, scenery.stage.sandbox.clone());
    let existing = existing_customer(scenery, &player).await?;
    let first = method_id(&sandbox.attach_by_hand(&existing, "pm_card_visa")?)?;
    let second = method_id(&sandbox.attach_by_hand(&existing, "pm_card_mastercard")?)?;
    sandbox.set_default_by_hand(&existing, Some(&first))?;

    narrator.say("the customer is linked by its id, its methods are imported, its default followed");
    let request = CreateCustomerRequest {
        external_id: "old".to_owned(),
        provider_customer_id: existing.clone(),
        ..CreateCustomerRequest::default()
    };
    player.api.customers.create_customer(request).await?;
    let linked = player
        .customer_when("old", "is linked and has a default", |customer| {
            customer.provider_link_state() == ProviderLinkState::Linked
                && !customer.default_payment_method_id.is_empty()
        })
        .await?;
    // The webhooks of the attachments may come before the import, one method at a time.
    let mut expected = vec![first.clone(), second];
    expected.sort();
    let began = Instant::now();
    loop {
        let (mut found, default) = methods(&mut player, &linked).await?;
        found.sort();
        if found == expected && default.as_ref() == Some(&first) {
            break;
        }
        hold!(began.elapsed() < PATIENCE, "both methods are here, and Stripe's default is the default: {found:?}");
    }

    narrator.say("a wrong id is told");
    let request = CreateCustomerRequest {
        external_id: "wrong".to_owned(),
        provider_customer_id: "cus_nobody".to_owned(),
        ..CreateCustomerRequest::default()
    };
    player.api.customers.create_customer(request).await?;
    player
        .event("customer.payment_provider_error", |event| match &event.object {
            Some(Object::PaymentProviderCustomerError(told)) => (told.external_customer_id == "wrong").then_some(()),
            _ => None,
        })
        .await?;
    hold!(player.customer("wrong").await?.provider_link_state() == ProviderLinkState::Failed, "the link failed");
    Ok(())
}

/// A customer that was made at Stripe by somebody else.
async fn existing_customer(scenery: &Scenery, player: &Player) -> Result<String> {
    let created = reqwest::Client::builder()
        .no_proxy()
        .build()?
        .post(format!("{}/v1/customers", scenery.stage.sandbox.url()))
        .bearer_auth(&player.key)
        .header("content-type", "application/x-www-form-urlencoded")
        .body("name=Old")
        .send()
        .await?
        .text()
        .await?;
    let created: serde_json::Value = serde_json::from_str(&created)?;
    Ok(created["id"].as_str().context("the sandbox made no customer")?.to_owned())
}

fn method_id(method: &serde_json::Value) -> Result<String> {
    Ok(method["id"].as_str().context("the sandbox attached no method")?.to_owned())
}

pub(super) async fn follow_default(scenery: &mut Scenery) -> Result<()> {
    let (mut player, _) = Player::connected(scenery, "step 6").await?;
    let (narrator, sandbox, clock) = (scenery.narrator, scenery.stage.sandbox.clone(), scenery.stage.clock.clone());
    synced_customer(&mut player, "hooli", &["card"]).await?;
    told_link(&mut player, "hooli").await?;
    let provider_id = player.customer("hooli").await?.provider_customer_id;

    narrator.say("a method added at Stripe becomes the default");
    let first = method_id(&sandbox.attach_by_hand(&provider_id, "pm_card_visa")?)?;
    method_told(&mut player, "payment_method.set_as_default", &first).await?;
    clock.advance(time::Duration::minutes(1));
    let second = method_id(&sandbox.attach_by_hand(&provider_id, "pm_card_mastercard")?)?;
    method_told(&mut player, "payment_method.set_as_default", &second).await?;
    until("the new default is Stripe's own", || {
        let there = sandbox.object(&provider_id).unwrap_or_default();
        there["invoice_settings"]["default_payment_method"] == second.as_str()
    })
    .await?;

    narrator.say("one chosen by hand at Stripe is followed");
    clock.advance(time::Duration::minutes(1));
    sandbox.set_default_by_hand(&provider_id, Some(&first))?;
    let customer = loop {
        let customer = player.customer("hooli").await?;
        if methods(&mut player, &customer).await?.1.as_ref() == Some(&first) {
            break customer;
        }
    };

    narrator.say("a detached one is dropped");
    sandbox.detach_by_hand(&first)?;
    method_told(&mut player, "payment_method.detached", &first).await?;
    let (left, default) = methods(&mut player, &customer).await?;
    hold!(left == [second.clone()], "one method is left");
    hold!(default == Some(second), "it is the default again");
    Ok(())
}
