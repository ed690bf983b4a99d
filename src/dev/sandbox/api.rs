//! The API's door: a request comes in, is recorded, authenticated, limited, checked and carried out, and everything
//! that a fault rule wants goes wrong on the way.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State as Extract};
use axum::http::{HeaderMap, HeaderValue, Method, Response, Uri};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::act::{API_VERSION, Act, Call, Cause};
use super::auth::{self, Caller};
use super::connection::Scissors;
use super::faults::{self, Effect, Plan};
use super::form;
use super::handlers;
use super::idempotency::{self, Verdict};
use super::lacking;
use super::lists;
use super::parameters::{self, Endpoint};
use super::refusal::{Answer, Refusal};
use super::shared::{Inner, Recorded, Shared};
use super::state::{Account, new_id};
use super::timers::{Due, Timer};
use super::versions;

/// A request that is to be carried out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Work {
    pub method: String,
    pub path: String,
    pub form: Vec<(String, String)>,
    pub request_id: String,
    pub idempotency_key: Option<String>,
    /// The API version that the request is checked and answered in.
    #[serde(default = "own_version")]
    pub version: String,
}

fn own_version() -> String {
    API_VERSION.to_owned()
}

impl Work {
    /// What the events of it name as their cause.
    pub fn cause(&self) -> Cause {
        Cause { request_id: self.request_id.clone(), idempotency_key: self.idempotency_key.clone() }
    }
}

/// Carries a request out.
pub(super) fn perform(act: &mut Act, work: &Work) -> Answer {
    let Some((endpoint, ids)) = parameters::route(&work.method, &work.path) else { return Err(unrecognized(work)) };
    let params = parameters::typed_form(endpoint, &work.form)?;
    versions::check_parameters(&work.version, endpoint, &params)?;
    lists::check_expand(&params)?;
    let ids = ids.into_iter().map(str::to_owned).collect();
    let call = Call { ids, path: work.path.clone(), params };
    let mut answer = handlers::of(endpoint)(act, &call).map_err(|mut refusal| {
        refusal.error.values_mut().for_each(|value| versions::render_answer(act.account, value, &work.version));
        lacking::explain(refusal, endpoint, &work.form)
    })?;
    versions::render_answer(act.account, &mut answer, &work.version);
    lists::expand(act.account, &mut answer, &call.params, &work.version)?;
    Ok(answer)
}

fn unrecognized(work: &Work) -> Refusal {
    if let Some(refusal) = lacking::endpoint(&work.method, &work.path) {
        return refusal;
    }
    let message = format!(
        "Unrecognized request URL ({}: {}). Please see https://stripe.com/docs or we can help at https://support.stripe.com/.",
        work.method, work.path
    );
    Refusal::new(404, "invalid_request_error", message).early()
}

/// What the caller gets.
struct Reply {
    status: u16,
    body: String,
    limited: Option<String>,
    should_retry: Option<bool>,
    /// The request that first came under the key, if there is a key: this one, or the one whose stored answer this is.
    original: Option<String>,
    /// The answer is a stored one.
    replayed: bool,
}

impl Reply {
    fn of(refusal: &Refusal, request_id: &str) -> Self {
        Self {
            status: refusal.status,
            body: refusal.body(request_id).to_string(),
            limited: refusal.limited.clone(),
            should_retry: refusal.should_retry,
            original: None,
            replayed: false,
        }
    }
}

/// Answers every request under `/v1`.
pub(super) async fn serve(
    Extract(shared): Extract<Arc<Shared>>,
    ConnectInfo(scissors): ConnectInfo<Scissors>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut pairs = form::pairs(uri.query().unwrap_or_default());
    pairs.extend(form::pairs(&String::from_utf8_lossy(&body)));
    let work = Work {
        method: method.to_string(),
        path: uri.path().to_owned(),
        form: pairs,
        request_id: new_id("req"),
        idempotency_key: header("idempotency-key").filter(|key| method == Method::POST && !key.is_empty()),
        version: own_version(),
    };
    let envelope = Envelope {
        authorization: header("authorization"),
        version: header("stripe-version"),
        content_type: header("content-type").filter(|_| !body.is_empty()),
        on_behalf_of: header("stripe-account").or_else(|| header("stripe-context")),
    };
    // A caller who hangs up must not stop the work half way: its key would stay in use for ever.
    let carried = tokio::spawn(carry(shared, work.clone(), envelope));
    match carried.await {
        Ok(Some(response)) => response,
        Ok(None) => {
            scissors.cut();
            Response::new(Body::empty())
        }
        Err(error) => {
            tracing::error!(%error, "the sandbox failed");
            let refusal = Refusal::new(500, "api_error", format!("The sandbox itself failed: {error}"));
            respond(&work, Reply::of(&refusal, &work.request_id))
        }
    }
}

/// The headers that matter.
struct Envelope {
    authorization: Option<String>,
    version: Option<String>,
    content_type: Option<String>,
    on_behalf_of: Option<String>,
}

/// What is known once a request has been let in.
struct Admitted {
    caller: Caller,
    plan: Plan,
    /// The stored answer, if the key is known.
    replay: Option<Reply>,
    /// The object that nobody else may write meanwhile.
    locked: Option<String>,
}

/// Takes a request from its arrival to its answer; `None` means that the connection is cut.
async fn carry(shared: Arc<Shared>, mut work: Work, envelope: Envelope) -> Option<Response<Body>> {
    let admitted = shared.read(|inner| {
        let caller = auth::authenticate(&inner.state, envelope.authorization.as_deref());
        work.version = version_of(inner, &envelope, caller.as_ref().ok());
        let admitted = admit(&shared, inner, &work, &envelope, caller);
        inner.record(Recorded::new(
            &shared,
            &work,
            envelope.version.as_ref(),
            admitted.as_ref().ok().map(|a| &a.caller),
        ));
        admitted
    });
    let reply = match admitted {
        Err(refusal) => Some(Reply::of(&refusal, &work.request_id)),
        Ok(Admitted { replay: Some(reply), plan, .. }) => {
            shared.clock.sleep(plan.delay_before + plan.delay_after).await;
            Some(reply).filter(|_| plan.cut.is_none())
        }
        Ok(admitted) => {
            let original = work.idempotency_key.as_ref().map(|_| work.request_id.clone());
            execute(&shared, &work, admitted).await.map(|reply| Reply { original, ..reply })
        }
    };
    let status = reply.as_ref().map_or(0, |reply| reply.status);
    shared.read(|inner| inner.record_answer(&work.request_id, status));
    reply.map(|reply| respond(&work, reply))
}

/// The version that the request names, if it is one; else the account's default.
fn version_of(inner: &Inner, envelope: &Envelope, caller: Option<&Caller>) -> String {
    let named = envelope.version.clone().filter(|version| versions::check_published(version).is_ok());
    let account = caller.and_then(|caller| inner.state.accounts.get(&caller.slot));
    named.or_else(|| account?.api_version.clone()).unwrap_or_else(own_version)
}

/// Everything that is decided before the endpoint begins its work.
fn admit(
    shared: &Shared,
    inner: &mut Inner,
    work: &Work,
    envelope: &Envelope,
    caller: Result<Caller, Refusal>,
) -> Result<Admitted, Refusal> {
    let account = caller.as_ref().map_or("", |caller| caller.account.as_str());
    let mut plan = faults::plan(&mut inner.faults, &mut inner.rng, &work.method, &work.path, account);
    inner.fault_hits += u64::from(!plan.is_empty());
    if let Some(refusal) = plan.refusal.take() {
        return Err(refusal);
    }
    let caller = caller?;
    let (endpoint, _) = parameters::route(&work.method, &work.path).ok_or_else(|| unrecognized(work))?;
    if let Some(limits) = shared.options.limits {
        let name = format!("{} {}", endpoint.method, endpoint.path);
        inner.limiter.take(limits, &caller.slot, caller.livemode, &name, shared.micros())?;
    }
    auth::permit(&caller, endpoint)?;
    check_envelope(envelope, &caller)?;
    let now = shared.seconds();
    let locked = lock_of(endpoint, work);
    if let Some(key) = &work.idempotency_key {
        let account = inner.account(&caller);
        let path = format!("{} {}", work.method, work.path);
        match idempotency::claim(account, key, &path, &work.form, &work.request_id, now)? {
            Verdict::Replay { status, body, request_id } => {
                let should_retry = (status >= 500).then_some(false);
                let reply =
                    Reply { status, body, limited: None, should_retry, original: Some(request_id), replayed: true };
                return Ok(Admitted { caller, plan, replay: Some(reply), locked: None });
            }
            Verdict::New => {}
        }
    }
    if let Some(object) = &locked
        && !inner.locks.insert(object.clone())
    {
        release_key(inner, &caller, work);
        return Err(Refusal::locked());
    }
    Ok(Admitted { caller, plan, replay: None, locked })
}

/// Only writes to a payment intent take its lock.
fn lock_of(endpoint: &Endpoint, work: &Work) -> Option<String> {
    let writes = endpoint.method == "POST" && endpoint.path.starts_with("/v1/payment_intents/{id}");
    writes.then(|| work.path.split('/').nth(3).unwrap_or_default().to_owned())
}

fn release_key(inner: &mut Inner, caller: &Caller, work: &Work) {
    if let Some(key) = &work.idempotency_key {
        idempotency::forget(inner.account(caller), key);
    }
}

fn check_envelope(envelope: &Envelope, caller: &Caller) -> Result<(), Refusal> {
    if let Some(other) = envelope.on_behalf_of.as_deref().filter(|other| *other != caller.account) {
        let message =
            format!("The provided key does not have access to account '{other}' (or that account does not exist).");
        return Err(Refusal::new(403, "invalid_request_error", message).code("account_invalid").early());
    }
    envelope.version.as_deref().map_or(Ok(()), versions::check_published)?;
    let form_encoded = |kind: &str| kind.starts_with("application/x-www-form-urlencoded");
    if envelope.content_type.as_deref().is_some_and(|kind| !form_encoded(kind)) {
        let message = "Invalid Content-Type: send the parameters as application/x-www-form-urlencoded.";
        return Err(Refusal::invalid(message).early());
    }
    Ok(())
}

/// Does the work, with all that goes wrong around it.
async fn execute(shared: &Arc<Shared>, work: &Work, admitted: Admitted) -> Option<Reply> {
    let Admitted { caller, plan, locked, .. } = admitted;
    if plan.delay_before.is_positive() {
        shared.clock.sleep(plan.delay_before).await;
    }
    let lost = |effect: Option<Effect>| matches!(effect, Some(Effect::NotDone | Effect::DoneLater { .. }));
    let work_under_lock = |inner: &mut Inner| {
        if let Some(object) = &locked {
            inner.locks.remove(object);
        }
        for effect in [plan.server_error, plan.cut].into_iter().flatten() {
            if let Effect::DoneLater { seconds } = effect {
                let due = Due::RollForward { work: work.clone() };
                inner.account(&caller).timers.put(Timer { at: shared.seconds() + seconds, due });
            }
        }
        if lost(plan.cut) {
            // What is still to be done keeps its key in use until then.
            if plan.cut == Some(Effect::NotDone) {
                release_key(inner, &caller, work);
            }
            return None;
        }
        if lost(plan.server_error) {
            return Some(broken(inner, &caller, work));
        }
        let reply = done(shared, inner, &caller, work);
        if plan.server_error.is_some() { Some(broken(inner, &caller, work)) } else { Some(reply) }
    };
    let reply = if work.method == "GET" { shared.read(work_under_lock) } else { shared.with(work_under_lock) };
    if plan.delay_after.is_positive() {
        shared.clock.sleep(plan.delay_after).await;
    }
    if plan.cut.is_some() { None } else { reply }
}

/// Carries the work out and stores its answer under the key.
fn done(shared: &Shared, inner: &mut Inner, caller: &Caller, work: &Work) -> Reply {
    let (now, now_micros) = (shared.seconds(), shared.micros());
    let account = inner.account(caller);
    let mut act = Act { account, now, now_micros, cause: Some(work.cause()), settings: &shared.settings };
    let answer = perform(&mut act, work);
    let early = answer.as_ref().is_err_and(|refusal| refusal.early);
    let reply = match answer {
        Ok(object) => Reply {
            status: 200,
            body: pretty(&object),
            limited: None,
            should_retry: None,
            original: None,
            replayed: false,
        },
        Err(refusal) => Reply::of(&refusal, &work.request_id),
    };
    if let Some(key) = &work.idempotency_key {
        let account = inner.account(caller);
        if early {
            idempotency::forget(account, key);
        } else {
            idempotency::remember(account, key, reply.status, &reply.body);
        }
    }
    reply
}

/// Stores the answer to work that was done late, unless a 500 has been given already.
pub(super) fn remember_late(account: &mut Account, work: &Work, answer: &Answer) {
    let Some(key) = &work.idempotency_key else { return };
    let (status, body) = match answer {
        Ok(object) => (200, pretty(object)),
        Err(refusal) => (refusal.status, refusal.body(&work.request_id).to_string()),
    };
    idempotency::remember_once(account, key, status, &body);
}

/// A 500, which is remembered like any other answer.
fn broken(inner: &mut Inner, caller: &Caller, work: &Work) -> Reply {
    let message = "An unknown error occurred. If you keep seeing this, contact support.";
    let reply = Reply::of(&Refusal::new(500, "api_error", message), &work.request_id);
    if let Some(key) = &work.idempotency_key {
        idempotency::remember(inner.account(caller), key, reply.status, &reply.body);
    }
    reply
}

fn pretty(object: &Value) -> String {
    serde_json::to_string_pretty(object).unwrap_or_default()
}

fn respond(work: &Work, reply: Reply) -> Response<Body> {
    let mut response = Response::new(Body::from(reply.body));
    *response.status_mut() = reply.status.try_into().unwrap_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    let mut put = |name: &'static str, value: Option<&str>| {
        if let Some(Ok(value)) = value.map(HeaderValue::from_str) {
            headers.insert(name, value);
        }
    };
    put("content-type", Some("application/json"));
    put("request-id", Some(&work.request_id));
    put("stripe-version", Some(&work.version));
    put("idempotency-key", work.idempotency_key.as_deref());
    put("stripe-rate-limited-reason", reply.limited.as_deref());
    put("stripe-should-retry", reply.should_retry.map(|retry| if retry { "true" } else { "false" }));
    put("original-request", reply.original.as_deref());
    put("idempotent-replayed", reply.replayed.then_some("true"));
    response
}
