//! TLS to PostgreSQL. The certificate and its name are always verified, also with `sslmode=require`, where libpq
//! verifies nothing: a connection that anybody in between can take over is no better than none that is encrypted.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::client::TlsStream as Encrypted;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::LedgerError;

/// Names a file of root certificates where the URL does not, as for libpq.
const ROOTS_VARIABLE: &str = "PGSSLROOTCERT";

/// A URL, with what it says of TLS taken out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// For the driver, which knows `disable`, `prefer` and `require`.
    pub url: String,
    /// Whether the connection has to be encrypted.
    pub is_encrypted: bool,
    /// A file of root certificates.
    roots: Option<PathBuf>,
}

impl Address {
    /// Reads `sslmode` and `sslrootcert`.
    pub fn of(url: &str) -> Address {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let mut address = Address { url: base.to_owned(), is_encrypted: false, roots: None };
        let mut separator = '?';
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let part = match part.split_once('=') {
                Some(("sslrootcert", file)) => {
                    address.roots = Some(PathBuf::from(decoded(file)));
                    continue;
                }
                Some(("sslmode", "verify-full")) => "sslmode=require",
                _ => part,
            };
            address.is_encrypted |= part == "sslmode=require";
            let _ = write!(address.url, "{separator}{part}");
            separator = '&';
        }
        address
    }

    /// What makes connections that trust the URL's roots, else those of the environment's file, else the system's.
    pub fn connector(&self) -> Result<Connector, LedgerError> {
        let variable = || std::env::var_os(ROOTS_VARIABLE).filter(|file| !file.is_empty()).map(PathBuf::from);
        let roots = match self.roots.clone().or_else(variable).filter(|file| file.as_os_str() != "system") {
            Some(file) => roots_of(&file)?,
            None => system_roots(),
        };
        if roots.is_empty() {
            return Err(LedgerError::Roots { message: "the system has no root certificates".to_owned() });
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| LedgerError::Roots { message: error.to_string() })?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Connector(Arc::new(config)))
    }
}

/// `%XX` as the byte that it is.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        (bytes, rest) = match hex.filter(|_| *first == b'%') {
            Some(byte) => ([bytes, vec![byte]].concat(), &tail[2..]),
            None => ([bytes, vec![*first]].concat(), tail),
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn roots_of(file: &Path) -> Result<RootCertStore, LedgerError> {
    let failed = |error: &dyn std::fmt::Display| LedgerError::Roots { message: format!("{}: {error}", file.display()) };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| failed(&error))? {
        roots.add(certificate.map_err(|error| failed(&error))?).map_err(|error| failed(&error))?;
    }
    match roots.is_empty() {
        true => Err(failed(&"there is no certificate in it")),
        false => Ok(roots),
    }
}

/// A system has roots that nobody can read, and goes on with the others.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Makes encrypted connections.
#[derive(Clone)]
pub(super) struct Connector(Arc<ClientConfig>);

/// Makes one to a server of a name.
pub(super) struct Connect {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// An encrypted connection.
pub(super) struct Stream<S>(Box<Encrypted<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Connector {
    type Stream = Stream<S>;
    type TlsConnect = Connect;
    type Error = io::Error;

    fn make_tls_connect(&mut self, domain: &str) -> io::Result<Connect> {
        let no_name = |error| io::Error::new(io::ErrorKind::InvalidInput, format!("{domain}: {error}"));
        let name = ServerName::try_from(domain.to_owned()).map_err(no_name)?;
        Ok(Connect { config: Arc::clone(&self.0), name })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Connect {
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let connecting = tokio_rustls::TlsConnector::from(self.config).connect(self.name, stream);
        Box::pin(async { Ok(Stream(Box::new(connecting.await?))) })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
