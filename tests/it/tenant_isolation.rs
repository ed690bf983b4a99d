//! P10 at the API: a resource of another organization gets the same error as one that does not exist.

#![expect(clippy::unwrap_used, reason = "test helpers may panic")]

use std::fmt::Debug;

use paybridge::dev::scenarios::{Api, BillingClient};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::create_customer_request::Integration as Through;
use paybridge::grpc::proto::create_payment_request::Customer as Payer;
use paybridge::grpc::proto::{
    CancelPaymentRequest, CheckIntegrationRequest, CreateCheckoutUrlRequest, CreateCustomerRequest,
    CreatePaymentRequest, CreatePaymentUrlRequest, CreateRefundRequest, Customer, DeleteCustomerRequest,
    DeleteIntegrationRequest, DeletePaymentMethodRequest, GetCustomerRequest, GetIntegrationRequest, GetPaymentRequest,
    GetRefundRequest, Integration, ListCustomersRequest, ListIntegrationsRequest, ListPaymentMethodsRequest,
    ListPaymentsRequest, ListRefundsRequest, Money, Payment, RecordManualPaymentRequest, RetryPaymentRequest,
    RotateIntegrationKeyRequest, SetDefaultPaymentMethodRequest, UpdateCustomerRequest, UpdateIntegrationRequest,
    UpdatePaymentRequest, cancel_payment_request, create_checkout_url_request, create_payment_url_request,
    create_refund_request, delete_customer_request, get_customer_request, get_payment_request,
    list_payment_methods_request, list_payments_request, list_refunds_request, record_manual_payment_request,
    retry_payment_request,
};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use crate::support::customers::{customer_with_method, local_customer};
use crate::support::errors::error_of;
use crate::support::payments::{invoice, pay};
use crate::support::{context, http};

/// The code and text of a not-found error, without the id in question.
fn not_found<T: Debug>(response: Result<Response<T>, Status>, id: &str) -> (Code, String) {
    let (code, message, details) = error_of(response);
    let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
    assert!(reason.ends_with("_NOT_FOUND"), "{reason}: {message}");
    assert!(details.resource_info().is_some(), "{reason} names what was not found");
    let mut metadata: Vec<_> = details.error_info().iter().flat_map(|info| info.metadata.clone()).collect();
    metadata.sort();
    let resource = details.resource_info();
    (code, format!("{reason} {message} {metadata:?} {resource:?}").replace(id, "<id>"))
}

/// The caller's own resources, for requests that also name a foreign one.
struct Own {
    customer: String,
    payment: String,
    key: String,
}

/// The resources that requests name.
struct Named {
    integration: String,
    code: String,
    customer: String,
    external_customer: String,
    method: String,
    payment: String,
    invoice: String,
    refund: String,
}

impl Named {
    /// Resources that do not exist.
    fn unknown() -> Self {
        let id = || Uuid::from_u128(u128::from(getrandom::u64().unwrap())).to_string();
        Self {
            integration: id(),
            code: "unknown-code".to_owned(),
            customer: id(),
            external_customer: "unknown-customer".to_owned(),
            method: id(),
            payment: id(),
            invoice: "unknown-invoice".to_owned(),
            refund: id(),
        }
    }
}

/// The errors of calls that name an integration.
async fn integration_errors(api: &mut Api, own: &Own, named: &Named) -> Vec<(Code, String)> {
    let id = || named.integration.clone();
    let changed = Integration { id: id(), name: "Mine now".to_owned(), ..Integration::default() };
    let update = UpdateIntegrationRequest { integration: Some(changed), update_mask: None };
    let rotate = RotateIntegrationKeyRequest { id: id(), secret_key: own.key.clone() };
    let mine = Customer { id: own.customer.clone(), integration_id: id(), ..Customer::default() };
    let through = |integration| CreateCustomerRequest {
        request_id: "newcomer".to_owned(),
        external_id: "newcomer".to_owned(),
        integration: Some(integration),
        ..CreateCustomerRequest::default()
    };
    let integrations = &mut api.integrations;
    vec![
        not_found(integrations.get_integration(GetIntegrationRequest { id: id() }).await, &id()),
        not_found(integrations.update_integration(update).await, &id()),
        not_found(integrations.rotate_integration_key(rotate).await, &id()),
        not_found(integrations.check_integration(CheckIntegrationRequest { id: id() }).await, &id()),
        not_found(integrations.delete_integration(DeleteIntegrationRequest { id: id(), force: true }).await, &id()),
        not_found(
            api.customers.update_customer(UpdateCustomerRequest { customer: Some(mine), update_mask: None }).await,
            &id(),
        ),
        not_found(api.customers.create_customer(through(Through::IntegrationId(id()))).await, &id()),
        not_found(
            api.customers.create_customer(through(Through::IntegrationCode(named.code.clone()))).await,
            &named.code,
        ),
    ]
}

/// The errors of calls that name a customer or its method.
async fn customer_errors(api: &mut Api, named: &Named) -> Vec<(Code, String)> {
    let id = || named.customer.clone();
    let get = |customer| GetCustomerRequest { customer: Some(customer) };
    let by_external_id = get_customer_request::Customer::ExternalId(named.external_customer.clone());
    let changed = Customer { id: id(), name: "Mine now".to_owned(), ..Customer::default() };
    let link = CreateCheckoutUrlRequest {
        request_id: "a-link".to_owned(),
        customer: Some(create_checkout_url_request::Customer::CustomerId(id())),
        ..CreateCheckoutUrlRequest::default()
    };
    let of = |customer| ListPaymentMethodsRequest { customer: Some(customer), ..ListPaymentMethodsRequest::default() };
    let (list, list_by_external_id) = {
        use list_payment_methods_request::Customer;
        (of(Customer::CustomerId(id())), of(Customer::ExternalCustomerId(named.external_customer.clone())))
    };
    let delete = |customer| DeleteCustomerRequest { customer: Some(customer) };
    let method = || named.method.clone();
    let customers = &mut api.customers;
    vec![
        not_found(customers.get_customer(get(get_customer_request::Customer::Id(id()))).await, &id()),
        not_found(customers.get_customer(get(by_external_id)).await, &named.external_customer),
        not_found(
            customers.update_customer(UpdateCustomerRequest { customer: Some(changed), update_mask: None }).await,
            &id(),
        ),
        not_found(customers.delete_customer(delete(delete_customer_request::Customer::Id(id()))).await, &id()),
        not_found(customers.create_checkout_url(link).await, &id()),
        not_found(customers.list_payment_methods(list).await, &id()),
        not_found(customers.list_payment_methods(list_by_external_id).await, &named.external_customer),
        not_found(
            customers.set_default_payment_method(SetDefaultPaymentMethodRequest { id: method() }).await,
            &method(),
        ),
        not_found(customers.delete_payment_method(DeletePaymentMethodRequest { id: method() }).await, &method()),
    ]
}

/// The errors of calls that name a payment or what belongs to it.
async fn payment_errors(api: &mut Api, own: &Own, named: &Named) -> Vec<(Code, String)> {
    let id = || named.payment.clone();
    let get = |payment| GetPaymentRequest { payment: Some(payment) };
    let retry = |id: String, method: String| RetryPaymentRequest {
        payment: Some(retry_payment_request::Payment::Id(id)),
        request_id: "a-retry".to_owned(),
        payment_method_id: method,
        force: false,
    };
    let refund = |payment| CreateRefundRequest {
        payment: Some(payment),
        request_id: "a-refund".to_owned(),
        ..CreateRefundRequest::default()
    };
    let change = |id: String| {
        let amount = Some(Money { minor_units: 100, currency_code: "EUR".to_owned() });
        UpdatePaymentRequest { payment: Some(Payment { id, amount, ..Payment::default() }), update_mask: None }
    };
    let link = |id: String| CreatePaymentUrlRequest {
        payment: Some(create_payment_url_request::Payment::Id(id)),
        request_id: "a-link".to_owned(),
        success_url: String::new(),
    };
    let manual = |id: String| RecordManualPaymentRequest {
        payment: Some(record_manual_payment_request::Payment::Id(id)),
        request_id: "a-transfer".to_owned(),
        reference: "a line".to_owned(),
        paid_time: None,
    };
    let cancel = |payment| CancelPaymentRequest { payment: Some(payment) };
    let refunds = ListRefundsRequest {
        payment: Some(list_refunds_request::Payment::PaymentId(id())),
        ..ListRefundsRequest::default()
    };
    let of = |customer| CreatePaymentRequest { customer: Some(customer), ..invoice("", "mine", 4900, "EUR") };
    let payments = &mut api.payments;
    vec![
        not_found(payments.get_payment(get(get_payment_request::Payment::Id(id()))).await, &id()),
        not_found(
            payments.get_payment(get(get_payment_request::Payment::InvoiceId(named.invoice.clone()))).await,
            &named.invoice,
        ),
        not_found(payments.cancel_payment(cancel(cancel_payment_request::Payment::Id(id()))).await, &id()),
        not_found(
            payments.cancel_payment(cancel(cancel_payment_request::Payment::InvoiceId(named.invoice.clone()))).await,
            &named.invoice,
        ),
        not_found(payments.retry_payment(retry(id(), String::new())).await, &id()),
        not_found(payments.update_payment(change(id())).await, &id()),
        not_found(payments.create_payment_url(link(id())).await, &id()),
        not_found(payments.record_manual_payment(manual(id())).await, &id()),
        not_found(payments.create_refund(refund(create_refund_request::Payment::PaymentId(id()))).await, &id()),
        not_found(
            payments.create_refund(refund(create_refund_request::Payment::InvoiceId(named.invoice.clone()))).await,
            &named.invoice,
        ),
        not_found(payments.get_refund(GetRefundRequest { id: named.refund.clone() }).await, &named.refund),
        not_found(payments.list_refunds(refunds).await, &id()),
        not_found(payments.retry_payment(retry(own.payment.clone(), named.method.clone())).await, &named.method),
        not_found(payments.create_payment(of(Payer::CustomerId(named.customer.clone()))).await, &named.customer),
        not_found(
            payments.create_payment(of(Payer::ExternalCustomerId(named.external_customer.clone()))).await,
            &named.external_customer,
        ),
    ]
}

/// All lists of an organization.
async fn all_lists(api: &mut Api, customer: &str) -> String {
    let integrations = api.integrations.list_integrations(ListIntegrationsRequest::default()).await;
    let customers = api.customers.list_customers(ListCustomersRequest::default()).await;
    let payments = api.payments.list_payments(ListPaymentsRequest::default()).await;
    let which = list_payment_methods_request::Customer::CustomerId(customer.to_owned());
    let list = ListPaymentMethodsRequest { customer: Some(which), ..ListPaymentMethodsRequest::default() };
    let methods = api.customers.list_payment_methods(list).await;
    format!(
        "{:?} {:?} {:?} {:?}",
        integrations.unwrap().into_inner(),
        customers.unwrap().into_inner(),
        payments.unwrap().into_inner(),
        methods.unwrap().into_inner()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_a_foreign_resource_gets_the_error_of_an_unknown_one() {
    let context = context(Options::default()).await;
    let (mut ours, integration) = BillingClient::connected(&context, "ours").await.unwrap();
    let own_customer = local_customer(&mut ours, "mine").await;
    pay(&mut ours, invoice("mine", "failed", 100, "EUR")).await.unwrap();
    ours.wait_for_event("invoice.payment_failure", "failed").await.unwrap();
    let own_payment = ours.payment("failed").await.unwrap().id;
    let own = Own { customer: own_customer.id, payment: own_payment, key: ours.key.clone() };

    let (mut theirs, their_integration) = BillingClient::connected(&context, "theirs").await.unwrap();
    let customer = customer_with_method(&context, &mut theirs, "their-customer", "4242424242424242").await;
    let payment = pay(&mut theirs, invoice("their-customer", "their-invoice", 4900, "EUR")).await.unwrap();
    theirs.wait_for_event("payment.succeeded", "their-invoice").await.unwrap();
    let back = CreateRefundRequest {
        payment: Some(create_refund_request::Payment::PaymentId(payment.id.clone())),
        request_id: "back".to_owned(),
        ..CreateRefundRequest::default()
    };
    let refund = theirs.api.payments.create_refund(back).await.unwrap().into_inner().refund.unwrap();
    theirs.wait_for_event("payment.refund_updated", "their-invoice").await.unwrap();
    let named = Named {
        integration: their_integration.id.clone(),
        code: their_integration.code.clone(),
        customer: customer.id.clone(),
        external_customer: customer.external_id.clone(),
        method: customer.default_payment_method_id.clone(),
        payment: payment.id,
        invoice: payment.invoice_id,
        refund: refund.id,
    };
    // Both integrations have the same code, so the foreign one cannot be named by it.
    let foreign = Named { code: "unknown-code".to_owned(), ..named };
    let before = all_lists(&mut theirs.api, &customer.id).await;

    let unknown = Named::unknown();
    let api = &mut ours.api;
    assert_eq!(integration_errors(api, &own, &foreign).await, integration_errors(api, &own, &unknown).await);
    assert_eq!(customer_errors(api, &foreign).await, customer_errors(api, &unknown).await);
    assert_eq!(payment_errors(api, &own, &foreign).await, payment_errors(api, &own, &unknown).await);
    for customer in [
        list_payments_request::Customer::CustomerId(customer.id.clone()),
        list_payments_request::Customer::ExternalCustomerId(customer.external_id.clone()),
        list_payments_request::Customer::CustomerId(unknown.customer.clone()),
        list_payments_request::Customer::ExternalCustomerId(unknown.external_customer.clone()),
    ] {
        let list = ListPaymentsRequest { customer: Some(customer), ..ListPaymentsRequest::default() };
        assert!(api.payments.list_payments(list).await.unwrap().into_inner().payments.is_empty());
    }
    let listed = all_lists(api, &own.customer).await;
    for secret in [&foreign.integration, &foreign.customer, &foreign.method, &foreign.payment, &foreign.invoice] {
        assert!(!listed.contains(secret.as_str()), "a list of ours holds {secret}");
    }
    assert_eq!(all_lists(&mut theirs.api, &customer.id).await, before, "nothing of theirs has changed");

    let post = async |organization: &str, integration: &str| {
        let base = &context.environment.servers[0].http;
        let url = format!("{base}/webhooks/stripe/{organization}/{integration}");
        let response = http().post(url).header("stripe-signature", "t=1,v1=00").body("{}").send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let mixed = post(&ours.organization, &foreign.integration).await;
    assert_eq!(mixed.0, 404);
    assert_eq!(mixed, post(&ours.organization, &unknown.integration).await);
    assert_eq!(post(&ours.organization, &integration.id).await.0, 400, "its own integration checks the signature");
    context.environment.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_a_token_grants_its_own_organization_and_a_page_token_its_own_list() {
    let context = context(Options::default()).await;
    let mut ours = BillingClient::create(&context, "ours").await.unwrap();
    let mut theirs = BillingClient::create(&context, "theirs").await.unwrap();
    for name in ["one", "two"] {
        local_customer(&mut ours, name).await;
        local_customer(&mut theirs, name).await;
    }
    let page = ListCustomersRequest { page_size: 1, page_token: String::new() };
    let token = theirs.api.customers.list_customers(page).await.unwrap().into_inner().next_page_token;
    assert!(!token.is_empty());
    let stolen = ListCustomersRequest { page_size: 1, page_token: token.clone() };
    let (code, _, details) = error_of(ours.api.customers.list_customers(stolen.clone()).await);
    assert_eq!(code, Code::InvalidArgument, "{details:?}");
    theirs.api.customers.list_customers(stolen).await.expect("it is theirs");

    // The organization in a token is not trusted: the whole token must be known.
    let secret = theirs.token.rsplit_once('_').unwrap().1;
    let forged = format!("pbt_{}_{secret}", ours.organization.replace('-', ""));
    for bad in [forged.as_str(), "pbt_x", "x", &ours.token[..ours.token.len() - 1]] {
        let mut api = Api::connect(&context.environment.servers[0].grpc, bad).await.unwrap();
        let (code, message, _) =
            error_of(api.customers.list_customers(Request::new(ListCustomersRequest::default())).await);
        assert_eq!(code, Code::Unauthenticated, "{message}");
        assert!(!message.contains(bad) || bad == "x", "a refused token is not repeated");
    }
    context.environment.shutdown().await;
}
