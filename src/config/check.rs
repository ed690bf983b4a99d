//! Parsers of single settings. Each takes text and gives a value, or a sentence for the person who wrote the text. No
//! sentence repeats the text of a setting that can hold a secret (P9).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use axum::http::Uri;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretBox, SecretString};
use uuid::Uuid;

use super::settings::{BaseUrl, EncryptionKey};
use crate::store::Address;

/// Everything that is wrong, in the order in which it was found.
#[derive(Debug, Default)]
pub(super) struct Mistakes(Vec<String>);

impl Mistakes {
    /// Notes what is wrong with a setting and hands on what is right.
    pub(super) fn note<T>(&mut self, flag: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|sentence| self.0.push(format!("--{flag} ({}): {sentence}", variable(flag)))).ok()
    }

    /// The same for a positional argument, which no variable can give.
    pub(super) fn note_argument<T>(&mut self, name: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|sentence| self.0.push(format!("{name}: {sentence}"))).ok()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        writeln!(out, "paybridge: {count} {} wrong:", if count == 1 { "setting is" } else { "settings are" })?;
        self.0.iter().try_for_each(|mistake| writeln!(out, "  {mistake}"))?;
        writeln!(out, "`paybridge <command> --help` tells what each setting means.")
    }
}

/// The environment variable of a flag.
pub(super) fn variable(flag: &str) -> String {
    let name = flag.replace('-', "_").to_uppercase();
    if flag == "database-url" { name } else { format!("PAYBRIDGE_{name}") }
}

/// Blank is absent: templates of deployments often set a variable to nothing.
pub(super) fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

pub(super) fn number<T: FromStr + PartialOrd + fmt::Display>(
    text: &str,
    range: RangeInclusive<T>,
) -> Result<T, String> {
    let wrong = || format!("`{text}` is not a whole number from {} to {}", range.start(), range.end());
    text.trim().parse().ok().filter(|value| range.contains(value)).ok_or_else(wrong)
}

/// A period of real time: `2s`, `500ms`, or a plain number of seconds.
#[cfg(feature = "dev")]
pub(super) fn period(text: &str) -> Result<std::time::Duration, String> {
    let text = text.trim();
    let (number, milliseconds) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1),
        (None, Some(number)) => (number, 1_000),
        (None, None) => (text, 1_000),
    };
    let wrong = || format!("`{text}` is not a period such as 2s or 500ms");
    let number: u32 = number.trim().parse().map_err(|_| wrong())?;
    Ok(std::time::Duration::from_millis(u64::from(number) * milliseconds))
}

/// `ANCHOR,SPEED,AHEAD`, whole numbers all three.
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
    let wrong = || format!("`{text}` is not an address and port, such as 0.0.0.0:8080 or [::]:8080");
    text.trim().parse().map_err(|_| wrong())
}

pub(super) fn id(text: &str) -> Result<Uuid, String> {
    if text.trim().starts_with("pbt_") {
        return Err("is a token itself; give its id, as `token list` shows it".to_owned());
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

/// The name of a database user. Postgres would cut a longer one off.
pub(super) fn database_user(text: &str) -> Result<String, String> {
    match text.len() {
        1..=63 if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err("a database user has 1 to 63 bytes, all of them printable".to_owned()),
    }
}

/// An address of Postgres, whose certificates and keys are there.
pub(super) fn database(url: Option<SecretString>) -> Result<SecretString, String> {
    let url = url.filter(|url| !url.expose_secret().trim().is_empty());
    let url = url.ok_or_else(|| format!("is missing; give the address of your Postgres, as {}", Address::FORM))?;
    Address::parse(url.expose_secret())?.check_files()?;
    Ok(url)
}

/// The address of a server to which paths are added.
pub(super) fn base_url(text: &str) -> Result<BaseUrl, String> {
    let text = text.trim().trim_end_matches('/');
    let uri = web_address(text)?;
    if uri.query().is_some() || text.contains('#') {
        return Err(format!("`{text}` must end with its path: nothing may follow a `?` or `#`"));
    }
    Ok(BaseUrl::new(text, loopback(&uri)))
}

/// The same, for what crosses the internet: plain http would show secrets to everybody on the way.
pub(super) fn safe_base_url(text: &str) -> Result<BaseUrl, String> {
    let url = base_url(text)?;
    if url.as_str().starts_with("http://") && !url.is_loopback() {
        return Err(format!("`{}` must begin with https:// (plain http is for this machine only)", url.as_str()));
    }
    Ok(url)
}

/// A collector of traces stands beside us and is spoken to in plain http: spans hold no secrets (P9).
pub(super) fn collector_url(text: &str) -> Result<BaseUrl, String> {
    let url = base_url(text)?;
    if url.as_str().starts_with("https://") {
        return Err("must begin with http://; for a collector far away run an agent beside Paybridge".to_owned());
    }
    Ok(url)
}

/// A page that a browser is sent to.
pub(super) fn page_url(text: Option<String>) -> Result<String, String> {
    let text = given(text).ok_or("is missing; give the page that customers see after Stripe's Checkout")?;
    web_address(text.trim()).map(|_| text.trim().to_owned())
}

fn web_address(text: &str) -> Result<Uri, String> {
    let wrong = || "is not a web address such as https://pay.example.com".to_owned();
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let authority = uri.authority().ok_or_else(wrong)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || authority.host().is_empty() {
        return Err(wrong());
    }
    if authority.as_str().contains('@') {
        return Err("must not hold a user or a password".to_owned());
    }
    Ok(uri)
}

fn loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

pub(super) fn file(path: &str) -> Result<String, String> {
    std::fs::read_to_string(Path::new(path.trim())).map_err(|error| format!("cannot read `{path}`: {error}"))
}

/// A PEM file that holds at least one block of a kind that ends with `kind`.
pub(super) fn pem_file(path: &str, kind: &str) -> Result<String, String> {
    let text = file(path)?;
    let found = text.lines().any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(kind));
    if found { Ok(text) } else { Err(format!("`{path}` holds no PEM block `{}`", kind.trim_end_matches('-'))) }
}

/// `id:base64`, separated by commas or ends of lines; at least one.
pub(super) fn encryption_keys(text: &SecretString) -> Result<Vec<EncryptionKey>, String> {
    let entries = text.expose_secret().split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty());
    let mut keys: Vec<EncryptionKey> = Vec::new();
    for (nth, entry) in entries.enumerate() {
        let key = encryption_key(entry).map_err(|sentence| format!("key {}: {sentence}", nth + 1))?;
        if keys.iter().any(|other| other.id == key.id) {
            return Err(format!("key {}: the id `{}` is used twice", nth + 1, key.id));
        }
        keys.push(key);
    }
    if keys.is_empty() { Err("holds no key".to_owned()) } else { Ok(keys) }
}

fn encryption_key(entry: &str) -> Result<EncryptionKey, String> {
    let (id, encoded) = entry.split_once(':').ok_or("must be an id, a colon, and the key in base64")?;
    if !(1..=32).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
        return Err("its id must be 1 to 32 letters, digits, `_` or `-`".to_owned());
    }
    let wrong = || "must be 32 random bytes in base64; make one with `openssl rand -base64 32`".to_owned();
    let bytes = BASE64_STANDARD.decode(encoded.trim()).map_err(|_| wrong())?;
    let key: [u8; 32] = bytes.try_into().map_err(|_| wrong())?;
    if key.iter().all(|byte| *byte == key[0]) {
        return Err("is one byte repeated, which is no secret".to_owned());
    }
    Ok(EncryptionKey { id: id.to_owned(), key: SecretBox::new(Box::new(key)) })
}
