//! Checks requests against the table of endpoints and their parameters. Unknown names, wrong types and missing values
//! are errors, as at Stripe.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::api_error::ApiError;
use super::endpoints::{Endpoint, Kind, Parameter, route};
use super::form::{self, Field};
use super::unsupported;

/// Checks a recorded request against the table. `form` holds the decoded pairs of the body or query, such as
/// `("metadata[a]", "b")`.
///
/// # Errors
/// Stripe's message, if the endpoint is unknown, or a parameter is unknown, of the wrong type, given twice or missing.
pub fn check(method: &str, path: &str, form: &[(String, String)]) -> Result<(), String> {
    let (endpoint, _) = route(method, path).ok_or_else(|| format!("unknown endpoint: {method} {path}"))?;
    match typed_form(endpoint, form) {
        Ok(_) => Ok(()),
        Err(api_error) => Err(api_error.error["message"].as_str().unwrap_or_default().to_owned()),
    }
}

/// The parameters of a request as typed JSON: numbers, booleans, arrays, and `null` for a value to unset.
pub(super) fn typed_form(endpoint: &Endpoint, pairs: &[(String, String)]) -> Result<Value, ApiError> {
    match form::tree(pairs).map_err(ApiError::before_execution)? {
        Field::Branch(fields) => object(&endpoint.parameters, &fields, "")
            .map_err(|api_error| unsupported::explain(api_error.before_execution(), endpoint, pairs)),
        Field::Text(_) => Ok(Value::Object(Map::new())),
    }
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}[{name}]") }
}

fn object(known: &BTreeMap<String, Parameter>, given: &[(String, Field)], parent: &str) -> Result<Value, ApiError> {
    let mut out = Map::new();
    for (name, field) in given {
        let path = join(parent, name);
        let parameter = known.get(name).ok_or_else(|| unknown(&path))?;
        out.insert(name.clone(), value(parameter, field, &path)?);
    }
    match known.iter().find(|(name, parameter)| parameter.required && !out.contains_key(*name)) {
        Some((name, _)) => {
            let path = join(parent, name);
            Err(ApiError::invalid(format!("Missing required param: {path}.")).code("parameter_missing").at(&path))
        }
        None => Ok(Value::Object(out)),
    }
}

/// The error for a parameter that the endpoint does not have.
pub(super) fn unknown(path: &str) -> ApiError {
    ApiError::invalid(format!("Received unknown parameter: {path}")).code("parameter_unknown").at(path)
}

fn value(parameter: &Parameter, field: &Field, path: &str) -> Result<Value, ApiError> {
    let wrong = |what: &str| ApiError::invalid(format!("Invalid {what}")).at(path);
    match (&parameter.kind, field) {
        (_, Field::Text(text)) if text.is_empty() => {
            if parameter.clearable {
                return Ok(Value::Null);
            }
            let message = format!(
                "You passed an empty string for '{path}'. We assume empty values are an attempt to unset a parameter; \
                 however '{path}' cannot be unset. You should remove '{path}' from your request or supply a non-empty value."
            );
            Err(ApiError::invalid(message).code("parameter_invalid_empty").at(path))
        }
        (Kind::Object(known), Field::Branch(given)) => object(known, given, path),
        (Kind::Object(_) | Kind::Strings, Field::Text(_)) => Err(wrong("object")),
        (Kind::Strings, Field::Branch(given)) => strings(given, path),
        (Kind::Range, Field::Branch(given)) => {
            let bound = || Parameter { kind: Kind::Time, ..Parameter::default() };
            object(&["gt", "gte", "lt", "lte"].map(|name| (name.to_owned(), bound())).into(), given, path)
        }
        (Kind::Array(items), Field::Branch(given)) => array(items, given, path),
        (Kind::Array(_), Field::Text(_)) => Err(wrong("array")),
        (_, Field::Branch(_)) => Err(wrong("string: must be a string").code("parameter_invalid_string")),
        (kind, Field::Text(text)) => scalar(kind, text, path),
    }
}

fn array(items: &Parameter, given: &[(String, Field)], path: &str) -> Result<Value, ApiError> {
    let mut numbered = Vec::new();
    for (index, field) in given {
        let index: usize = index.parse().map_err(|_| ApiError::invalid("Invalid array").at(path))?;
        numbered.push((index, value(items, field, &format!("{path}[{index}]"))?));
    }
    numbered.sort_by_key(|(index, _)| *index);
    Ok(numbered.into_iter().map(|(_, item)| item).collect())
}

fn scalar(kind: &Kind, text: &str, path: &str) -> Result<Value, ApiError> {
    match kind {
        Kind::Integer | Kind::Time | Kind::Range => text.parse::<i64>().map(Value::from).map_err(|_| {
            ApiError::invalid(format!("Invalid integer: {text}")).code("parameter_invalid_integer").at(path)
        }),
        Kind::Boolean => text.parse::<bool>().map(Value::from).map_err(|_| {
            ApiError::invalid(format!("Invalid boolean: {text}")).code("parameter_invalid_boolean").at(path)
        }),
        Kind::Choice(choices) if !choices.iter().any(|choice| choice == text) => {
            Err(ApiError::invalid(format!("Invalid {path}: must be one of {}", choices.join(", "))).at(path))
        }
        Kind::Short(most) if text.chars().count() > *most => {
            let message = format!("Invalid string: {}; must be at most {most} characters", shortened(text));
            Err(ApiError::invalid(message).at(path))
        }
        _ => Ok(Value::from(text)),
    }
}

/// The beginning and the end of a long text, for error messages.
fn shortened(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let ends = [&letters[..letters.len().min(20)], &letters[letters.len().saturating_sub(5)..]];
    ends.map(|end| end.iter().collect::<String>()).join("...")
}

/// Metadata: at most 50 keys of at most 40 characters, without brackets, and values of at most 500 characters.
fn strings(given: &[(String, Field)], path: &str) -> Result<Value, ApiError> {
    if given.len() > 50 {
        return Err(ApiError::invalid("Metadata can have at most 50 keys.").at(path));
    }
    let mut out = Map::new();
    for (key, field) in given {
        let Field::Text(text) = field else {
            return Err(ApiError::invalid("Metadata values must be strings.").at(&join(path, key)));
        };
        if key.chars().count() > 40 {
            let message = format!("Metadata keys must be at most 40 characters long: {key}");
            return Err(ApiError::invalid(message).at(path));
        }
        if text.chars().count() > 500 {
            let message = format!("Metadata values can have up to 500 characters, but you passed in a value for {key}");
            return Err(ApiError::invalid(message).at(&join(path, key)));
        }
        out.insert(key.clone(), Value::from(text.as_str()));
    }
    Ok(Value::Object(out))
}
