//! `PaymentService`: collects invoices. Jobs do the collecting; only CreatePaymentUrl calls Stripe within the call. A
//! declined card is not an error of a call: it is the payment's `failure`.

use tonic::{Request, Response, Status};

use super::Api;
use super::convert::customers::TEXT_LENGTH_MAX;
use super::convert::refunds::{self, RefundRequest};
use super::convert::{Fields, payments as convert, timestamp};
use super::page_token::List;
use super::proto::payment_service_server::PaymentService;
use super::proto::{
    CancelPaymentRequest, CancelPaymentResponse, CreatePaymentRequest, CreatePaymentResponse, CreatePaymentUrlRequest,
    CreatePaymentUrlResponse, CreateRefundRequest, CreateRefundResponse, GetPaymentRequest, GetPaymentResponse,
    GetRefundRequest, GetRefundResponse, ListPaymentsRequest, ListPaymentsResponse, ListRefundsRequest,
    ListRefundsResponse, RecordManualPaymentRequest, RecordManualPaymentResponse, RetryPaymentRequest,
    RetryPaymentResponse, UpdatePaymentRequest, UpdatePaymentResponse,
};
use crate::app::App;
use crate::domain::Error;
use crate::domain::refunds::NewRefund;

type RpcResult<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl PaymentService for Api {
    async fn create_payment(&self, request: Request<CreatePaymentRequest>) -> RpcResult<CreatePaymentResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let (request_id, new) = convert::new_payment(request)?;
        let operation = |app: App| async move { app.create_payment(organization, request_id, new).await };
        let payment = Some(convert::payment(self.run_to_completion(operation).await?, Vec::new()));
        Ok(Response::new(CreatePaymentResponse { payment }))
    }

    async fn get_payment(&self, request: Request<GetPaymentRequest>) -> RpcResult<GetPaymentResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let which = Fields::parse_one(|fields| fields.payment(request.payment))?;
        let (payment, attempts) = self.app.get_payment(organization, which).await?;
        Ok(Response::new(GetPaymentResponse { payment: Some(convert::payment(payment, attempts)) }))
    }

    async fn list_payments(&self, request: Request<ListPaymentsRequest>) -> RpcResult<ListPaymentsResponse> {
        let (organization, mut request) = self.authenticate(request).await?;
        let page_token = std::mem::take(&mut request.page_token);
        let page_size = std::mem::take(&mut request.page_size);
        let list = List::new(&self.options.page_token_key, "payments", organization, &request);
        let mut fields = Fields::default();
        let size = fields.page_size(page_size);
        let (customer, mut filter) = convert::filter(&mut fields, request);
        fields.check()?;
        if let Some(which) = customer {
            filter.customer_id = match self.app.customer_id(organization, which).await {
                Ok(id) => Some(id),
                // Nobody's payments, as with an id that does not exist.
                Err(Error::NotFound { .. }) => return Ok(Response::new(ListPaymentsResponse::default())),
                Err(error) => return Err(error.into()),
            };
        }
        let found = self.app.list_payments(organization, filter, list.page(size, &page_token)?).await?;
        let found = found.into_iter().map(|it| (it.id.0, convert::payment(it, Vec::new()))).collect();
        let (payments, next_page_token) = list.paginate(size, found);
        Ok(Response::new(ListPaymentsResponse { payments, next_page_token }))
    }

    async fn retry_payment(&self, request: Request<RetryPaymentRequest>) -> RpcResult<RetryPaymentResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let mut fields = Fields::default();
        let which = fields.payment(request.payment);
        let request_id = fields.request_id(request.request_id);
        let method = fields.optional_id("payment_method_id", &request.payment_method_id);
        fields.check()?;
        let force = request.force;
        let id = self.app.payment_id(organization, which).await?;
        let operation = |app: App| async move { app.retry_payment(organization, request_id, id, method, force).await };
        let payment = Some(convert::payment(self.run_to_completion(operation).await?, Vec::new()));
        Ok(Response::new(RetryPaymentResponse { payment }))
    }

    async fn cancel_payment(&self, request: Request<CancelPaymentRequest>) -> RpcResult<CancelPaymentResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let which = Fields::parse_one(|fields| fields.payment(request.payment))?;
        let id = self.app.payment_id(organization, which).await?;
        let operation = |app: App| async move { app.cancel_payment(organization, id).await };
        let payment = Some(convert::payment(self.run_to_completion(operation).await?, Vec::new()));
        Ok(Response::new(CancelPaymentResponse { payment }))
    }

    async fn update_payment(&self, request: Request<UpdatePaymentRequest>) -> RpcResult<UpdatePaymentResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let (which, version, amount) = convert::payment_update(&request)?;
        let (present, _) = self.app.get_payment(organization, which).await?;
        convert::check_immutable(&request, &present)?;
        let id = present.id;
        let operation = |app: App| async move { app.update_payment(organization, id, version, amount).await };
        let payment = Some(convert::payment(self.run_to_completion(operation).await?, Vec::new()));
        Ok(Response::new(UpdatePaymentResponse { payment }))
    }

    async fn create_payment_url(
        &self,
        request: Request<CreatePaymentUrlRequest>,
    ) -> RpcResult<CreatePaymentUrlResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let mut fields = Fields::default();
        let which = fields.payment(request.payment);
        let request_id = fields.request_id(request.request_id);
        let success_url = fields.optional_url("success_url", request.success_url);
        fields.check()?;
        let id = self.app.payment_id(organization, which).await?;
        let operation =
            |app: App| async move { app.create_payment_url(organization, request_id, id, success_url).await };
        let (payment, link) = self.run_to_completion(operation).await?;
        let link = link.unwrap_or_default();
        Ok(Response::new(CreatePaymentUrlResponse {
            payment_url: link.url.unwrap_or_default(),
            expire_time: link.expire_time.map(timestamp),
            payment: Some(convert::payment(payment, Vec::new())),
        }))
    }

    async fn record_manual_payment(
        &self,
        request: Request<RecordManualPaymentRequest>,
    ) -> RpcResult<RecordManualPaymentResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let mut fields = Fields::default();
        let which = fields.payment(request.payment);
        let request_id = fields.request_id(request.request_id);
        let reference = fields.required_text("reference", request.reference, TEXT_LENGTH_MAX);
        let paid_time = fields.optional_time("paid_time", request.paid_time);
        fields.check()?;
        let id = self.app.payment_id(organization, which).await?;
        let operation = |app: App| async move {
            app.record_manual_payment(organization, request_id, id, reference, paid_time).await
        };
        let payment = Some(convert::payment(self.run_to_completion(operation).await?, Vec::new()));
        Ok(Response::new(RecordManualPaymentResponse { payment }))
    }

    async fn create_refund(&self, request: Request<CreateRefundRequest>) -> RpcResult<CreateRefundResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let RefundRequest { request_id, payment, provider_charge_id, amount } = refunds::refund_request(request)?;
        let payment_id = self.app.payment_id(organization, payment).await?;
        let new = NewRefund { request_id, payment_id, provider_charge_id, amount };
        let operation = |app: App| async move { app.create_refund(organization, new).await };
        let refund = Some(refunds::refund(self.run_to_completion(operation).await?));
        Ok(Response::new(CreateRefundResponse { refund }))
    }

    async fn get_refund(&self, request: Request<GetRefundRequest>) -> RpcResult<GetRefundResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let id = Fields::parse_one(|fields| fields.id("id", &request.id))?;
        let refund = Some(refunds::refund(self.app.get_refund(organization, id).await?));
        Ok(Response::new(GetRefundResponse { refund }))
    }

    async fn list_refunds(&self, request: Request<ListRefundsRequest>) -> RpcResult<ListRefundsResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let mut fields = Fields::default();
        let size = fields.page_size(request.page_size);
        let which = fields.payment(request.payment);
        fields.check()?;
        let payment = self.app.payment_id(organization, which).await?;
        let list = List::new(&self.options.page_token_key, "refunds", organization, &payment.to_string());
        let found = self.app.list_refunds(organization, payment, list.page(size, &request.page_token)?).await?;
        let found = found.into_iter().map(|it| (it.id.0, refunds::refund(it))).collect();
        let (refunds, next_page_token) = list.paginate(size, found);
        Ok(Response::new(ListRefundsResponse { refunds, next_page_token }))
    }
}
