//! In-process fan-out of the event log. A [`LogTail`] reads the end of an organization's log once for all its streams
//! on this replica, so the number of readers grows with replicas, not with subscribers. It lives while a stream uses
//! it. A stream that is behind the events held in memory reads the log from the database.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::convert::events as convert;
use super::proto;
use crate::app::App;
use crate::domain::events::EventLog;
use crate::domain::{Error, LogId, OrganizationId};

/// The number of events per read.
const READ_SIZE: i64 = 100;
/// The limits of the events held in memory: their number, and their encoded size in bytes (P11).
const EVENTS_MAX: usize = 256;
const BYTES_MAX: usize = 1024 * 1024;
/// The interval, in real time, of reads without a notification, and the pause after a failed read.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The log tails in use on this replica.
pub(super) struct LogTails {
    app: App,
    active: Mutex<HashMap<OrganizationId, Weak<LogTail>>>,
}

/// The end of one organization's log.
pub(super) struct LogTail {
    log_id: LogId,
    recent: Mutex<RecentEvents>,
    /// The position up to which the log was read.
    last_position: watch::Sender<i64>,
    /// Stops the reader when the last stream ends.
    _reader: DropGuard,
}

impl LogTails {
    pub(super) fn new(app: App) -> Self {
        Self { app, active: Mutex::default() }
    }

    /// The log tail of an organization's log. If there is none, starts one that reads from the log's present end.
    pub(super) fn subscribe(&self, organization: OrganizationId, log: &EventLog) -> Arc<LogTail> {
        let mut active = self.active.lock();
        let found = active.get(&organization).and_then(Weak::upgrade);
        if let Some(log_tail) = found.filter(|log_tail| log_tail.log_id == log.log_id && !log_tail.has_ended()) {
            return log_tail;
        }
        active.retain(|_, log_tail| log_tail.strong_count() > 0);
        let stop = CancellationToken::new();
        let log_tail = Arc::new(LogTail {
            log_id: log.log_id,
            recent: Mutex::new(RecentEvents::after(log.last_position)),
            last_position: watch::Sender::new(log.last_position),
            _reader: stop.clone().drop_guard(),
        });
        active.insert(organization, Arc::downgrade(&log_tail));
        let reader = read(self.app.clone(), organization, log.log_id, Arc::downgrade(&log_tail));
        tokio::spawn(stop.run_until_cancelled_owned(reader));
        log_tail
    }
}

impl LogTail {
    /// A log tail without a reader.
    #[cfg(test)]
    pub(super) fn with_events(events: impl IntoIterator<Item = proto::Event>) -> Self {
        use uuid::Uuid;
        let mut recent = RecentEvents::after(0);
        events.into_iter().for_each(|event| recent.push(Arc::new(event)));
        let last_position = watch::Sender::new(recent.last_position);
        let reader = CancellationToken::new().drop_guard();
        Self { log_id: Uuid::nil().into(), recent: Mutex::new(recent), last_position, _reader: reader }
    }

    /// At most `limit` events after `position`; `None` if they are no longer in memory, or the log tail has ended.
    pub(super) fn events_after(&self, position: i64, limit: usize) -> Option<Vec<Arc<proto::Event>>> {
        self.recent.lock().events_after(position, limit)
    }

    /// Lets the streams read for themselves, which ends each of them with its error.
    fn end(&self) {
        self.recent.lock().has_ended = true;
        self.last_position.send_modify(|_| {});
    }

    fn has_ended(&self) -> bool {
        self.recent.lock().has_ended
    }

    /// The position up to which the log was read. It changes with every read that returns events, and when the log tail
    /// ends.
    pub(super) fn last_position(&self) -> watch::Receiver<i64> {
        self.last_position.subscribe()
    }
}

/// Reads the log until no stream uses it, or the log was replaced. While the database is unavailable, the streams wait.
async fn read(app: App, organization: OrganizationId, log_id: LogId, log_tail: Weak<LogTail>) {
    // Watch before the first read, so that no event written in between is missed.
    let mut notifications = app.watch_events(organization);
    loop {
        let Some(position) = log_tail.upgrade().map(|log_tail| *log_tail.last_position.borrow()) else { return };
        match app.events_after(organization, log_id, position, READ_SIZE).await {
            Ok(events) if !events.is_empty() => {
                let Some(log_tail) = log_tail.upgrade() else { return };
                let mut recent = log_tail.recent.lock();
                for event in events {
                    recent.push(Arc::new(convert::event(event, log_id)));
                }
                let last_position = recent.last_position;
                drop(recent);
                log_tail.last_position.send_replace(last_position);
                continue;
            }
            Ok(_) => {}
            // Another database, perhaps one that has the organization no longer, or its log's end.
            Err(Error::LogReplaced { .. } | Error::Invalid(_) | Error::NotFound { .. }) => {
                if let Some(log_tail) = log_tail.upgrade() {
                    log_tail.end();
                }
                return;
            }
            Err(error) if error.is_database_unavailable() => {}
            Err(error) => tracing::warn!(%error, %organization, "event log could not be read, retrying"),
        }
        // A closed channel is always ready, so watch again.
        if let Ok(Err(_)) = timeout(POLL_INTERVAL, notifications.changed()).await {
            notifications = app.watch_events(organization);
        }
    }
}

/// The newest events, without gaps.
struct RecentEvents {
    events: VecDeque<Arc<proto::Event>>,
    bytes: usize,
    /// The last position read.
    last_position: i64,
    /// The log was replaced: what follows these events is unknown.
    has_ended: bool,
}

impl RecentEvents {
    fn after(position: i64) -> Self {
        Self { events: VecDeque::new(), bytes: 0, last_position: position, has_ended: false }
    }

    fn push(&mut self, event: Arc<proto::Event>) {
        if event.position != self.last_position + 1 {
            // Retention has trimmed the log in between, so the earlier events are of no use.
            self.events.clear();
            self.bytes = 0;
        }
        self.last_position = event.position;
        self.bytes += event.encoded_len();
        self.events.push_back(event);
        while self.events.len() > EVENTS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.encoded_len();
        }
    }

    fn events_after(&self, position: i64, limit: usize) -> Option<Vec<Arc<proto::Event>>> {
        if self.has_ended {
            return None;
        }
        if position >= self.last_position {
            return Some(Vec::new());
        }
        let oldest = self.events.front()?.position;
        let skipped = usize::try_from(position + 1 - oldest).ok()?;
        Some(self.events.iter().skip(skipped).take(limit).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(position: i64, id: &str) -> Arc<proto::Event> {
        Arc::new(proto::Event { position, id: id.to_owned(), ..Default::default() })
    }

    fn positions(recent: &RecentEvents, after: i64, limit: usize) -> Option<Vec<i64>> {
        recent.events_after(after, limit).map(|events| events.iter().map(|event| event.position).collect())
    }

    #[test]
    fn p5_recent_events_follow_the_position_without_a_gap_or_are_none() {
        let mut recent = RecentEvents::after(10);
        assert_eq!(positions(&recent, 10, 9), Some(vec![]), "nothing new");
        assert_eq!(positions(&recent, 9, 9), None, "older than the first event read");
        for position in 11..=13 {
            recent.push(event(position, ""));
        }
        assert_eq!(positions(&recent, 9, 9), None);
        assert_eq!(positions(&recent, 10, 9), Some(vec![11, 12, 13]));
        assert_eq!(positions(&recent, 10, 2), Some(vec![11, 12]));
        assert_eq!(positions(&recent, 12, 9), Some(vec![13]));
        assert_eq!(positions(&recent, 13, 9), Some(vec![]));
        assert_eq!(positions(&recent, 99, 9), Some(vec![]), "a stream that starts ahead of the reader");
    }

    #[test]
    fn p11_the_oldest_events_are_dropped() {
        let mut recent = RecentEvents::after(0);
        for position in 1..=300 {
            recent.push(event(position, ""));
        }
        assert_eq!(recent.events.len(), EVENTS_MAX);
        assert_eq!(positions(&recent, 43, 1), None);
        assert_eq!(positions(&recent, 44, 1), Some(vec![45]));
        recent.push(event(301, &"x".repeat(BYTES_MAX / 2)));
        recent.push(event(302, &"x".repeat(BYTES_MAX / 2)));
        assert!(recent.bytes <= BYTES_MAX);
        assert_eq!(positions(&recent, 301, 9), Some(vec![302]));
        recent.push(event(303, &"x".repeat(BYTES_MAX + 1)));
        assert_eq!((recent.bytes, positions(&recent, 302, 9)), (0, None), "too large to be held in memory");
    }

    #[test]
    fn a_log_tail_that_has_ended_has_no_events_and_wakes_its_streams() {
        let log_tail = LogTail::with_events([Arc::unwrap_or_clone(event(1, ""))]);
        let mut last_position = log_tail.last_position();
        assert!(log_tail.events_after(1, 9).is_some_and(|events| events.is_empty()));
        log_tail.end();
        assert!(last_position.has_changed().unwrap() && log_tail.has_ended());
        for position in [0, 1, 2] {
            assert!(log_tail.events_after(position, 9).is_none(), "{position}");
        }
        assert_eq!(*last_position.borrow_and_update(), 1);
    }

    #[test]
    fn a_gap_drops_the_earlier_events() {
        let mut recent = RecentEvents::after(0);
        recent.push(event(1, ""));
        recent.push(event(5, ""));
        assert_eq!(positions(&recent, 0, 9), None);
        assert_eq!(positions(&recent, 4, 9), Some(vec![5]));
    }
}
