//! Logs: ours of events, against itself, against its subscribers and against the payments; and Stripe's events against
//! ours of deliveries.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::{Verdict, named, tenant_of};
use crate::dev::chaos::evidence::{EventRow, Evidence, StripeEvent};

/// How far apart two processes may read the same clock, in its microseconds.
const APART_MAX: i64 = 1_000_000;

/// The events of each organization, in the order of their positions.
fn logs(evidence: &Evidence) -> BTreeMap<&str, Vec<&EventRow>> {
    let mut logs: BTreeMap<&str, Vec<&EventRow>> = BTreeMap::new();
    for event in &evidence.events {
        logs.entry(&event.organization).or_default().push(event);
    }
    logs
}

/// The state that a payment is in was told: a final one once, the others at least once.
pub(super) fn told(evidence: &Evidence) -> Verdict {
    let mut told: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for event in evidence.events.iter().filter(|event| !event.payment.is_empty()) {
        *told.entry((&event.payment, &event.webhook_type)).or_default() += 1;
    }
    let mut breaches = Vec::new();
    for payment in &evidence.payments {
        let count = |webhook_type| told.get(&(payment.id.as_str(), webhook_type)).copied().unwrap_or_default();
        let succeeded = count("payment.succeeded");
        let wanted = usize::from(payment.state == "succeeded");
        if succeeded != wanted {
            breaches.push(format!("{}: payment.succeeded was told {succeeded} times", named(payment)));
        }
        let missing = match payment.state.as_str() {
            // What a caller has ended is no failure.
            "failed" if payment.failure == "payment_url_closed" => None,
            "failed" => Some("invoice.payment_failure").filter(|webhook_type| count(webhook_type) == 0),
            "canceled" => Some("payment.canceled").filter(|webhook_type| count(webhook_type) == 0),
            _ => None,
        };
        breaches.extend(missing.map(|missing| format!("{}: {missing} was never told", named(payment))));
    }
    let looked_at = format!("{} events", evidence.events.len());
    Verdict { what: "every outcome was told", looked_at, breaches }
}

/// Positions are 1, 2, 3, … without a hole, and the counter stands at the last one.
pub(super) fn dense(evidence: &Evidence) -> Verdict {
    let logs = logs(evidence);
    let mut breaches = Vec::new();
    let mut ids = BTreeSet::new();
    for (organization, head) in &evidence.heads {
        let log = logs.get(organization.as_str()).map_or(&[][..], Vec::as_slice);
        for (event, expected) in log.iter().zip(1..) {
            if event.position != expected {
                breaches.push(format!("{organization}: position {} stands where {expected} should", event.position));
                break;
            }
        }
        let last = log.last().map_or(0, |event| event.position);
        if last != *head {
            breaches.push(format!("{organization}: the last position is {last}, and the counter says {head}"));
        }
        breaches.extend(
            log.iter()
                .filter(|event| !ids.insert(&event.id))
                .map(|event| format!("the event {} is there twice", event.id)),
        );
    }
    let looked_at = format!("{} logs of {} events", evidence.heads.len(), evidence.events.len());
    Verdict { what: "positions have no holes", looked_at, breaches }
}

/// Every subscriber saw every event, at its position, under its id, and nothing else.
pub(super) fn readers(evidence: &Evidence) -> Verdict {
    let logs = logs(evidence);
    let mut breaches = Vec::new();
    for reader in &evidence.readers {
        let organization = evidence.tenants.get(reader.organization).map_or("", |tenant| tenant.id.as_str());
        let who = format!("the {} subscriber of {organization}", reader.name);
        breaches.extend(reader.faults.iter().map(|fault| format!("{who}: {fault}")));
        let log = logs.get(organization).map_or(&[][..], Vec::as_slice);
        let missed: Vec<i64> =
            log.iter().map(|event| event.position).filter(|position| !reader.seen.contains_key(position)).collect();
        if let (Some(first), count) = (missed.first(), missed.len()) {
            breaches.push(format!("{who} missed {count} events, the first at {first}"));
        }
        let by_position: BTreeMap<i64, &&EventRow> = log.iter().map(|event| (event.position, event)).collect();
        for (position, seen) in &reader.seen {
            match by_position.get(position) {
                None => breaches.push(format!("{who} saw {} at {position}, which is not there", seen.id)),
                Some(event) if event.id != seen.id.to_string() || event.webhook_type != seen.webhook_type => {
                    breaches.push(format!("{who} saw {} at {position}, where {} stands", seen.id, event.id));
                }
                Some(_) => {}
            }
        }
    }
    let seen: usize = evidence.readers.iter().map(|reader| reader.seen.len()).sum();
    let looked_at = format!("{} subscribers, {seen} events seen", evidence.readers.len());
    Verdict { what: "no subscriber missed an event", looked_at, breaches }
}

/// Every event of Stripe's that we have asked for was taken in and applied, or ignored for a reason; also one that a fault
/// kept from being sent, for the list has it. One whose webhook was acknowledged was taken in before: what the list brought
/// back later had been lost (P6).
pub(super) fn stripe_events(evidence: &Evidence) -> Verdict {
    let mut breaches = Vec::new();
    let mut ignored: BTreeMap<&str, usize> = BTreeMap::new();
    for event in &evidence.stripe_events {
        let organization = tenant_of(evidence, &event.account).to_owned();
        let about = format!("{} ({} of {})", event.id, event.kind, event.object);
        let row = evidence.deliveries.get(&(organization, event.id.clone()));
        let late = event.acknowledged.zip(row).map_or(0, |(acknowledged, row)| row.received - acknowledged);
        if late > APART_MAX {
            breaches.push(format!("{about} was acknowledged, and taken in only {} s later", late / 1_000_000));
        }
        match row {
            None if evidence.lost.contains(&event.id) => {
                breaches.push(format!("{about} was never sent, and nobody has found it in the list"));
            }
            None => breaches.push(format!("{about} was acknowledged or sent, and is not there")),
            Some(row) if row.state == "ignored" && !row.reason.is_empty() => {
                *ignored.entry(&row.reason).or_default() += 1;
            }
            Some(row) if row.state == "applied" => {}
            Some(row) => breaches.push(format!("{about} is {}: {}", row.state, row.reason)),
        }
    }
    let is_lost = |event: &&StripeEvent| evidence.lost.contains(&event.id);
    let (all, lost) = (evidence.stripe_events.len(), evidence.stripe_events.iter().filter(is_lost).count());
    let mut looked_at = format!("{all} events, {lost} never sent");
    for (reason, count) in ignored {
        let _ = write!(looked_at, "; {count} ignored: {reason}");
    }
    Verdict { what: "every event of Stripe's is accounted for", looked_at, breaches }
}
