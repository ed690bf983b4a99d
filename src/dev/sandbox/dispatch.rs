//! Executes what a request or a timer names, by the module of the object.

use serde_json::Value;

use super::api_error::{ApiError, ApiResult};
use super::api_request::ApiRequest;
use super::captures;
use super::checkout_sessions;
use super::confirmation;
use super::endpoints;
use super::expand;
use super::handlers;
use super::idempotency;
use super::parameters;
use super::refunds;
use super::state::Account;
use super::timers::{Timer, TimerAction};
use super::transaction::{Call, Settings, Transaction};
use super::unsupported;
use super::versions;

/// Checks and executes a request. Faults and idempotency are the caller's business.
pub(super) fn perform(tx: &mut Transaction, request: &ApiRequest) -> ApiResult {
    let Some((endpoint, ids)) = endpoints::route(&request.method, &request.path) else {
        return Err(unrecognized(request));
    };
    let params = parameters::typed_form(endpoint, &request.form)?;
    versions::check_parameters(&request.version, endpoint, &params)?;
    expand::check(&params)?;
    let ids = ids.into_iter().map(str::to_owned).collect();
    let call = Call { ids, path: request.path.clone(), params };
    let mut result = handlers::find(endpoint)(tx, &call).map_err(|mut api_error| {
        api_error.error.values_mut().for_each(|value| versions::render_response(tx.account, value, &request.version));
        unsupported::explain(api_error, endpoint, &request.form)
    })?;
    versions::render_response(tx.account, &mut result, &request.version);
    expand::expand(tx.account, &mut result, &call.params, &request.version)?;
    Ok(result)
}

/// The 404 for an endpoint that is not in the table.
pub(super) fn unrecognized(request: &ApiRequest) -> ApiError {
    if let Some(api_error) = unsupported::endpoint(&request.method, &request.path) {
        return api_error;
    }
    let message = format!(
        "Unrecognized request URL ({}: {}). Please see https://stripe.com/docs or we can help at https://support.stripe.com/.",
        request.method, request.path
    );
    ApiError::new(404, "invalid_request_error", message).before_execution()
}

/// Runs all due timers in order of time, each with its own time as `now`. Returns whether there was one.
pub(super) fn run_due(account: &mut Account, settings: &Settings, now: i64, now_micros: i64) -> bool {
    let mut any = false;
    while let Some(timer) = account.timers.take_due(now) {
        any = true;
        let mut tx = Transaction { account, now: timer.at, now_micros, cause: None, settings };
        fire(&mut tx, timer.action);
    }
    any
}

fn fire(tx: &mut Transaction, action: TimerAction) {
    match action {
        TimerAction::Settle { charge } => confirmation::settle(tx, &charge),
        TimerAction::ExpireSession { session } => checkout_sessions::expire_if_open(tx, &session),
        TimerAction::ExpireHold { intent } => captures::expire(tx, &intent),
        TimerAction::Refund { refund, fails } => refunds::complete(tx, &refund, fails),
        TimerAction::RollForward { request } => {
            tx.cause = Some(request.cause());
            let result = perform(tx, &request);
            store_late_response(tx.account, &request, &result);
        }
    }
}

/// Runs the matching timers now, whatever their time. Returns their number.
pub(super) fn run_now(
    account: &mut Account,
    settings: &Settings,
    now: i64,
    now_micros: i64,
    matches: impl Fn(&TimerAction) -> bool,
) -> usize {
    let all = Vec::from(std::mem::take(&mut account.timers));
    let (due, later): (Vec<Timer>, Vec<Timer>) = all.into_iter().partition(|timer| matches(&timer.action));
    account.timers = later.into();
    let count = due.len();
    for timer in due {
        let mut tx = Transaction { account, now, now_micros, cause: None, settings };
        fire(&mut tx, timer.action);
    }
    count
}

/// Stores the response to a request that was executed late, unless a 500 is stored already.
fn store_late_response(account: &mut Account, request: &ApiRequest, result: &ApiResult) {
    let Some(key) = &request.idempotency_key else { return };
    let (status, body) = match result {
        Ok(object) => (200, to_json(object)),
        Err(api_error) => (api_error.status, api_error.body(&request.request_id).to_string()),
    };
    idempotency::store_response_once(account, key, status, &body);
}

/// The body of a response.
pub(super) fn to_json(object: &Value) -> String {
    serde_json::to_string_pretty(object).unwrap_or_default()
}
