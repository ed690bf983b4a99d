//! `IntegrationService`: connects Stripe accounts. CreateIntegration, RotateIntegrationKey and CheckIntegration call
//! Stripe within the call.

use tonic::{Request, Response, Status};

use super::Api;
use super::convert::{Fields, integrations as convert};
use super::page_token::List;
use super::proto::integration_service_server::IntegrationService;
use super::proto::{
    CheckIntegrationRequest, CheckIntegrationResponse, CreateIntegrationRequest, CreateIntegrationResponse,
    DeleteIntegrationRequest, DeleteIntegrationResponse, GetIntegrationRequest, GetIntegrationResponse,
    ListIntegrationsRequest, ListIntegrationsResponse, RotateIntegrationKeyRequest, RotateIntegrationKeyResponse,
    UpdateIntegrationRequest, UpdateIntegrationResponse,
};
use crate::app::App;

type RpcResult<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl IntegrationService for Api {
    async fn create_integration(
        &self,
        request: Request<CreateIntegrationRequest>,
    ) -> RpcResult<CreateIntegrationResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let (request_id, new) = convert::new_integration(request)?;
        let operation = |app: App| async move { app.create_integration(organization, request_id, new).await };
        let (integration, findings) = self.run_to_completion(operation).await?;
        let findings = findings.into_iter().map(convert::finding).collect();
        let integration = Some(convert::integration(integration));
        Ok(Response::new(CreateIntegrationResponse { integration, findings }))
    }

    async fn get_integration(&self, request: Request<GetIntegrationRequest>) -> RpcResult<GetIntegrationResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let id = Fields::parse_one(|fields| fields.id("id", &request.id))?;
        let integration = Some(convert::integration(self.app.get_integration(organization, id).await?));
        Ok(Response::new(GetIntegrationResponse { integration }))
    }

    async fn list_integrations(
        &self,
        request: Request<ListIntegrationsRequest>,
    ) -> RpcResult<ListIntegrationsResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let size = Fields::parse_one(|fields| fields.page_size(request.page_size))?;
        let list = List::new(&self.options.page_token_key, "integrations", organization, &());
        let found = self.app.list_integrations(organization, list.page(size, &request.page_token)?).await?;
        let found = found.into_iter().map(|it| (it.id.0, convert::integration(it))).collect();
        let (integrations, next_page_token) = list.paginate(size, found);
        Ok(Response::new(ListIntegrationsResponse { integrations, next_page_token }))
    }

    async fn update_integration(
        &self,
        request: Request<UpdateIntegrationRequest>,
    ) -> RpcResult<UpdateIntegrationResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let (id, version, update) = convert::integration_update(&request)?;
        convert::check_immutable(&request, &self.app.get_integration(organization, id).await?)?;
        let operation = |app: App| async move { app.update_integration(organization, id, version, update).await };
        let integration = Some(convert::integration(self.run_to_completion(operation).await?));
        Ok(Response::new(UpdateIntegrationResponse { integration }))
    }

    async fn rotate_integration_key(
        &self,
        request: Request<RotateIntegrationKeyRequest>,
    ) -> RpcResult<RotateIntegrationKeyResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let (id, key) = convert::new_key(request)?;
        let operation = |app: App| async move { app.rotate_integration_key(organization, id, key).await };
        let (integration, findings) = self.run_to_completion(operation).await?;
        let findings = findings.into_iter().map(convert::finding).collect();
        let integration = Some(convert::integration(integration));
        Ok(Response::new(RotateIntegrationKeyResponse { integration, findings }))
    }

    async fn check_integration(
        &self,
        request: Request<CheckIntegrationRequest>,
    ) -> RpcResult<CheckIntegrationResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let id = Fields::parse_one(|fields| fields.id("id", &request.id))?;
        let operation = |app: App| async move { app.check_integration(organization, id).await };
        let (integration, findings) = self.run_to_completion(operation).await?;
        let findings = findings.into_iter().map(convert::finding).collect();
        let integration = Some(convert::integration(integration));
        Ok(Response::new(CheckIntegrationResponse { findings, integration }))
    }

    async fn delete_integration(
        &self,
        request: Request<DeleteIntegrationRequest>,
    ) -> RpcResult<DeleteIntegrationResponse> {
        let (organization, request) = self.authenticate(request).await?;
        let id = Fields::parse_one(|fields| fields.id("id", &request.id))?;
        let operation = |app: App| async move { app.delete_integration(organization, id, request.force).await };
        let integration = Some(convert::integration(self.run_to_completion(operation).await?));
        Ok(Response::new(DeleteIntegrationResponse { integration }))
    }
}
