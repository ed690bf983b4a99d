//! Checks the server that a setting leads to: its version is supported, and no pooler moves prepared statements between
//! connections.

use std::fmt;

use anyhow::{Context, anyhow};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::connect::Address;

/// The oldest supported version of Postgres.
const POSTGRES_MIN: u32 = 15;
/// How many times two connections are probed for a pooler: a busy pooler may escape one or two probes.
const PROBES: usize = 8;

/// The setting that contains an address.
#[derive(Clone, Copy, Debug)]
pub(super) enum Setting {
    /// For the pool and for commands.
    DatabaseUrl,
    /// For LISTEN.
    DirectDatabaseUrl,
}

impl fmt::Display for Setting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::DatabaseUrl => "DATABASE_URL",
            Self::DirectDatabaseUrl => "PAYBRIDGE_DIRECT_DATABASE_URL",
        })
    }
}

impl Setting {
    /// A regular expression: another connection must not see a prepared statement with such a name. For the pool these
    /// are the driver's own names, since all processes use the same ones. LISTEN needs a server connection of its own:
    /// any name.
    fn exclusive_names(self) -> &'static str {
        match self {
            Self::DatabaseUrl => "^s[0-9]+$",
            Self::DirectDatabaseUrl => "",
        }
    }
}

/// Why a process cannot start to work.
#[derive(Debug)]
pub enum StartupError {
    /// May pass while the process waits: the database is unavailable, or lacks migrations.
    Temporary(anyhow::Error),
    /// Needs a change of settings.
    Permanent(anyhow::Error),
}

impl StartupError {
    /// The cause, with what to do about it.
    pub fn into_error(self) -> anyhow::Error {
        match self {
            Self::Temporary(error) | Self::Permanent(error) => error,
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for StartupError {
    fn from(error: E) -> Self {
        Self::Temporary(error.into())
    }
}

pub(super) type Checked<T = ()> = Result<T, StartupError>;

/// Checks the server's version, and that no unsuitable pooler is in front of it.
pub(super) async fn check_server(url: &str, setting: Setting) -> Checked {
    let address = Address::parse(url).map_err(|sentence| StartupError::Permanent(anyhow!("{setting} {sentence}")))?;
    let first = connect(&address, setting).await?;
    let second = connect(&address, setting).await?;
    let shared = is_shared(&first, &second, setting.exclusive_names()).await;
    if shared.with_context(|| format!("{setting} could not be checked for a pooler"))? {
        return Err(StartupError::Permanent(anyhow!(
            "{setting} leads to a connection pooler that gives one connection's prepared statements to another \
             (PgBouncer's pool_mode=transaction or statement): a wrong statement might run. Use pool_mode=session, or \
             the address of Postgres itself"
        )));
    }
    Ok(())
}

async fn connect(address: &Address, setting: Setting) -> Checked<Client> {
    let connected = address.connect().await;
    let (client, driver) = connected.with_context(|| format!("the database cannot be reached; check {setting}"))?;
    let version = driver.parameter("server_version").unwrap_or_default().to_owned();
    tokio::spawn(driver);
    if is_too_old(&version) {
        return Err(StartupError::Permanent(anyhow!(
            "{setting} leads to Postgres {version}; Paybridge needs {POSTGRES_MIN} or newer"
        )));
    }
    Ok(client)
}

/// A version that cannot be parsed is accepted.
fn is_too_old(version: &str) -> bool {
    let digits = version.split(|letter: char| !letter.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().is_ok_and(|major: u32| major < POSTGRES_MIN)
}

/// Whether clients share server connections: `second` sees a statement that `first` has prepared, or `first` no longer
/// finds it. A pooler that renames statements for each client passes (PgBouncer from 1.21 on, with
/// max_prepared_statements).
async fn is_shared(first: &Client, second: &Client, names: &str) -> anyhow::Result<bool> {
    for _ in 0..PROBES {
        let mut marker = [0; 16];
        getrandom::fill(&mut marker)?;
        let marker = hex::encode(marker);
        let statement = match first.prepare(&format!("SELECT 1 /* paybridge {marker} */")).await {
            Ok(statement) => statement,
            // Another client has prepared a statement under the same name.
            Err(error) if error.code() == Some(&SqlState::DUPLICATE_PSTATEMENT) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        // The simple protocol prepares nothing.
        let query =
            format!("SELECT name FROM pg_prepared_statements WHERE statement LIKE '%{marker}%' AND name ~ '{names}'");
        let seen = second.simple_query(&query).await?;
        if seen.iter().any(|message| matches!(message, SimpleQueryMessage::Row(_))) {
            return Ok(true);
        }
        match first.query_one(&statement, &[]).await {
            Ok(_) => {}
            Err(error) if error.code() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_is_too_old_by_its_major_version() {
        for (version, expected) in [
            ("14.9 (Debian 14.9-1)", true),
            ("9.6.24", true),
            ("15.18 (Debian 15.18-0+deb12u1)", false),
            ("18beta2", false),
            ("18.4", false),
            ("", false),
        ] {
            assert_eq!(is_too_old(version), expected, "{version}");
        }
    }
}
