//! What TLS has against a connection, in words that help.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use rustls::CertificateError as Refused;

/// What to do, where that is not the same for every store.
#[derive(Debug)]
pub struct Advice {
    /// What answers there does not speak TLS.
    pub no_tls: &'static str,
    /// The server broke it off, often for want of a certificate that it trusts.
    pub broken_off: &'static str,
    /// The certificate is another host's.
    pub other_host: &'static str,
    /// The certificate cannot be verified.
    pub unverified: &'static str,
}

impl Advice {
    /// When TLS is why a connection failed: what is wrong, and what to do.
    pub fn explain(&self, error: &(dyn StdError + 'static)) -> Option<(String, &'static str)> {
        let reason = cause(error)?;
        let rustls::Error::InvalidCertificate(refused) = reason else {
            return Some(match reason {
                rustls::Error::InvalidMessage(_) => {
                    ("what answers there does not speak TLS".to_owned(), self.no_tls)
                }
                rustls::Error::AlertReceived(alert) => {
                    (format!("the server broke TLS off ({alert:?})"), self.broken_off)
                }
                other => {
                    (format!("TLS failed ({other})"), "check the TLS settings of the server, and its log")
                }
            });
        };
        let (what, fix) = match refused {
            Refused::UnknownIssuer => (
                "is signed by no authority that is trusted here".to_owned(),
                "set sslrootcert to a PEM file with the certificate of the authority that signed it",
            ),
            Refused::NotValidForName | Refused::NotValidForNameContext { .. } => {
                (format!("is another host's ({refused})"), self.other_host)
            }
            Refused::Expired | Refused::ExpiredContext { .. } => {
                ("has expired".to_owned(), "renew it on the server, or correct this machine's clock")
            }
            Refused::NotValidYet | Refused::NotValidYetContext { .. } => (
                format!("is not valid yet ({refused})"),
                "correct this machine's clock or the server's certificate",
            ),
            Refused::Other(inner) => (format!("cannot be verified ({})", inner.0), self.unverified),
            other => (format!("cannot be verified ({other})"), self.unverified),
        };
        Some((format!("the server's certificate {what}"), fix))
    }
}

/// The error of rustls below the others. An `io::Error` does not show what it wraps as its source.
fn cause<'a>(mut error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    loop {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        error = if let Some(shared) = error.downcast_ref::<Arc<dyn StdError + Send + Sync>>() {
            &**shared
        } else if let Some(wrapped) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            wrapped
        } else {
            error.source()?
        };
    }
}
