//! Named points at which a process can be made to die, for `paybridge chaos`: kill -9 strikes at any instruction, and
//! these are the ones between which it matters (P8). Anybody but the domain may name one; without the feature `dev` a
//! point is nothing at all, and with it one look at a value that was read once.
//!
//! `PAYBRIDGE_CRASH_POINT=<name>:<n>` makes the process kill itself when it passes the point for the nth time.

/// A point that a process passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A change is written, and its transaction still open.
    BeforeCommit,
    /// A change is committed, and nobody knows of it yet.
    AfterCommit,
    /// A request to Stripe is about to leave us.
    BeforeRequest,
    /// Stripe has answered, and nothing of it is written.
    AfterAnswer,
    /// Webhooks are written, and their transaction still open.
    BeforeInboxCommit,
    /// Webhooks are durable, and not acknowledged yet.
    AfterInboxCommit,
    /// Jobs are leased, and not begun.
    AfterLease,
    /// An event is about to be handed to a subscriber.
    BeforeEvent,
}

impl Point {
    /// All points.
    pub const ALL: [Self; 8] = [
        Self::BeforeCommit,
        Self::AfterCommit,
        Self::BeforeRequest,
        Self::AfterAnswer,
        Self::BeforeInboxCommit,
        Self::AfterInboxCommit,
        Self::AfterLease,
        Self::BeforeEvent,
    ];

    /// The name by which the environment speaks of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::BeforeCommit => "before-commit",
            Self::AfterCommit => "after-commit",
            Self::BeforeRequest => "before-request",
            Self::AfterAnswer => "after-answer",
            Self::BeforeInboxCommit => "before-inbox-commit",
            Self::AfterInboxCommit => "after-inbox-commit",
            Self::AfterLease => "after-lease",
            Self::BeforeEvent => "before-event",
        }
    }
}

/// Does nothing: a release has no such points.
#[cfg(not(feature = "dev"))]
#[inline]
pub fn point(_: Point) {}

#[cfg(feature = "dev")]
pub use self::armed::{VARIABLE, point};

#[cfg(feature = "dev")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::Point;

    /// The environment variable that sets a trap.
    pub const VARIABLE: &str = "PAYBRIDGE_CRASH_POINT";

    /// Where this process is to die.
    #[derive(Debug)]
    pub(super) struct Trap {
        point: Point,
        /// How often it may still be passed alive.
        left: AtomicU64,
    }

    impl Trap {
        /// `name:n`; anything else sets no trap.
        pub(super) fn parse(text: &str) -> Option<Self> {
            let (name, times) = text.split_once(':')?;
            let point = Point::ALL.into_iter().find(|point| point.name() == name)?;
            let times: u64 = times.parse().ok().filter(|times| *times > 0)?;
            Some(Self { point, left: AtomicU64::new(times) })
        }

        /// Whether passing `point` now is the end.
        pub(super) fn springs(&self, point: Point) -> bool {
            self.point == point && self.left.fetch_sub(1, Ordering::Relaxed) == 1
        }
    }

    /// Ends the process, as kill -9 does, if this is the place that it was told of.
    pub fn point(point: Point) {
        static TRAP: OnceLock<Option<Trap>> = OnceLock::new();
        let trap = TRAP.get_or_init(|| Trap::parse(&std::env::var(VARIABLE).ok()?));
        if trap.as_ref().is_some_and(|trap| trap.springs(point)) {
            eprintln!("crash point {}: dying", point.name());
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}

#[cfg(test)]
#[cfg(feature = "dev")]
mod tests {
    use super::Point;
    use super::armed::Trap;

    #[test]
    fn a_trap_springs_at_its_point_at_the_nth_time_and_never_again() {
        let trap = Trap::parse("after-commit:2").unwrap();
        let passed = [Point::AfterCommit, Point::BeforeCommit, Point::AfterCommit, Point::AfterCommit];
        assert_eq!(passed.map(|point| trap.springs(point)), [false, false, true, false]);
    }

    #[test]
    fn every_point_has_a_name_of_its_own_and_nonsense_sets_no_trap() {
        for point in Point::ALL {
            let trap = Trap::parse(&format!("{}:1", point.name())).unwrap();
            assert_eq!(Point::ALL.into_iter().filter(|other| trap.springs(*other)).collect::<Vec<_>>(), [point]);
        }
        for text in ["", "after-commit", "after-commit:0", "after-commit:x", "nowhere:1"] {
            assert!(Trap::parse(text).is_none(), "{text}");
        }
    }
}
