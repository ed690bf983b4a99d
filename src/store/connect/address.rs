//! Postgres' address as libpq reads it: tokio-postgres' settings, and the TLS settings that tokio-postgres lacks.

use std::borrow::Cow;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, Host, SslMode, SslNegotiation};

/// Defaults in seconds for detecting a server that has vanished. The system's own defaults are hours.
const TIMEOUTS: [(&str, u32); 4] =
    [("connect_timeout", 5), ("tcp_user_timeout", 10), ("keepalives_idle", 5), ("keepalives_interval", 2)];

/// TLS settings that are parsed here: tokio-postgres knows three values of the first, and none of the others.
const PARSED_HERE: [&str; 4] = ["sslmode", "sslrootcert", "sslcert", "sslkey"];
/// The TLS setting that tokio-postgres parses.
const PARSED_BY_DRIVER: &str = "sslnegotiation";
/// libpq's other TLS settings. They are rejected, since without them an address would be less secure than it looks.
const NOT_SUPPORTED: [&str; 10] = [
    "requiressl",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkeylogfile",
    "sslpassword",
    "sslsni",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
];

/// Postgres' address: hosts, login and TLS settings.
#[derive(Clone, Debug)]
pub struct Address {
    /// Its `ssl_mode` is the closest that tokio-postgres has.
    pub(super) config: Config,
    pub(super) mode: Mode,
    pub(super) root: Option<Root>,
    pub(super) identity: Option<Identity>,
}

/// libpq's `sslmode`, from weakest to strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, strum::Display, strum::EnumString)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Mode {
    /// Never TLS.
    Disable,
    /// TLS without verification if that succeeds, otherwise no TLS.
    Prefer,
    /// TLS without verification; with a root file like `VerifyCa`.
    Require,
    /// TLS, and a trusted CA has signed the server's certificate.
    VerifyCa,
    /// Also, the certificate names the address's host.
    VerifyFull,
}

/// The CAs that may sign the server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// The CAs that this system trusts.
    System,
    /// The CAs in this PEM file.
    File(PathBuf),
}

/// The client's certificate and key: two PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Address {
    /// The syntax of an address, for error messages.
    pub const FORM: &str = "postgresql://user:password@host:port/database or key=value pairs";

    /// Parses an address. The error lists everything that is wrong, without repeating any value.
    pub fn parse(text: &str) -> Result<Self, String> {
        let no_address = || format!("is not a Postgres address; it must look like {}", Self::FORM);
        let parts = Parts::of(text.trim()).ok_or_else(no_address)?;
        let mut errors = parts.unknown();
        let [mode, root, certificate, key] = PARSED_HERE.map(|name| {
            let mut values = parts.parameters.iter().filter(|it| it.name == name).map(|it| &*it.value);
            let value = values.next().filter(|value| !value.is_empty());
            if values.next().is_some() {
                errors.push(format!("gives {name} more than once"));
            }
            value.map(str::to_owned)
        });
        let root = root.map(|root| if root == "system" { Root::System } else { Root::File(root.into()) });
        let fallback = if root == Some(Root::System) { Mode::VerifyFull } else { Mode::Prefer };
        let mode = mode.map_or(Ok(fallback), |mode| parse_mode(&mode));
        let identity = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(Identity { certificate: certificate.into(), key: key.into() }),
            (Some(_), None) => {
                errors.push("gives sslcert without sslkey: the certificate's key is missing".to_owned());
                None
            }
            (None, Some(_)) => {
                errors.push("gives sslkey without sslcert: the key's certificate is missing".to_owned());
                None
            }
        };
        let config = parts.config().ok_or_else(no_address)?;
        match mode {
            Ok(mode) => {
                let address = Self { config, mode, root, identity };
                errors.extend(address.contradictions());
                if errors.is_empty() { Ok(address.normalized()) } else { Err(errors.join("; it ")) }
            }
            Err(sentence) => {
                errors.push(sentence);
                Err(errors.join("; it "))
            }
        }
    }

    fn contradictions(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |is_wrong: bool, sentence: String| {
            if is_wrong {
                found.push(sentence);
            }
        };
        let Self { config, mode, root, identity } = self;
        let from_system = *root == Some(Root::System);
        check(
            from_system && *mode < Mode::VerifyFull,
            format!(
                "gives sslrootcert=system with sslmode={mode}: a certificate of any public CA for any host would be \
                 accepted; use sslmode=verify-full"
            ),
        );
        check(
            root.is_some() && !from_system && *mode <= Mode::Prefer,
            format!(
                "gives sslrootcert with sslmode={mode}, which allows a connection without TLS; use \
                 sslmode=verify-full, or leave sslrootcert out"
            ),
        );
        check(
            root.is_none() && *mode >= Mode::VerifyCa,
            format!("needs sslrootcert for sslmode={mode}: the file of the CA's certificate, or `system`"),
        );
        check(
            identity.is_some() && *mode == Mode::Disable,
            "gives sslcert and sslkey with sslmode=disable, which does not send them".to_owned(),
        );
        let is_direct = config.get_ssl_negotiation() == SslNegotiation::Direct;
        check(
            is_direct && *mode < Mode::Require,
            format!("gives sslnegotiation=direct with sslmode={mode}; use sslmode=require or a stronger one"),
        );
        check(
            config.get_channel_binding() == ChannelBinding::Require && *mode == Mode::Disable,
            "gives channel_binding=require with sslmode=disable; channel binding needs TLS".to_owned(),
        );
        let hosts = config.get_hosts();
        check(
            *mode == Mode::VerifyFull && hosts.is_empty() && !config.get_hostaddrs().is_empty(),
            "needs `host` for sslmode=verify-full: the name in the server's certificate, besides `hostaddr`".to_owned(),
        );
        let sockets = hosts.iter().filter(|host| !matches!(host, Host::Tcp(_))).count();
        check(
            (1..hosts.len()).contains(&sockets) && *mode >= Mode::Require,
            format!("mixes Unix sockets, which have no TLS, with hosts that need it under sslmode={mode}"),
        );
        found
    }

    /// Derives dependent settings.
    fn normalized(mut self) -> Self {
        // libpq ignores all TLS settings for a Unix socket.
        if !self.config.get_hosts().is_empty() && !self.is_remote() {
            self = Self { config: self.config, mode: Mode::Disable, root: None, identity: None };
        }
        // tokio-postgres requires a host name for TLS, though only `verify-full` verifies it.
        if self.config.get_hosts().is_empty() {
            for address in self.config.get_hostaddrs().to_vec() {
                self.config.host(address.to_string());
            }
        }
        self.config.ssl_mode(match self.mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        });
        self
    }

    /// Whether a host is reached over TCP, be it the loopback.
    pub(super) fn is_remote(&self) -> bool {
        self.config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(_)))
    }
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    if text == "allow" {
        return Err(
            "gives sslmode=allow, which sends plain text before it tries TLS and is not supported; use prefer, \
                    require or, best, verify-full"
                .to_owned(),
        );
    }
    text.parse().map_err(|_| {
        "gives an sslmode that does not exist; the modes are disable, prefer, require, verify-ca and verify-full"
            .to_owned()
    })
}

/// An address, split into its parts.
struct Parts<'text> {
    /// Everything before the parameters.
    head: Cow<'text, str>,
    separator: &'static str,
    parameters: Vec<Parameter<'text>>,
}

/// One `name=value`.
struct Parameter<'text> {
    name: Cow<'text, str>,
    value: Cow<'text, str>,
    raw: &'text str,
}

impl<'text> Parts<'text> {
    /// `None` if the `key=value` pairs cannot be parsed.
    fn of(text: &'text str) -> Option<Self> {
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Some(Self { head: "".into(), separator: " ", parameters: pairs(text)? });
        }
        // A password may contain a `?`.
        let place = text.find('@').unwrap_or_default();
        let Some(query) = text[place..].find('?').map(|at| place + at + 1) else {
            return Some(Self { head: format!("{text}?").into(), separator: "&", parameters: Vec::new() });
        };
        let raw = text[query..].split('&').filter(|raw| !raw.is_empty());
        let decoded = |text: &'text str| percent_decode_str(text).decode_utf8_lossy();
        let parameter = |raw: &'text str| {
            let (name, value) = raw.split_once('=').unwrap_or((raw, ""));
            Parameter { name: decoded(name), value: decoded(value), raw }
        };
        Some(Self { head: text[..query].into(), separator: "&", parameters: raw.map(parameter).collect() })
    }

    /// Errors about parameter names. An unknown name is not repeated, since it may be part of a password.
    fn unknown(&self) -> Vec<String> {
        let is_known = |name: &str| PARSED_HERE.contains(&name) || name == PARSED_BY_DRIVER;
        let unknown = self
            .parameters
            .iter()
            .map(|it| &*it.name)
            .filter(|name| NOT_SUPPORTED.contains(name) || name.starts_with("ssl") && !is_known(name));
        let known = format!("supported are {} and {PARSED_BY_DRIVER}", PARSED_HERE.join(", "));
        let sentence = |name: &str| match NOT_SUPPORTED.iter().find(|it| **it == name) {
            Some(name) => format!("gives {name}, which is not supported; {known}"),
            None => format!("gives a TLS setting that does not exist; {known}"),
        };
        unknown.map(sentence).collect()
    }

    /// Parses the remaining settings with tokio-postgres. Our timeouts come first, so the address's own take
    /// precedence.
    fn config(&self) -> Option<Config> {
        let timeouts = TIMEOUTS.map(|(name, seconds)| format!("{name}={seconds}"));
        let is_ours = |name: &str| PARSED_HERE.contains(&name);
        // Rejected settings would replace the specific error by tokio-postgres' own.
        let is_rejected =
            |name: &str| name.starts_with("ssl") && name != PARSED_BY_DRIVER || NOT_SUPPORTED.contains(&name);
        let kept = self.parameters.iter().filter(|it| !is_ours(&it.name) && !is_rejected(&it.name)).map(|it| it.raw);
        let all: Vec<&str> = timeouts.iter().map(String::as_str).chain(kept).collect();
        format!("{}{}", self.head, all.join(self.separator)).parse().ok()
    }
}

/// Parses `key=value` pairs as tokio-postgres does: a value may be quoted, and a backslash escapes the next character.
fn pairs(mut text: &str) -> Option<Vec<Parameter<'_>>> {
    let mut found = Vec::new();
    loop {
        text = text.trim_start();
        if text.is_empty() {
            return Some(found);
        }
        let (name, rest) = text.split_once('=')?;
        let (value, rest) = value(rest.trim_start())?;
        let raw = &text[..text.len() - rest.len()];
        found.push(Parameter { name: name.trim_end().into(), value: value.into(), raw });
        text = rest;
    }
}

fn value(text: &str) -> Option<(String, &str)> {
    let (is_quoted, text) = text.strip_prefix('\'').map_or((false, text), |rest| (true, rest));
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, next)| next)),
            '\'' if is_quoted => return Some((value, &text[at + 1..])),
            space if space.is_whitespace() && !is_quoted => return Some((value, &text[at..])),
            other => value.push(other),
        }
    }
    (!is_quoted).then_some((value, ""))
}
