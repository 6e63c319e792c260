//! HTTPS: what a client sees of the certificate, and that a renewed one is taken.
//!
//! `tests/data/tls` has two certificates that sign themselves, for `localhost` and 127.0.0.1, made by the command in
//! docs/serving.md with `-days 36500`. Nobody trusts them, so their keys are no secret.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use wels_server::http::{Settings, Tls};

use crate::lab::{Lab, Setup, chat_body};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls").join(name)
}

/// A response over TLS, from a server that has to show the certificate in the file `trusted`.
fn get(lab: &Lab, trusted: &str, name: &str, request: &str) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(data(trusted)).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session = ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    let socket = TcpStream::connect(lab.address)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut stream = StreamOwned::new(session, socket);
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

#[test]
fn answers_come_over_tls_and_a_renewed_certificate_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("crt"), folder.path().join("key"));
    let install = |name: &str| {
        std::fs::copy(data(&format!("{name}.crt")), &certificate).unwrap();
        std::fs::copy(data(&format!("{name}.key")), &key).unwrap();
    };
    install("one");
    let tls = Some(Tls::load(&certificate, &key).unwrap());
    let settings = Settings { tls, header_timeout: Duration::from_secs(2), ..Settings::default() };
    let lab = Setup { settings, ..Setup::default() }.start();

    let body = chat_body(json!({"max_tokens": 20, "stream": true})).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        lab.key,
        body.len()
    );
    let reply = get(&lab, "one.crt", "localhost", &request).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("data: [DONE]"), "{reply}");
    assert!(get(&lab, "one.crt", "127.0.0.1", HEALTH).unwrap().starts_with("HTTP/1.1 200"));
    assert!(get(&lab, "other.crt", "localhost", HEALTH).is_err(), "a certificate that nobody trusts");
    assert!(get(&lab, "one.crt", "elsewhere.example", HEALTH).is_err(), "a name that is another's");

    // Neither plain HTTP nor silence is a handshake.
    let mut plain = lab.connect();
    plain.write_all(HEALTH.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    let _ = plain.read_to_end(&mut bytes);
    assert!(!String::from_utf8_lossy(&bytes).contains("HTTP/1.1"), "{bytes:?}");
    let begin = Instant::now();
    assert_eq!(lab.connect().read(&mut [0]).unwrap_or(0), 0, "it is closed");
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());

    // A certificate without its key is not taken, and with it, it is.
    std::fs::copy(data("other.crt"), &certificate).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(get(&lab, "one.crt", "localhost", HEALTH).is_ok(), "the one before stays");
    install("other");
    while get(&lab, "other.crt", "localhost", HEALTH).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(60), "the new certificate is never shown");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(get(&lab, "one.crt", "localhost", HEALTH).is_err());
}
