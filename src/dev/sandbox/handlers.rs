//! Maps each endpoint of the table to its handler.

use super::api_error::{ApiError, ApiResult};
use super::endpoints::Endpoint;
use super::transaction::{Call, Transaction};
use super::{
    accounts, captures, charges, checkout_sessions, customers, detachment, disputes, events, line_items, mandates,
    payment_intents, payment_methods, payment_pages, products, refunds, setup_attempts, setup_intents, sources,
    webhook_endpoints,
};

/// Executes a request to an endpoint.
pub(super) type Handler = fn(&mut Transaction, &Call) -> ApiResult;

/// The handler of an endpoint. A test checks that every endpoint of the table has one.
pub(super) fn find(endpoint: &Endpoint) -> Handler {
    match endpoint.path.strip_prefix("/v1/").unwrap_or_default().split('/').next().unwrap_or_default() {
        "customers" | "sources" | "payment_methods" | "mandates" | "account" => customer_handler(endpoint),
        "setup_intents" | "setup_attempts" | "checkout" | "payment_intents" => intent_handler(endpoint),
        _ => other_handler(endpoint),
    }
}

fn route(endpoint: &Endpoint) -> (&str, &str) {
    (&endpoint.method, endpoint.path.strip_prefix("/v1/").unwrap_or_default())
}

fn customer_handler(endpoint: &Endpoint) -> Handler {
    match route(endpoint) {
        ("GET", "account") => accounts::retrieve,
        ("POST", "customers") => customers::create,
        ("GET", "customers") => customers::list,
        ("GET", "customers/{id}") => customers::retrieve,
        ("POST", "customers/{id}") => customers::update,
        ("DELETE", "customers/{id}") => customers::delete,
        ("POST", "sources") => sources::create,
        ("POST", "customers/{id}/sources") => sources::attach,
        ("GET", "customers/{id}/sources") => sources::list,
        ("GET", "customers/{id}/sources/{id}") => sources::retrieve,
        ("DELETE", "customers/{id}/sources/{id}") => detachment::delete_source,
        ("GET", "customers/{id}/payment_methods") => customers::list_payment_methods,
        ("GET", "customers/{id}/payment_methods/{id}") => customers::retrieve_payment_method,
        ("POST", "payment_methods") => payment_methods::create,
        ("GET", "payment_methods") => payment_methods::list,
        ("GET", "payment_methods/{id}") => payment_methods::retrieve,
        ("POST", "payment_methods/{id}") => payment_methods::update,
        ("POST", "payment_methods/{id}/attach") => payment_methods::attach,
        ("POST", "payment_methods/{id}/detach") => detachment::detach,
        ("GET", "mandates/{id}") => mandates::retrieve,
        _ => missing_handler,
    }
}

fn intent_handler(endpoint: &Endpoint) -> Handler {
    match route(endpoint) {
        ("POST", "setup_intents") => setup_intents::create,
        ("GET", "setup_intents") => setup_intents::list,
        ("GET", "setup_intents/{id}") => setup_intents::retrieve,
        ("POST", "setup_intents/{id}") => setup_intents::update,
        ("POST", "setup_intents/{id}/confirm") => setup_intents::confirm,
        ("POST", "setup_intents/{id}/cancel") => setup_intents::cancel,
        ("GET", "setup_attempts") => setup_attempts::list,
        ("POST", "checkout/sessions") => checkout_sessions::create,
        ("GET", "checkout/sessions") => checkout_sessions::list,
        ("GET", "checkout/sessions/{id}") => checkout_sessions::retrieve,
        ("POST", "checkout/sessions/{id}/expire") => checkout_sessions::expire,
        ("GET", "checkout/sessions/{id}/line_items") => line_items::list,
        ("POST", "payment_intents") => payment_intents::create,
        ("GET", "payment_intents") => payment_intents::list,
        ("GET", "payment_intents/{id}") => payment_intents::retrieve,
        ("POST", "payment_intents/{id}") => payment_intents::update,
        ("POST", "payment_intents/{id}/confirm") => payment_intents::confirm,
        ("POST", "payment_intents/{id}/capture") => captures::capture,
        ("POST", "payment_intents/{id}/cancel") => payment_intents::cancel,
        _ => missing_handler,
    }
}

fn other_handler(endpoint: &Endpoint) -> Handler {
    match route(endpoint) {
        ("POST", "products") => products::create,
        ("GET", "products/{id}") => products::retrieve,
        ("POST", "prices") => products::create_price,
        ("GET", "prices/{id}") => products::retrieve_price,
        ("GET", "payment_pages/{id}") => payment_pages::retrieve,
        ("POST", "payment_pages/{id}/confirm") => payment_pages::confirm,
        ("GET", "charges") => charges::list,
        ("GET", "charges/{id}") => charges::retrieve,
        ("POST", "refunds") => refunds::create,
        ("GET", "refunds") => refunds::list,
        ("GET", "refunds/{id}") => refunds::retrieve,
        ("POST", "refunds/{id}") => refunds::update,
        ("POST", "refunds/{id}/cancel") => refunds::cancel,
        ("GET", "disputes") => disputes::list,
        ("GET", "disputes/{id}") => disputes::retrieve,
        ("POST", "disputes/{id}") => disputes::update,
        ("POST", "disputes/{id}/close") => disputes::close,
        ("POST", "webhook_endpoints") => webhook_endpoints::create,
        ("GET", "webhook_endpoints") => webhook_endpoints::list,
        ("GET", "webhook_endpoints/{id}") => webhook_endpoints::retrieve,
        ("POST", "webhook_endpoints/{id}") => webhook_endpoints::update,
        ("DELETE", "webhook_endpoints/{id}") => webhook_endpoints::delete,
        ("GET", "events") => events::list,
        ("GET", "events/{id}") => events::retrieve,
        _ => missing_handler,
    }
}

fn missing_handler(_: &mut Transaction, call: &Call) -> ApiResult {
    Err(ApiError::new(
        501,
        "api_error",
        format!("The sandbox has no handler for {}, although its table lists it.", call.path),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::endpoints;
    use super::*;

    #[test]
    fn every_endpoint_of_the_table_has_a_handler() {
        for endpoint in endpoints::table() {
            let missing = std::ptr::fn_addr_eq(find(endpoint), missing_handler as Handler);
            assert!(!missing, "{} {} has no handler", endpoint.method, endpoint.path);
        }
    }
}
