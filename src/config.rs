//! Settings: reads the command line and the environment, checks them and gives them types.
//!
//! clap reads flags and environment variables as text ([`arguments`]). `parse` checks each text on its own, so that one
//! run reports every error, and returns [`Settings`], which need no further checks. Secrets are read into types that
//! never print them (P9), and no message repeats a value that may hold one.
//!
//! One naming rule: `--some-setting` is also `PAYBRIDGE_SOME_SETTING`; the only exception is `--database-url`, which is
//! `DATABASE_URL`.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches};

pub use self::base_url::BaseUrl;
#[cfg(feature = "dev")]
pub use self::settings::{Chaos, Demo, Dev, FastClock, Sandbox};
pub use self::settings::{
    Connection, EncryptionKey, Grpc, LogFormat, Retention, Serve, Settings, Stripe, Task, Telemetry, Tls,
};

mod arguments;
mod base_url;
mod check;
mod parse;
mod settings;
#[cfg(all(test, feature = "dev"))]
mod settings_page_tests;
#[cfg(test)]
mod tests;

/// The prefix of Paybridge's environment variables.
const PREFIX: &str = "PAYBRIDGE_";

/// The exit code for an invalid command line or environment (`EX_USAGE`).
const USAGE_ERROR: u8 = 64;

/// Why there are no settings: they are invalid, or the command line only requests help.
#[derive(Debug)]
pub struct ConfigError {
    text: String,
    /// The exit code of the process: 64, or 0 after `--help` and `--version`.
    pub exit_code: u8,
}

impl ConfigError {
    /// Prints help to standard output and errors to standard error.
    pub fn print(&self) {
        if self.exit_code == 0 {
            println!("{}", self.text.trim_end());
        } else {
            eprintln!("{}", self.text.trim_end());
        }
    }
}

impl From<clap::Error> for ConfigError {
    fn from(error: clap::Error) -> Self {
        let exit_code = if error.use_stderr() { USAGE_ERROR } else { 0 };
        Self { text: error.render().to_string(), exit_code }
    }
}

/// Reads the settings of this process.
pub fn load() -> Result<Settings, ConfigError> {
    load_from(arguments::Cli::command(), std::env::args_os())
}

/// Returns the `names` with our prefix that are a setting of no command: most likely typos, whose settings silently
/// keep their defaults. The variables that Kubernetes sets for a Service named `paybridge` are not among them.
pub fn unknown_variables(names: impl IntoIterator<Item = OsString>) -> Vec<String> {
    let command = arguments::Cli::command();
    let commands = with_subcommands(&command);
    let is_known =
        |name: &str| commands.iter().flat_map(|it| it.get_arguments()).any(|arg| arg.get_env() == Some(name.as_ref()));
    let is_kubernetes = |rest: &str| rest.starts_with("SERVICE_") || rest == "PORT" || rest.starts_with("PORT_");
    let mut found: Vec<String> = names
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.strip_prefix(PREFIX).is_some_and(|rest| !is_kubernetes(rest)))
        .filter(|name| !is_known(name))
        .collect();
    found.sort();
    found
}

fn with_subcommands(command: &clap::Command) -> Vec<&clap::Command> {
    std::iter::once(command).chain(command.get_subcommands().flat_map(with_subcommands)).collect()
}

fn load_from(command: clap::Command, line: impl IntoIterator<Item = OsString>) -> Result<Settings, ConfigError> {
    let matches = command.try_get_matches_from(line)?;
    let cli = arguments::Cli::from_arg_matches(&matches)?;
    parse::settings(cli).map_err(|errors| ConfigError { text: errors.to_string(), exit_code: USAGE_ERROR })
}
