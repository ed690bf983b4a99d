//! What Stripe has and the sandbox does not (`lacking.txt`): a request for it is answered with an error that says that the
//! sandbox lacks it, so that nobody takes a gap for a rule of Stripe's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use super::parameters::{Endpoint, matches};
use super::refusal::Refusal;

/// The file, read.
#[derive(Debug, Default)]
struct Lacking {
    /// Methods and path of each endpoint that the sandbox does not have.
    endpoints: Vec<(BTreeSet<String>, String)>,
    /// By method and path: parameters, with the values that are lacking, or none where all of it is.
    parameters: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
}

static LACKING: LazyLock<Lacking> = LazyLock::new(|| read(include_str!("lacking.txt")));

fn read(text: &str) -> Lacking {
    let mut lacking = Lacking::default();
    let mut endpoint = String::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if !line.starts_with(' ') {
            line.clone_into(&mut endpoint);
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let (path, methods) = words.split_last().expect("a line has words");
            lacking.endpoints.push((methods.iter().cloned().collect(), path.clone()));
            continue;
        }
        let parameters = lacking.parameters.entry(endpoint.clone()).or_default();
        for word in line.split_whitespace() {
            let (name, values) = word.split_once('=').map_or((word, None), |(name, values)| (name, Some(values)));
            let known = parameters.entry(name.to_owned()).or_default();
            known.extend(values.into_iter().flat_map(|values| values.split('|')).map(str::to_owned));
        }
    }
    let Lacking { endpoints, parameters } = &mut lacking;
    endpoints
        .retain(|(methods, path)| !methods.iter().any(|method| parameters.contains_key(&format!("{method} {path}"))));
    lacking
}

/// The refusal of an endpoint that Stripe has and the sandbox does not.
pub(super) fn endpoint(method: &str, path: &str) -> Option<Refusal> {
    let is_it =
        |(methods, known): &&(BTreeSet<String>, String)| methods.contains(method) && matches(known, path).is_some();
    LACKING.endpoints.iter().find(is_it)?;
    let message = format!("This sandbox does not have the endpoint {method} {path}, which Stripe has.");
    Some(Refusal::new(404, "invalid_request_error", message).early())
}

/// Lets a refusal say that the sandbox is at fault, where Stripe takes the parameter or the value.
pub(super) fn explain(refusal: Refusal, endpoint: &Endpoint, form: &[(String, String)]) -> Refusal {
    let Some(param) = refusal.error.get("param").and_then(|param| param.as_str()).map(str::to_owned) else {
        return refusal;
    };
    let parameters = LACKING.parameters.get(&format!("{} {}", endpoint.method, endpoint.path));
    let Some(values) = parameters.and_then(|parameters| parameters.get(&unnumbered(&param))) else { return refusal };
    let message = if values.is_empty() {
        if refusal.error.get("code").is_none_or(|code| code != "parameter_unknown") {
            return refusal;
        }
        format!("This sandbox does not take the parameter {param}, which Stripe has.")
    } else {
        let of_param = |(name, _): &&(String, String)| unnumbered(name) == unnumbered(&param);
        let given = form.iter().filter(of_param).find(|(_, value)| values.contains(value));
        let Some((_, value)) = given else { return refusal };
        format!("This sandbox does not take {value} for {param}; Stripe does.")
    };
    Refusal::invalid(message).at(&param).early()
}

/// The name with the places in arrays left open: `a[0][b]` is `a[][b]`.
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

/// The endpoints that the sandbox does not have, `GET POST /v1/payouts` for instance.
pub(super) fn endpoints() -> impl Iterator<Item = String> {
    LACKING.endpoints.iter().map(|(methods, path)| {
        let methods: Vec<&str> = methods.iter().map(String::as_str).collect();
        format!("{} {path}", methods.join(" "))
    })
}

/// What the sandbox's endpoints do not take: each with the names of parameters, and `name=value` for a value of one.
pub(super) fn parameters() -> impl Iterator<Item = (&'static str, Vec<String>)> {
    LACKING.parameters.iter().map(|(endpoint, parameters)| {
        let words = parameters.iter().flat_map(|(name, values)| {
            let all = values.is_empty().then(|| name.clone());
            all.into_iter().chain(values.iter().map(move |value| format!("{name}={value}")))
        });
        (endpoint.as_str(), words.collect())
    })
}

/// Whether the file has the endpoint.
#[cfg(test)]
pub(super) fn has_endpoint(method: &str, path: &str) -> bool {
    endpoint(method, path).is_some()
}

/// Whether the file has the parameter, or the value of one (`name=value`).
#[cfg(test)]
pub(super) fn has_parameter(endpoint: &Endpoint, word: &str) -> bool {
    let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
    let parameters = LACKING.parameters.get(&format!("{} {}", endpoint.method, endpoint.path));
    let Some(values) = parameters.and_then(|known| known.get(name)) else { return false };
    value.map_or(values.is_empty(), |value| values.contains(value))
}
