//! Maps an [`Error`] to a gRPC status. Every status carries `google.rpc.ErrorInfo` with a stable reason and, as fits,
//! the violations, the missing resource, the precondition or the retry delay.
//!
//! The source of an internal error is for the operator only: it is logged here, once, and never sent (P9).

use std::collections::HashMap;
use std::fmt::Write as _;

use axum::response::Response;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use super::limits::REQUEST_BYTES_MAX;
use crate::domain::{Error, Violation};

/// The domain of `ErrorInfo`.
const DOMAIN: &str = "paybridge";

/// The keys of `ErrorInfo`'s metadata. docs/api.md lists them, with the reasons that have them.
const METADATA_KEYS: [&str; 5] = ["subject", "request_id", "after_position", "oldest_position", "log_id"];

/// The maximum number of violations in `BadRequest`. Details are sent in a header, whose size clients limit (P11).
const VIOLATIONS_MAX: usize = 50;

/// The maximum number of violations in the message.
const VIOLATIONS_IN_TEXT_MAX: usize = 3;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = code(&error);
        if let Error::Internal(source) = &error {
            tracing::error!(error = format!("{source:#}"), "call failed with an internal error");
        }
        Self::with_error_details(code, text(&error), details(&error))
    }
}

/// The message of the status. It contains the first violations, because many clients show nothing else.
fn text(error: &Error) -> String {
    let Error::Invalid(violations) = error else { return error.to_string() };
    let named = violations.iter().take(VIOLATIONS_IN_TEXT_MAX);
    let mut text = named.map(|it| format!("{} {}", it.field, it.description)).collect::<Vec<_>>().join("; ");
    if let more @ 1.. = violations.len().saturating_sub(VIOLATIONS_IN_TEXT_MAX) {
        let _ = write!(text, "; and {more} more");
    }
    text
}

/// Corrects errors that tonic returns itself, which have no details. Two of its codes are misleading: OUT_OF_RANGE for
/// a message over the limit (in this API it means a position that is not in the log), and INTERNAL for one that cannot be decoded.
pub(super) async fn add_details(response: Response) -> Response {
    let from_tonic = Status::from_header_map(response.headers()).filter(|status| status.details().is_empty());
    let error = match from_tonic.as_ref().map(Status::code) {
        Some(Code::OutOfRange) => Error::Exhausted {
            reason: "MESSAGE_TOO_LARGE",
            message: format!("the request is too large; send at most {REQUEST_BYTES_MAX} bytes"),
        },
        Some(Code::Internal) if from_tonic.is_some_and(|status| status.message().starts_with("failed to decode")) => {
            Error::Invalid(vec![Violation::new(
                "",
                "the request cannot be decoded; send the request message of this call",
            )])
        }
        _ => return response,
    };
    Status::from(error).into_http()
}

fn code(error: &Error) -> Code {
    match error {
        Error::Invalid(_) | Error::RequestIdReused(_) => Code::InvalidArgument,
        Error::NotFound { .. } => Code::NotFound,
        Error::AlreadyExists { .. } => Code::AlreadyExists,
        Error::FailedPrecondition { .. } => Code::FailedPrecondition,
        Error::EtagMismatch { .. } => Code::Aborted,
        Error::PositionTrimmed { .. } | Error::LogReplaced { .. } => Code::OutOfRange,
        Error::Unauthenticated(_) => Code::Unauthenticated,
        Error::Exhausted { .. } => Code::ResourceExhausted,
        Error::Unavailable { .. } | Error::Throttled { .. } => Code::Unavailable,
        Error::LeaseLost | Error::Internal(_) => Code::Internal,
    }
}

fn details(error: &Error) -> ErrorDetails {
    let mut details = ErrorDetails::new();
    match error {
        Error::Invalid(violations) => {
            let listed = violations.iter().take(VIOLATIONS_MAX);
            let listed: Vec<_> = listed.map(|it| FieldViolation::new(&it.field, &it.description)).collect();
            set_error_info(&mut details, "INVALID_FIELDS", []).set_bad_request(listed);
        }
        Error::RequestIdReused(request_id) => {
            set_error_info(&mut details, "REQUEST_ID_REUSED", [("request_id", request_id.clone())])
                .set_bad_request(vec![FieldViolation::new("request_id", error.to_string())]);
        }
        Error::NotFound { kind, id } => {
            let reason = format!("{}_NOT_FOUND", snake(kind).to_ascii_uppercase());
            set_error_info(&mut details, reason, [("subject", subject(kind, id))]).set_resource_info(
                *kind,
                id,
                "",
                error.to_string(),
            );
        }
        Error::AlreadyExists { kind, id, message } => {
            let reason = format!("{}_EXISTS", snake(kind).to_ascii_uppercase());
            set_error_info(&mut details, reason, [("subject", subject(kind, id))])
                .set_resource_info(*kind, id, "", message);
        }
        Error::FailedPrecondition { reason, subject, message } => {
            set_error_info(&mut details, *reason, [("subject", subject.clone())])
                .add_precondition_failure_violation(*reason, subject, message);
        }
        Error::EtagMismatch { kind, id } => {
            set_error_info(&mut details, "ETAG_MISMATCH", [("subject", subject(kind, id))]).set_resource_info(
                *kind,
                id,
                "",
                error.to_string(),
            );
        }
        Error::PositionTrimmed { requested, oldest } => {
            let positions = [("after_position", requested.to_string()), ("oldest_position", oldest.to_string())];
            set_error_info(&mut details, "POSITION_TRIMMED", positions);
        }
        Error::LogReplaced { current, oldest, .. } => {
            let resume = [("log_id", current.to_string()), ("oldest_position", oldest.to_string())];
            set_error_info(&mut details, "LOG_REPLACED", resume);
        }
        Error::Unauthenticated(_) => {
            set_error_info(&mut details, "UNAUTHENTICATED", []);
        }
        Error::Exhausted { reason, message } => {
            set_error_info(&mut details, *reason, []).add_quota_failure_violation("organization", message);
        }
        Error::Unavailable { reason, retry_after, .. } => {
            set_error_info(&mut details, *reason, []).set_retry_info(Some(*retry_after));
        }
        Error::Throttled { retry_after, .. } => {
            set_error_info(&mut details, "STRIPE_UNAVAILABLE", []).set_retry_info(Some(*retry_after));
        }
        Error::LeaseLost | Error::Internal(_) => {
            set_error_info(&mut details, "INTERNAL", []);
        }
    }
    details
}

fn set_error_info<'a, const N: usize>(
    details: &'a mut ErrorDetails,
    reason: impl Into<String>,
    metadata: [(&str, String); N],
) -> &'a mut ErrorDetails {
    debug_assert!(metadata.iter().all(|(key, _)| METADATA_KEYS.contains(key)), "an undocumented key: {metadata:?}");
    let metadata: HashMap<String, String> = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    details.set_error_info(reason, DOMAIN, metadata)
}

/// An object, as the subject of a failed precondition is written: `payment_method/018f…`.
fn subject(kind: &str, id: &str) -> String {
    format!("{}/{id}", snake(kind))
}

/// `payment method` → `payment_method`.
fn snake(kind: &str) -> String {
    kind.replace(' ', "_")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    /// An error of each kind, with its code and its reason.
    fn samples() -> Vec<(Error, Code, &'static str)> {
        let message = String::new;
        vec![
            (Error::invalid("amount", "is missing"), Code::InvalidArgument, "INVALID_FIELDS"),
            (Error::RequestIdReused("r1".into()), Code::InvalidArgument, "REQUEST_ID_REUSED"),
            (Error::not_found("payment", 1), Code::NotFound, "PAYMENT_NOT_FOUND"),
            (Error::not_found("payment method", 1), Code::NotFound, "PAYMENT_METHOD_NOT_FOUND"),
            (
                Error::AlreadyExists { kind: "payment", id: "1".into(), message: message() },
                Code::AlreadyExists,
                "PAYMENT_EXISTS",
            ),
            (Error::precondition("PAYMENT_STATE", "payment/1", "is paid"), Code::FailedPrecondition, "PAYMENT_STATE"),
            (Error::EtagMismatch { kind: "customer", id: "1".into() }, Code::Aborted, "ETAG_MISMATCH"),
            (Error::PositionTrimmed { requested: 3, oldest: 7 }, Code::OutOfRange, "POSITION_TRIMMED"),
            (
                Error::LogReplaced {
                    requested: Uuid::from_u128(1).into(),
                    current: Uuid::from_u128(2).into(),
                    oldest: 7,
                },
                Code::OutOfRange,
                "LOG_REPLACED",
            ),
            (Error::Unauthenticated("no token"), Code::Unauthenticated, "UNAUTHENTICATED"),
            (
                Error::Exhausted { reason: "TOO_MANY_STREAMS", message: message() },
                Code::ResourceExhausted,
                "TOO_MANY_STREAMS",
            ),
            (
                Error::Unavailable {
                    reason: "STRIPE_UNAVAILABLE",
                    message: message(),
                    retry_after: Duration::from_secs(2),
                },
                Code::Unavailable,
                "STRIPE_UNAVAILABLE",
            ),
            (
                Error::Throttled { message: message(), retry_after: Duration::from_secs(2) },
                Code::Unavailable,
                "STRIPE_UNAVAILABLE",
            ),
            (Error::LeaseLost, Code::Internal, "INTERNAL"),
            (Error::internal(anyhow::anyhow!("disk on fire")), Code::Internal, "INTERNAL"),
        ]
    }

    #[test]
    fn every_error_has_its_code_and_its_reason() {
        for (error, code, reason) in samples() {
            let status = Status::from(error);
            let info = status.get_details_error_info().unwrap();
            assert_eq!((status.code(), info.reason.as_str(), info.domain.as_str()), (code, reason, DOMAIN));
        }
    }

    /// The rows of the table of metadata keys in docs/api.md: each key, with its reasons.
    fn documented_keys() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
        let page = include_str!("../../docs/api.md");
        let table = page.split("| metadata key | reasons |").nth(1).unwrap_or_default();
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let cells = |row: &'static str| row.split('|').map(str::trim).collect::<Vec<_>>();
        rows.map(cells)
            .map(|cells| (cells[1].trim_matches('`'), cells[2].split(", ").map(|it| it.trim_matches('`')).collect()))
            .collect()
    }

    #[test]
    fn the_page_lists_the_metadata_of_every_reason() {
        let documented = documented_keys();
        assert_eq!(documented.keys().copied().collect::<BTreeSet<_>>(), BTreeSet::from(METADATA_KEYS));
        let on_page = |reason: &'static str| match reason {
            "PAYMENT_NOT_FOUND" | "PAYMENT_METHOD_NOT_FOUND" => "*_NOT_FOUND",
            "PAYMENT_EXISTS" => "*_EXISTS",
            "PAYMENT_STATE" => "every FAILED_PRECONDITION",
            other => other,
        };
        for (error, _, reason) in samples() {
            let sent: BTreeSet<String> =
                Status::from(error).get_details_error_info().unwrap().metadata.into_keys().collect();
            let listed = documented.iter().filter(|(_, reasons)| reasons.contains(on_page(reason)));
            assert_eq!(sent, listed.map(|(key, _)| (*key).to_owned()).collect::<BTreeSet<_>>(), "{reason}");
        }
    }

    #[test]
    fn an_invalid_request_lists_every_violation_up_to_the_limit() {
        let violations = |count| (0..count).map(|n| Violation::new(format!("f{n}"), "is wrong")).collect();
        let listed = |count| Status::from(Error::Invalid(violations(count))).get_details_bad_request().unwrap();
        assert_eq!(listed(2).field_violations.len(), 2);
        assert_eq!(listed(2).field_violations[1].field, "f1");
        assert_eq!(listed(1_000).field_violations.len(), VIOLATIONS_MAX, "P11: a header has a limit");
    }

    #[test]
    fn the_message_contains_the_first_violations() {
        let violations = |count| (0..count).map(|n| Violation::new(format!("f{n}"), "is wrong")).collect();
        let text = |count| Status::from(Error::Invalid(violations(count))).message().to_owned();
        assert_eq!(text(2), "f0 is wrong; f1 is wrong");
        assert_eq!(text(5), "f0 is wrong; f1 is wrong; f2 is wrong; and 2 more");
    }

    #[test]
    fn p9_the_source_of_an_internal_error_is_not_sent() {
        let status = Status::from(Error::internal(anyhow::anyhow!("password=hunter2")));
        assert!(!format!("{status:?}").contains("hunter2"));
        assert_eq!(status.message(), "internal error");
    }

    #[test]
    fn details_name_the_resource_the_retry_delay_and_the_oldest_position() {
        let resource = Status::from(Error::not_found("customer", "c1")).get_details_resource_info().unwrap();
        assert_eq!((resource.resource_type.as_str(), resource.resource_name.as_str()), ("customer", "c1"));
        let named = Status::from(Error::not_found("payment method", "m1")).get_details_error_info().unwrap();
        assert_eq!(named.metadata["subject"], "payment_method/m1");
        let retry_after = Duration::from_secs(2);
        let unavailable = Error::Unavailable { reason: "DATABASE_UNAVAILABLE", message: String::new(), retry_after };
        assert_eq!(Status::from(unavailable).get_details_retry_info().unwrap().retry_delay, Some(retry_after));
        let trimmed =
            Status::from(Error::PositionTrimmed { requested: 3, oldest: 7 }).get_details_error_info().unwrap();
        assert_eq!(trimmed.metadata["oldest_position"], "7");
    }
}
