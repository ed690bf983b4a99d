//! What the steps of the scenarios share.

use std::path::PathBuf;

use super::reporter::Reporter;
use crate::dev::test_environment::TestEnvironment;

/// What a step runs in.
pub struct ScenarioContext {
    /// The database, the sandbox and the servers.
    pub environment: TestEnvironment,
    /// The program to start for steps that need another process.
    pub program: PathBuf,
    /// Prints what happens.
    pub reporter: Reporter,
}
