//! Restorations of the database from a snapshot, and the requests that they lose. A billing system knows when its
//! backup was taken: it repeats, in their order, the requests that were acknowledged since.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::requests::Request;

/// A request that was acknowledged since the snapshot.
#[derive(Clone, Debug)]
pub(super) struct LostRequest {
    pub request: Request,
    /// The id that was acknowledged; empty if there is none.
    pub id: String,
}

/// All restorations of a run.
#[derive(Debug, Default)]
pub(super) struct Restorations {
    count: AtomicU64,
    is_repeating: AtomicBool,
    next: AtomicU64,
    /// The requests in progress, and those that were acknowledged since the snapshot, in the order of their start.
    requests: Mutex<BTreeMap<u64, Entry>>,
    /// From each snapshot to the end of its restoration, in microseconds since 1970 of the run's clock.
    lost_periods: Mutex<Vec<(i64, i64)>>,
}

#[derive(Debug)]
struct Entry {
    request: Request,
    /// The acknowledged id; `None` while the request is in progress.
    id: Option<String>,
}

/// A request in progress. Dropped without [`Pending::acknowledge`], it was refused and is not repeated.
pub(super) struct Pending<'a> {
    restorations: &'a Restorations,
    number: Option<u64>,
}

impl Pending<'_> {
    /// The request was acknowledged, with this id or an empty text.
    pub fn acknowledge(mut self, id: &str) {
        let number = self.number.take().unwrap_or_default();
        if let Some(entry) = self.restorations.requests.lock().get_mut(&number) {
            entry.id = Some(id.to_owned());
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.restorations.requests.lock().remove(&number);
        }
    }
}

impl Restorations {
    /// How often the database was restored.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Whether a restoration has begun whose lost requests are not all repeated.
    pub fn is_repeating(&self) -> bool {
        self.is_repeating.load(Ordering::SeqCst)
    }

    /// Registers a request that is about to be sent.
    pub fn begin(&self, request: Request) -> Pending<'_> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        self.requests.lock().insert(number, Entry { request, id: None });
        Pending { restorations: self, number: Some(number) }
    }

    /// A snapshot is about to be taken: it holds what was acknowledged before.
    pub fn begin_snapshot(&self) {
        self.requests.lock().retain(|_, entry| entry.id.is_none());
    }

    /// The database is about to be restored.
    pub fn begin_restoration(&self) {
        self.is_repeating.store(true, Ordering::SeqCst);
    }

    /// The database was restored, and has lost what was committed in this period. Returns the acknowledged requests
    /// that may be lost. Those in progress are repeated by their callers.
    pub fn end_restoration(&self, lost_period: (i64, i64)) -> Vec<LostRequest> {
        self.lost_periods.lock().push(lost_period);
        self.count.fetch_add(1, Ordering::SeqCst);
        let mut requests = self.requests.lock();
        let is_lost = |(_, entry): &(u64, Entry)| entry.id.is_some();
        let (lost, in_progress): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut *requests).into_iter().partition(is_lost);
        *requests = in_progress;
        lost.into_values().map(|Entry { request, id }| LostRequest { request, id: id.unwrap_or_default() }).collect()
    }

    /// The lost requests were repeated.
    pub fn end_repetition(&self) {
        self.is_repeating.store(false, Ordering::SeqCst);
    }

    /// From each snapshot to the end of its restoration, in microseconds since 1970 of the run's clock.
    pub fn lost_periods(&self) -> Vec<(i64, i64)> {
        self.lost_periods.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::proto::RetryPaymentRequest;

    fn request(name: &str) -> Request {
        Request::Retry(0, RetryPaymentRequest { request_id: name.to_owned(), ..RetryPaymentRequest::default() })
    }

    #[test]
    fn only_what_was_acknowledged_since_the_snapshot_is_lost() {
        let restorations = Restorations::default();
        restorations.begin(request("before")).acknowledge("1");
        let across = restorations.begin(request("across"));
        restorations.begin_snapshot();
        across.acknowledge("2");
        restorations.begin(request("after")).acknowledge("3");
        drop(restorations.begin(request("refused")));
        let in_progress = restorations.begin(request("in progress"));
        restorations.begin_restoration();
        assert!(restorations.is_repeating());
        let lost = restorations.end_restoration((1, 2));
        assert_eq!(lost.iter().map(|lost| lost.id.as_str()).collect::<Vec<_>>(), ["2", "3"]);
        restorations.end_repetition();
        assert!(!restorations.is_repeating());

        restorations.begin_snapshot();
        in_progress.acknowledge("4");
        let lost = restorations.end_restoration((3, 4));
        assert_eq!(lost.iter().map(|lost| lost.id.as_str()).collect::<Vec<_>>(), ["4"]);
        assert_eq!((restorations.count(), restorations.lost_periods()), (2, vec![(1, 2), (3, 4)]));
    }
}
