//! Against a server that has PostgreSQL's way into TLS and then says good-bye, and, where `WELS_TEST_POSTGRES` names a
//! database without TLS, against that database behind such a server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::*;
use crate::ledger::{Ledger, Limits};

fn data(name: &str) -> String {
    format!("{}/tests/data/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Listens with the certificate `one` and passes what comes encrypted to `behind`. Each connection whose handshake
/// succeeds is told of.
fn encrypted(behind: Option<String>) -> (SocketAddr, mpsc::Receiver<()>) {
    let (sender, receiver) = mpsc::channel();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let chain = vec![CertificateDer::from_pem_file(data("one.crt")).unwrap()];
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(data("one.key")).unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (acceptor, sender, behind) = (acceptor.clone(), sender.clone(), behind.clone());
            std::thread::spawn(move || pass(client, acceptor, &sender, behind));
        }
    });
    (address, receiver)
}

fn pass(mut client: TcpStream, acceptor: TlsAcceptor, sender: &mpsc::Sender<()>, behind: Option<String>) {
    let mut request = [0; 8];
    client.read_exact(&mut request).unwrap();
    assert_eq!(request, [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f], "PostgreSQL's SSLRequest, before anything else");
    client.write_all(b"S").unwrap();
    client.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = tokio::net::TcpStream::from_std(client).unwrap();
        let Ok(mut client) = acceptor.accept(client).await else { return };
        sender.send(()).unwrap();
        let Some(behind) = behind else { return };
        let mut server = tokio::net::TcpStream::connect(behind).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
}

#[test]
fn a_database_is_believed_only_with_a_certificate_that_is_trusted_and_has_its_name() {
    let (address, shaken) = encrypted(None);
    let port = address.port();
    let (one, other) = (data("one.crt"), data("other.crt"));
    let open = |host: &str, query: &str| {
        let error = Ledger::open(&format!("postgres://wels@{host}:{port}/wels?{query}")).err().unwrap();
        let mut text = error.to_string();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            text += &format!(": {source}");
            cause = source;
        }
        (shaken.recv_timeout(std::time::Duration::from_millis(300)).is_ok(), text)
    };
    for mode in ["require", "verify-full"] {
        for host in ["localhost", "127.0.0.1"] {
            let (trusted, text) = open(host, &format!("sslmode={mode}&sslrootcert={one}"));
            assert!(trusted, "{mode} {host}: {text}");
        }
        let (trusted, text) = open("localhost", &format!("sslmode={mode}&sslrootcert={other}"));
        assert!(!trusted && text.contains("certificate"), "{mode}: {text}");
        let (trusted, text) =
            open("elsewhere.example", &format!("hostaddr=127.0.0.1&sslmode={mode}&sslrootcert={one}"));
        assert!(!trusted && text.contains("not valid for name"), "another's name, {mode}: {text}");
        let (trusted, text) = open("localhost", &format!("sslrootcert=system&sslmode={mode}"));
        assert!(!trusted && text.contains("certificate"), "the system's roots, {mode}: {text}");
    }
    let (_, text) = open("localhost", "sslmode=require&sslrootcert=/nowhere%20at/all");
    assert!(text.contains("/nowhere at/all"), "{text}");
}

#[test]
fn what_a_url_says_of_tls() {
    let read = |query: &str| {
        let address = Address::of(&format!("postgres://u@h/d{query}"));
        let query = address.url.strip_prefix("postgres://u@h/d").unwrap().to_owned();
        (query, address.is_encrypted, address.roots.map(|file| file.display().to_string()))
    };
    let roots = |file: &str| Some(file.to_owned());
    assert_eq!(read(""), (String::new(), false, None));
    assert_eq!(read("?sslmode=prefer&a=b"), ("?sslmode=prefer&a=b".to_owned(), false, None));
    assert_eq!(read("?a=b&sslmode=verify-full"), ("?a=b&sslmode=require".to_owned(), true, None));
    let both = read("?sslrootcert=%2Fa%20b%zz&sslmode=require&c=d");
    assert_eq!(both, ("?sslmode=require&c=d".to_owned(), true, roots("/a b%zz")));
}

#[test]
fn a_ledger_works_over_tls() {
    let Ok(url) = std::env::var("WELS_TEST_POSTGRES") else {
        return eprintln!("SKIPPED: WELS_TEST_POSTGRES names no database");
    };
    let (user, rest) = url.strip_prefix("postgres://").unwrap().split_once('@').unwrap();
    let (target, rest) = rest.split_once('/').unwrap();
    let (address, shaken) = encrypted(Some(target.to_owned()));
    let separator = if rest.contains('?') { '&' } else { '?' };
    let tls = format!("sslmode=verify-full&sslrootcert={}", data("one.crt"));
    let mut ledger = Ledger::open(&format!("postgres://{user}@{address}/{rest}{separator}{tls}")).unwrap();
    let name = format!("tls {}", crate::ledger::random_id().unwrap());
    ledger.add_key(&name, &Limits::default(), 0).unwrap();
    assert!(ledger.find_named(&name).unwrap().is_some());
    shaken.recv().unwrap();
}
