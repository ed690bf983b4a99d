//! The HTTP endpoint of the API, `/v1`. It records, authenticates, rate-limits, checks and executes each request, and
//! applies the fault rules that match it.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State as Extract};
use axum::http::{HeaderMap, HeaderValue, Method, Response, Uri};

use super::api_error::ApiError;
use super::api_request::{ApiRequest, default_version};
use super::auth::{self, Caller};
use super::connection::ResetHandle;
use super::dispatch::{self, to_json};
use super::endpoints::{self, Endpoint};
use super::faults::{self, Effect, Plan};
use super::form;
use super::idempotency::{self, Claim};
use super::shared::{Inner, RecordedRequest, Shared};
use super::state::{IdempotentRequest, new_id};
use super::timers::{Timer, TimerAction};
use super::transaction::Transaction;
use super::versions;

/// A response to the caller, before it becomes an HTTP response.
struct ApiResponse {
    status: u16,
    body: String,
    limited: Option<String>,
    should_retry: Option<bool>,
    /// With an idempotency key: the id of the request that was executed, which is this one or an earlier one.
    original: Option<String>,
    /// This is a stored response.
    replayed: bool,
}

impl ApiResponse {
    fn from_error(api_error: &ApiError, request_id: &str) -> Self {
        Self {
            status: api_error.status,
            body: api_error.body(request_id).to_string(),
            limited: api_error.limited.clone(),
            should_retry: api_error.should_retry,
            original: None,
            replayed: false,
        }
    }
}

/// Serves every request under `/v1`.
pub(super) async fn serve(
    Extract(shared): Extract<Arc<Shared>>,
    ConnectInfo(reset_handle): ConnectInfo<ResetHandle>,
    (method, uri, headers): (Method, Uri, HeaderMap),
    body: Bytes,
) -> Response<Body> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut pairs = form::pairs(uri.query().unwrap_or_default());
    pairs.extend(form::pairs(&String::from_utf8_lossy(&body)));
    let request = ApiRequest {
        method: method.to_string(),
        path: uri.path().to_owned(),
        form: pairs,
        request_id: new_id("req"),
        idempotency_key: header("idempotency-key").filter(|key| method == Method::POST && !key.is_empty()),
        version: default_version(),
    };
    let headers = RequestHeaders {
        authorization: header("authorization"),
        version: header("stripe-version"),
        content_type: header("content-type").filter(|_| !body.is_empty()),
        on_behalf_of: header("stripe-account").or_else(|| header("stripe-context")),
    };
    // A caller that disconnects must not cancel the request: its idempotency key would stay in use forever.
    let processed = tokio::spawn(process(shared, request.clone(), headers));
    match processed.await {
        Ok(Some(response)) => response,
        Ok(None) => {
            reset_handle.reset();
            Response::new(Body::empty())
        }
        Err(error) => {
            tracing::error!(%error, "the sandbox failed to process a request");
            let api_error = ApiError::new(500, "api_error", format!("The sandbox itself failed: {error}"));
            into_http(&request, ApiResponse::from_error(&api_error, &request.request_id))
        }
    }
}

/// The headers that the sandbox reads, apart from `Idempotency-Key`.
struct RequestHeaders {
    authorization: Option<String>,
    version: Option<String>,
    content_type: Option<String>,
    on_behalf_of: Option<String>,
}

/// A request that passed all checks before its execution.
struct Admitted {
    caller: Caller,
    plan: Plan,
    /// The stored response, if there is one under the idempotency key.
    replay: Option<ApiResponse>,
    /// The object whose lock this request holds.
    locked: Option<String>,
}

/// Processes a request and returns its response. `None` means that the connection is cut.
async fn process(shared: Arc<Shared>, mut request: ApiRequest, headers: RequestHeaders) -> Option<Response<Body>> {
    let admitted = shared.read(|inner| {
        let caller = auth::authenticate(&inner.state, headers.authorization.as_deref());
        request.version = request_version(inner, &headers, caller.as_ref().ok());
        let admitted = admit(&shared, inner, &request, &headers, caller);
        inner.record(RecordedRequest::new(
            &shared,
            &request,
            headers.version.as_ref(),
            admitted.as_ref().ok().map(|a| &a.caller),
        ));
        admitted
    });
    let response = match admitted {
        Err(api_error) => Some(ApiResponse::from_error(&api_error, &request.request_id)),
        Ok(Admitted { replay: Some(response), plan, .. }) => {
            shared.clock.sleep(plan.delay_before + plan.delay_after).await;
            Some(response).filter(|_| plan.cut.is_none())
        }
        Ok(admitted) => {
            let original = request.idempotency_key.as_ref().map(|_| request.request_id.clone());
            execute(&shared, &request, admitted).await.map(|response| ApiResponse { original, ..response })
        }
    };
    let status = response.as_ref().map_or(0, |response| response.status);
    shared.read(|inner| inner.record_status(&request.request_id, status));
    response.map(|response| into_http(&request, response))
}

/// The version that the request names if Stripe has published it, else the account's default.
fn request_version(inner: &Inner, headers: &RequestHeaders, caller: Option<&Caller>) -> String {
    let named = headers.version.clone().filter(|version| versions::check_published(version).is_ok());
    let account = caller.and_then(|caller| inner.state.accounts.get(&caller.slot));
    named.or_else(|| account?.api_version.clone()).unwrap_or_else(default_version)
}

/// Checks a request before its execution, claims its idempotency key and takes its lock.
fn admit(
    shared: &Shared,
    inner: &mut Inner,
    request: &ApiRequest,
    headers: &RequestHeaders,
    caller: Result<Caller, ApiError>,
) -> Result<Admitted, ApiError> {
    let account = caller.as_ref().map_or("", |caller| caller.account.as_str());
    let mut plan = faults::plan(&mut inner.faults, &mut inner.rng, &request.method, &request.path, account);
    inner.fault_hits += u64::from(!plan.is_empty());
    if let Some(api_error) = plan.api_error.take() {
        return Err(api_error);
    }
    let caller = caller?;
    let (endpoint, _) =
        endpoints::route(&request.method, &request.path).ok_or_else(|| dispatch::unrecognized(request))?;
    if let Some(limits) = shared.options.limits {
        let name = format!("{} {}", endpoint.method, endpoint.path);
        inner.limiter.take(limits, &caller.slot, caller.livemode, &name, shared.micros())?;
    }
    auth::check_permission(&caller, endpoint)?;
    check_headers(headers, &caller)?;
    let now = shared.seconds();
    let locked = object_to_lock(endpoint, request);
    if let Some(key) = &request.idempotency_key {
        let account = inner.account(&caller);
        let first = IdempotentRequest {
            path: format!("{} {}", request.method, request.path),
            form: request.form.clone(),
            request_id: request.request_id.clone(),
            created: now,
            response: None,
        };
        match idempotency::claim(account, key, first)? {
            Claim::Replay { status, body, request_id } => {
                let should_retry = (status >= 500).then_some(false);
                let response = ApiResponse {
                    status,
                    body,
                    limited: None,
                    should_retry,
                    original: Some(request_id),
                    replayed: true,
                };
                return Ok(Admitted { caller, plan, replay: Some(response), locked: None });
            }
            Claim::New => {}
        }
    }
    if let Some(object) = &locked
        && !inner.locks.insert(object.clone())
    {
        release_key(inner, &caller, request);
        return Err(ApiError::locked());
    }
    Ok(Admitted { caller, plan, replay: None, locked })
}

/// The object that the request locks: only writes to a PaymentIntent lock it.
fn object_to_lock(endpoint: &Endpoint, request: &ApiRequest) -> Option<String> {
    let writes = endpoint.method == "POST" && endpoint.path.starts_with("/v1/payment_intents/{id}");
    writes.then(|| request.path.split('/').nth(3).unwrap_or_default().to_owned())
}

fn release_key(inner: &mut Inner, caller: &Caller, request: &ApiRequest) {
    if let Some(key) = &request.idempotency_key {
        idempotency::release(inner.account(caller), key);
    }
}

fn check_headers(headers: &RequestHeaders, caller: &Caller) -> Result<(), ApiError> {
    if let Some(other) = headers.on_behalf_of.as_deref().filter(|other| *other != caller.account) {
        let message =
            format!("The provided key does not have access to account '{other}' (or that account does not exist).");
        return Err(ApiError::new(403, "invalid_request_error", message).code("account_invalid").before_execution());
    }
    headers.version.as_deref().map_or(Ok(()), versions::check_published)?;
    let form_encoded = |kind: &str| kind.starts_with("application/x-www-form-urlencoded");
    if headers.content_type.as_deref().is_some_and(|kind| !form_encoded(kind)) {
        let message = "Invalid Content-Type: send the parameters as application/x-www-form-urlencoded.";
        return Err(ApiError::invalid(message).before_execution());
    }
    Ok(())
}

/// Executes a request and applies the faults of its plan.
async fn execute(shared: &Arc<Shared>, request: &ApiRequest, admitted: Admitted) -> Option<ApiResponse> {
    let Admitted { caller, plan, locked, .. } = admitted;
    if plan.delay_before.is_positive() {
        shared.clock.sleep(plan.delay_before).await;
    }
    let is_skipped = |effect: Option<Effect>| matches!(effect, Some(Effect::NotDone | Effect::DoneLater { .. }));
    let execute_under_lock = |inner: &mut Inner| {
        if let Some(object) = &locked {
            inner.locks.remove(object);
        }
        for effect in [plan.server_error, plan.cut].into_iter().flatten() {
            if let Effect::DoneLater { seconds } = effect {
                let action = TimerAction::RollForward { request: request.clone() };
                inner.account(&caller).timers.put(Timer { at: shared.seconds() + seconds, action });
            }
        }
        if is_skipped(plan.cut) {
            // With `DoneLater`, the key stays in use until the request is executed.
            if plan.cut == Some(Effect::NotDone) {
                release_key(inner, &caller, request);
            }
            return None;
        }
        if is_skipped(plan.server_error) {
            return Some(server_error(inner, &caller, request));
        }
        let response = perform_and_store(shared, inner, &caller, request);
        if plan.server_error.is_some() { Some(server_error(inner, &caller, request)) } else { Some(response) }
    };
    let response =
        if request.method == "GET" { shared.read(execute_under_lock) } else { shared.update(execute_under_lock) };
    if plan.delay_after.is_positive() {
        shared.clock.sleep(plan.delay_after).await;
    }
    if plan.cut.is_some() { None } else { response }
}

/// Executes a request and stores its response under the idempotency key.
fn perform_and_store(shared: &Shared, inner: &mut Inner, caller: &Caller, request: &ApiRequest) -> ApiResponse {
    let (now, now_micros) = (shared.seconds(), shared.micros());
    let account = inner.account(caller);
    let mut tx = Transaction { account, now, now_micros, cause: Some(request.cause()), settings: &shared.settings };
    let result = dispatch::perform(&mut tx, request);
    let early = result.as_ref().is_err_and(|api_error| api_error.early);
    let response = match result {
        Ok(object) => ApiResponse {
            status: 200,
            body: to_json(&object),
            limited: None,
            should_retry: None,
            original: None,
            replayed: false,
        },
        Err(api_error) => ApiResponse::from_error(&api_error, &request.request_id),
    };
    if let Some(key) = &request.idempotency_key {
        let account = inner.account(caller);
        if early {
            idempotency::release(account, key);
        } else {
            idempotency::store_response(account, key, response.status, &response.body);
        }
    }
    response
}

/// A 500, which is stored under the idempotency key like any other response.
fn server_error(inner: &mut Inner, caller: &Caller, request: &ApiRequest) -> ApiResponse {
    let message = "An unknown error occurred. If you keep seeing this, contact support.";
    let response = ApiResponse::from_error(&ApiError::new(500, "api_error", message), &request.request_id);
    if let Some(key) = &request.idempotency_key {
        idempotency::store_response(inner.account(caller), key, response.status, &response.body);
    }
    response
}

fn into_http(request: &ApiRequest, response: ApiResponse) -> Response<Body> {
    let mut http = Response::new(Body::from(response.body));
    *http.status_mut() = response.status.try_into().unwrap_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = http.headers_mut();
    let mut put = |name: &'static str, value: Option<&str>| {
        if let Some(Ok(value)) = value.map(HeaderValue::from_str) {
            headers.insert(name, value);
        }
    };
    put("content-type", Some("application/json"));
    put("request-id", Some(&request.request_id));
    put("stripe-version", Some(&request.version));
    put("idempotency-key", request.idempotency_key.as_deref());
    put("stripe-rate-limited-reason", response.limited.as_deref());
    put("stripe-should-retry", response.should_retry.map(|retry| if retry { "true" } else { "false" }));
    put("original-request", response.original.as_deref());
    put("idempotent-replayed", response.replayed.then_some("true"));
    http
}
