//! The server's certificate: read from files, and again when they change or the process gets SIGHUP, so that a renewed
//! one needs no restart. Connections keep the one that they began with.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// Between looks at the files.
const LOOK_PERIOD: Duration = Duration::from_secs(2);

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// Not PEM, or PEM of something else.
    #[error("{path} has no {what} in PEM: {source}")]
    Pem { path: PathBuf, what: &'static str, source: pem::Error },
    /// Among others, a key that is another certificate's.
    #[error("the certificate in {certificate} and the key in {key} cannot be used together: {source}")]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

/// A certificate and its key, as they are now.
#[derive(Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    config: RwLock<Arc<ServerConfig>>,
    /// Of the files when they were last read.
    stamp: Mutex<Stamp>,
}

/// Time and size of both files.
type Stamp = [Option<(SystemTime, u64)>; 2];

impl Tls {
    /// Reads a chain of certificates, the server's first, and its key.
    pub fn load(certificate: &Path, key: &Path) -> Result<Arc<Tls>, TlsError> {
        let stamp = stamp(certificate, key);
        let config = RwLock::new(Arc::new(read(certificate, key)?));
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        Ok(Arc::new(Tls { certificate, key, config, stamp: Mutex::new(stamp) }))
    }

    /// What takes a new connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Reads the files whenever they have changed, and at every SIGHUP where there are signals.
    pub(super) async fn watch(self: Arc<Tls>) {
        let mut hangups = match Hangups::new() {
            Ok(hangups) => hangups,
            Err(error) => return tracing::error!(%error, "a renewed certificate will not be noticed"),
        };
        loop {
            tokio::select! {
                () = hangups.next() => self.reload(),
                () = tokio::time::sleep(LOOK_PERIOD) => {
                    if *self.stamp() != stamp(&self.certificate, &self.key) {
                        self.reload();
                    }
                }
            }
        }
    }

    /// Reads the files. What cannot be used leaves the certificate as it was: the two files are seldom replaced at the
    /// same moment.
    fn reload(&self) {
        *self.stamp() = stamp(&self.certificate, &self.key);
        match read(&self.certificate, &self.key) {
            Ok(config) => {
                *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                tracing::info!("the certificate was read again");
            }
            Err(error) => tracing::warn!(%error, "the certificate stays as it was"),
        }
    }

    fn stamp(&self) -> std::sync::MutexGuard<'_, Stamp> {
        self.stamp.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each SIGHUP; none where there are no signals.
struct Hangups {
    #[cfg(unix)]
    signals: tokio::signal::unix::Signal,
}

impl Hangups {
    fn new() -> std::io::Result<Hangups> {
        Ok(Hangups {
            #[cfg(unix)]
            signals: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        self.signals.recv().await;
        #[cfg(not(unix))]
        std::future::pending::<()>().await;
    }
}

fn stamp(certificate: &Path, key: &Path) -> Stamp {
    [certificate, key].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

fn read(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let bytes = |path: &Path| std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source });
    let not_pem = |path: &Path, what, source| TlsError::Pem { path: path.to_owned(), what, source };
    let chain = CertificateDer::pem_slice_iter(&bytes(certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
        .map_err(|source| not_pem(certificate, "certificate", source))?;
    let secret = PrivateKeyDer::from_pem_slice(&bytes(key)?).map_err(|source| not_pem(key, "private key", source))?;
    let pair = |source| TlsError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), source };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
