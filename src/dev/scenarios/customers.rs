//! Steps 2 to 6: customers, Checkout links, payment methods and the default.

use std::time::Instant;

use anyhow::{Context, Result};
use tonic::Code;

use super::client::{BillingClient, TIMEOUT, check, expect_error, wait_until};
use super::context::ScenarioContext;
use crate::grpc::proto::event::Object;
use crate::grpc::proto::{
    CreateCheckoutUrlRequest, CreateCustomerRequest, Customer, ListPaymentMethodsRequest, PaymentMethodKind,
    PaymentProviderCustomerCheckoutUrl, ProviderLinkState, create_checkout_url_request, list_payment_methods_request,
};

/// Translates Stripe's names of payment method kinds.
pub(super) fn kinds(names: &[&str]) -> Vec<i32> {
    names
        .iter()
        .map(|name| match *name {
            "sepa_debit" => PaymentMethodKind::SepaDebit.into(),
            _ => PaymentMethodKind::Card.into(),
        })
        .collect()
}

/// Creates a customer with `sync_with_provider`.
pub(super) async fn create_synced_customer(
    billing: &mut BillingClient,
    external_id: &str,
    allowed: &[&str],
) -> Result<Customer> {
    let request = CreateCustomerRequest {
        request_id: format!("customer-{external_id}"),
        external_id: external_id.to_owned(),
        name: "Hooli".to_owned(),
        email: "billing@hooli.test".to_owned(),
        sync_with_provider: true,
        provider_payment_methods: kinds(allowed),
        ..CreateCustomerRequest::default()
    };
    billing.api.customers.create_customer(request).await?.into_inner().customer.context("a customer")
}

/// Waits for the event that reports the customer's Checkout URL.
pub(super) async fn wait_for_checkout_url(
    billing: &mut BillingClient,
    external_id: &str,
) -> Result<PaymentProviderCustomerCheckoutUrl> {
    billing
        .wait_for("customer.checkout_url_generated", |event| match &event.object {
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

/// The id of the Checkout session of a URL.
pub(super) fn session_id(url: &str) -> Result<&str> {
    url.rsplit('/').next().filter(|id| id.starts_with("cs_")).context("the URL has no session id")
}

async fn wait_for_method_event(billing: &mut BillingClient, webhook_type: &str, method: &str) -> Result<()> {
    let what = format!("{webhook_type} of {method}");
    billing
        .wait_for(&what, |event| match &event.object {
            Some(Object::PaymentMethod(reported)) => {
                (event.webhook_type == webhook_type && reported.provider_method_id == method).then_some(())
            }
            _ => None,
        })
        .await
}

/// The Stripe ids of a customer's payment methods and of its default.
async fn methods(billing: &mut BillingClient, customer: &Customer) -> Result<(Vec<String>, Option<String>)> {
    let which = list_payment_methods_request::Customer::CustomerId(customer.id.clone());
    let request = ListPaymentMethodsRequest { customer: Some(which), ..ListPaymentMethodsRequest::default() };
    let found = billing.api.customers.list_payment_methods(request).await?.into_inner().payment_methods;
    let default = found.iter().find(|method| method.is_default);
    let default = default.map(|method| method.provider_payment_method_id.clone());
    Ok((found.into_iter().map(|method| method.provider_payment_method_id).collect(), default))
}

pub(super) async fn create(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 2").await?;
    let (reporter, sandbox) = (context.reporter, context.environment.sandbox.clone());

    reporter.print("without sync_with_provider the customer exists in Paybridge only");
    let plain = CreateCustomerRequest {
        request_id: "customer-plain".to_owned(),
        external_id: "plain".to_owned(),
        ..CreateCustomerRequest::default()
    };
    let plain = billing.api.customers.create_customer(plain).await?.into_inner().customer.context("a customer")?;
    check!(plain.provider_link_state() == ProviderLinkState::None, "it is not linked");

    reporter.print("with sync_with_provider it is created in Stripe, and its id is stored");
    create_synced_customer(&mut billing, "hooli", &["card"]).await?;
    billing
        .wait_for("customer.payment_provider_created", |event| {
            (event.webhook_type == "customer.payment_provider_created").then_some(())
        })
        .await?;
    let hooli = billing.customer("hooli").await?;
    let in_stripe = sandbox.object(&hooli.provider_customer_id).context("the customer exists in Stripe")?;
    check!(in_stripe["metadata"]["external_customer_id"] == "hooli", "Stripe's customer has our external id");
    let created = sandbox
        .requests()
        .into_iter()
        .filter(|request| request.method == "POST" && request.path == "/v1/customers")
        .filter(|request| request.account.as_deref() == Some(billing.account.as_str()))
        .count();
    check!(created == 1, "one customer was created in Stripe, not {created}");

    reporter.print("an error from Stripe is reported");
    let bad = CreateCustomerRequest {
        request_id: "customer-bad".to_owned(),
        external_id: "bad".to_owned(),
        email: "nobody@nowhere".to_owned(),
        sync_with_provider: true,
        ..CreateCustomerRequest::default()
    };
    billing.api.customers.create_customer(bad).await?;
    billing
        .wait_for("customer.payment_provider_error", |event| match &event.object {
            Some(Object::PaymentProviderCustomerError(error)) => (error.external_customer_id == "bad").then_some(()),
            _ => None,
        })
        .await?;
    let both = CreateCustomerRequest {
        request_id: "customer-both".to_owned(),
        external_id: "both".to_owned(),
        sync_with_provider: true,
        provider_customer_id: "cus_x".to_owned(),
        ..CreateCustomerRequest::default()
    };
    let response = billing.api.customers.create_customer(both).await;
    expect_error(response, Code::InvalidArgument, "INVALID_FIELDS")?;
    Ok(())
}

pub(super) async fn checkout_link(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 3").await?;
    let (reporter, sandbox, clock) =
        (context.reporter, context.environment.sandbox.clone(), context.environment.clock.clone());
    let customer = create_synced_customer(&mut billing, "hooli_1234", &["sepa_debit", "card"]).await?;
    let link = wait_for_checkout_url(&mut billing, "hooli_1234").await?;
    let expected = PaymentProviderCustomerCheckoutUrl {
        lago_customer_id: customer.id.clone(),
        external_customer_id: "hooli_1234".to_owned(),
        payment_provider: "stripe".to_owned(),
        payment_provider_code: "stripe".to_owned(),
        checkout_url: link.checkout_url.clone(),
    };
    check!(link == expected, "the payload is Lago's");

    reporter.print("the page offers only the allowed kinds");
    let page = reqwest::get(&link.checkout_url).await?.text().await?;
    check!(page.contains("IBAN"), "it accepts an IBAN");
    check!(page.to_lowercase().contains("card number"), "it accepts a card");
    create_synced_customer(&mut billing, "card-only", &["card"]).await?;
    let card_only = wait_for_checkout_url(&mut billing, "card-only").await?;
    check!(!reqwest::get(&card_only.checkout_url).await?.text().await?.contains("IBAN"), "it accepts no IBAN");

    reporter.print("the link expires after 24 hours, and a new one can be requested");
    clock.advance(time::Duration::hours(23));
    let session = session_id(&link.checkout_url)?;
    check!(sandbox.object(session).context("a session")?["status"] == "open", "it is open after 23 hours");
    clock.advance(time::Duration::hours(2));
    billing
        .wait_for("customer.checkout_url_expired", |event| match &event.object {
            Some(Object::PaymentProviderCustomerCheckoutUrl(expired)) if event.webhook_type.ends_with("_expired") => {
                (expired.checkout_url == link.checkout_url).then_some(())
            }
            _ => None,
        })
        .await?;
    let request = CreateCheckoutUrlRequest {
        request_id: "another-link".to_owned(),
        customer: Some(create_checkout_url_request::Customer::CustomerId(customer.id)),
        ..CreateCheckoutUrlRequest::default()
    };
    let new_link = billing.api.customers.create_checkout_url(request).await?.into_inner();
    check!(new_link.checkout_url != link.checkout_url, "the new link differs");
    check!(new_link.expire_time.is_some(), "the new link has an expiry time");
    Ok(())
}

pub(super) async fn complete_checkout(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 4").await?;
    let (reporter, sandbox) = (context.reporter, context.environment.sandbox.clone());
    create_synced_customer(&mut billing, "hooli", &["card"]).await?;
    let link = wait_for_checkout_url(&mut billing, "hooli").await?;
    reporter.print("the customer enters a card");
    sandbox.complete_session(session_id(&link.checkout_url)?, "4242424242424242", true)?;
    let stored = billing
        .wait_for("payment_method.set_as_default", |event| match &event.object {
            Some(Object::PaymentMethod(method)) => {
                (event.webhook_type == "payment_method.set_as_default").then(|| method.clone())
            }
            _ => None,
        })
        .await?;
    let customer = billing.customer("hooli").await?;
    check!(customer.default_payment_method_id == stored.lago_id, "the method is the default in Paybridge");
    wait_until("the method is the default in Stripe", || {
        let in_stripe = sandbox.object(&customer.provider_customer_id).unwrap_or_default();
        in_stripe["invoice_settings"]["default_payment_method"] == stored.provider_method_id.as_str()
    })
    .await?;
    let charges = sandbox.ledger().into_iter().filter(|entry| entry.account == billing.account).count();
    check!(charges == 0, "no money moved");
    Ok(())
}

pub(super) async fn link(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 5").await?;
    let (reporter, sandbox) = (context.reporter, context.environment.sandbox.clone());
    let existing = existing_customer(context, &billing).await?;
    let first = method_id(&sandbox.attach_in_dashboard(&existing, "pm_card_visa")?)?;
    let second = method_id(&sandbox.attach_in_dashboard(&existing, "pm_card_mastercard")?)?;
    sandbox.set_default_in_dashboard(&existing, Some(&first))?;

    reporter.print("the customer is linked by its id, and its payment methods and default are imported");
    let request = CreateCustomerRequest {
        request_id: "customer-old".to_owned(),
        external_id: "old".to_owned(),
        provider_customer_id: existing.clone(),
        ..CreateCustomerRequest::default()
    };
    billing.api.customers.create_customer(request).await?;
    let linked = billing
        .wait_for_customer("old", "is linked and has a default", |customer| {
            customer.provider_link_state() == ProviderLinkState::Linked
                && !customer.default_payment_method_id.is_empty()
        })
        .await?;
    // The webhooks may report the attachments one by one before the import.
    let mut expected = vec![first.clone(), second];
    expected.sort();
    let began = Instant::now();
    loop {
        let (mut found, default) = methods(&mut billing, &linked).await?;
        found.sort();
        if found == expected && default.as_ref() == Some(&first) {
            break;
        }
        check!(began.elapsed() < TIMEOUT, "both methods are imported, and Stripe's default is the default: {found:?}");
    }

    reporter.print("an unknown id is reported");
    let request = CreateCustomerRequest {
        request_id: "customer-wrong".to_owned(),
        external_id: "wrong".to_owned(),
        provider_customer_id: "cus_nobody".to_owned(),
        ..CreateCustomerRequest::default()
    };
    billing.api.customers.create_customer(request).await?;
    billing
        .wait_for("customer.payment_provider_error", |event| match &event.object {
            Some(Object::PaymentProviderCustomerError(error)) => (error.external_customer_id == "wrong").then_some(()),
            _ => None,
        })
        .await?;
    check!(billing.customer("wrong").await?.provider_link_state() == ProviderLinkState::Failed, "the link failed");
    Ok(())
}

/// Creates a customer directly in Stripe.
async fn existing_customer(context: &ScenarioContext, billing: &BillingClient) -> Result<String> {
    let created = reqwest::Client::builder()
        .no_proxy()
        .build()?
        .post(format!("{}/v1/customers", context.environment.sandbox.url()))
        .bearer_auth(&billing.key)
        .header("content-type", "application/x-www-form-urlencoded")
        .body("name=Old")
        .send()
        .await?
        .text()
        .await?;
    let created: serde_json::Value = serde_json::from_str(&created)?;
    Ok(created["id"].as_str().context("the sandbox created no customer")?.to_owned())
}

fn method_id(method: &serde_json::Value) -> Result<String> {
    Ok(method["id"].as_str().context("the sandbox attached no method")?.to_owned())
}

pub(super) async fn follow_default(context: &mut ScenarioContext) -> Result<()> {
    let (mut billing, _) = BillingClient::connected(context, "step 6").await?;
    let (reporter, sandbox, clock) =
        (context.reporter, context.environment.sandbox.clone(), context.environment.clock.clone());
    create_synced_customer(&mut billing, "hooli", &["card"]).await?;
    wait_for_checkout_url(&mut billing, "hooli").await?;
    let provider_id = billing.customer("hooli").await?.provider_customer_id;

    reporter.print("a method added in Stripe becomes the default");
    let first = method_id(&sandbox.attach_in_dashboard(&provider_id, "pm_card_visa")?)?;
    wait_for_method_event(&mut billing, "payment_method.set_as_default", &first).await?;
    clock.advance(time::Duration::minutes(1));
    let second = method_id(&sandbox.attach_in_dashboard(&provider_id, "pm_card_mastercard")?)?;
    wait_for_method_event(&mut billing, "payment_method.set_as_default", &second).await?;
    wait_until("the new default is set in Stripe", || {
        let in_stripe = sandbox.object(&provider_id).unwrap_or_default();
        in_stripe["invoice_settings"]["default_payment_method"] == second.as_str()
    })
    .await?;

    reporter.print("a default chosen in the Stripe Dashboard is followed");
    clock.advance(time::Duration::minutes(1));
    sandbox.set_default_in_dashboard(&provider_id, Some(&first))?;
    let customer = loop {
        let customer = billing.customer("hooli").await?;
        if methods(&mut billing, &customer).await?.1.as_ref() == Some(&first) {
            break customer;
        }
    };

    reporter.print("a detached method is dropped");
    sandbox.detach_in_dashboard(&first)?;
    wait_for_method_event(&mut billing, "payment_method.detached", &first).await?;
    let (left, default) = methods(&mut billing, &customer).await?;
    check!(left == [second.clone()], "one method is left");
    check!(default == Some(second), "it is the default again");
    Ok(())
}
