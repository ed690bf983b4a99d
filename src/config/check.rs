//! Parsers of single settings. Each takes text and returns a value, or a message for the person who wrote the text. No
//! message repeats the text of a setting that can hold a secret (P9).

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretBox, SecretString};
use uuid::Uuid;

use super::base_url::web_address;
use super::settings::EncryptionKey;
use crate::store::Address;

/// All errors, in the order in which they were found.
#[derive(Debug, Default)]
pub(super) struct SettingErrors(Vec<String>);

impl SettingErrors {
    /// Records the error of a setting; returns the value if there is none.
    pub(super) fn record<T>(&mut self, flag: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.0.push(format!("--{flag} ({}): {message}", variable(flag)))).ok()
    }

    /// The same for an argument that no variable can set.
    pub(super) fn record_argument<T>(&mut self, name: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.0.push(format!("{name}: {message}"))).ok()
    }
}

impl fmt::Display for SettingErrors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        writeln!(out, "paybridge: {count} invalid {}:", if count == 1 { "setting" } else { "settings" })?;
        self.0.iter().try_for_each(|error| writeln!(out, "  {error}"))?;
        writeln!(out, "`paybridge <command> --help` describes each setting.")
    }
}

/// The environment variable of a flag.
pub(super) fn variable(flag: &str) -> String {
    let name = flag.replace('-', "_").to_uppercase();
    if flag == "database-url" { name } else { format!("PAYBRIDGE_{name}") }
}

/// Treats a blank text as absent: deployment templates often set a variable to nothing.
pub(super) fn non_blank(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

pub(super) fn number<T: FromStr + PartialOrd + fmt::Display>(
    text: &str,
    range: RangeInclusive<T>,
) -> Result<T, String> {
    let invalid = || format!("`{text}` is not a whole number from {} to {}", range.start(), range.end());
    text.trim().parse().ok().filter(|value| range.contains(value)).ok_or_else(invalid)
}

/// A period of real time: `2s`, `500ms`, or a number of seconds.
#[cfg(feature = "dev")]
pub(super) fn period(text: &str) -> Result<std::time::Duration, String> {
    let text = text.trim();
    let (number, milliseconds) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1),
        (None, Some(number)) => (number, 1_000),
        (None, None) => (text, 1_000),
    };
    let invalid = || format!("`{text}` is not a period such as 2s or 500ms");
    let number: u32 = number.trim().parse().map_err(|_| invalid())?;
    Ok(std::time::Duration::from_millis(u64::from(number) * milliseconds))
}

/// `ANCHOR,SPEED,AHEAD`, three whole numbers.
#[cfg(feature = "dev")]
pub(super) fn clock(text: &str) -> Result<super::settings::FastClock, String> {
    let read = || {
        let mut parts = text.split(',');
        let anchor = time::OffsetDateTime::from_unix_timestamp(parts.next()?.trim().parse().ok()?).ok()?;
        let speed = parts.next()?.trim().parse().ok().filter(|speed| (1..=100_000).contains(speed))?;
        let ahead = parts.next()?.trim().parse().ok().filter(|ahead| (0..=1_000_000_000).contains(ahead))?;
        let clock = super::settings::FastClock { anchor, speed, ahead: time::Duration::seconds(ahead) };
        parts.next().is_none().then_some(clock)
    };
    read().ok_or_else(|| format!("`{text}` is not ANCHOR,SPEED,AHEAD, such as 1790000000,60,0"))
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let invalid = || format!("`{text}` is not an address and port, such as 0.0.0.0:8080 or [::]:8080");
    text.trim().parse().map_err(|_| invalid())
}

pub(super) fn id(text: &str) -> Result<Uuid, String> {
    if text.trim().starts_with("pbt_") {
        return Err("is a token; give its id instead, as `token list` shows it".to_owned());
    }
    text.trim().parse().map_err(|_| format!("`{text}` is not an id (a UUID)"))
}

pub(super) fn name(text: &str) -> Result<String, String> {
    let name = text.trim();
    match name.chars().count() {
        1..=200 if !name.chars().any(char::is_control) => Ok(name.to_owned()),
        _ => Err("must have 1 to 200 characters, all of them printable".to_owned()),
    }
}

/// The name of an installation.
pub(super) fn installation(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > 63 || !text.chars().all(is_allowed) {
        return Err(format!("`{text}` is not a name of 1 to 63 lower-case letters, digits or hyphens"));
    }
    Ok(text.to_owned())
}

/// The name of a database user. Postgres would truncate a longer one.
pub(super) fn database_user(text: &str) -> Result<String, String> {
    match text.len() {
        1..=63 if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err("a database user has 1 to 63 bytes, all of them printable".to_owned()),
    }
}

/// An address of Postgres whose certificate and key files exist.
pub(super) fn database(url: Option<SecretString>) -> Result<SecretString, String> {
    let url = url.filter(|url| !url.expose_secret().trim().is_empty());
    let url = url.ok_or_else(|| format!("is missing; set it to the address of your Postgres, as {}", Address::FORM))?;
    Address::parse(url.expose_secret())?.check_files()?;
    Ok(url)
}

/// The URL of a page for a browser.
pub(super) fn page_url(text: Option<String>) -> Result<String, String> {
    let text = non_blank(text).ok_or("is missing; set it to the page that customers see after Stripe Checkout")?;
    web_address(text.trim()).map(|_| text.trim().to_owned())
}

pub(super) fn file(path: &str) -> Result<String, String> {
    std::fs::read_to_string(Path::new(path.trim())).map_err(|error| format!("cannot read `{path}`: {error}"))
}

/// A PEM file that holds at least one block whose label ends with `kind`.
pub(super) fn pem_file(path: &str, kind: &str) -> Result<String, String> {
    let text = file(path)?;
    let found = text.lines().any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(kind));
    if found { Ok(text) } else { Err(format!("`{path}` contains no PEM block `{}`", kind.trim_end_matches('-'))) }
}

/// `id:base64`, separated by commas or line ends; at least one.
pub(super) fn encryption_keys(text: &SecretString) -> Result<Vec<EncryptionKey>, String> {
    let entries = text.expose_secret().split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty());
    let mut keys: Vec<EncryptionKey> = Vec::new();
    for (nth, entry) in entries.enumerate() {
        let key = encryption_key(entry).map_err(|message| format!("key {}: {message}", nth + 1))?;
        if keys.iter().any(|other| other.id == key.id) {
            return Err(format!("key {}: the id `{}` is used twice", nth + 1, key.id));
        }
        keys.push(key);
    }
    if keys.is_empty() { Err("contains no key".to_owned()) } else { Ok(keys) }
}

fn encryption_key(entry: &str) -> Result<EncryptionKey, String> {
    let (id, encoded) = entry.split_once(':').ok_or("must be an id, a colon, and the key in base64")?;
    if !(1..=32).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
        return Err("its id must be 1 to 32 letters, digits, `_` or `-`".to_owned());
    }
    let invalid = || "must be 32 random bytes in base64; generate one with `openssl rand -base64 32`".to_owned();
    let bytes = BASE64_STANDARD.decode(encoded.trim()).map_err(|_| invalid())?;
    let key: [u8; 32] = bytes.try_into().map_err(|_| invalid())?;
    if key.iter().all(|byte| *byte == key[0]) {
        return Err("is one byte repeated, which is not a secret".to_owned());
    }
    Ok(EncryptionKey { id: id.to_owned(), key: SecretBox::new(Box::new(key)) })
}
