//! An organization's event log.

use crate::domain::{Error, LogId, Result};

/// An organization's log, and the range of its positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLog {
    /// Which log it is.
    pub log_id: LogId,
    /// The newest position; 0 while there is none.
    pub last_position: i64,
    /// The oldest position that is still kept; `last_position + 1` while none is.
    pub first_position: i64,
}

impl EventLog {
    /// The smallest position to start after.
    pub fn oldest(&self) -> i64 {
        self.first_position - 1
    }

    /// Checks that this is the log in which a reader has read up to `position`. A log that was replaced has another id.
    /// One that lacks the position has lost its end.
    pub fn check_reader(&self, log_id: Option<LogId>, position: i64) -> Result<()> {
        if let Some(requested) = log_id.filter(|requested| *requested != self.log_id) {
            return Err(Error::LogReplaced { requested, current: self.log_id, oldest: self.oldest() });
        }
        if position > self.last_position {
            let (first, last) = (self.first_position, self.last_position);
            let text = match last {
                0 => "is in the future: the log is empty; start after 0".to_owned(),
                last => format!("is in the future: the log holds positions {first} to {last}; start after one of them"),
            };
            return Err(Error::invalid("after_position", text));
        }
        Ok(())
    }
}
