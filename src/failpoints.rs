//! Failpoints: named points in the code at which `paybridge chaos` can kill the process.
//!
//! A `kill -9` can arrive at any instruction. These are the points between which it makes a difference (P8). Every
//! module but `domain` may use them. Without the feature `dev` a failpoint compiles to nothing; with it, it costs one
//! read of a static.
//!
//! `PAYBRIDGE_FAILPOINT=<name>:<n>` makes the process kill itself when it reaches the failpoint for the nth time.

/// A point that the process can be killed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::EnumString, strum::VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Failpoint {
    /// A transition is written; its transaction is still open.
    BeforeCommit,
    /// A transition is committed; nobody has been notified.
    AfterCommit,
    /// A request to Stripe is about to be sent.
    BeforeRequest,
    /// Stripe has responded; nothing of the response is stored.
    AfterResponse,
    /// Webhooks are written; their transaction is still open.
    BeforeInboxCommit,
    /// Webhooks are durable; they are not acknowledged yet.
    AfterInboxCommit,
    /// Jobs are leased; none has been started.
    AfterLease,
    /// An event is about to be sent to a subscriber.
    BeforeEvent,
}

impl Failpoint {
    /// The name in `PAYBRIDGE_FAILPOINT`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Does nothing without the feature `dev`.
#[cfg(not(feature = "dev"))]
#[inline]
pub fn hit(_: Failpoint) {}

#[cfg(feature = "dev")]
pub use self::armed::{VARIABLE, hit};

#[cfg(feature = "dev")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::Failpoint;

    /// The environment variable that arms a failpoint.
    pub const VARIABLE: &str = "PAYBRIDGE_FAILPOINT";

    /// The failpoint at which this process is killed.
    #[derive(Debug)]
    pub(super) struct ArmedFailpoint {
        failpoint: Failpoint,
        /// How many more hits it takes to trigger.
        remaining: AtomicU64,
    }

    impl ArmedFailpoint {
        /// Parses `name:n`. Anything else arms nothing.
        pub(super) fn parse(text: &str) -> Option<Self> {
            let (name, times) = text.split_once(':')?;
            let failpoint = name.parse().ok()?;
            let times: u64 = times.parse().ok().filter(|times| *times > 0)?;
            Some(Self { failpoint, remaining: AtomicU64::new(times) })
        }

        /// Counts a hit of `failpoint`; whether it triggers.
        pub(super) fn is_triggered_by(&self, failpoint: Failpoint) -> bool {
            self.failpoint == failpoint && self.remaining.fetch_sub(1, Ordering::Relaxed) == 1
        }
    }

    /// Kills the process with SIGKILL if `failpoint` is armed and this is the configured hit.
    pub fn hit(failpoint: Failpoint) {
        static ARMED: OnceLock<Option<ArmedFailpoint>> = OnceLock::new();
        let armed = ARMED.get_or_init(|| ArmedFailpoint::parse(&std::env::var(VARIABLE).ok()?));
        if armed.as_ref().is_some_and(|armed| armed.is_triggered_by(failpoint)) {
            eprintln!("failpoint {}: killing the process", failpoint.as_str());
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}

#[cfg(test)]
#[cfg(feature = "dev")]
mod tests {
    use strum::VariantArray as _;

    use super::Failpoint;
    use super::armed::ArmedFailpoint;

    #[test]
    fn a_failpoint_triggers_once_at_its_nth_hit() {
        let armed = ArmedFailpoint::parse("after-commit:2").unwrap();
        let hits = [Failpoint::AfterCommit, Failpoint::BeforeCommit, Failpoint::AfterCommit, Failpoint::AfterCommit];
        assert_eq!(hits.map(|failpoint| armed.is_triggered_by(failpoint)), [false, false, true, false]);
    }

    #[test]
    fn every_failpoint_has_a_unique_name_and_invalid_text_arms_nothing() {
        for &failpoint in Failpoint::VARIANTS {
            let armed = ArmedFailpoint::parse(&format!("{}:1", failpoint.as_str())).unwrap();
            let triggered = Failpoint::VARIANTS.iter().filter(|other| armed.is_triggered_by(**other));
            assert_eq!(triggered.collect::<Vec<_>>(), [&failpoint]);
        }
        for text in ["", "after-commit", "after-commit:0", "after-commit:x", "nowhere:1"] {
            assert!(ArmedFailpoint::parse(text).is_none(), "{text}");
        }
    }
}
