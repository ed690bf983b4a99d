//! `IntegrationService`: connecting Stripe accounts. Creating, rotating and checking call Stripe within the call.

use tonic::{Request, Response, Status};

use super::Door;
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

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl IntegrationService for Door {
    async fn create_integration(
        &self,
        request: Request<CreateIntegrationRequest>,
    ) -> Answer<CreateIntegrationResponse> {
        let (organization, request) = self.admit(request).await?;
        let (request_id, new) = convert::new_integration(request)?;
        let work = |app: App| async move { app.create_integration(organization, request_id, new).await };
        let (integration, findings) = self.finish(work).await?;
        let findings = findings.into_iter().map(convert::finding).collect();
        let integration = Some(convert::integration(integration));
        Ok(Response::new(CreateIntegrationResponse { integration, findings }))
    }

    async fn get_integration(&self, request: Request<GetIntegrationRequest>) -> Answer<GetIntegrationResponse> {
        let (organization, request) = self.admit(request).await?;
        let id = Fields::only(|fields| fields.id("id", &request.id))?;
        let integration = Some(convert::integration(self.app.get_integration(organization, id).await?));
        Ok(Response::new(GetIntegrationResponse { integration }))
    }

    async fn list_integrations(&self, request: Request<ListIntegrationsRequest>) -> Answer<ListIntegrationsResponse> {
        let (organization, request) = self.admit(request).await?;
        let size = Fields::only(|fields| fields.page_size(request.page_size))?;
        let list = List::new(&self.options.page_token_key, "integrations", organization, &());
        let found = self.app.list_integrations(organization, list.page(size, &request.page_token)?).await?;
        let found = found.into_iter().map(|it| (it.id.0, convert::integration(it))).collect();
        let (integrations, next_page_token) = list.cut(size, found);
        Ok(Response::new(ListIntegrationsResponse { integrations, next_page_token }))
    }

    async fn update_integration(
        &self,
        request: Request<UpdateIntegrationRequest>,
    ) -> Answer<UpdateIntegrationResponse> {
        let (organization, request) = self.admit(request).await?;
        let (id, version, update) = convert::integration_update(request)?;
        let work = |app: App| async move { app.update_integration(organization, id, version, update).await };
        let integration = Some(convert::integration(self.finish(work).await?));
        Ok(Response::new(UpdateIntegrationResponse { integration }))
    }

    async fn rotate_integration_key(
        &self,
        request: Request<RotateIntegrationKeyRequest>,
    ) -> Answer<RotateIntegrationKeyResponse> {
        let (organization, request) = self.admit(request).await?;
        let (id, key) = convert::new_key(request)?;
        let work = |app: App| async move { app.rotate_integration_key(organization, id, key).await };
        let (integration, findings) = self.finish(work).await?;
        let findings = findings.into_iter().map(convert::finding).collect();
        let integration = Some(convert::integration(integration));
        Ok(Response::new(RotateIntegrationKeyResponse { integration, findings }))
    }

    async fn check_integration(&self, request: Request<CheckIntegrationRequest>) -> Answer<CheckIntegrationResponse> {
        let (organization, request) = self.admit(request).await?;
        let id = Fields::only(|fields| fields.id("id", &request.id))?;
        let work = |app: App| async move { app.check_integration(organization, id).await };
        let (integration, findings) = self.finish(work).await?;
        let findings = findings.into_iter().map(convert::finding).collect();
        let integration = Some(convert::integration(integration));
        Ok(Response::new(CheckIntegrationResponse { findings, integration }))
    }

    async fn delete_integration(
        &self,
        request: Request<DeleteIntegrationRequest>,
    ) -> Answer<DeleteIntegrationResponse> {
        let (organization, request) = self.admit(request).await?;
        let id = Fields::only(|fields| fields.id("id", &request.id))?;
        let work = |app: App| async move { app.delete_integration(organization, id, request.force).await };
        let integration = Some(convert::integration(self.finish(work).await?));
        Ok(Response::new(DeleteIntegrationResponse { integration }))
    }
}
