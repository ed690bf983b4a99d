//! Compares the parameter table with Stripe's OpenAPI document, if `PAYBRIDGE_STRIPE_OPENAPI` names its file.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::endpoints::{self, Kind, Parameter};
use super::super::{parameters, unsupported};

/// Parameters that are newer than the document (version 2023-08-16).
const NEWER: &[&str] = &[
    // Sessions by state and time, since 2024.
    "GET /v1/checkout/sessions created",
    "GET /v1/checkout/sessions status",
    // Whether a stored method may be shown again, since 2024.
    "POST /v1/payment_methods allow_redisplay",
    "POST /v1/payment_methods/{} allow_redisplay",
    // The document omits parameters for a single type of source.
    "POST /v1/sources sepa_debit",
    // Since 2026-07-29.dahlia.
    "POST /v1/payment_intents allowed_payment_method_types",
    "POST /v1/payment_intents/{} allowed_payment_method_types",
    "POST /v1/payment_intents/{}/confirm allowed_payment_method_types",
    "POST /v1/setup_intents allowed_payment_method_types",
    "POST /v1/setup_intents/{} allowed_payment_method_types",
    "POST /v1/setup_intents/{}/confirm allowed_payment_method_types",
    "POST /v1/checkout/sessions allowed_payment_method_types",
    // Since late 2023, with these values since dahlia.
    "POST /v1/checkout/sessions ui_mode",
    // Since late 2023.
    "POST /v1/checkout/sessions custom_text[after_submit]",
];

/// Endpoints that Stripe does not document. Its hosted page and its CLI use them.
const UNDOCUMENTED: &[&str] = &["GET /v1/payment_pages/{}", "POST /v1/payment_pages/{}/confirm"];

struct Document(Value);

impl Document {
    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(reference) => self.resolve(self.0.pointer(reference.trim_start_matches('#')).unwrap()),
            None => schema,
        }
    }

    /// The parameters of an endpoint, by name.
    fn parameters(&self, method: &str, path: &str) -> Option<BTreeMap<String, (Value, bool)>> {
        let paths = self.0["paths"].as_object().unwrap();
        let (_, found) = paths.iter().find(|(known, _)| shape(known) == path)?;
        let operation = found.get(method.to_lowercase())?;
        if method != "POST" {
            let query = operation["parameters"].as_array().unwrap().iter().filter(|known| known["in"] == "query");
            let named = |known: &Value| {
                let name = known["name"].as_str().unwrap().to_owned();
                (name, (known["schema"].clone(), known["required"] == true))
            };
            return Some(query.map(named).collect());
        }
        let body = operation["requestBody"]["content"]["application/x-www-form-urlencoded"]["schema"].clone();
        Some(self.fields(&body))
    }

    fn fields(&self, schema: &Value) -> BTreeMap<String, (Value, bool)> {
        let schema = self.resolve(schema);
        let required = |name: &str| schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
        let fields = schema["properties"].as_object().into_iter().flatten();
        fields.map(|(name, field)| (name.clone(), (field.clone(), required(name)))).collect()
    }

    /// Reports the differences in a parameter and all its fields.
    fn compare(&self, name: &str, ours: &Parameter, theirs: &Value, wrong: &mut Vec<String>) {
        let theirs = self.resolve(theirs);
        let any = theirs["anyOf"].as_array();
        let choices: Vec<&Value> =
            any.map_or_else(|| vec![theirs], |all| all.iter().map(|one| self.resolve(one)).collect());
        let is = |kind: &str| choices.iter().any(|choice| choice["type"] == kind);
        let fits = match &ours.kind {
            Kind::Text | Kind::Short(_) => is("string"),
            Kind::Integer | Kind::Time => is("integer"),
            Kind::Boolean => is("boolean"),
            Kind::Range => is("integer") && is("object"),
            Kind::Strings => choices.iter().any(|choice| choice["additionalProperties"]["type"] == "string"),
            Kind::Choice(values) => values.iter().all(|value| {
                let listed =
                    |choice: &&Value| choice["enum"].as_array().is_some_and(|all| all.iter().any(|one| one == value));
                choices.iter().any(listed)
                    || choices.iter().any(|choice| choice["type"] == "string" && choice["enum"].is_null())
            }),
            Kind::Object(fields) => {
                for (field, parameter) in fields {
                    let name = format!("{name}[{field}]");
                    match choices.iter().find_map(|choice| self.fields(choice).remove(field)) {
                        Some((theirs, _)) => self.compare(&name, parameter, &theirs, wrong),
                        None if NEWER.contains(&&*name) => {}
                        None => wrong.push(format!("{name} is unknown to Stripe")),
                    }
                }
                is("object")
            }
            Kind::Array(items) => {
                if let Some(theirs) = choices.iter().find(|choice| choice["type"] == "array") {
                    self.compare(&format!("{name}[]"), items, &theirs["items"], wrong);
                }
                is("array")
            }
        };
        if !fits {
            wrong.push(format!("{name} is {:?} here and something else at Stripe", ours.kind));
        }
    }
}

impl Document {
    /// Collects the fields and values of a parameter that Stripe has and the table does not.
    fn missing(&self, name: &str, ours: &Parameter, theirs: &Value, found: &mut Vec<String>) {
        let theirs = self.resolve(theirs);
        let choices: Vec<&Value> = match theirs["anyOf"].as_array() {
            Some(all) => all.iter().map(|one| self.resolve(one)).collect(),
            None => vec![theirs],
        };
        match &ours.kind {
            Kind::Object(known) => {
                for (field, (theirs, _)) in choices.iter().flat_map(|choice| self.fields(choice)) {
                    let name = format!("{name}[{field}]");
                    match known.get(&field) {
                        Some(ours) => self.missing(&name, ours, &theirs, found),
                        None => found.push(name),
                    }
                }
            }
            Kind::Array(items) => {
                for choice in choices.iter().filter(|choice| choice["type"] == "array") {
                    self.missing(&format!("{name}[]"), items, &choice["items"], found);
                }
            }
            Kind::Choice(known) => {
                let values = choices.iter().filter_map(|choice| choice["enum"].as_array()).flatten();
                let values = values.filter_map(Value::as_str).filter(|value| !value.is_empty());
                let unknown = values.filter(|value| !known.iter().any(|known| known == value));
                found.extend(unknown.map(|value| format!("{name}={value}")));
            }
            _ => {}
        }
    }
}

/// The path with `{}` for each id: Stripe's names of ids vary.
fn shape(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

#[test]
fn the_parameter_table_matches_stripes() {
    let Ok(file) = std::env::var("PAYBRIDGE_STRIPE_OPENAPI") else {
        println!("skipped: PAYBRIDGE_STRIPE_OPENAPI does not name Stripe's OpenAPI document");
        return;
    };
    let document = Document(serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap());
    let mut wrong = Vec::new();
    // Fields of parameters are checked in `compare`.
    let mut unused: Vec<&str> = NEWER.iter().copied().filter(|name| !name.contains('[')).collect();
    for endpoint in endpoints::table() {
        let name = format!("{} {}", endpoint.method, shape(&endpoint.path));
        if UNDOCUMENTED.contains(&&*name) {
            continue;
        }
        let Some(theirs) = document.parameters(&endpoint.method, &shape(&endpoint.path)) else {
            wrong.push(format!("{name} is unknown to Stripe"));
            continue;
        };
        for (parameter, ours) in &endpoint.parameters {
            let full = format!("{name} {parameter}");
            match theirs.get(parameter) {
                Some((theirs, _)) => document.compare(&full, ours, theirs, &mut wrong),
                None if NEWER.contains(&&*full) => unused.retain(|known| **known != full),
                None => wrong.push(format!("{full} is unknown to Stripe")),
            }
        }
        for (parameter, (_, required)) in &theirs {
            if *required && !endpoint.parameters.get(parameter).is_some_and(|ours| ours.required) {
                wrong.push(format!("{name} {parameter} is required at Stripe"));
            }
        }
    }
    assert!(wrong.is_empty(), "the table and {file} differ:\n{}", wrong.join("\n"));
    assert!(unused.is_empty(), "these exceptions are not needed: {unused:?}");
}

#[test]
fn whatever_else_stripe_supports_is_listed_as_unsupported() {
    let Ok(file) = std::env::var("PAYBRIDGE_STRIPE_OPENAPI") else {
        println!("skipped: PAYBRIDGE_STRIPE_OPENAPI does not name Stripe's OpenAPI document");
        return;
    };
    let document = Document(serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap());
    let mut wrong = Vec::new();
    for (path, operations) in document.0["paths"].as_object().unwrap() {
        let path = shape(path).replace("{}", "{id}");
        for method in operations.as_object().unwrap().keys().map(|method| method.to_uppercase()) {
            let known = endpoints::table().iter().find(|known| known.method == method && known.path == path);
            let Some(endpoint) = known else {
                if !unsupported::has_endpoint(&method, &path) {
                    wrong.push(format!("{method} {path}"));
                }
                continue;
            };
            let mut found = Vec::new();
            for (name, (theirs, _)) in document.parameters(&method, &shape(&path)).unwrap() {
                match endpoint.parameters.get(&name) {
                    Some(ours) => document.missing(&name, ours, &theirs, &mut found),
                    None => found.push(name),
                }
            }
            let unlisted = found.iter().filter(|word| !unsupported::has_parameter(endpoint, word));
            wrong.extend(unlisted.map(|word| format!("{method} {path} {word}")));
        }
    }
    assert!(wrong.is_empty(), "neither parameters.txt nor unsupported.txt has:\n{}", wrong.join("\n"));
}

#[test]
fn recorded_requests_can_be_checked_against_the_table() {
    let form = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let intent = form(&[("amount", "4900"), ("currency", "eur"), ("payment_method_types[0]", "card")]);
    assert_eq!(parameters::check("POST", "/v1/payment_intents", &intent), Ok(()));
    let unknown = parameters::check("POST", "/v1/payment_intents/pi_1/confirm", &form(&[("amount", "1")]));
    assert_eq!(unknown, Err("Received unknown parameter: amount".to_owned()));
    assert!(parameters::check("POST", "/v1/nonsense", &[]).is_err());
}
