//! Decodes Stripe's form encoding of a request's body or query: `a[b][c]=v`, `a[]=v`, `a[0]=v`.

use super::api_error::ApiError;

/// The maximum nesting of a parameter. Bounds the recursion; none of Stripe's parameters is deeper.
const DEPTH_MAX: usize = 8;

/// A decoded form: a value, or fields in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Field {
    /// A plain value.
    Text(String),
    /// An object, or an array with its indices as keys. Only the parameter table tells them apart.
    Branch(Vec<(String, Field)>),
}

/// Splits `a=1&b[c]=2` into decoded pairs.
pub(super) fn pairs(encoded: &str) -> Vec<(String, String)> {
    encoded
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

/// Decodes percent encoding, with `+` for a space. Keeps invalid escapes and replaces invalid UTF-8.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        if let Some(byte) = escaped.and_then(|digits| hex::decode(digits).ok()) {
            out.extend(byte);
            at += 3;
        } else {
            out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Builds the tree that the bracketed keys describe.
pub(super) fn tree(pairs: &[(String, String)]) -> Result<Field, ApiError> {
    let mut root = Field::Branch(Vec::new());
    for (key, value) in pairs {
        let path = segments(key).ok_or_else(|| ApiError::invalid(format!("Invalid parameter name: {key}")).at(key))?;
        insert(&mut root, &path, key, value)?;
    }
    Ok(root)
}

/// `a[b][]` → `["a", "b", ""]`.
fn segments(key: &str) -> Option<Vec<&str>> {
    let (head, rest) = key.split_once('[').map_or((key, ""), |(head, _)| (head, &key[head.len()..]));
    let mut path = vec![head];
    let mut rest = rest;
    while !rest.is_empty() {
        let (part, after) = rest.strip_prefix('[')?.split_once(']')?;
        path.push(part);
        rest = after;
    }
    (!head.is_empty() && path.len() <= DEPTH_MAX).then_some(path)
}

fn insert(at: &mut Field, path: &[&str], key: &str, value: &str) -> Result<(), ApiError> {
    let clash = || ApiError::invalid(format!("The parameter {key} was given in two ways, or more than once.")).at(key);
    let Field::Branch(fields) = at else { return Err(clash()) };
    let Some((name, rest)) = path.split_first() else { return Err(clash()) };
    let name = if name.is_empty() { fields.len().to_string() } else { (*name).to_owned() };
    let existing = fields.iter().position(|(field, _)| *field == name);
    match (existing, rest.is_empty()) {
        (Some(_), true) => Err(clash()),
        (None, true) => {
            fields.push((name, Field::Text(value.to_owned())));
            Ok(())
        }
        (Some(index), false) => insert(&mut fields[index].1, rest, key, value),
        (None, false) => {
            let mut branch = Field::Branch(Vec::new());
            insert(&mut branch, rest, key, value)?;
            fields.push((name, branch));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Field {
        Field::Text(value.to_owned())
    }

    #[test]
    fn nested_and_repeated_keys_form_a_tree() {
        let pairs = pairs("a%5Bb%5D[c]=x+y&t[]=one&t[]=two&n[0][k]=%C3%A4");
        let Field::Branch(fields) = tree(&pairs).unwrap() else { panic!("a form is a branch") };
        assert_eq!(fields[0].1, Field::Branch(vec![("b".into(), Field::Branch(vec![("c".into(), text("x y"))]))]));
        assert_eq!(fields[1].1, Field::Branch(vec![("0".into(), text("one")), ("1".into(), text("two"))]));
        assert_eq!(fields[2].1, Field::Branch(vec![("0".into(), Field::Branch(vec![("k".into(), text("ä"))]))]));
    }

    #[test]
    fn duplicate_and_malformed_keys_are_rejected() {
        assert!(tree(&pairs("a=1&a=2")).is_err());
        assert!(tree(&pairs("a=1&a[b]=2")).is_err());
        assert!(tree(&pairs("a[b=2")).is_err());
    }
}
