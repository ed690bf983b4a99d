//! The rustls configuration for an address and the files that it names.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_postgres::config::SslNegotiation;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::address::{Address, Identity, Mode, Root};

/// The ALPN protocol that Postgres requires with sslnegotiation=direct.
const PROTOCOL: &[u8] = b"postgresql";
/// webpki's error for a CA certificate that is presented as a server certificate.
const IS_A_CA: &str = "CaUsedAsEndEntity";

/// Reads the files of `address`. The error names every unusable file, and shows nothing of its content.
pub(super) fn connector(address: &Address) -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = verifier(address, &provider);
    let identity = address.identity.as_ref().map(|identity| read_identity(identity, &provider)).transpose();
    let (verifier, identity) = match (verifier, identity) {
        (Ok(verifier), Ok(identity)) => (verifier, identity),
        (verifier, identity) => {
            let errors: Vec<String> = [verifier.err(), identity.err()].into_iter().flatten().collect();
            return Err(errors.join("; it "));
        }
    };
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = versions.map_err(|error| format!("needs TLS, which cannot be set up: {error}"))?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| format!("gives an sslcert that cannot be used: {error}"))?,
    };
    if address.config.get_ssl_negotiation() == SslNegotiation::Direct {
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
    }
    Ok(MakeRustlsConnect::new(config))
}

pub(super) fn verifier(address: &Address, provider: &Arc<CryptoProvider>) -> Result<Verifier, String> {
    let (roots, known) = match &address.root {
        None => (None, Vec::new()),
        Some(Root::System) => (Some(system_roots()?), Vec::new()),
        Some(Root::File(path)) => {
            let known = certificates("sslrootcert", path)?;
            (Some(file_roots(path, &known)?), known)
        }
    };
    let chain = roots.map(|roots| {
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
        built.map_err(|error| format!("gives an sslrootcert that cannot be used: {error}"))
    });
    let (provider, checks_name) = (Arc::clone(provider), address.mode == Mode::VerifyFull);
    Ok(Verifier { chain: chain.transpose()?, known, checks_name, provider })
}

/// The CAs that this system trusts. `SSL_CERT_FILE` and `SSL_CERT_DIR` replace them.
fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("gives sslrootcert=system, and this system has no root certificates: install them \
                    (ca-certificates), or name their file in SSL_CERT_FILE"
            .to_owned());
    }
    Ok(roots)
}

fn file_roots(path: &Path, certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate.clone())
            .map_err(|_| unusable("sslrootcert", path, "holds a certificate that cannot be read"))?;
    }
    Ok(roots)
}

fn read_identity(
    identity: &Identity,
    provider: &CryptoProvider,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let chain = certificates("sslcert", &identity.certificate);
    let key = private_key(&identity.key);
    let (chain, key) = match (chain, key) {
        (Ok(chain), Ok(key)) => (chain, key),
        (chain, key) => {
            return Err([chain.err(), key.err()].into_iter().flatten().collect::<Vec<_>>().join("; it "));
        }
    };
    match rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), provider) {
        Ok(_) => Ok((chain, key)),
        Err(Error::InconsistentKeys(_)) => {
            Err(unusable("sslkey", &identity.key, "does not belong to the certificate in sslcert"))
        }
        Err(Error::InvalidCertificate(_)) => {
            Err(unusable("sslcert", &identity.certificate, "holds a certificate that cannot be read"))
        }
        Err(_) => Err(unusable("sslkey", &identity.key, "holds a key of a kind that is not supported")),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = read("sslkey", path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
        let is_encrypted = bytes.windows(9).any(|window| window == b"ENCRYPTED");
        let reason = if is_encrypted {
            "is encrypted, which is not supported: keep it in the clear, readable by this account alone"
        } else {
            "holds no private key (a PEM block `PRIVATE KEY`)"
        };
        unusable("sslkey", path, reason)
    })
}

fn certificates(name: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(name, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|_| unusable(name, path, "holds a broken PEM block"))?;
    if found.is_empty() {
        return Err(unusable(name, path, "holds no certificate (a PEM block `CERTIFICATE`)"));
    }
    Ok(found)
}

fn read(name: &str, path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| unusable(name, path, &format!("cannot be read: {error}")))
}

fn unusable(name: &str, path: &Path, reason: &str) -> String {
    format!("gives {name}={}, which {reason}", path.display())
}

/// Verifies the server's certificate as the `sslmode` requires: not at all, or with or without the host's name.
#[derive(Debug)]
pub(super) struct Verifier {
    /// `None`: no verification.
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// The certificates of the root file.
    known: Vec<CertificateDer<'static>>,
    checks_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified = match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // A server whose certificate is its own CA, as Postgres' manual creates one. OpenSSL accepts it. webpki has
            // checked the validity period before it reports this error.
            Err(Error::InvalidCertificate(CertificateError::Other(reason)))
                if reason.to_string() == IS_A_CA && self.known.iter().any(|known| known == end_entity) =>
            {
                let certificate = ParsedCertificate::try_from(end_entity)?;
                verify_server_name(&certificate, server_name).map(|()| ServerCertVerified::assertion())
            }
            verified => verified,
        };
        match verified {
            // webpki compares the name last, after everything else was valid.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.checks_name => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    // Signatures are verified in every mode: SCRAM's channel binding depends on the server having the certificate's
    // key.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
