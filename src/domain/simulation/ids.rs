//! Stripe ids of the model.

pub fn intent_id(index: usize) -> String {
    format!("pi_{index}")
}

pub fn session_id(index: usize) -> String {
    format!("cs_{index}")
}

/// The index in an id of this model.
pub fn index(id: &str) -> usize {
    id.rsplit('_').next().and_then(|digits| digits.parse().ok()).expect("an id of this model")
}
