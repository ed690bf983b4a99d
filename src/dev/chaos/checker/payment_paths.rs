//! Payment paths: one at a time, none that Paybridge does not know, and none open at the end.

use std::collections::BTreeSet;

use super::result::{CheckResult, by_id, describe};
use crate::dev::chaos::evidence::Evidence;
use crate::dev::chaos::monitor::PaymentPath;

/// At no moment could two objects in Stripe take money for an invoice, or take it again (P1). A session counts if
/// anybody received its URL or an attempt was committed with it; an intent counts unless it was created in the
/// Dashboard.
pub(super) fn one_at_a_time(evidence: &Evidence) -> CheckResult {
    let mut issued: BTreeSet<&str> = evidence.external.links.iter().map(String::as_str).collect();
    issued.extend(evidence.attempts.iter().map(|attempt| attempt.session.as_str()));
    let counts = |path: &&PaymentPath| match path {
        PaymentPath::Session(session) => issued.contains(session.as_str()),
        PaymentPath::Intent(intent, _) => !evidence.external.dashboard_intents.contains(intent),
    };
    let mut violations = Vec::new();
    for (invoice, paths) in &evidence.overlaps {
        let paths: Vec<String> = paths
            .iter()
            .filter(counts)
            .map(|path| match path {
                PaymentPath::Session(session) => format!("the session {session} is open"),
                PaymentPath::Intent(intent, status) => format!("{intent} is {status}"),
            })
            .collect();
        if paths.len() > 1 {
            violations.push(format!(
                "invoice {invoice} had {} open payment paths at once: {}",
                paths.len(),
                paths.join(", ")
            ));
        }
    }
    let checked = format!(
        "{} sessions, {} samples",
        issued.iter().filter(|session| !session.is_empty()).count(),
        evidence.samples
    );
    CheckResult { property: "at most one open payment path at any moment", checked, violations }
}

/// After restorations of the database, every open Checkout session was known again or expired.
pub(super) fn none_unknown(evidence: &Evidence) -> CheckResult {
    let unknown = evidence.unknown_sessions.iter();
    let violations = unknown.map(|session| format!("{session} is open, and Paybridge does not know it")).collect();
    let checked = format!("{} restorations", evidence.lost_periods.len());
    CheckResult { property: "no open Checkout session is unknown", checked, violations }
}

/// No attempt is open at the end.
pub(super) fn none_open(evidence: &Evidence) -> CheckResult {
    let payments = by_id(evidence);
    let open = evidence.attempts.iter().filter(|attempt| attempt.is_open).filter_map(|attempt| {
        let payment = payments.get(attempt.payment.as_str())?;
        let session = if attempt.session.is_empty() { String::new() } else { format!(", session {}", attempt.session) };
        Some(format!("{}: its attempt {}{session} is still open", describe(payment), attempt.number))
    });
    let violations = open.collect();
    let checked = format!("{} attempts", evidence.attempts.len());
    CheckResult { property: "no attempt is left open", checked, violations }
}
