//! Stripe's request encoding: `application/x-www-form-urlencoded` with nesting in brackets.
//!
//! A resource's pure `…_body` function builds a body once. It is stored in the database and sent from there, so that
//! every send is identical, byte for byte (P2): Stripe compares the parameters of a repeated key, so a body recomputed
//! from newer data would be refused.

use std::fmt::{Display, Write as _};

/// The parameter with the allowed kinds, named only here. From API version 2026-09-30.endive on it is
/// `allowed_payment_method_types`; to move, change this line and [`super::API_VERSION`].
pub const PAYMENT_METHOD_TYPES: &str = "payment_method_types";

/// A form builder. Parameters keep the order in which they were pushed, so equal input gives equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Form(String);

impl Form {
    /// An empty form.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a parameter. `name` is Stripe's, with brackets: `amount`, `metadata[invoice_id]`, `expand[0]`.
    #[must_use]
    pub fn push(mut self, name: &str, value: impl Display) -> Self {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        encode(&mut self.0, name, BRACKETS);
        self.0.push('=');
        encode(&mut self.0, &value.to_string(), b"");
        self
    }

    /// Adds the parameter if there is a value. An absent parameter keeps Stripe's value; an empty string clears it.
    #[must_use]
    pub fn push_some(self, name: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.push(name, value),
            None => self,
        }
    }

    /// Adds a list, indexed as in Stripe's own libraries: `name[0]=…&name[1]=…`.
    #[must_use]
    pub fn push_list(self, name: &str, values: impl IntoIterator<Item = impl Display>) -> Self {
        values.into_iter().enumerate().fold(self, |form, (index, value)| form.push(&format!("{name}[{index}]"), value))
    }

    /// Adds a map: `name[key]=value`.
    #[must_use]
    pub fn push_map<V: Display>(self, name: &str, entries: &[(&str, V)]) -> Self {
        entries.iter().fold(self, |form, (key, value)| form.push(&format!("{name}[{key}]"), value))
    }

    /// The encoded form: a body to store and send, or a query.
    pub fn into_body(self) -> String {
        self.0
    }
}

/// Percent-encodes a path segment. [`super::client`] checks whether it is a valid id.
pub(super) fn path_segment(id: &str) -> String {
    let mut segment = String::with_capacity(id.len());
    encode(&mut segment, id, b"");
    segment
}

/// The structure of a parameter's name.
const BRACKETS: &[u8] = b"[]";

/// Escapes everything except RFC 3986's unreserved characters, and what is to be `kept`.
fn encode(out: &mut String, text: &str, kept: &[u8]) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ if kept.contains(&byte) => out.push(char::from(byte)),
            _ => write!(out, "%{byte:02X}").unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Decodes with an independent library.
    fn decode(body: &str) -> Vec<(String, String)> {
        let url = reqwest::Url::parse(&format!("http://localhost/?{body}")).unwrap();
        url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
    }

    #[test]
    fn lists_and_maps_are_nested_as_stripe_documents() {
        let body = Form::new()
            .push("amount", 4900)
            .push_list(PAYMENT_METHOD_TYPES, ["card", "sepa_debit"])
            .push_map("metadata", &[("invoice_id", "inv 1&2")])
            .push_some("name", None::<&str>)
            .push_some("email", Some("a+b@example.com"))
            .into_body();
        let expected = "amount=4900&payment_method_types[0]=card&payment_method_types[1]=sepa_debit\
            &metadata[invoice_id]=inv%201%262&email=a%2Bb%40example.com";
        assert_eq!(body, expected);
    }

    proptest! {
        #[test]
        fn decoding_returns_what_was_pushed(
            pairs in prop::collection::vec(("[a-z_]{1,8}(\\[[a-z_0-9]{1,8}\\]){0,3}", any::<String>()), 0..8)
        ) {
            let form = pairs.iter().fold(Form::new(), |form, (name, value)| form.push(name, value));
            prop_assert_eq!(decode(&form.into_body()), pairs);
        }
    }
}
