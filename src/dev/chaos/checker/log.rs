//! Logs: the event log against itself, its subscribers and the payments; and Stripe's events against the deliveries.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::result::{CheckResult, describe, tenant_of};
use crate::dev::chaos::evidence::{EventRow, Evidence, StripeEvent};

/// How far the clocks of two processes may differ, in microseconds.
const CLOCK_SKEW_MAX: i64 = 1_000_000;

/// The events of each organization, by position.
fn logs(evidence: &Evidence) -> BTreeMap<&str, Vec<&EventRow>> {
    let mut logs: BTreeMap<&str, Vec<&EventRow>> = BTreeMap::new();
    for event in &evidence.events {
        logs.entry(&event.organization).or_default().push(event);
    }
    logs
}

/// Every payment's state was reported: success exactly once, other states at least once.
pub(super) fn outcomes(evidence: &Evidence) -> CheckResult {
    let mut reported: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for event in evidence.events.iter().filter(|event| !event.payment.is_empty()) {
        *reported.entry((&event.payment, &event.webhook_type)).or_default() += 1;
    }
    let mut violations = Vec::new();
    for payment in &evidence.payments {
        let count = |webhook_type| reported.get(&(payment.id.as_str(), webhook_type)).copied().unwrap_or_default();
        let succeeded = count("payment.succeeded");
        let expected = usize::from(payment.state == "succeeded");
        if succeeded != expected {
            violations.push(format!("{}: payment.succeeded was reported {succeeded} times", describe(payment)));
        }
        let missing = match payment.state.as_str() {
            // A link that a caller closed is not reported as a failure.
            "failed" if payment.failure == "payment_url_closed" => None,
            "failed" => Some("invoice.payment_failure").filter(|webhook_type| count(webhook_type) == 0),
            "canceled" => Some("payment.canceled").filter(|webhook_type| count(webhook_type) == 0),
            _ => None,
        };
        violations.extend(missing.map(|missing| format!("{}: {missing} was not reported", describe(payment))));
    }
    let checked = format!("{} events", evidence.events.len());
    CheckResult { property: "every outcome is reported", checked, violations }
}

/// Positions are 1, 2, 3, … without a gap (P5), and the log's counter has the last one.
pub(super) fn positions(evidence: &Evidence) -> CheckResult {
    let logs = logs(evidence);
    let mut violations = Vec::new();
    let mut ids = BTreeSet::new();
    for (organization, head) in &evidence.heads {
        let log = logs.get(organization.as_str()).map_or(&[][..], Vec::as_slice);
        for (event, expected) in log.iter().zip(1..) {
            if event.position != expected {
                violations.push(format!("{organization}: position {} is where {expected} should be", event.position));
                break;
            }
        }
        let last = log.last().map_or(0, |event| event.position);
        if last != *head {
            violations.push(format!("{organization}: the last position is {last}, and the counter is {head}"));
        }
        violations.extend(
            log.iter()
                .filter(|event| !ids.insert(&event.id))
                .map(|event| format!("the event {} exists twice", event.id)),
        );
    }
    let checked = format!("{} logs of {} events", evidence.heads.len(), evidence.events.len());
    CheckResult { property: "event positions have no gaps", checked, violations }
}

/// Every subscriber received every event of the present log, at its position, with its id, and nothing else. The log
/// was replaced only by restorations of the database.
pub(super) fn subscribers(evidence: &Evidence) -> CheckResult {
    let logs = logs(evidence);
    let mut violations = Vec::new();
    for subscriber in &evidence.subscribers {
        let organization = evidence.tenants.get(subscriber.organization).map_or("", |tenant| tenant.id.as_str());
        let who = format!("the {} subscriber of {organization}", subscriber.name);
        violations.extend(subscriber.errors.iter().map(|error| format!("{who}: {error}")));
        let restorations = evidence.lost_periods.len();
        if subscriber.replaced_logs > restorations {
            let replaced = subscriber.replaced_logs;
            violations.push(format!("{who}: the log was replaced {replaced} times, with {restorations} restorations"));
        }
        let log = logs.get(organization).map_or(&[][..], Vec::as_slice);
        let missed: Vec<i64> = log
            .iter()
            .map(|event| event.position)
            .filter(|position| !subscriber.events.contains_key(position))
            .collect();
        if let (Some(first), count) = (missed.first(), missed.len()) {
            violations.push(format!("{who} missed {count} events, the first at {first}"));
        }
        let by_position: BTreeMap<i64, &&EventRow> = log.iter().map(|event| (event.position, event)).collect();
        for (position, seen) in &subscriber.events {
            match by_position.get(position) {
                None => violations.push(format!("{who} received {} at {position}, which does not exist", seen.id)),
                Some(event) if event.id != seen.id.to_string() || event.webhook_type != seen.webhook_type => {
                    violations.push(format!("{who} received {} at {position}, which is {}", seen.id, event.id));
                }
                Some(_) => {}
            }
        }
    }
    let seen: usize = evidence.subscribers.iter().map(|subscriber| subscriber.events.len()).sum();
    let checked = format!("{} subscribers, {seen} events received", evidence.subscribers.len());
    CheckResult { property: "no subscriber missed an event", checked, violations }
}

/// Every Stripe event that we subscribe to was ingested and applied, or ignored for a reason; also one whose webhook a
/// fault dropped, because the events list has it. One whose webhook was acknowledged was ingested before that: what the
/// list recovers later had been lost (P6), unless the database was restored to a state before it.
pub(super) fn stripe_events(evidence: &Evidence) -> CheckResult {
    let mut violations = Vec::new();
    let mut ignored: BTreeMap<&str, usize> = BTreeMap::new();
    for event in &evidence.stripe_events {
        let organization = tenant_of(evidence, &event.account).to_owned();
        let about = format!("{} ({} of {})", event.id, event.kind, event.object);
        let row = evidence.deliveries.get(&(organization, event.id.clone()));
        let late = event.acknowledged.zip(row).map_or(0, |(acknowledged, row)| row.received - acknowledged);
        if late > CLOCK_SKEW_MAX && !event.acknowledged.is_some_and(|time| evidence.is_lost(time)) {
            violations.push(format!("{about} was acknowledged, and ingested only {} s later", late / 1_000_000));
        }
        match row {
            None if evidence.lost.contains(&event.id) => {
                violations.push(format!("{about} was never sent, and was not found in the events list"));
            }
            None => violations.push(format!("{about} was acknowledged or sent, and is not stored")),
            Some(row) if row.state == "ignored" && !row.reason.is_empty() => {
                *ignored.entry(&row.reason).or_default() += 1;
            }
            Some(row) if row.state == "applied" => {}
            Some(row) => violations.push(format!("{about} is {}: {}", row.state, row.reason)),
        }
    }
    let is_lost = |event: &&StripeEvent| evidence.lost.contains(&event.id);
    let (all, lost) = (evidence.stripe_events.len(), evidence.stripe_events.iter().filter(is_lost).count());
    let mut checked = format!("{all} events, {lost} never sent");
    for (reason, count) in ignored {
        let _ = write!(checked, "; {count} ignored: {reason}");
    }
    CheckResult { property: "every Stripe event is accounted for", checked, violations }
}

impl Evidence {
    /// Whether a restoration of the database has lost what was committed at this time, in microseconds since 1970.
    pub(super) fn is_lost(&self, time: i64) -> bool {
        let mut periods = self.lost_periods.iter();
        periods.any(|(from, to)| (from - CLOCK_SKEW_MAX..=to + CLOCK_SKEW_MAX).contains(&time))
    }
}
