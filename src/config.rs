//! Settings: what the command line and the environment say, checked and typed.
//!
//! The flow: clap reads flags and environment variables as text ([`arguments`]), `parse` takes each text on its own, so
//! that every mistake is told at once and not the first alone, and [`Settings`] comes out, in which nothing is left to
//! be checked. Secrets are read into types that never print them (P9), and no message repeats a value that may hold one.
//!
//! Names follow one rule: `--some-setting` is also `PAYBRIDGE_SOME_SETTING`; only `--database-url` is `DATABASE_URL`.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches};

pub use self::settings::{
    BaseUrl, Connection, EncryptionKey, Grpc, LogFormat, Retention, Serve, Settings, Stripe, Task, Telemetry, Tls,
};
#[cfg(feature = "dev")]
pub use self::settings::{Chaos, Demo, Dev, FastClock, Sandbox};

mod arguments;
mod check;
mod parse;
#[cfg(all(test, feature = "dev"))]
mod readme_tests;
mod settings;
#[cfg(test)]
mod tests;

/// What the names of our variables begin with.
const PREFIX: &str = "PAYBRIDGE_";

/// The exit code for a command line or an environment that can't be used (`EX_USAGE`).
const USAGE_ERROR: u8 = 64;

/// Why there are no settings: they are wrong, or only help was asked for.
#[derive(Debug)]
pub struct Refusal {
    text: String,
    /// What the process ends with: 64, or 0 after `--help` and `--version`.
    pub exit_code: u8,
}

impl Refusal {
    /// Prints the reason where it belongs: help to standard output, mistakes to standard error.
    pub fn print(&self) {
        if self.exit_code == 0 {
            println!("{}", self.text.trim_end());
        } else {
            eprintln!("{}", self.text.trim_end());
        }
    }
}

impl From<clap::Error> for Refusal {
    fn from(error: clap::Error) -> Self {
        let exit_code = if error.use_stderr() { USAGE_ERROR } else { 0 };
        Self { text: error.render().to_string(), exit_code }
    }
}

/// Reads the settings of this process.
pub fn load() -> Result<Settings, Refusal> {
    load_from(arguments::Cli::command(), std::env::args_os())
}

/// Those of `names` that look like a setting and are none of any command: most likely misspelt, so that a default holds in
/// silence. Kubernetes makes some of its own for a service that is called `paybridge`.
pub fn misspelt(names: impl IntoIterator<Item = OsString>) -> Vec<String> {
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

fn load_from(command: clap::Command, line: impl IntoIterator<Item = OsString>) -> Result<Settings, Refusal> {
    let matches = command.try_get_matches_from(line)?;
    let cli = arguments::Cli::from_arg_matches(&matches)?;
    parse::settings(cli).map_err(|mistakes| Refusal { text: mistakes.to_string(), exit_code: USAGE_ERROR })
}
