//! `CustomerService`: customers and their payment methods. Jobs make the changes at Stripe; only CreateCheckoutUrl
//! calls Stripe within the call.

use tonic::{Request, Response, Status};

use super::Api;
use super::convert::{self, Fields, customers, payment_methods};
use super::page_token::List;
use super::proto::customer_service_server::CustomerService;
use super::proto::{
    CreateCheckoutUrlRequest, CreateCheckoutUrlResponse, CreateCustomerRequest, CreateCustomerResponse,
    DeleteCustomerRequest, DeleteCustomerResponse, DeletePaymentMethodRequest, DeletePaymentMethodResponse,
    GetCustomerRequest, GetCustomerResponse, ListCustomersRequest, ListCustomersResponse, ListPaymentMethodsRequest,
    ListPaymentMethodsResponse, SetDefaultPaymentMethodRequest, SetDefaultPaymentMethodResponse, UpdateCustomerRequest,
    UpdateCustomerResponse,
};
use crate::app::App;

type RpcResult<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl CustomerService for Api {
    async fn create_customer(&self, request: Request<CreateCustomerRequest>) -> RpcResult<CreateCustomerResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let (request_id, new) = customers::new_customer(request)?;
        let operation = |app: App| async move { app.create_customer(organization, request_id, new).await };
        let customer = Some(customers::customer(self.run_to_completion(operation).await?));
        Ok(Response::new(CreateCustomerResponse { customer }))
    }

    async fn get_customer(&self, request: Request<GetCustomerRequest>) -> RpcResult<GetCustomerResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let which = Fields::parse_one(|fields| fields.customer(request.customer))?;
        let customer = Some(customers::customer(self.app.get_customer(organization, which).await?));
        Ok(Response::new(GetCustomerResponse { customer }))
    }

    async fn list_customers(&self, request: Request<ListCustomersRequest>) -> RpcResult<ListCustomersResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let size = Fields::parse_one(|fields| fields.page_size(request.page_size))?;
        let list = List::new(&self.options.page_token_key, "customers", organization, &());
        let found = self.app.list_customers(organization, list.page(size, &request.page_token)?).await?;
        let found = found.into_iter().map(|it| (it.id.0, customers::customer(it))).collect();
        let (customers, next_page_token) = list.paginate(size, found);
        Ok(Response::new(ListCustomersResponse { customers, next_page_token }))
    }

    async fn update_customer(&self, request: Request<UpdateCustomerRequest>) -> RpcResult<UpdateCustomerResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let (which, version, update) = customers::customer_update(&request)?;
        let present = self.app.get_customer(organization, which).await?;
        customers::check_immutable(&request, &present)?;
        let id = present.id;
        let operation = |app: App| async move { app.update_customer(organization, id, version, update).await };
        let customer = Some(customers::customer(self.run_to_completion(operation).await?));
        Ok(Response::new(UpdateCustomerResponse { customer }))
    }

    async fn delete_customer(&self, request: Request<DeleteCustomerRequest>) -> RpcResult<DeleteCustomerResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let which = Fields::parse_one(|fields| fields.customer(request.customer))?;
        let id = self.app.customer_id(organization, which).await?;
        self.run_to_completion(|app: App| async move { app.delete_customer(organization, id).await }).await?;
        Ok(Response::new(DeleteCustomerResponse {}))
    }

    async fn create_checkout_url(
        &self,
        request: Request<CreateCheckoutUrlRequest>,
    ) -> RpcResult<CreateCheckoutUrlResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let (request_id, which, success_url) = customers::checkout_url(request)?;
        let customer = self.app.customer_id(organization, which).await?;
        let operation =
            |app: App| async move { app.create_checkout_url(organization, request_id, customer, success_url).await };
        let session = self.run_to_completion(operation).await?;
        Ok(Response::new(CreateCheckoutUrlResponse {
            checkout_url: session.url.unwrap_or_default(),
            expire_time: session.expire_time.map(convert::timestamp),
            checkout_session_id: session.id.to_string(),
        }))
    }

    async fn list_payment_methods(
        &self,
        request: Request<ListPaymentMethodsRequest>,
    ) -> RpcResult<ListPaymentMethodsResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let mut fields = Fields::default();
        let which = fields.customer(request.customer);
        let size = fields.page_size(request.page_size);
        fields.check()?;
        let customer = self.app.customer_id(organization, which).await?;
        let list = List::new(&self.options.page_token_key, "payment_methods", organization, &customer.to_string());
        let page = list.page(size, &request.page_token)?;
        let (customer, found) = self.app.list_payment_methods(organization, customer, page).await?;
        let default = customer.default_payment_method_id;
        let found = found.into_iter().map(|it| (it.id.0, payment_methods::payment_method(it, default))).collect();
        let (payment_methods, next_page_token) = list.paginate(size, found);
        Ok(Response::new(ListPaymentMethodsResponse { payment_methods, next_page_token }))
    }

    async fn set_default_payment_method(
        &self,
        request: Request<SetDefaultPaymentMethodRequest>,
    ) -> RpcResult<SetDefaultPaymentMethodResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let id = Fields::parse_one(|fields| fields.id("id", &request.id))?;
        let operation = |app: App| async move { app.set_default_payment_method(organization, id).await };
        let method = self.run_to_completion(operation).await?;
        let payment_method = Some(payment_methods::payment_method(method, Some(id)));
        Ok(Response::new(SetDefaultPaymentMethodResponse { payment_method }))
    }

    async fn delete_payment_method(
        &self,
        request: Request<DeletePaymentMethodRequest>,
    ) -> RpcResult<DeletePaymentMethodResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let id = Fields::parse_one(|fields| fields.id("id", &request.id))?;
        let operation = |app: App| async move { app.delete_payment_method(organization, id).await };
        let method = self.run_to_completion(operation).await?;
        let payment_method = Some(payment_methods::payment_method(method, None));
        Ok(Response::new(DeletePaymentMethodResponse { payment_method }))
    }
}
