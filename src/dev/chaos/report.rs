//! What the run prints: a line a second while it lasts, and the table of verdicts at its end.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::checker::Verdict;
use super::{Run, pause};

/// How many breaches of a row are printed; all of them are in the file beside the logs.
const BREACHES_SHOWN: usize = 8;

/// How many payments there are, and how many of them are settled or wait for somebody else.
async fn payments(run: &Run) -> Option<(i64, i64)> {
    let client = run.database.connect().await.ok()?;
    let counted = "SELECT count(*), count(*) FILTER (WHERE state NOT IN ('pending', 'processing') \
         OR pending_reason IS NOT NULL) FROM payments";
    let row = client.query_one(counted, &[]).await.ok()?;
    Some((row.get(0), row.get(1)))
}

/// Prints a line a second, and keeps the count of what is unsettled.
pub(super) async fn tell(run: &Run) {
    let mut settled = 0;
    loop {
        let tick = Instant::now();
        let down = match tokio::time::timeout(Duration::from_secs(1), payments(run)).await {
            Ok(Some((all, done))) => {
                settled = done;
                let open = usize::try_from(all - done).unwrap_or_default();
                // What the banks have in hand takes days.
                run.backlog.store(open.saturating_sub(run.sandbox.pending_debits()), Ordering::Relaxed);
                ""
            }
            _ => "  (Postgres is away)",
        };
        let counts = &run.counts;
        let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        println!(
            "{:4} s  {:7}  accepted {:5}/{}  settled {settled:5}  ready {}/{}  kills {} stops {} postgres {} cuts {} \
             outages {} keys {}  stripe faults {}  events seen {}  repeats {}  clock +{}{down}",
            run.began.elapsed().as_secs(),
            run.phase(),
            run.book.accepted(),
            run.settings.payments,
            run.replicas.ready(),
            run.settings.replicas,
            count(&counts.kills),
            count(&counts.stops),
            count(&counts.postgres),
            count(&counts.cuts),
            count(&counts.outages),
            count(&counts.keys),
            run.sandbox.fault_hits(),
            run.book.seen(),
            run.workload.repeats.count(),
            in_words(run.time.passed()),
        );
        pause(Duration::from_secs(1).saturating_sub(tick.elapsed())).await;
    }
}

/// `3 d 04:05`
fn in_words(period: time::Duration) -> String {
    let (days, hours, minutes) = (period.whole_days(), period.whole_hours() % 24, period.whole_minutes() % 60);
    if days > 0 { format!("{days} d {hours:02}:{minutes:02}") } else { format!("{hours:02}:{minutes:02}") }
}

/// The most memory that this process has had so far, as the kernel tells it.
pub(super) fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap_or("unknown").trim().to_owned()
}

/// The table of verdicts.
pub(super) fn table(verdicts: &[Verdict]) -> String {
    let mut text = String::from("\n  breaches  what has to hold\n");
    for verdict in verdicts {
        let mark = if verdict.breaches.is_empty() { "✓" } else { "✗" };
        let Verdict { what, looked_at, breaches } = verdict;
        let _ = writeln!(text, "{mark} {:8}  {what}  ({looked_at})", breaches.len());
        for breach in breaches.iter().take(BREACHES_SHOWN) {
            let _ = writeln!(text, "              {breach}");
        }
        if breaches.len() > BREACHES_SHOWN {
            let _ = writeln!(text, "              … and {} more", breaches.len() - BREACHES_SHOWN);
        }
    }
    text
}

/// Every breach, one a line.
pub(super) fn all_breaches(verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    for verdict in verdicts {
        for breach in &verdict.breaches {
            let _ = writeln!(text, "{}: {breach}", verdict.what);
        }
    }
    text
}

/// How long some times are: half of them, nineteen of twenty, and the longest.
pub(super) fn spread(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let Some(longest) = sorted.last() else { return "none".to_owned() };
    let within = |percent: usize| sorted[(sorted.len() - 1) * percent / 100].as_secs_f32();
    let (half, most, longest) = (within(50), within(95), longest.as_secs_f32());
    format!("median {half:.2} s, 95 % within {most:.2} s, longest {longest:.2} s of {}", sorted.len())
}
