//! The types of events that a caller wants.

use super::convert::Fields;
use super::proto;
use crate::domain::events::EventType;

/// The maximum number of types in a filter.
const TYPES_MAX: usize = 64;
/// How similar a type must be to be suggested, at most 1000.
const LIKENESS_MIN: usize = 300;
/// Other systems' types that have no word in common with the type of the same meaning.
const SAME_MEANING: [(&str, &str); 3] = [
    ("invoice.paid", "payment.succeeded"),
    ("charge.refunded", "payment.refund_updated"),
    ("charge.dispute.created", "payment.dispute_updated"),
];

/// The types of events to return; empty means all.
pub(super) struct EventFilter(Vec<EventType>);

impl EventFilter {
    /// Parses the field `webhook_types`.
    pub(super) fn parse(fields: &mut Fields, webhook_types: &[String]) -> Self {
        if webhook_types.len() > TYPES_MAX {
            fields.add_violation("webhook_types", format!("must name at most {TYPES_MAX} types"));
        }
        let mut types = Vec::new();
        for (index, name) in webhook_types.iter().enumerate().take(TYPES_MAX) {
            if let Some(known) = EventType::parse(name) {
                types.push(known);
            } else {
                // A misspelt type would never match, and the client would wait forever.
                let advice = nearest(name).map(|near| format!("did you mean {near}? ")).unwrap_or_default();
                let text = format!("is not a known type; {advice}The comment of the message Event lists all types");
                fields.add_violation(&format!("webhook_types[{index}]"), text);
            }
        }
        Self(types)
    }

    #[cfg(test)]
    pub(super) fn of(types: &[EventType]) -> Self {
        Self(types.to_vec())
    }

    pub(super) fn passes(&self, event: &proto::Event) -> bool {
        self.0.is_empty() || self.0.iter().any(|wanted| wanted.as_str() == event.webhook_type)
    }
}

/// The known type that is most like `name`. Types are compared word by word, because `payment.failed` is further from
/// `invoice.payment_failure` in letters than from `payment.canceled`.
fn nearest(name: &str) -> Option<&'static str> {
    if let Some((_, same)) = SAME_MEANING.iter().find(|(other, _)| *other == name) {
        return Some(*same);
    }
    // In reverse: of equals, the first one in the list wins.
    let ranked = EventType::ALL.iter().rev().map(|known| (likeness(name, known.as_str()), known.as_str()));
    ranked.max_by_key(|(likeness, _)| *likeness).filter(|(likeness, _)| *likeness >= LIKENESS_MIN).map(|(_, near)| near)
}

/// How many words two types have in common, in relation to all of their words: 0 to 1000.
fn likeness(name: &str, known: &str) -> usize {
    let name: Vec<&str> = name.split(['.', '_']).collect();
    let known: Vec<&str> = known.split(['.', '_']).collect();
    let best = |word: &&str| known.iter().map(|other| word_likeness(word, other)).max().unwrap_or_default();
    2 * name.iter().map(best).sum::<usize>() / (name.len() + known.len())
}

/// The part that two words begin with, in relation to their lengths: 0 to 1000.
fn word_likeness(left: &str, right: &str) -> usize {
    let common = left.bytes().zip(right.bytes()).take_while(|(left, right)| left == right).count();
    2_000 * common / (left.len() + right.len()).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Error;

    fn violations(types: &[String]) -> Vec<String> {
        let mut fields = Fields::default();
        EventFilter::parse(&mut fields, types);
        match fields.check() {
            Err(Error::Invalid(violations)) => violations.into_iter().map(|it| it.description).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn p11_filters_are_limited_and_name_known_types() {
        assert!(violations(&["payment.succeeded".into()]).is_empty());
        assert!(violations(&vec!["payment.succeeded".into(); TYPES_MAX]).is_empty());
        assert_eq!(violations(&vec!["payment.succeeded".into(); TYPES_MAX + 1]).len(), 1);
        assert_eq!(violations(&[String::new()]).len(), 1);
        let misspelt = violations(&["payment.succeded".into()]);
        assert!(misspelt[0].contains("did you mean payment.succeeded?"), "a misspelt type would never match");
    }

    #[test]
    fn the_nearest_type_is_named() {
        for (name, near) in [
            ("payment.failed", "invoice.payment_failure"),
            ("invoice.payment_failed", "invoice.payment_failure"),
            ("payment_intent.payment_failed", "invoice.payment_failure"),
            ("payment_intent.succeeded", "payment.succeeded"),
            ("invoice.payment_succeeded", "payment.succeeded"),
            ("invoice.paid", "payment.succeeded"),
            ("payment.cancelled", "payment.canceled"),
            ("payment.refunded", "payment.refund_updated"),
            ("charge.refunded", "payment.refund_updated"),
            ("charge.dispute.created", "payment.dispute_updated"),
            ("payment_method.attached", "payment_method.created"),
            ("customer.created", "customer.payment_provider_created"),
        ] {
            assert_eq!(nearest(name), Some(near), "{name}");
        }
        for unlike in ["", "x", "foo.bar", "."] {
            assert_eq!(nearest(unlike), None, "{unlike}");
        }
    }
}
