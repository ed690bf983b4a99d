//! The newest end of an organization's log, read once for all its streams on this replica: so readers of the log scale
//! with replicas, not with subscribers. A feed lives while somebody follows it. Whoever is further behind than a feed
//! remembers reads the log itself.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::convert::events as convert;
use super::proto;
use crate::app::App;
use crate::domain::OrganizationId;

/// How many events a feed reads at once.
const READ_SIZE: i64 = 100;
/// How many events a feed remembers, and how many bytes they may add up to (P11).
const EVENTS_MAX: usize = 256;
const BYTES_MAX: usize = 1024 * 1024;
/// How long a feed waits, in real time, before it looks at the log without having been woken, or after a failed read.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The feeds that are followed on this replica.
pub(super) struct Feeds {
    app: App,
    open: Mutex<HashMap<OrganizationId, Weak<Feed>>>,
}

/// The newest end of one organization's log.
pub(super) struct Feed {
    recent: Mutex<Recent>,
    /// The position up to which the feed has read.
    tip: watch::Sender<i64>,
    /// Ends the reading when the last follower goes.
    _reading: DropGuard,
}

impl Feeds {
    pub(super) fn new(app: App) -> Self {
        Self { app, open: Mutex::default() }
    }

    /// The organization's feed; one that begins after `position` if nobody follows it yet.
    pub(super) fn follow(&self, organization: OrganizationId, position: i64) -> Arc<Feed> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feed) = open.get(&organization).and_then(Weak::upgrade) {
            return feed;
        }
        open.retain(|_, feed| feed.strong_count() > 0);
        let done = CancellationToken::new();
        let feed = Arc::new(Feed {
            recent: Mutex::new(Recent::after(position)),
            tip: watch::Sender::new(position),
            _reading: done.clone().drop_guard(),
        });
        open.insert(organization, Arc::downgrade(&feed));
        let reading = read(self.app.clone(), organization, Arc::downgrade(&feed));
        tokio::spawn(done.run_until_cancelled_owned(reading));
        feed
    }
}

impl Feed {
    /// A feed that nobody reads for.
    #[cfg(test)]
    pub(super) fn remembering(events: impl IntoIterator<Item = proto::Event>) -> Self {
        let mut recent = Recent::after(0);
        events.into_iter().for_each(|event| recent.push(Arc::new(event)));
        let tip = watch::Sender::new(recent.tip);
        Self { recent: Mutex::new(recent), tip, _reading: CancellationToken::new().drop_guard() }
    }

    /// At most `limit` events after `position`; `None` if the feed does not remember as far back.
    pub(super) fn after(&self, position: i64, limit: usize) -> Option<Vec<Arc<proto::Event>>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).get(position, limit)
    }

    /// Changes when the feed has read on.
    pub(super) fn tip(&self) -> watch::Receiver<i64> {
        self.tip.subscribe()
    }
}

/// Reads on until nobody follows. While the database is away, followers wait; it goes on when it is back.
async fn read(app: App, organization: OrganizationId, feed: Weak<Feed>) {
    // Watching begins before the first read, so that nothing written in between is slept through.
    let mut grown = app.watch_events(organization);
    loop {
        let Some(position) = feed.upgrade().map(|feed| *feed.tip.borrow()) else { return };
        match app.events_after(organization, position, READ_SIZE).await {
            Ok(events) if !events.is_empty() => {
                let Some(feed) = feed.upgrade() else { return };
                let mut recent = feed.recent.lock().unwrap_or_else(PoisonError::into_inner);
                for event in events {
                    recent.push(Arc::new(convert::event(event)));
                }
                let tip = recent.tip;
                drop(recent);
                feed.tip.send_replace(tip);
                continue;
            }
            Ok(_) => {}
            Err(error) if error.is_database_away() => {}
            Err(error) => tracing::warn!(%error, %organization, "the event log can't be read; trying again"),
        }
        // A closed channel would be ready at once, over and over: then only the pause counts.
        if let Ok(Err(_)) = timeout(LOOK_AGAIN, grown.changed()).await {
            grown = app.watch_events(organization);
        }
    }
}

/// Events without a gap, the newest ones.
struct Recent {
    events: VecDeque<Arc<proto::Event>>,
    bytes: usize,
    /// The newest position read.
    tip: i64,
}

impl Recent {
    fn after(position: i64) -> Self {
        Self { events: VecDeque::new(), bytes: 0, tip: position }
    }

    fn push(&mut self, event: Arc<proto::Event>) {
        if event.position != self.tip + 1 {
            // The log was trimmed under our feet. What came before is of no use to anybody any more.
            self.events.clear();
            self.bytes = 0;
        }
        self.tip = event.position;
        self.bytes += event.encoded_len();
        self.events.push_back(event);
        while self.events.len() > EVENTS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.encoded_len();
        }
    }

    fn get(&self, position: i64, limit: usize) -> Option<Vec<Arc<proto::Event>>> {
        if position >= self.tip {
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

    fn positions(recent: &Recent, after: i64, limit: usize) -> Option<Vec<i64>> {
        recent.get(after, limit).map(|events| events.iter().map(|event| event.position).collect())
    }

    #[test]
    fn p5_a_feed_hands_on_what_comes_next_or_says_that_it_does_not_know() {
        let mut recent = Recent::after(10);
        assert_eq!(positions(&recent, 10, 9), Some(vec![]), "nothing new");
        assert_eq!(positions(&recent, 9, 9), None, "from before its time");
        for position in 11..=13 {
            recent.push(event(position, ""));
        }
        assert_eq!(positions(&recent, 9, 9), None);
        assert_eq!(positions(&recent, 10, 9), Some(vec![11, 12, 13]));
        assert_eq!(positions(&recent, 10, 2), Some(vec![11, 12]));
        assert_eq!(positions(&recent, 12, 9), Some(vec![13]));
        assert_eq!(positions(&recent, 13, 9), Some(vec![]));
        assert_eq!(positions(&recent, 99, 9), Some(vec![]), "a follower that began later than the feed has read");
    }

    #[test]
    fn p11_a_feed_forgets_the_oldest() {
        let mut recent = Recent::after(0);
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
        assert_eq!((recent.bytes, positions(&recent, 302, 9)), (0, None), "too large to be remembered: read the log");
    }

    #[test]
    fn a_gap_is_never_papered_over() {
        let mut recent = Recent::after(0);
        recent.push(event(1, ""));
        recent.push(event(5, ""));
        assert_eq!(positions(&recent, 0, 9), None);
        assert_eq!(positions(&recent, 4, 9), Some(vec![5]));
    }
}
