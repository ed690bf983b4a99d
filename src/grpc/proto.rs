//! Code that `build.rs` generates from `proto/paybridge/v1`: messages, service traits, clients, and the descriptor set.

use std::fmt;

pub use generated::*;

#[expect(
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    unused_qualifications,
    reason = "generated code has the generator's style"
)]
mod generated {
    tonic::include_proto!("paybridge.v1");
}

/// The encoded `FileDescriptorSet` of all protos and their imports, with comments. Reflection serves it.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/paybridge.v1.bin"));

/// Omits the secret key (P9).
impl fmt::Debug for CreateIntegrationRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateIntegrationRequest")
            .field("request_id", &self.request_id)
            .field("code", &self.code)
            .field("name", &self.name)
            .field("success_redirect_url", &self.success_redirect_url)
            .field("supports_3ds", &self.supports_3ds)
            .field("relay_provider_events", &self.relay_provider_events)
            .finish_non_exhaustive()
    }
}

/// Omits the secret key (P9).
impl fmt::Debug for RotateIntegrationKeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RotateIntegrationKeyRequest").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message as _;
    use prost_types::{FileDescriptorProto, FileDescriptorSet};

    use super::*;

    fn services() -> Vec<FileDescriptorProto> {
        let set = FileDescriptorSet::decode(DESCRIPTOR_SET).unwrap();
        set.file.into_iter().filter(|file| !file.service.is_empty()).collect()
    }

    /// The comments are the API documentation; `grpcurl describe` shows them.
    #[test]
    fn every_call_lists_the_reasons_of_its_errors() {
        let mut calls = 0;
        for file in services() {
            let source = file.source_code_info.unwrap_or_default();
            let comments: BTreeMap<_, _> =
                source.location.iter().map(|it| (&it.path[..], it.leading_comments())).collect();
            for (index, call) in (0..).zip(&file.service[0].method) {
                // In a file's descriptor, services are field 6; in a service's, methods are field 2.
                let comment = comments.get(&[6, 0, 2, index][..]).copied().unwrap_or_default();
                assert!(comment.contains("Reasons:"), "{}", call.name());
                calls += 1;
            }
        }
        assert_eq!(calls, 29);
    }

    #[test]
    fn the_package_has_four_services() {
        let files = services();
        let names: Vec<_> = files.iter().map(|file| file.service[0].name()).collect();
        assert_eq!(names, ["IntegrationService", "CustomerService", "PaymentService", "EventService"]);
    }

    #[test]
    fn p9_debug_of_a_request_omits_the_secret_key() {
        let create = CreateIntegrationRequest { secret_key: "sk_test_sandbox".into(), ..Default::default() };
        let rotate = RotateIntegrationKeyRequest { secret_key: "sk_test_sandbox".into(), ..Default::default() };
        assert!(!format!("{create:?} {rotate:?}").contains("sk_test_sandbox"));
    }
}
