//! Errors in responses to calls.

use std::fmt::Debug;

use tonic::{Code, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The reason in the `ErrorInfo`; empty if there is none.
pub fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// The code, message and details of a call that must fail.
pub fn error_of<T: Debug>(response: Result<Response<T>, Status>) -> (Code, String, ErrorDetails) {
    match response {
        Ok(response) => panic!("expected an error, got {:?}", response.into_inner()),
        Err(status) => (status.code(), status.message().to_owned(), status.get_error_details()),
    }
}

/// Checks the code and reason of an error, and returns its message and details.
pub fn expect_error<T: Debug>(
    response: Result<Response<T>, Status>,
    code: Code,
    reason: &str,
) -> (String, ErrorDetails) {
    let (actual_code, message, details) = error_of(response);
    let actual_reason = details.error_info().map(|info| info.reason.as_str()).unwrap_or_default();
    assert_eq!((actual_code, actual_reason), (code, reason), "{message}");
    assert_eq!(details.error_info().map(|info| info.domain.as_str()), Some("paybridge"));
    (message, details)
}

/// The invalid fields of a request, in order.
pub fn violations<T: Debug>(response: Result<Response<T>, Status>) -> Vec<String> {
    let (_, details) = expect_error(response, Code::InvalidArgument, "INVALID_FIELDS");
    let bad = details.bad_request().expect("a BadRequest");
    assert!(bad.field_violations.iter().all(|it| !it.description.is_empty()), "each says what is valid");
    bad.field_violations.iter().map(|it| it.field.clone()).collect()
}
