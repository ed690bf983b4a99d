//! Converts integrations.

use secrecy::SecretString;

use super::customers::TEXT_LENGTH_MAX;
use super::{Fields, etag, masked_fields, timestamp};
use crate::domain::integrations::{
    Finding, FindingState, FindingSubject, Integration, IntegrationState, IntegrationUpdate, NewIntegration,
};
use crate::domain::{IntegrationId, Result};
use crate::grpc::proto::{self, IntegrationFindingState, IntegrationFindingSubject};

/// The maximum length of a `code`.
const CODE_LENGTH_MAX: usize = 64;
/// Longer than any Stripe key.
const KEY_LENGTH_MAX: usize = 512;

/// Parses a CreateIntegrationRequest: the `request_id` and the integration.
pub(in crate::grpc) fn new_integration(request: proto::CreateIntegrationRequest) -> Result<(String, NewIntegration)> {
    let mut fields = Fields::default();
    let request_id = fields.request_id(request.request_id);
    let new = NewIntegration {
        code: fields.code(request.code),
        name: fields.required_text("name", request.name, TEXT_LENGTH_MAX),
        secret_key: fields.secret_key(request.secret_key),
        success_redirect_url: fields.optional_url("success_redirect_url", request.success_redirect_url),
        supports_3ds: request.supports_3ds,
        relay_provider_events: request.relay_provider_events,
    };
    fields.check()?;
    Ok((request_id, new))
}

/// Parses an UpdateIntegrationRequest: the integration, the expected version and the fields to set.
pub(in crate::grpc) fn integration_update(
    request: &proto::UpdateIntegrationRequest,
) -> Result<(IntegrationId, Option<i64>, IntegrationUpdate)> {
    let mut fields = Fields::default();
    let integration = request.integration.clone().unwrap_or_default();
    let id = fields.id("integration.id", &integration.id);
    let version = fields.optional_etag("integration.etag", &integration.etag);
    let known = [
        ("name", !integration.name.is_empty()),
        ("success_redirect_url", !integration.success_redirect_url.is_empty()),
        ("supports_3ds", integration.supports_3ds),
        ("relay_provider_events", integration.relay_provider_events),
    ];
    let set = masked_fields(&mut fields, request.update_mask.as_ref(), &known);
    let is_set = |name| set.contains(&name);
    let update = IntegrationUpdate {
        name: is_set("name").then(|| fields.required_text("integration.name", integration.name, TEXT_LENGTH_MAX)),
        success_redirect_url: is_set("success_redirect_url")
            .then(|| fields.optional_url("integration.success_redirect_url", integration.success_redirect_url)),
        supports_3ds: is_set("supports_3ds").then_some(integration.supports_3ds),
        relay_provider_events: is_set("relay_provider_events").then_some(integration.relay_provider_events),
    };
    fields.check()?;
    Ok((id, version, update))
}

/// Checks that an update does not change an immutable field.
pub(in crate::grpc) fn check_immutable(request: &proto::UpdateIntegrationRequest, present: &Integration) -> Result<()> {
    let code = request.integration.as_ref().map_or("", |integration| integration.code.as_str());
    super::check_immutable(request.update_mask.as_ref(), &[("integration.code", code, &present.code)])
}

/// Parses a RotateIntegrationKeyRequest: the integration and the new key.
pub(in crate::grpc) fn new_key(request: proto::RotateIntegrationKeyRequest) -> Result<(IntegrationId, SecretString)> {
    let mut fields = Fields::default();
    let id = fields.id("id", &request.id);
    let key = fields.secret_key(request.secret_key);
    fields.check()?;
    Ok((id, key))
}

impl Fields {
    fn code(&mut self, code: String) -> String {
        let is_plain = code.chars().all(|it| it.is_ascii_alphanumeric() || matches!(it, '_' | '-' | '.'));
        if code.is_empty() || code.len() > CODE_LENGTH_MAX || !is_plain {
            self.add_violation("code", format!("must have 1 to {CODE_LENGTH_MAX} characters of a-z A-Z 0-9 _ - ."));
        }
        code
    }

    /// Checks only the form, and never repeats the key in a violation (P9). `app` checks the kind of key, and whether
    /// Stripe accepts it.
    fn secret_key(&mut self, key: String) -> SecretString {
        if key.is_empty() {
            self.add_violation(
                "secret_key",
                "is required: a secret key (sk_…) or a restricted key (rk_…) of the account",
            );
        } else if key.len() > KEY_LENGTH_MAX || !key.chars().all(|it| it.is_ascii_graphic()) {
            self.add_violation(
                "secret_key",
                "is not a Stripe key: it is too long, or contains spaces or other invalid characters; copy it again",
            );
        }
        key.into()
    }
}

pub(in crate::grpc) fn integration(integration: Integration) -> proto::Integration {
    let state = state(&integration);
    proto::Integration {
        id: integration.id.to_string(),
        code: integration.code,
        name: integration.name,
        state: state.into(),
        catch_up_stage: integration.catch_up.map(|stage| stage.as_str().to_owned()).unwrap_or_default(),
        pause_reason: integration.pause_reason.unwrap_or_default(),
        livemode: integration.livemode,
        provider_account_id: integration.provider_account_id.unwrap_or_default(),
        secret_key_hint: integration.key_hint,
        provider_webhook_endpoint_id: integration.provider_endpoint_id.unwrap_or_default(),
        poll_provider_events: integration.polls_events,
        success_redirect_url: integration.success_redirect_url.unwrap_or_default(),
        supports_3ds: integration.supports_3ds,
        relay_provider_events: integration.relay_provider_events,
        etag: etag(integration.version),
        create_time: Some(timestamp(integration.create_time)),
        update_time: Some(timestamp(integration.update_time)),
    }
}

fn state(integration: &Integration) -> proto::IntegrationState {
    match integration.state {
        IntegrationState::Connecting => proto::IntegrationState::Connecting,
        IntegrationState::Active if integration.is_catching_up() => proto::IntegrationState::CatchingUp,
        IntegrationState::Active => proto::IntegrationState::Active,
        IntegrationState::Paused => proto::IntegrationState::Paused,
        IntegrationState::Disconnecting => proto::IntegrationState::Disconnecting,
        IntegrationState::Disconnected => proto::IntegrationState::Disconnected,
    }
}

pub(in crate::grpc) fn finding(finding: Finding) -> proto::IntegrationFinding {
    let subject = match finding.subject {
        FindingSubject::Key => IntegrationFindingSubject::Key,
        FindingSubject::Scope => IntegrationFindingSubject::Scope,
        FindingSubject::Endpoint => IntegrationFindingSubject::Endpoint,
    };
    let state = match finding.state {
        FindingState::Ok => IntegrationFindingState::Ok,
        FindingState::Missing => IntegrationFindingState::Missing,
        FindingState::Unproved => IntegrationFindingState::Unproved,
        FindingState::Wrong => IntegrationFindingState::Wrong,
    };
    proto::IntegrationFinding {
        subject: subject.into(),
        name: finding.name,
        state: state.into(),
        message: finding.message,
    }
}

#[cfg(test)]
mod tests {
    use prost_types::FieldMask;

    use super::*;
    use crate::domain::Error;

    fn violations<T>(parsed: Result<T>) -> Vec<(String, String)> {
        match parsed {
            Err(Error::Invalid(list)) => list.into_iter().map(|it| (it.field, it.description)).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn all_violations_of_an_integration_are_reported() {
        let request = proto::CreateIntegrationRequest {
            code: "stripe eu".into(),
            name: " ".into(),
            success_redirect_url: "/done".into(),
            ..Default::default()
        };
        let fields: Vec<_> = violations(new_integration(request)).into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["request_id", "code", "name", "secret_key", "success_redirect_url"]);
    }

    #[test]
    fn p9_a_rejected_key_is_not_repeated() {
        let request = proto::RotateIntegrationKeyRequest { id: "x".into(), secret_key: "sk_test_sand box".into() };
        let found = violations(new_key(request));
        assert_eq!(found.len(), 2, "the id and the key");
        assert!(!format!("{found:?}").contains("sand box"));
    }

    #[test]
    fn a_mask_can_turn_a_flag_off() {
        let integration = proto::Integration { id: uuid::Uuid::from_u128(1).to_string(), ..Default::default() };
        let update = |paths: Option<&str>| {
            let update_mask = paths.map(|path| FieldMask { paths: vec![path.into()] });
            let integration = Some(integration.clone());
            integration_update(&proto::UpdateIntegrationRequest { integration, update_mask })
        };
        let (_, _, off) = update(Some("supports_3ds")).unwrap();
        assert_eq!((off.supports_3ds, off.relay_provider_events), (Some(false), None));
        assert_eq!(update(None).unwrap().2.supports_3ds, None, "absent never resets");
        assert_eq!(violations(update(Some("name"))).len(), 1, "a name cannot be emptied");
        assert_eq!(violations(update(Some("secret_key"))).len(), 1, "keys are rotated, not updated");
    }
}
