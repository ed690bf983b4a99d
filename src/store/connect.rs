//! Opens every connection to Postgres: the pool's, the one for LISTEN, and those of commands.
//!
//! [`Address`] is the parsed `DATABASE_URL`. Its TLS settings have libpq's semantics, which tokio-postgres lacks.
//! Certificate files are read for each connection, so a renewed certificate takes effect without a restart.

use std::error::Error as StdError;
use std::time::Duration;

use anyhow::Context;
use diesel_async::AsyncPgConnection;
use rustls::CertificateError;
use time::OffsetDateTime;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

pub use self::address::Address;
use self::address::{Mode, Root};

mod address;
#[cfg(test)]
mod tests;
mod tls;

/// Postgres' default port.
const POSTGRES_PORT: u16 = 5432;
/// The time for TLS handshake and login, in addition to the connection's own timeout. Without it, a server that accepts
/// a connection and then sends nothing would block forever.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// The text of tokio-postgres' error for a failed TLS handshake.
const TLS_FAILED: &str = "error performing TLS handshake";
/// The text of its error if the server does not support TLS.
const NO_TLS: &str = "server does not support TLS";

/// Drives a connection, with or without TLS.
pub(super) type Driver = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

impl Address {
    /// Checks the certificate files. The error names every unusable file, and shows nothing of its content.
    pub fn check_files(&self) -> Result<(), String> {
        tls::connector(self).map(drop)
    }

    /// Opens a connection. The error says where to, contains the cause, and what to do about it if that is known.
    pub(super) async fn connect(&self) -> anyhow::Result<(Client, Driver)> {
        self.connect_with_fallback().await.with_context(|| self.place())
    }

    /// `db.example.com:5432`, or the folder of a Unix socket.
    fn place(&self) -> String {
        let ports = self.config.get_ports();
        let port = |nth: usize| ports.get(nth).or(ports.first()).copied().unwrap_or(POSTGRES_PORT);
        let place = |(nth, host): (usize, &Host)| match host {
            Host::Tcp(name) => format!("{name}:{}", port(nth)),
            Host::Unix(folder) => format!("{}:{}", folder.display(), port(nth)),
        };
        self.config.get_hosts().iter().enumerate().map(place).collect::<Vec<_>>().join(", ")
    }

    async fn connect_with_fallback(&self) -> anyhow::Result<(Client, Driver)> {
        let address = self.clone();
        let connector = tokio::task::spawn_blocking(move || tls::connector(&address)).await?;
        let connector = connector.map_err(|sentence| anyhow::anyhow!("the address {sentence}"))?;
        let failure = match self.attempt(connector.clone()).await? {
            Ok(connected) => return Ok(connected),
            Err(error) => error,
        };
        if self.mode != Mode::Prefer || !may_retry_without_tls(&failure) {
            return Err(self.explain(failure));
        }
        let mut plain = self.clone();
        plain.mode = Mode::Disable;
        plain.config.ssl_mode(SslMode::Disable);
        let failure = anyhow::Error::new(failure);
        tracing::debug!(
            error = format!("{failure:#}"),
            "TLS to the database failed; sslmode=prefer connects without it"
        );
        let connected = plain.attempt(connector).await?;
        connected.map_err(|error| plain.explain(error).context(format!("with TLS: {failure:#}; and without it")))
    }

    /// Opens a connection with the address's own mode. The outer error is a timeout: the server does not answer.
    async fn attempt(
        &self,
        connector: MakeRustlsConnect,
    ) -> anyhow::Result<Result<(Client, Driver), tokio_postgres::Error>> {
        let connecting = self.config.connect(connector);
        let Some(limit) = self.config.get_connect_timeout() else { return Ok(connecting.await) };
        let hosts = u32::try_from(self.config.get_hosts().len()).unwrap_or(u32::MAX).max(1);
        let limit = limit.saturating_mul(hosts).saturating_add(LOGIN_TIMEOUT);
        tokio::time::timeout(limit, connecting).await.with_context(|| {
            format!("the server has not answered within {limit:?}, though it may have accepted the connection")
        })
    }

    /// Opens a connection for diesel.
    pub(super) async fn establish(&self) -> anyhow::Result<AsyncPgConnection> {
        let (client, driver) = self.connect().await?;
        AsyncPgConnection::try_from_client_and_connection(client, driver).await.context("the connection was lost")
    }

    fn explain(&self, error: tokio_postgres::Error) -> anyhow::Error {
        let advice = self.advice(&error);
        let error = anyhow::Error::new(error);
        match advice {
            Some(advice) => error.context(advice),
            None => error,
        }
    }

    /// For errors that concern TLS: what happened and what to do about it.
    fn advice(&self, error: &tokio_postgres::Error) -> Option<String> {
        let needs_certificate =
            || "the server requires a client certificate; give the address sslcert and sslkey".to_owned();
        if let Some(rustls::Error::InvalidCertificate(reason)) = cause(error) {
            return Some(self.certificate_advice(reason));
        }
        if self.identity.is_some() && is_disconnect(error) {
            return Some(
                "the server closed the connection during the TLS handshake, as it does when it rejects the client \
                 certificate: its CA must be in the server's ssl_ca_file"
                    .to_owned(),
            );
        }
        if let Some(rustls::Error::AlertReceived(_)) = cause(error) {
            return Some(needs_certificate());
        }
        if error.source().is_some_and(|source| source.to_string() == NO_TLS) {
            return Some(format!(
                "the server does not support TLS, which sslmode={} requires: turn on `ssl` in its settings",
                self.mode
            ));
        }
        let refused = error.as_db_error().filter(|it| *it.code() == SqlState::INVALID_AUTHORIZATION_SPECIFICATION)?;
        if refused.message().contains("client certificate") {
            return Some(needs_certificate());
        }
        let advice =
            "the server refuses this login with sslmode=disable; if it accepts only TLS, use sslmode=verify-full";
        (self.mode == Mode::Disable && self.is_remote()).then(|| advice.to_owned())
    }

    fn certificate_advice(&self, reason: &CertificateError) -> String {
        match reason {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => match &self.root {
                Some(Root::File(file)) => format!(
                    "the server's certificate is signed by no CA in {}; name the right CA's file as sslrootcert",
                    file.display()
                ),
                _ => "the server's certificate is signed by no CA that this system trusts (sslrootcert=system); name \
                      the right CA's file as sslrootcert"
                    .to_owned(),
            },
            CertificateError::NotValidForNameContext { expected, presented } => format!(
                "the server's certificate is not for `{}` but for {}; use that name as the host, or sslmode=verify-ca \
                 if the CA signs only your databases",
                expected.to_str(),
                names(presented)
            ),
            CertificateError::ExpiredContext { not_after, .. } => format!(
                "the server's certificate has expired on {}; renew it, or correct this machine's clock",
                date(not_after.as_secs())
            ),
            CertificateError::NotValidYetContext { not_before, .. } => format!(
                "the server's certificate is not valid before {}; correct this machine's clock",
                date(not_before.as_secs())
            ),
            _ => "the server's certificate cannot be used".to_owned(),
        }
    }
}

/// Whether libpq would retry without TLS: the handshake failed, or the server rejected the login.
fn may_retry_without_tls(error: &tokio_postgres::Error) -> bool {
    error.to_string() == TLS_FAILED || error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

/// Whether the server closed the connection, with or without a TLS alert: which of them is seen depends on timing.
fn is_disconnect(error: &tokio_postgres::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let kinds = [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof];
    let is_lost =
        || chain(error).filter_map(|it| it.downcast_ref::<std::io::Error>()).any(|it| kinds.contains(&it.kind()));
    matches!(cause(error), Some(rustls::Error::AlertReceived(_))) || error.is_closed() || is_lost()
}

fn chain<'error>(error: &'error (dyn StdError + 'static)) -> impl Iterator<Item = &'error (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| match error.downcast_ref::<std::io::Error>() {
        // `io::Error::source` skips the inner error itself.
        Some(io) => io.get_ref().map(|inner| inner as &(dyn StdError + 'static)),
        None => error.source(),
    })
}

fn cause(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// `DnsName("db.example.com")` → `db.example.com`
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inner = name.split_once('(').map_or(name.as_str(), |(_, inner)| inner);
        format!("`{}`", inner.trim_end_matches(')').trim_matches('"'))
    };
    match presented {
        [] => "no name (only a subjectAltName counts, a common name does not)".to_owned(),
        names => names.iter().map(bare).collect::<Vec<_>>().join(", "),
    }
}

fn date(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.map_or_else(|| format!("{seconds} s"), |time| time.date().to_string())
}
