//! Which certificates are trusted, and that nothing falls back to less.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rbuild_digest::Digest;
use rbuild_ports::{CancelToken, ErrorKind, PortError};
use rbuild_source::{HostOptions, Limits, Registry, RegistryOptions, Resolved, TrustOptions};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("test_data/tls").join(name)
}

/// A server with this certificate that answers every request as a registry would a `HEAD`. Counts what it could read.
struct Server {
    host: String,
    requests: Arc<AtomicUsize>,
}

fn serve(certificate: &str) -> Server {
    let chain = vec![CertificateDer::from_pem_file(data(&format!("{certificate}.crt"))).unwrap()];
    let key = PrivateKeyDer::from_pem_file(data(&format!("{certificate}.key"))).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut tls = rustls::StreamOwned::new(connection, stream);
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && tls.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            if head.ends_with(b"\r\n\r\n") {
                count.fetch_add(1, Ordering::SeqCst);
                let digest = Digest::of("x");
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nDocker-Content-Digest: {digest}\r\n\r\n"
                );
                let _ = tls.write_all(answer.as_bytes());
                tls.conn.send_close_notify();
                let _ = tls.flush();
            }
        }
    });
    Server { host, requests }
}

fn resolve(server: &Server, host: HostOptions, trust: TrustOptions) -> Result<Resolved, PortError> {
    let mut options = RegistryOptions::anonymous();
    options.limits = Limits { attempts: 2, backoff: Duration::from_millis(1), ..Limits::default() };
    options.trust = trust;
    options.hosts.insert(server.host.clone(), host);
    let reference = format!("{}/a/b:v1", server.host).parse().unwrap();
    Registry::new(options).resolve(&reference, &CancelToken::new())
}

fn secure() -> HostOptions {
    HostOptions { plain_http: Some(false), ..HostOptions::default() }
}

#[test]
fn authorities_come_from_bundles_directories_and_files() {
    let server = serve("good");
    let bundle =
        TrustOptions { bundles: vec![PathBuf::from("/no/such"), data("ca.crt")], ..TrustOptions::default() };
    assert_eq!(resolve(&server, secure(), bundle).unwrap().digest, Digest::of("x"));
    let file = HostOptions { ca_files: vec![data("ca.crt")], ..HostOptions::default() };
    resolve(&server, file, TrustOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let host_dir = dir.path().join(&server.host);
    std::fs::create_dir(&host_dir).unwrap();
    std::fs::copy(data("ca.crt"), host_dir.join("ca.crt")).unwrap();
    let certs_d = TrustOptions { per_host: vec![dir.path().to_owned()], ..TrustOptions::default() };
    // A directory for a loopback host means that it speaks TLS.
    resolve(&server, HostOptions::default(), certs_d).unwrap();
    let directory = TrustOptions { directories: vec![host_dir.clone()], ..TrustOptions::default() };
    resolve(&server, secure(), directory).unwrap();
    assert_eq!(server.requests.load(Ordering::SeqCst), 4);
    std::fs::write(host_dir.join("ca.crt"), "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n")
        .unwrap();
    let broken = TrustOptions { per_host: vec![dir.path().to_owned()], ..TrustOptions::default() };
    let error = resolve(&server, HostOptions::default(), broken).unwrap_err();
    assert!(error.to_string().contains("cannot read the certificate"), "{error}");
}

#[test]
fn an_authority_may_be_the_server_itself() {
    let trusting = |file: &str| HostOptions { ca_files: vec![data(file)], ..secure() };
    let server = serve("root");
    resolve(&server, trusting("root.crt"), TrustOptions::default()).unwrap();
    // The same name with another key is somebody else, and an authority is no server of other names.
    for (certificate, trusted, words) in
        [("root", "rootother.crt", "UnknownIssuer"), ("rootother", "rootother.crt", "not valid for name")]
    {
        let server = serve(certificate);
        let error = resolve(&server, trusting(trusted), TrustOptions::default()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(server.requests.load(Ordering::SeqCst), 0);
    }
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
}

#[test]
fn what_is_not_trusted_is_not_talked_to() {
    let trust = || TrustOptions { bundles: vec![data("ca.crt")], ..TrustOptions::default() };
    for (certificate, words) in
        [("expired", "expired"), ("other", "not valid for name"), ("self", "certificate")]
    {
        let server = serve(certificate);
        let error = resolve(&server, secure(), trust()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Network);
        let text = error.to_string();
        assert!(text.contains("could not be trusted") && text.contains(words), "{certificate}: {text}");
        assert!(error.help.unwrap().contains(&format!("/etc/docker/certs.d/{}/ca.crt", server.host)));
        // Another host's leniency is not this one's.
        let mut options = RegistryOptions::anonymous();
        options.trust = trust();
        options.hosts.insert(server.host.clone(), secure());
        let lenient = HostOptions { insecure_tls: true, ..secure() };
        options.hosts.insert("other.example".to_owned(), lenient.clone());
        let reference = format!("{}/a/b:v1", server.host).parse().unwrap();
        assert!(Registry::new(options).resolve(&reference, &CancelToken::new()).is_err());
        assert_eq!(server.requests.load(Ordering::SeqCst), 0, "nothing was sent");
        resolve(&server, lenient, trust()).unwrap();
    }
    let unknown = serve("good");
    assert!(resolve(&unknown, secure(), TrustOptions::default()).is_err());
}
