//! Checks requests against the table of endpoints and their parameters, `parameters.txt`. Unknown names, wrong types
//! and missing values are errors, as at Stripe.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::api_error::ApiError;
use super::form::{self, Field};
use super::unsupported;

/// An endpoint of the table.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// `POST`, `GET` or `DELETE`.
    pub method: String,
    /// With `{id}` in place of each id.
    pub path: String,
    /// The permission that a restricted key needs, such as `customer_write`.
    pub permission: String,
    pub parameters: BTreeMap<String, Parameter>,
}

/// A parameter, or a field of one.
#[derive(Debug, Clone, Default)]
pub(super) struct Parameter {
    pub kind: Kind,
    /// Must be given, within its parent if that is given.
    pub required: bool,
    /// May be empty, which unsets the value.
    pub clearable: bool,
}

/// The types of the table.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Text,
    /// A string of at most this many characters.
    Short(usize),
    Integer,
    Boolean,
    Time,
    /// A time, or an object of `gt`, `gte`, `lt`, `lte`.
    Range,
    /// A map from any name to a string, such as metadata.
    Strings,
    Choice(Vec<String>),
    Object(BTreeMap<String, Parameter>),
    Array(Box<Parameter>),
}

impl Default for Kind {
    fn default() -> Self {
        Self::Object(BTreeMap::new())
    }
}

static TABLE: LazyLock<Vec<Endpoint>> = LazyLock::new(|| read(include_str!("parameters.txt")));

/// All endpoints, in the table's order.
#[cfg(test)]
pub(super) fn table() -> &'static [Endpoint] {
    &TABLE
}

/// Parses the table. Panics on a mistake, which is a bug: the table is compiled in, and tests parse it.
fn read(text: &str) -> Vec<Endpoint> {
    let mut groups: BTreeMap<String, BTreeMap<String, Parameter>> = BTreeMap::new();
    let mut endpoints: Vec<Endpoint> = Vec::new();
    let mut group = None;
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["group", name] = words[..] {
            group = Some(name.to_owned());
            continue;
        }
        if let ([method, path, permission], false) = (&words[..], line.starts_with(' ')) {
            group = None;
            endpoints.push(Endpoint {
                method: (*method).to_owned(),
                path: (*path).to_owned(),
                permission: (*permission).to_owned(),
                parameters: BTreeMap::new(),
            });
            continue;
        }
        let (name, kind) = match words[..] {
            [name] => ("", name),
            [name, kind] => (name, kind),
            _ => panic!("the parameter table has an invalid line: {line}"),
        };
        let (name, clearable) = name.strip_suffix('?').map_or((name, false), |name| (name, true));
        let mut parameter = typed(kind, &groups);
        parameter.clearable |= clearable;
        let fields = match &group {
            Some(group) => groups.entry(group.clone()).or_default(),
            None => &mut endpoints.last_mut().expect("a parameter follows an endpoint").parameters,
        };
        place(fields, name, parameter);
    }
    endpoints
}

fn typed(word: &str, groups: &BTreeMap<String, BTreeMap<String, Parameter>>) -> Parameter {
    let (word, required) = word.strip_suffix('!').map_or((word, false), |word| (word, true));
    let (word, clearable) = word.strip_suffix('?').map_or((word, false), |word| (word, true));
    let kind = match word {
        "string" => Kind::Text,
        "integer" => Kind::Integer,
        "boolean" => Kind::Boolean,
        "timestamp" => Kind::Time,
        "range" => Kind::Range,
        "map" => Kind::Strings,
        word => match (word.strip_prefix('@'), word.strip_prefix("enum:"), word.strip_prefix("string:")) {
            (Some(group), ..) => Kind::Object(groups[group].clone()),
            (_, Some(choices), _) => Kind::Choice(choices.split('|').map(str::to_owned).collect()),
            (.., Some(most)) => Kind::Short(most.parse().expect("a length is a number")),
            _ => panic!("the parameter table has an unknown type: {word}"),
        },
    };
    Parameter { kind, required, clearable }
}

/// Inserts a parameter at its bracketed name, such as `a[b][]`.
fn place(fields: &mut BTreeMap<String, Parameter>, name: &str, parameter: Parameter) {
    if name.is_empty() {
        let Kind::Object(group) = parameter.kind else { panic!("only a group can be without a name") };
        fields.extend(group);
        return;
    }
    let (head, rest) = name.find('[').map_or((name, ""), |at| name.split_at(at));
    descend(fields.entry(head.to_owned()).or_default(), rest, parameter);
}

fn descend(at: &mut Parameter, rest: &str, parameter: Parameter) {
    let Some((part, rest)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        *at = parameter;
        return;
    };
    if part.is_empty() {
        if !matches!(at.kind, Kind::Array(_)) {
            // `a[] string!` requires the array, `a[][b] string!` the field of each item.
            let required = parameter.required && rest.is_empty();
            *at = Parameter { kind: Kind::Array(Box::default()), required, clearable: false };
        }
        let Kind::Array(items) = &mut at.kind else { unreachable!("set to an array above") };
        let required = parameter.required && !rest.is_empty();
        descend(items, rest, Parameter { required, ..parameter });
    } else {
        let Kind::Object(fields) = &mut at.kind else { panic!("a parameter has fields and a type of its own") };
        descend(fields.entry(part.to_owned()).or_default(), rest, parameter);
    }
}

/// The endpoint of a method and a path, with the ids in the path.
pub(super) fn route<'a>(method: &str, path: &'a str) -> Option<(&'static Endpoint, Vec<&'a str>)> {
    let mut endpoints = TABLE.iter().filter(|endpoint| endpoint.method == method);
    endpoints.find_map(|endpoint| Some((endpoint, matches(&endpoint.path, path)?)))
}

/// The ids in `path`, if it matches the pattern `known`.
pub(super) fn matches<'a>(known: &str, path: &'a str) -> Option<Vec<&'a str>> {
    let (mut ids, mut given) = (Vec::new(), path.split('/'));
    for expected in known.split('/') {
        match given.next() {
            // Not an id, but the name of Stripe's search endpoints.
            Some("search") if expected == "{id}" => return None,
            Some(part) if expected == "{id}" && !part.is_empty() => ids.push(part),
            Some(part) if part == expected => {}
            _ => return None,
        }
    }
    given.next().is_none().then_some(ids)
}

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
