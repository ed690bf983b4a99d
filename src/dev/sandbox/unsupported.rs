//! What Stripe supports and the sandbox does not (`unsupported.txt`). The error for such a request names the sandbox,
//! so that a gap in the sandbox is not mistaken for a rule of Stripe's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use super::api_error::ApiError;
use super::endpoints::{Endpoint, matches};

/// The parsed file.
#[derive(Debug, Default)]
struct Unsupported {
    /// Methods and path of each unsupported endpoint.
    endpoints: Vec<(BTreeSet<String>, String)>,
    /// By method and path: the parameters with their unsupported values. No values: the parameter is unsupported.
    parameters: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
}

static UNSUPPORTED: LazyLock<Unsupported> = LazyLock::new(|| read(include_str!("unsupported.txt")));

fn read(text: &str) -> Unsupported {
    let mut unsupported = Unsupported::default();
    let mut endpoint = String::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if !line.starts_with(' ') {
            line.clone_into(&mut endpoint);
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let (path, methods) = words.split_last().expect("a line has words");
            unsupported.endpoints.push((methods.iter().cloned().collect(), path.clone()));
            continue;
        }
        let parameters = unsupported.parameters.entry(endpoint.clone()).or_default();
        for word in line.split_whitespace() {
            let (name, values) = word.split_once('=').map_or((word, None), |(name, values)| (name, Some(values)));
            let known = parameters.entry(name.to_owned()).or_default();
            known.extend(values.into_iter().flat_map(|values| values.split('|')).map(str::to_owned));
        }
    }
    let Unsupported { endpoints, parameters } = &mut unsupported;
    endpoints
        .retain(|(methods, path)| !methods.iter().any(|method| parameters.contains_key(&format!("{method} {path}"))));
    unsupported
}

/// The error for an unsupported endpoint.
pub(super) fn endpoint(method: &str, path: &str) -> Option<ApiError> {
    let is_requested =
        |(methods, known): &&(BTreeSet<String>, String)| methods.contains(method) && matches(known, path).is_some();
    UNSUPPORTED.endpoints.iter().find(is_requested)?;
    let message = format!("This sandbox does not have the endpoint {method} {path}, which Stripe has.");
    Some(ApiError::new(404, "invalid_request_error", message).before_execution())
}

/// Replaces the error if Stripe supports the rejected parameter or value and the sandbox does not.
pub(super) fn explain(api_error: ApiError, endpoint: &Endpoint, form: &[(String, String)]) -> ApiError {
    let Some(param) = api_error.error.get("param").and_then(|param| param.as_str()).map(str::to_owned) else {
        return api_error;
    };
    let parameters = UNSUPPORTED.parameters.get(&format!("{} {}", endpoint.method, endpoint.path));
    let Some(values) = parameters.and_then(|parameters| parameters.get(&unnumbered(&param))) else { return api_error };
    let message = if values.is_empty() {
        if api_error.error.get("code").is_none_or(|code| code != "parameter_unknown") {
            return api_error;
        }
        format!("This sandbox does not take the parameter {param}, which Stripe has.")
    } else {
        let of_param = |(name, _): &&(String, String)| unnumbered(name) == unnumbered(&param);
        let given = form.iter().filter(of_param).find(|(_, value)| values.contains(value));
        let Some((_, value)) = given else { return api_error };
        format!("This sandbox does not take {value} for {param}; Stripe does.")
    };
    ApiError::invalid(message).at(&param).before_execution()
}

/// The name without array indices: `a[][b]` for `a[0][b]`.
fn unnumbered(name: &str) -> String {
    let mut parts = name.split('[');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let inner = part.trim_end_matches(']');
        let is_number = !inner.is_empty() && inner.bytes().all(|byte| byte.is_ascii_digit());
        out.push('[');
        out.push_str(if is_number { "" } else { inner });
        out.push(']');
    }
    out
}

/// The unsupported endpoints, such as `GET POST /v1/payouts`.
pub(super) fn endpoints() -> impl Iterator<Item = String> {
    UNSUPPORTED.endpoints.iter().map(|(methods, path)| {
        let methods: Vec<&str> = methods.iter().map(String::as_str).collect();
        format!("{} {path}", methods.join(" "))
    })
}

/// The unsupported parameters of supported endpoints: `name`, or `name=value` for one value.
pub(super) fn parameters() -> impl Iterator<Item = (&'static str, Vec<String>)> {
    UNSUPPORTED.parameters.iter().map(|(endpoint, parameters)| {
        let words = parameters.iter().flat_map(|(name, values)| {
            let all = values.is_empty().then(|| name.clone());
            all.into_iter().chain(values.iter().map(move |value| format!("{name}={value}")))
        });
        (endpoint.as_str(), words.collect())
    })
}

/// Whether the file lists the endpoint.
#[cfg(test)]
pub(super) fn has_endpoint(method: &str, path: &str) -> bool {
    endpoint(method, path).is_some()
}

/// Whether the file lists the parameter, or the value of one (`name=value`).
#[cfg(test)]
pub(super) fn has_parameter(endpoint: &Endpoint, word: &str) -> bool {
    let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
    let parameters = UNSUPPORTED.parameters.get(&format!("{} {}", endpoint.method, endpoint.path));
    let Some(values) = parameters.and_then(|known| known.get(name)) else { return false };
    value.map_or(values.is_empty(), |value| values.contains(value))
}
