//! Ways to pay: one at a time, and none left at the end.

use std::collections::BTreeSet;

use super::{Verdict, by_id, named};
use crate::dev::chaos::evidence::Evidence;
use crate::dev::chaos::watcher::Way;

/// At no moment could two objects at Stripe take money for an invoice, or take it again (P1). A page counts if anybody was
/// told of it, or if it was committed; an intent unless people made it.
pub(super) fn one_at_a_time(evidence: &Evidence) -> Verdict {
    let mut out: BTreeSet<&str> = evidence.outside.links.iter().map(String::as_str).collect();
    out.extend(evidence.attempts.iter().map(|attempt| attempt.session.as_str()));
    let counts = |way: &&Way| match way {
        Way::Page(session) => out.contains(session.as_str()),
        Way::Intent(intent, _) => !evidence.outside.beside.contains(intent),
    };
    let mut breaches = Vec::new();
    for (payment, ways) in &evidence.sightings {
        let ways: Vec<String> = ways
            .iter()
            .filter(counts)
            .map(|way| match way {
                Way::Page(session) => format!("the page {session} is open"),
                Way::Intent(intent, status) => format!("{intent} is {status}"),
            })
            .collect();
        if ways.len() > 1 {
            breaches.push(format!("payment {payment} had {} ways to pay at once: {}", ways.len(), ways.join(", ")));
        }
    }
    let looked_at =
        format!("{} pages were out, {} looks", out.iter().filter(|page| !page.is_empty()).count(), evidence.looks);
    Verdict { what: "one open way to pay at any moment", looked_at, breaches }
}

/// No attempt of a payment at rest is open.
pub(super) fn ended(evidence: &Evidence) -> Verdict {
    let payments = by_id(evidence);
    let open = evidence.attempts.iter().filter(|attempt| attempt.is_open).filter_map(|attempt| {
        let payment = payments.get(attempt.payment.as_str())?;
        let page = if attempt.session.is_empty() { String::new() } else { format!(", the page {}", attempt.session) };
        Some(format!("{}: its attempt {}{page} is open still", named(payment), attempt.number))
    });
    let breaches = open.collect();
    let looked_at = format!("{} attempts", evidence.attempts.len());
    Verdict { what: "no attempt is left open", looked_at, breaches }
}
