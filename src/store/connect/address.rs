//! The address of Postgres as libpq reads it: what tokio-postgres understands, and the TLS settings that it doesn't.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, Host, SslMode, SslNegotiation};

/// After how many seconds a server that has vanished without a word is given up, unless the address says otherwise: the
/// system's own limits are hours.
const LIMITS: [(&str, u32); 4] =
    [("connect_timeout", 5), ("tcp_user_timeout", 10), ("keepalives_idle", 5), ("keepalives_interval", 2)];

/// What is read here: tokio-postgres knows three values of the first, and none of the others.
const READ_HERE: [&str; 4] = ["sslmode", "sslrootcert", "sslcert", "sslkey"];
/// What tokio-postgres understands by itself.
const READ_THERE: &str = "sslnegotiation";
/// libpq's other settings of TLS. An address that is read without them would be weaker than it looks.
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

/// Where Postgres is, who connects, and how the server proves who it is.
#[derive(Clone, Debug)]
pub struct Address {
    /// With the one of tokio-postgres' modes that comes nearest.
    pub(super) config: Config,
    pub(super) mode: Mode,
    pub(super) root: Option<Root>,
    pub(super) identity: Option<Identity>,
}

/// libpq's `sslmode`, from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    /// Never TLS.
    Disable,
    /// TLS with whoever answers if that succeeds, else none.
    Prefer,
    /// TLS with whoever answers; with a root file as `VerifyCa`.
    Require,
    /// TLS with a server whose certificate the CA has signed.
    VerifyCa,
    /// The same, and the certificate is for the host that the address names.
    VerifyFull,
}

impl fmt::Display for Mode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        })
    }
}

/// The CAs that may sign the server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// All that this system trusts.
    System,
    /// Those of this PEM file.
    File(PathBuf),
}

/// What the client proves its own identity with: two PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Address {
    /// What an address looks like.
    pub const FORM: &str = "postgresql://user:password@host:port/database or key=value pairs";

    /// Reads an address. An error lists everything that is wrong with it, without repeating any of its values.
    pub fn parse(text: &str) -> Result<Self, String> {
        let no_address = || format!("is not an address of Postgres; it must look like {}", Self::FORM);
        let parts = Parts::of(text.trim()).ok_or_else(no_address)?;
        let mut wrong = parts.unknown();
        let [mode, root, certificate, key] = READ_HERE.map(|name| {
            let mut values = parts.parameters.iter().filter(|it| it.name == name).map(|it| &*it.value);
            let value = values.next().filter(|value| !value.is_empty());
            if values.next().is_some() {
                wrong.push(format!("gives {name} more than once"));
            }
            value.map(str::to_owned)
        });
        let root = root.map(|root| if root == "system" { Root::System } else { Root::File(root.into()) });
        let fallback = if root == Some(Root::System) { Mode::VerifyFull } else { Mode::Prefer };
        let mode = mode.map_or(Ok(fallback), |mode| read_mode(&mode));
        let identity = match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(Identity { certificate: certificate.into(), key: key.into() }),
            (Some(_), None) => {
                wrong.push("gives sslcert without sslkey: the certificate's key is missing".to_owned());
                None
            }
            (None, Some(_)) => {
                wrong.push("gives sslkey without sslcert: the key's certificate is missing".to_owned());
                None
            }
        };
        let config = parts.config().ok_or_else(no_address)?;
        match mode {
            Ok(mode) => {
                let address = Self { config, mode, root, identity };
                wrong.extend(address.contradictions());
                if wrong.is_empty() { Ok(address.settled()) } else { Err(wrong.join("; it ")) }
            }
            Err(sentence) => {
                wrong.push(sentence);
                Err(wrong.join("; it "))
            }
        }
    }

    fn contradictions(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut find = |is_so: bool, sentence: String| {
            if is_so {
                found.push(sentence);
            }
        };
        let Self { config, mode, root, identity } = self;
        let from_system = *root == Some(Root::System);
        find(
            from_system && *mode < Mode::VerifyFull,
            format!(
                "gives sslrootcert=system with sslmode={mode}: any public CA would do for any host; use \
                 sslmode=verify-full"
            ),
        );
        find(
            root.is_some() && !from_system && *mode <= Mode::Prefer,
            format!(
                "gives sslrootcert with sslmode={mode}, under which the connection may have no TLS; use \
                 sslmode=verify-full, or leave sslrootcert out"
            ),
        );
        find(
            root.is_none() && *mode >= Mode::VerifyCa,
            format!("needs sslrootcert for sslmode={mode}: the file of the CA's certificate, or `system`"),
        );
        find(
            identity.is_some() && *mode == Mode::Disable,
            "gives sslcert and sslkey with sslmode=disable, under which nobody sees them".to_owned(),
        );
        let is_direct = config.get_ssl_negotiation() == SslNegotiation::Direct;
        find(
            is_direct && *mode < Mode::Require,
            format!("gives sslnegotiation=direct with sslmode={mode}; use sslmode=require or a stronger one"),
        );
        find(
            config.get_channel_binding() == ChannelBinding::Require && *mode == Mode::Disable,
            "gives channel_binding=require with sslmode=disable; only TLS can be bound to".to_owned(),
        );
        let hosts = config.get_hosts();
        find(
            *mode == Mode::VerifyFull && hosts.is_empty() && !config.get_hostaddrs().is_empty(),
            "needs `host` for sslmode=verify-full: the name in the server's certificate, besides `hostaddr`".to_owned(),
        );
        let sockets = hosts.iter().filter(|host| !matches!(host, Host::Tcp(_))).count();
        find(
            (1..hosts.len()).contains(&sockets) && *mode >= Mode::Require,
            format!("mixes Unix sockets, which have no TLS, with hosts that need it under sslmode={mode}"),
        );
        found
    }

    /// Settles what follows from the rest.
    fn settled(mut self) -> Self {
        // Nobody listens in on a Unix socket: libpq ignores all settings of TLS there.
        if !self.config.get_hosts().is_empty() && !self.is_remote() {
            self = Self { config: self.config, mode: Mode::Disable, root: None, identity: None };
        }
        // Under TLS tokio-postgres insists on a name, though only `verify-full` compares it.
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

    /// Whether it leads over the network, if only to the loopback.
    pub(super) fn is_remote(&self) -> bool {
        self.config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(_)))
    }
}

fn read_mode(text: &str) -> Result<Mode, String> {
    let modes = [Mode::Disable, Mode::Prefer, Mode::Require, Mode::VerifyCa, Mode::VerifyFull];
    if text == "allow" {
        return Err(
            "gives sslmode=allow, which sends plain text before it tries TLS and is not supported; use prefer, \
                    require or, best, verify-full"
                .to_owned(),
        );
    }
    modes.into_iter().find(|mode| mode.to_string() == text).ok_or_else(|| {
        "gives an sslmode that does not exist; there are disable, prefer, require, verify-ca and verify-full".to_owned()
    })
}

/// An address, taken apart.
struct Parts<'text> {
    /// All before the parameters.
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
    /// `None` where pairs can't be told apart.
    fn of(text: &'text str) -> Option<Self> {
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Some(Self { head: "".into(), separator: " ", parameters: pairs(text)? });
        }
        // A password may hold what else begins the parameters.
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

    /// What is wrong with the names. One that nobody knows is not repeated: it may be part of a password.
    fn unknown(&self) -> Vec<String> {
        let is_known = |name: &str| READ_HERE.contains(&name) || name == READ_THERE;
        let unknown = self
            .parameters
            .iter()
            .map(|it| &*it.name)
            .filter(|name| NOT_SUPPORTED.contains(name) || name.starts_with("ssl") && !is_known(name));
        let known = format!("supported are {} and {READ_THERE}", READ_HERE.join(", "));
        let sentence = |name: &str| match NOT_SUPPORTED.iter().find(|it| **it == name) {
            Some(name) => format!("gives {name}, which is not supported; {known}"),
            None => format!("gives a TLS setting that does not exist; {known}"),
        };
        unknown.map(sentence).collect()
    }

    /// What tokio-postgres makes of the rest. Our limits come first, so that the address's own count.
    fn config(&self) -> Option<Config> {
        let limits = LIMITS.map(|(name, seconds)| format!("{name}={seconds}"));
        let is_ours = |name: &str| READ_HERE.contains(&name);
        // What was refused by name would only hide the reason.
        let is_refused = |name: &str| name.starts_with("ssl") && name != READ_THERE || NOT_SUPPORTED.contains(&name);
        let kept = self.parameters.iter().filter(|it| !is_ours(&it.name) && !is_refused(&it.name)).map(|it| it.raw);
        let all: Vec<&str> = limits.iter().map(String::as_str).chain(kept).collect();
        format!("{}{}", self.head, all.join(self.separator)).parse().ok()
    }
}

/// Reads `key=value` pairs as tokio-postgres does: a value may be quoted, and a backslash takes the next character as it
/// stands.
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
