//! Which certificates are trusted. Loading the system's takes tens of milliseconds, so it happens at the first
//! HTTPS connection and never for plain HTTP.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rbuild_ports::{ErrorKind, PortError, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::options::{HostOptions, TrustOptions};

/// Trust, loaded when first needed.
pub(crate) struct Tls {
    trust: TrustOptions,
    provider: OnceLock<Arc<CryptoProvider>>,
    roots: Arc<OnceLock<RootCertStore>>,
}

impl Tls {
    pub(crate) fn new(trust: TrustOptions) -> Self {
        Self { trust, provider: OnceLock::new(), roots: Arc::default() }
    }

    /// For clients that never speak TLS: trusts nobody, costs nothing.
    pub(crate) fn nothing(&self) -> Result<ClientConfig> {
        self.config(RootCertStore::empty(), None)
    }

    /// The common authorities.
    pub(crate) async fn common(&self) -> Result<ClientConfig> {
        let roots = self.roots().await?;
        self.config(roots, None)
    }

    /// Whether `host` has authorities or certificates of its own.
    pub(crate) fn is_special(&self, host: &str, options: Option<&HostOptions>) -> bool {
        let own = options
            .is_some_and(|o| o.insecure_tls || !o.ca_files.is_empty() || o.client_certificate.is_some());
        own || self.trust.per_host.iter().any(|dir| dir.join(host).is_dir())
    }

    /// The common authorities and those of `host`.
    pub(crate) async fn special(&self, host: &str, options: Option<&HostOptions>) -> Result<ClientConfig> {
        let mut roots = self.roots().await?;
        let mut client = None;
        for dir in &self.trust.per_host {
            add_host_directory(&dir.join(host), &mut roots, &mut client)?;
        }
        if let Some(options) = options {
            for file in &options.ca_files {
                add_authorities(file, &mut roots)?;
            }
            if options.client_certificate.is_some() {
                client.clone_from(&options.client_certificate);
            }
        }
        let mut config = self.config(roots, client)?;
        if options.is_some_and(|options| options.insecure_tls) {
            let verifier = AcceptAny(self.provider());
            config.dangerous().set_certificate_verifier(Arc::new(verifier));
        }
        Ok(config)
    }

    async fn roots(&self) -> Result<RootCertStore> {
        let (roots, trust) = (self.roots.clone(), self.trust.clone());
        let load = move || roots.get_or_init(|| load_roots(&trust)).clone();
        tokio::task::spawn_blocking(load)
            .await
            .map_err(|_| PortError::new(ErrorKind::Internal, "loading the certificates was interrupted"))
    }

    fn provider(&self) -> Arc<CryptoProvider> {
        self.provider.get_or_init(|| Arc::new(ring::default_provider())).clone()
    }

    fn config(&self, roots: RootCertStore, client: Option<(PathBuf, PathBuf)>) -> Result<ClientConfig> {
        let unusable =
            |error: rustls::Error| PortError::new(ErrorKind::Invalid, format!("cannot set up TLS: {error}"));
        let builder = ClientConfig::builder_with_provider(self.provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let roots = Arc::new(roots);
        // Without any authority nobody is trusted.
        let checked = WebPkiServerVerifier::builder_with_provider(roots.clone(), self.provider()).build();
        let builder = match checked {
            Ok(checked) => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Authorities { checked, roots }))
            }
            Err(_) => builder.with_root_certificates(roots),
        };
        let Some((certificate, key)) = client else { return Ok(builder.with_no_client_auth()) };
        let chain = CertificateDer::pem_file_iter(&certificate)
            .and_then(Iterator::collect)
            .map_err(|error| pem_error(&certificate, &error))?;
        let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| pem_error(&key, &error))?;
        builder.with_client_auth_cert(chain, key).map_err(unusable)
    }
}

/// The first bundle that exists, and all directories. Certificates that cannot be read are left out, as is usual:
/// what is missing shows as a host that is not trusted.
fn load_roots(trust: &TrustOptions) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for bundle in &trust.bundles {
        if let Ok(certificates) = CertificateDer::pem_file_iter(bundle) {
            roots.add_parsable_certificates(certificates.flatten());
            break;
        }
    }
    for dir in &trust.directories {
        for file in sorted_files(dir) {
            if let Ok(certificates) = CertificateDer::pem_file_iter(&file) {
                roots.add_parsable_certificates(certificates.flatten());
            }
        }
    }
    roots
}

/// `*.crt` are authorities; `*.cert` with a `*.key` of the same name is a client certificate.
fn add_host_directory(
    dir: &Path,
    roots: &mut RootCertStore,
    client: &mut Option<(PathBuf, PathBuf)>,
) -> Result<()> {
    for file in sorted_files(dir) {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => add_authorities(&file, roots)?,
            Some("cert") => {
                let key = file.with_extension("key");
                if key.is_file() {
                    *client = Some((file, key));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn add_authorities(file: &Path, roots: &mut RootCertStore) -> Result<()> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| pem_error(file, &error))?;
    roots.add_parsable_certificates(certificates);
    Ok(())
}

fn sorted_files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return vec![] };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

fn pem_error(file: &Path, error: &rustls::pki_types::pem::Error) -> PortError {
    let message = format!("cannot read the certificate {}: {error}", file.display());
    PortError::new(ErrorKind::Invalid, message)
}

/// The usual rules, and one certificate more: an authority that is trusted may be the server itself. That is what
/// `openssl req -x509` makes, and what Docker takes.
#[derive(Debug)]
struct Authorities {
    checked: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
}

impl Authorities {
    /// Whether it is one of the authorities. Its dates were right before anybody asked.
    fn is_one(&self, certificate: &CertificateDer<'_>) -> bool {
        let mut own = RootCertStore::empty();
        own.add(certificate.clone().into_owned()).is_ok()
            && own.roots.first().is_some_and(|anchor| self.roots.roots.contains(anchor))
    }
}

impl ServerCertVerifier for Authorities {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        match self.checked.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(why)))
                if why.0.to_string() == "CaUsedAsEndEntity" =>
            {
                if !self.is_one(end_entity) {
                    return Err(CertificateError::UnknownIssuer.into());
                }
                rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.checked.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.checked.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.checked.supported_verify_schemes()
    }
}

/// For hosts whose certificate the user said not to check. Signatures are still checked.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
