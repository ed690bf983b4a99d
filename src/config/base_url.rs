//! The URLs of servers.

use std::net::IpAddr;

use axum::http::Uri;

/// The URL of a server: scheme, host and path, without a slash at its end, a query or a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    text: String,
    loopback: bool,
}

impl BaseUrl {
    /// Parses an https URL, or an http URL of this machine: plain http across the internet would expose secrets. The
    /// error is a message about what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = Self::parse_any(text)?;
        if url.text.starts_with("http://") && !url.loopback {
            return Err(format!("`{}` must begin with https:// (plain http is for this machine only)", url.text));
        }
        Ok(url)
    }

    /// Parses the URL of a trace collector, which runs next to the process and is called over plain http: spans hold no
    /// secrets (P9).
    pub(super) fn parse_collector(text: &str) -> Result<Self, String> {
        let url = Self::parse_any(text)?;
        if url.text.starts_with("https://") {
            return Err("must begin with http://; for a remote collector run an agent next to Paybridge".to_owned());
        }
        Ok(url)
    }

    fn parse_any(text: &str) -> Result<Self, String> {
        let text = text.trim().trim_end_matches('/');
        let uri = web_address(text)?;
        if uri.query().is_some() || text.contains('#') {
            return Err(format!("`{text}` must end with its path, without `?` or `#`"));
        }
        Ok(Self { text: text.to_owned(), loopback: is_loopback(&uri) })
    }

    /// `https://host[:port][/path]`
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the host is this machine.
    pub fn is_loopback(&self) -> bool {
        self.loopback
    }
}

/// Parses an http or https URL with a host and without a password.
pub(super) fn web_address(text: &str) -> Result<Uri, String> {
    let invalid = || "is not a web address such as https://pay.example.com".to_owned();
    let uri: Uri = text.parse().map_err(|_| invalid())?;
    let authority = uri.authority().ok_or_else(invalid)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || authority.host().is_empty() {
        return Err(invalid());
    }
    if authority.as_str().contains('@') {
        return Err("must not contain a user or a password".to_owned());
    }
    Ok(uri)
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}
