//! TLS as libpq's `sslmode` and its neighbours describe it, by rustls with ring.
//!
//! | `sslmode` | TLS | chain verified | name verified |
//! |---|---|---|---|
//! | `disable` | never | | |
//! | `prefer`, `allow` | if the server offers it | no | no |
//! | `require` | always | if there is a root file | no |
//! | `verify-ca` | always | yes | no |
//! | `verify-full` | always | yes | yes |

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::CertificateError as Refused;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

use crate::backend::remote::tls::Advice;
use crate::error::{Error, Result};

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Never TLS.
    Disable,
    /// TLS if the server offers it; an attacker on the way can read along.
    Prefer,
    /// TLS, but with anyone.
    Require,
    /// TLS with a server that a trusted authority knows.
    VerifyCa,
    /// TLS with the server that the address names.
    VerifyFull,
}

impl Mode {
    /// What [`Mode::parse`] understands, for error texts.
    pub const NAMES: &str = "disable, allow, prefer, require, verify-ca or verify-full";

    /// The mode of that name. `allow`, which tries without TLS first, is taken as the safer `prefer`: both
    /// accept either, and only a server that refuses plain connections tells them apart.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "disable" => Self::Disable,
            "allow" | "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }

    /// How much of it the driver has to know; the rest is in the connector.
    pub const fn negotiation(self) -> SslMode {
        match self {
            Self::Disable => SslMode::Disable,
            Self::Prefer => SslMode::Prefer,
            Self::Require | Self::VerifyCa | Self::VerifyFull => SslMode::Require,
        }
    }
}

/// Which servers are trusted, and who we are to them.
#[derive(Debug, Default)]
pub struct Files {
    /// `sslrootcert`: a PEM file of authorities, or `system`.
    pub root: Option<String>,
    /// `sslcert`: our certificate as PEM.
    pub certificate: Option<String>,
    /// `sslkey`: its private key as PEM (PKCS#8, PKCS#1 or SEC1), not encrypted.
    pub key: Option<String>,
    /// `~/.postgresql`, whose `root.crt`, `postgresql.crt` and `postgresql.key` are used when they exist.
    pub folder: Option<PathBuf>,
}

impl Files {
    /// The mode when none is given. Like libpq, "trust the system's authorities" alone means all of it.
    pub fn default_mode(&self) -> Mode {
        if self.wants_system() { Mode::VerifyFull } else { Mode::Prefer }
    }

    /// What makes the TLS connections of `mode`. Reads the files now, so that a mistake in them is told
    /// early.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) for a file that cannot be read or does not
    /// hold what it should, and for a mode and roots that do not go together.
    pub fn connector(&self, mode: Mode) -> Result<MakeRustlsConnect> {
        // Given by hand and not installed for the process: the process may be another library's too.
        let provider = Arc::new(ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::config("TLS cannot be set up").with_source(error))?;
        let builder = match self.roots(mode)? {
            Some(roots) if mode == Mode::VerifyFull => builder.with_root_certificates(roots),
            roots => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyName { roots, algorithms }))
            }
        };
        let config = match self.identity(mode)? {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| {
                let text =
                    "sslcert and sslkey do not go together: give the key that the certificate was made with";
                Error::config(text).with_source(error)
            })?,
        };
        Ok(MakeRustlsConnect::new(config))
    }

    fn wants_system(&self) -> bool {
        self.root.as_deref() == Some("system")
    }

    fn roots(&self, mode: Mode) -> Result<Option<RootCertStore>> {
        if self.wants_system() && !matches!(mode, Mode::Disable | Mode::VerifyFull) {
            return Err(Error::config(
                "sslrootcert=system needs sslmode=verify-full: anyone can get a certificate from one of the \
                 system's authorities, so without the name it proves nothing; leave sslmode out or set it \
                 to verify-full",
            ));
        }
        let file =
            if self.wants_system() { None } else { self.given_or_default(self.root.as_ref(), "root.crt") };
        match (mode, file) {
            (Mode::Disable | Mode::Prefer, _) | (Mode::Require, None) => Ok(None),
            (Mode::Require | Mode::VerifyCa | Mode::VerifyFull, Some(file)) => roots_of(&file).map(Some),
            (Mode::VerifyFull, None) => system_roots().map(Some),
            (Mode::VerifyCa, None) => Err(Error::config(
                "sslmode=verify-ca needs to know which authority to trust: set sslrootcert to a PEM file \
                 with its certificate, or use sslmode=verify-full, which takes the system's authorities \
                 without one",
            )),
        }
    }

    fn identity(&self, mode: Mode) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>> {
        let certificate = self.given_or_default(self.certificate.as_ref(), "postgresql.crt");
        let key = self.given_or_default(self.key.as_ref(), "postgresql.key");
        match (certificate, key) {
            _ if mode == Mode::Disable => Ok(None),
            (None, _) if self.key.is_some() => {
                Err(Error::config("sslkey is of no use without sslcert: set both, or neither"))
            }
            (None, _) => Ok(None),
            (Some(certificate), None) => Err(Error::config(format!(
                "sslcert={} needs its private key: set sslkey",
                certificate.display()
            ))),
            (Some(certificate), Some(key)) => {
                let private = PrivateKeyDer::from_pem_file(&key).map_err(|error| {
                    let what = "a private key in PEM (PKCS#8, PKCS#1 or SEC1) without a passphrase; \
                                `openssl pkey -in KEY` takes one off";
                    unusable("sslkey", &key, what, error)
                })?;
                Ok(Some((certificates("sslcert", &certificate)?, private)))
            }
        }
    }

    fn given_or_default(&self, given: Option<&String>, name: &str) -> Option<PathBuf> {
        let default = || self.folder.as_ref().map(|folder| folder.join(name)).filter(|path| path.exists());
        given.map(PathBuf::from).or_else(default)
    }
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let what = "at least one certificate in PEM (-----BEGIN CERTIFICATE-----)";
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(option, path, what, error))?;
    if found.is_empty() { Err(unusable(option, path, what, "there is none in it")) } else { Ok(found) }
}

fn roots_of(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("sslrootcert", path)? {
        let what = "certificates of authorities in PEM";
        roots.add(certificate).map_err(|error| unusable("sslrootcert", path, what, error))?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    // Some systems ship a certificate or two that nobody can parse; the others still count.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(Error::config(
            "sslmode=verify-full finds no authorities on this system to verify the server with: install \
             them (package ca-certificates), or set sslrootcert to a PEM file with the certificate of the \
             server's authority",
        ));
    }
    Ok(roots)
}

fn unusable(option: &str, path: &Path, what: &str, why: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    let why = why.into();
    Error::config(format!("{option}={} cannot be used: {why}; it must hold {what}", path.display()))
        .with_source(why)
}

/// Verifies the chain if there are roots, and never the name. The handshake's signature is verified always:
/// it proves that the server has the key of its certificate, which channel binding relies on.
#[derive(Debug)]
struct AnyName {
    roots: Option<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if self.roots.is_some() {
            return verify_tls13_signature(message, cert, dss, &self.algorithms);
        }
        // Openssl before 3.2 makes certificates of version 1, as by the manual of PostgreSQL. Rustls reads
        // none of these, and for want of it `prefer` would go on in the clear; but the key in it is all that
        // is needed.
        let key =
            Certificate::from_der(cert).and_then(|it| it.tbs_certificate.subject_public_key_info.to_der());
        let key = key.map_err(|_| rustls::Error::from(Refused::BadEncoding))?;
        verify_tls13_signature_with_raw_key(message, &key.as_slice().into(), dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

pub const ADVICE: Advice = Advice {
    no_tls: "check host and port",
    broken_off: "check sslcert and sslkey (the server's ssl_ca_file must know the authority that signed them), and the \
                 server's log",
    other_host: "connect to a name that it has, give it this name as a subjectAltName, or set sslmode=verify-ca to \
                 accept every name of this authority",
    unverified: "give the server an X.509 v3 certificate with a subjectAltName that was signed by an authority and not \
                 by itself, or set sslmode=require without a root file to do without verifying",
};
