//! What the run prints: a line a second, and the table of results at the end.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::checker::CheckResult;
use super::run::Run;
use crate::clock::pause;

/// How many violations of a property are printed. The file next to the logs has all of them.
const VIOLATIONS_SHOWN: usize = 8;

/// The number of payments, and of those that are settled or wait for somebody else.
async fn payments(run: &Run) -> Option<(i64, i64)> {
    let client = run.database.connect().await.ok()?;
    let counted = "SELECT count(*), count(*) FILTER (WHERE state NOT IN ('pending', 'processing') \
         OR pending_reason IS NOT NULL) FROM payments";
    let row = client.query_one(counted, &[]).await.ok()?;
    Some((row.get(0), row.get(1)))
}

/// Prints a line a second, and updates the number of unsettled payments.
pub(super) async fn print_progress(run: &Run) {
    let mut settled = 0;
    loop {
        let tick = Instant::now();
        let down = match tokio::time::timeout(Duration::from_secs(1), payments(run)).await {
            Ok(Some((all, done))) => {
                settled = done;
                let open = usize::try_from(all - done).unwrap_or_default();
                // Debits that are pending at the bank take days.
                run.backlog.store(open.saturating_sub(run.sandbox.pending_debits()), Ordering::Relaxed);
                ""
            }
            _ => "  (Postgres is unavailable)",
        };
        let counts = &run.counts;
        let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        println!(
            "{:4} s  {:7}  accepted {:5}/{}  settled {settled:5}  ready {}/{}  kills {} stops {} postgres {} cuts {} \
             outages {} keys {} restorations {}  stripe faults {}  events seen {}  retried calls {}  clock +{}{down}",
            run.began.elapsed().as_secs(),
            run.phase(),
            run.history.accepted(),
            run.settings.payments,
            run.replicas.ready_count(),
            run.settings.replicas,
            count(&counts.kills),
            count(&counts.stops),
            count(&counts.postgres),
            count(&counts.cuts),
            count(&counts.outages),
            count(&counts.keys),
            count(&counts.restorations),
            run.sandbox.fault_hits(),
            run.history.seen_events(),
            run.workload.calls.retry_count(),
            format_period(run.time.elapsed()),
        );
        pause(Duration::from_secs(1).saturating_sub(tick.elapsed())).await;
    }
}

/// `3 d 04:05`
fn format_period(period: time::Duration) -> String {
    let (days, hours, minutes) = (period.whole_days(), period.whole_hours() % 24, period.whole_minutes() % 60);
    if days > 0 { format!("{days} d {hours:02}:{minutes:02}") } else { format!("{hours:02}:{minutes:02}") }
}

/// The peak memory of this process, as the kernel reports it.
pub(super) fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap_or("unknown").trim().to_owned()
}

/// The table of results.
pub(super) fn table(results: &[CheckResult]) -> String {
    let mut text = String::from("\n  violations  property\n");
    for result in results {
        let mark = if result.violations.is_empty() { "✓" } else { "✗" };
        let CheckResult { property, checked, violations } = result;
        let _ = writeln!(text, "{mark} {:10}  {property}  ({checked})", violations.len());
        for violation in violations.iter().take(VIOLATIONS_SHOWN) {
            let _ = writeln!(text, "                {violation}");
        }
        if violations.len() > VIOLATIONS_SHOWN {
            let _ = writeln!(text, "                … and {} more", violations.len() - VIOLATIONS_SHOWN);
        }
    }
    text
}

/// All violations, one a line.
pub(super) fn all_violations(results: &[CheckResult]) -> String {
    let mut text = String::new();
    for result in results {
        for violation in &result.violations {
            let _ = writeln!(text, "{}: {violation}", result.property);
        }
    }
    text
}

/// The median, 95th percentile and maximum of some durations.
pub(super) fn format_spread(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let Some(longest) = sorted.last() else { return "none".to_owned() };
    let within = |percent: usize| sorted[(sorted.len() - 1) * percent / 100].as_secs_f32();
    let (half, most, longest) = (within(50), within(95), longest.as_secs_f32());
    format!("median {half:.2} s, 95 % within {most:.2} s, longest {longest:.2} s of {}", sorted.len())
}
