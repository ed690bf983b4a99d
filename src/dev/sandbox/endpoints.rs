//! The table of Stripe's endpoints that the sandbox serves, and of their parameters: `parameters.txt`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

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
