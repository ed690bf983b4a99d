//! Requests that name a payment or a customer by the billing system's id, and updates, which cannot change such an id.

use paybridge::grpc::proto::{
    CancelPaymentRequest, CreatePaymentUrlRequest, CreateRefundRequest, Customer, Integration,
    ListPaymentMethodsRequest, ListPaymentsRequest, Money, Payment, PaymentState, RecordManualPaymentRequest,
    UpdateCustomerRequest, UpdateIntegrationRequest, UpdatePaymentRequest, cancel_payment_request,
    create_payment_url_request, create_refund_request, list_payment_methods_request, list_payments_request,
    record_manual_payment_request,
};
use prost_types::FieldMask;
use tonic::Code;

use crate::support::customers::GOOD_CARD;
use crate::support::errors::{expect_error, violations};
use crate::support::payments::declined_payment;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_is_named_by_its_invoice_and_both_names_make_the_same_request() {
    let (mut harness, failed) = declined_payment("invoices").await;
    let mut api = harness.billing.api.payments.clone();
    let link = |payment| CreatePaymentUrlRequest {
        payment: Some(payment),
        request_id: "link".to_owned(),
        ..CreatePaymentUrlRequest::default()
    };
    let by_invoice = link(create_payment_url_request::Payment::InvoiceId("inv".to_owned()));
    let first = api.create_payment_url(by_invoice).await.expect("a link").into_inner();
    let by_id = link(create_payment_url_request::Payment::Id(failed.id.clone()));
    let again = api.create_payment_url(by_id).await.expect("the same link").into_inner();
    assert!(!first.payment_url.is_empty());
    assert_eq!(first.payment_url, again.payment_url);

    let amount = Some(Money { minor_units: 4000, currency_code: "EUR".to_owned() });
    let changed = Payment { invoice_id: "inv".to_owned(), amount: amount.clone(), ..Payment::default() };
    let update = UpdatePaymentRequest { payment: Some(changed), update_mask: None };
    api.update_payment(update).await.expect("the change is accepted");
    harness.payment_when("inv", "has the new amount", |payment| payment.amount == amount).await;
    let manual = RecordManualPaymentRequest {
        payment: Some(record_manual_payment_request::Payment::InvoiceId("inv".to_owned())),
        request_id: "manual".to_owned(),
        reference: "bank transfer 4711".to_owned(),
        paid_time: None,
    };
    api.record_manual_payment(manual).await.expect("it is recorded");
    harness.payment_in("inv", PaymentState::Succeeded).await;

    harness.customer("gavin", GOOD_CARD).await;
    let charged = harness.pay("gavin", "charged").await;
    harness.payment_in("charged", PaymentState::Succeeded).await;
    let back = |payment| CreateRefundRequest {
        payment: Some(payment),
        request_id: "back".to_owned(),
        ..CreateRefundRequest::default()
    };
    let by_invoice = back(create_refund_request::Payment::InvoiceId("charged".to_owned()));
    let first = api.create_refund(by_invoice).await.expect("a refund").into_inner().refund.expect("a refund");
    let by_id = back(create_refund_request::Payment::PaymentId(charged.id));
    let again = api.create_refund(by_id).await.expect("the same refund").into_inner().refund.expect("a refund");
    assert_eq!(first.id, again.id);

    let unknown = cancel_payment_request::Payment::InvoiceId("nobody's".to_owned());
    let refused = api.cancel_payment(CancelPaymentRequest { payment: Some(unknown) }).await;
    let (_, details) = expect_error(refused, Code::NotFound, "PAYMENT_NOT_FOUND");
    assert_eq!(details.error_info().expect("an ErrorInfo").metadata["subject"], "payment/nobody's");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_customer_is_named_by_its_external_id() {
    let (harness, failed) = declined_payment("customers").await;
    let mut api = harness.billing.api.clone();
    let list = |customer| ListPaymentsRequest { customer: Some(customer), ..ListPaymentsRequest::default() };
    for (customer, expected) in [
        (list_payments_request::Customer::CustomerId(failed.customer_id.clone()), vec![failed.id.as_str()]),
        (list_payments_request::Customer::ExternalCustomerId("hooli".to_owned()), vec![failed.id.as_str()]),
        (list_payments_request::Customer::ExternalCustomerId("nobody".to_owned()), vec![]),
    ] {
        let page = api.payments.list_payments(list(customer)).await.expect("a page").into_inner();
        assert_eq!(page.payments.iter().map(|payment| payment.id.as_str()).collect::<Vec<_>>(), expected);
        assert!(page.payments.iter().all(|payment| payment.external_customer_id == "hooli"));
    }
    let methods = |customer| ListPaymentMethodsRequest { customer: Some(customer), ..Default::default() };
    let by_id = methods(list_payment_methods_request::Customer::CustomerId(failed.customer_id));
    let by_external_id = methods(list_payment_methods_request::Customer::ExternalCustomerId("hooli".to_owned()));
    let by_id = api.customers.list_payment_methods(by_id).await.expect("a page").into_inner();
    let by_external_id = api.customers.list_payment_methods(by_external_id).await.expect("a page").into_inner();
    assert_eq!(by_id, by_external_id);
    assert_eq!(by_id.payment_methods.len(), 1);

    let changed = Customer { external_id: "hooli".to_owned(), name: "Hooli XYZ".to_owned(), ..Customer::default() };
    let update = UpdateCustomerRequest { customer: Some(changed), update_mask: None };
    let updated = api.customers.update_customer(update).await.expect("it is changed").into_inner();
    assert_eq!(updated.customer.expect("a customer").name, "Hooli XYZ");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_changes_an_immutable_field_is_refused_and_names_it() {
    let (mut harness, _) = declined_payment("immutable").await;
    harness.quiesce().await;
    let payment = harness.payment("inv").await;
    let mut api = harness.billing.api.clone();
    let customer = harness.billing.customer("hooli").await.expect("a customer");
    let other = Customer { external_id: "initech".to_owned(), name: "Initech".to_owned(), ..customer.clone() };
    for update_mask in [None, Some(FieldMask { paths: vec!["*".to_owned()] })] {
        let update = UpdateCustomerRequest { customer: Some(other.clone()), update_mask };
        assert_eq!(violations(api.customers.update_customer(update).await), ["customer.external_id"]);
    }
    assert_eq!(harness.billing.customer("hooli").await.expect("a customer"), customer, "it is unchanged");
    let only_name = Some(FieldMask { paths: vec!["name".to_owned()] });
    let update = UpdateCustomerRequest { customer: Some(other), update_mask: only_name };
    api.customers.update_customer(update).await.expect("the mask leaves the immutable field out");

    let amount = Some(Money { minor_units: 4000, currency_code: "EUR".to_owned() });
    let other = Payment {
        invoice_number: "another".to_owned(),
        external_customer_id: "initech".to_owned(),
        amount: amount.clone(),
        ..payment.clone()
    };
    let update = UpdatePaymentRequest { payment: Some(other), update_mask: None };
    let named = violations(api.payments.update_payment(update).await);
    assert_eq!(named, ["payment.invoice_number", "payment.external_customer_id"]);
    assert_eq!(harness.payment("inv").await, payment, "it is unchanged");
    let same = UpdatePaymentRequest { payment: Some(Payment { amount, ..payment }), update_mask: None };
    api.payments.update_payment(same).await.expect("its own values are accepted");

    let other = Integration { code: "another".to_owned(), name: "Other".to_owned(), ..harness.integration.clone() };
    let update = UpdateIntegrationRequest { integration: Some(other), update_mask: None };
    assert_eq!(violations(api.integrations.update_integration(update).await), ["integration.code"]);
    harness.shutdown().await;
}
