use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{CertificateError, Error};
use tokio_postgres::config::{Host, SslMode};

use super::address::{Address, Identity, Mode, Root};
use super::tls;

fn parse(text: &str) -> Address {
    Address::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn parse_error(text: &str) -> String {
    Address::parse(text).expect_err(text)
}

#[test]
fn a_vanished_server_is_detected_within_seconds_unless_the_address_sets_other_timeouts() {
    for (url, user_timeout) in [
        ("postgresql://me@host/db", 10),
        ("postgresql://host/db?user=me", 10),
        ("postgresql://me:pa?ss@[::1]:5432/db?tcp_user_timeout=60", 60),
        ("postgresql://me:pa?ss@host/db", 10),
        ("postgresql://me:pa?ss@host?sslmode=require", 10),
        ("postgres://me@host/db?application_name=x&tcp_user_timeout=60", 60),
        ("host=/run/postgresql user=me dbname=db", 10),
        ("host=host tcp_user_timeout=60", 60),
    ] {
        let config = parse(url).config;
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_secs(user_timeout)), "{url}");
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(5), "{url}");
        assert_eq!(config.get_keepalives_interval(), Some(Duration::from_secs(2)), "{url}");
        assert!(!config.get_hosts().is_empty());
        assert!(config.get_password().is_none_or(|password| password == b"pa?ss"), "{url}");
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(5)), "{url}");
    }
}

#[test]
fn both_forms_parse_the_tls_settings() {
    let file = || Some(Root::File("/etc/ca 1.pem".into()));
    for (parameters, pairs, mode, root) in [
        ("", "", Mode::Prefer, None),
        ("sslmode=", "sslmode=''", Mode::Prefer, None),
        ("sslmode=disable", "sslmode=disable", Mode::Disable, None),
        ("sslmode=prefer", "sslmode = prefer", Mode::Prefer, None),
        ("sslmode=require", "sslmode='require'", Mode::Require, None),
        (
            "sslmode=require&sslrootcert=/etc/ca%201.pem",
            r"sslmode=require sslrootcert=/etc/ca\ 1.pem",
            Mode::Require,
            file(),
        ),
        (
            "sslrootcert=/etc/ca 1.pem&sslmode=verify-ca",
            "sslrootcert='/etc/ca 1.pem' sslmode=verify-ca",
            Mode::VerifyCa,
            file(),
        ),
        (
            "%73slmode=verify-full&sslrootcert=/etc/ca%201.pem",
            r"sslmode=verify\-full sslrootcert='/etc/ca\ 1.pem'",
            Mode::VerifyFull,
            file(),
        ),
        ("sslrootcert=system", "sslrootcert=system", Mode::VerifyFull, Some(Root::System)),
        (
            "sslrootcert=system&sslmode=verify-full",
            "sslrootcert=system sslmode=verify-full",
            Mode::VerifyFull,
            Some(Root::System),
        ),
    ] {
        let url = format!("postgresql://me:pa?ss@host:5433/db?{parameters}&application_name=x");
        let pairs = format!(r"password='pa\'s s' application_name=x {pairs} host=host user=me");
        for (text, password) in [(url, "pa?ss"), (pairs, "pa's s")] {
            let address = parse(&text);
            assert_eq!((address.mode, &address.root, &address.identity), (mode, &root, &None), "{text}");
            let config = address.config;
            assert_eq!(config.get_password(), Some(password.as_bytes()), "{text}");
            assert_eq!((config.get_user(), config.get_application_name()), (Some("me"), Some("x")), "{text}");
            let expected = match mode {
                Mode::Disable => SslMode::Disable,
                Mode::Prefer => SslMode::Prefer,
                _ => SslMode::Require,
            };
            assert_eq!(config.get_ssl_mode(), expected, "{text}");
        }
    }
    let address = parse("postgresql://host/db?sslmode=require&sslcert=/c.pem&sslkey=/k.pem&sslnegotiation=direct");
    assert_eq!(address.identity, Some(Identity { certificate: "/c.pem".into(), key: "/k.pem".into() }));
}

#[test]
fn every_unknown_or_contradictory_setting_is_reported() {
    for (parameters, words) in [
        ("sslmode=verify", &["does not exist", "verify-ca and verify-full"][..]),
        ("sslmode=allow", &["sslmode=allow", "plain text", "verify-full"]),
        ("sslmode=require&sslmode=disable", &["sslmode more than once"]),
        ("sslcrl=/crl.pem", &["sslcrl, which is not supported", "sslrootcert"]),
        ("ssl_min_protocol_version=TLSv1.3", &["ssl_min_protocol_version, which is not supported"]),
        ("sslca=/ca.pem", &["a TLS setting that does not exist", "sslrootcert"]),
        ("sslmode=require&sslcert=/c.pem", &["sslcert without sslkey"]),
        ("sslmode=require&sslkey=/k.pem", &["sslkey without sslcert"]),
        ("sslmode=disable&sslcert=/c.pem&sslkey=/k.pem", &["sslcert and sslkey with sslmode=disable"]),
        ("sslmode=disable&sslrootcert=/ca.pem", &["sslrootcert with sslmode=disable"]),
        ("sslmode=prefer&sslrootcert=/ca.pem", &["sslrootcert with sslmode=prefer"]),
        ("sslrootcert=/ca.pem", &["sslrootcert with sslmode=prefer"]),
        ("sslmode=require&sslrootcert=system", &["sslrootcert=system with sslmode=require", "verify-full"]),
        ("sslmode=disable&sslrootcert=system", &["sslrootcert=system with sslmode=disable"]),
        ("sslmode=verify-ca", &["sslrootcert for sslmode=verify-ca", "system"]),
        ("sslmode=verify-full", &["sslrootcert for sslmode=verify-full"]),
        ("sslnegotiation=direct", &["sslnegotiation=direct with sslmode=prefer"]),
        ("sslmode=disable&channel_binding=require", &["channel_binding=require with sslmode=disable"]),
        (
            "sslmode=no&sslcrl=x&sslca=y&sslkey=/k.pem",
            &["sslmode that", "sslcrl", "TLS setting that", "sslkey without"],
        ),
    ] {
        let url = format!("postgresql://u:hunter2@host/db?{parameters}");
        let pairs = format!("password=hunter2 host=host {}", parameters.replace('&', " "));
        for error in [parse_error(&url), parse_error(&pairs)] {
            assert!(words.iter().all(|word| error.contains(word)), "{parameters}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
    let nameless = parse_error("hostaddr=127.0.0.1 sslmode=verify-full sslrootcert=/ca.pem");
    assert!(nameless.contains("`host`"), "{nameless}");
    let mixed = parse_error("host=db,/run/pg sslmode=require");
    assert!(mixed.contains("mixes Unix sockets"), "{mixed}");
    for no_address in ["hunter2", "postgresql://u:hunter2@db:port/pay", "host=x password='hunter2", "word=hunter2"] {
        let error = parse_error(no_address);
        assert!(error.contains("is not a Postgres address") && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_unix_socket_has_no_tls_and_an_ip_address_needs_no_host_name() {
    let local = parse("host=/run/pg user=me sslmode=verify-full sslrootcert=/nowhere/ca.pem");
    assert_eq!((local.mode, local.config.get_ssl_mode()), (Mode::Disable, SslMode::Disable));
    local.check_files().unwrap();
    let bare = parse("hostaddr=127.0.0.1 sslmode=require");
    assert_eq!(bare.config.get_hosts(), [Host::Tcp("127.0.0.1".to_owned())]);
}

#[test]
fn debug_shows_no_password() {
    let shown = format!("{:?}", parse("postgresql://u:hunter2@host/db?sslmode=require"));
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn unusable_files_are_named_and_their_content_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    write("good.pem", &certificate.pem());
    write("good.key", &key.serialize_pem());
    write("other.key", &other.serialize_pem());
    write("text", "hunter2 is no PEM\n");
    write("broken.pem", "-----BEGIN CERTIFICATE-----\nhunter2!\n-----END CERTIFICATE-----\n");
    write("cut.pem", "-----BEGIN CERTIFICATE-----\nhunter2\n");
    write("empty.pem", "-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n");
    write("locked.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nhunter2=\n-----END ENCRYPTED PRIVATE KEY-----\n");
    write("broken.key", "-----BEGIN PRIVATE KEY-----\naHVudGVyMg==\n-----END PRIVATE KEY-----\n");
    std::fs::write(folder.path().join("der"), certificate.der()).unwrap();
    let check = |root: &str, certificate: &str, key: &str| {
        let file = |name: &str| folder.path().join(name).display().to_string();
        let (root, certificate, key) = (file(root), file(certificate), file(key));
        let url =
            format!("postgresql://u@host/db?sslmode=verify-full&sslrootcert={root}&sslcert={certificate}&sslkey={key}");
        parse(&url).check_files()
    };
    check("good.pem", "good.pem", "good.key").unwrap();
    for (root, reason) in [
        ("none", "cannot be read"),
        ("text", "holds no certificate"),
        ("good.key", "holds no certificate"),
        ("der", "holds no certificate"),
        ("broken.pem", "broken PEM"),
        ("cut.pem", "broken PEM"),
        ("empty.pem", "cannot be read"),
    ] {
        let error = check(root, "good.pem", "good.key").unwrap_err();
        assert!(error.contains("sslrootcert=") && error.contains(root) && error.contains(reason), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    for (key, reason) in [
        ("none", "cannot be read"),
        ("text", "holds no private key"),
        ("good.pem", "holds no private key"),
        ("other.key", "does not belong"),
        ("locked.key", "is encrypted"),
        ("broken.key", "not supported"),
    ] {
        let error = check("good.pem", "good.pem", key).unwrap_err();
        assert!(error.contains("sslkey=") && error.contains(key) && error.contains(reason), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let all = check("text", "text", "none").unwrap_err();
    assert!(["sslrootcert=", "sslcert=", "sslkey="].iter().all(|name| all.contains(name)), "{all}");
}

/// As created by `openssl req -x509`.
#[test]
fn a_self_signed_server_is_accepted_if_the_root_file_contains_its_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let made = || {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap()
    };
    let (server, impostor) = (made(), made());
    let file = folder.path().join("server.crt");
    std::fs::write(&file, server.pem()).unwrap();
    let verify = |mode: &str, certificate: &rcgen::Certificate, host: &'static str, year: i32| {
        let address = parse(&format!("postgresql://{host}/db?sslmode={mode}&sslrootcert={}", file.display()));
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier = tls::verifier(&address, &provider).unwrap();
        let seconds = rcgen::date_time_ymd(year, 1, 1).unix_timestamp();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds.unsigned_abs()));
        let host = ServerName::try_from(host).unwrap();
        verifier.verify_server_cert(certificate.der(), &[], &host, &[], now).map(drop)
    };
    verify("verify-full", &server, "localhost", 2025).unwrap();
    verify("verify-ca", &server, "db.example.com", 2025).unwrap();
    let wrong_host = verify("verify-full", &server, "db.example.com", 2025).unwrap_err();
    assert!(
        matches!(&wrong_host, Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })),
        "{wrong_host}"
    );
    for mode in ["require", "verify-ca", "verify-full"] {
        verify(mode, &impostor, "localhost", 2025).unwrap_err();
        let expired = verify(mode, &server, "localhost", 2031).unwrap_err();
        assert!(matches!(&expired, Error::InvalidCertificate(CertificateError::ExpiredContext { .. })), "{expired}");
    }
}
