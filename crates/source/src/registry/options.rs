//! What the registry client is told: hosts, credentials, certificates, proxies, patience. All of it is data: this
//! crate reads no environment; whoever owns the process fills these in.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rbuild_ports::Result;

/// Options of a [`Registry`](crate::Registry).
#[derive(Clone)]
pub struct RegistryOptions {
    /// Where requests run. `None` makes a small runtime of its own at the first request.
    pub runtime: Option<tokio::runtime::Handle>,
    /// By registry host as written in references (`docker.io`, `127.0.0.1:5000`).
    pub hosts: BTreeMap<String, HostOptions>,
    /// Asked for credentials when a registry wants some.
    pub credentials: Arc<dyn CredentialSource>,
    /// Certificate authorities.
    pub trust: TrustOptions,
    /// Proxies.
    pub proxy: ProxyOptions,
    /// Patience.
    pub limits: Limits,
    /// Sent as `User-Agent`.
    pub user_agent: String,
}

/// How to treat one registry host.
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    /// Plain HTTP. `None` is HTTP for loopback hosts and HTTPS for all others.
    pub plain_http: Option<bool>,
    /// Accept any certificate.
    pub insecure_tls: bool,
    /// Files with further certificate authorities (PEM).
    pub ca_files: Vec<PathBuf>,
    /// Client certificate and its key (PEM).
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Tried in this order before the host itself when pulling: `https://mirror.example/prefix`, or `host:port`.
    pub mirrors: Vec<String>,
    /// Hosts besides its own that may be given this host's credentials when it names them as token server.
    pub token_hosts: Vec<String>,
}

/// Certificate authorities.
#[derive(Clone, Debug, Default)]
pub struct TrustOptions {
    /// Bundles (PEM); the first that exists is used. `SSL_CERT_FILE`, where set, comes first.
    pub bundles: Vec<PathBuf>,
    /// Directories of PEM files that are added (`SSL_CERT_DIR`).
    pub directories: Vec<PathBuf>,
    /// Directories with one directory a host that holds `*.crt` and `*.cert` with `*.key`, as `/etc/docker/certs.d`.
    pub per_host: Vec<PathBuf>,
}

impl TrustOptions {
    /// The usual places of Linux distributions.
    #[must_use]
    pub fn system() -> Self {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect();
        Self {
            bundles: paths(&[
                "/etc/ssl/certs/ca-certificates.crt",
                "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
                "/etc/pki/tls/certs/ca-bundle.crt",
                "/etc/ssl/ca-bundle.pem",
                "/etc/ssl/cert.pem",
            ]),
            directories: vec![],
            per_host: paths(&["/etc/docker/certs.d", "/etc/containers/certs.d"]),
        }
    }
}

/// Proxies, in the words of the usual variables. Loopback hosts are never proxied.
#[derive(Clone, Default)]
pub struct ProxyOptions {
    /// For `http://`.
    pub http: Option<String>,
    /// For `https://`.
    pub https: Option<String>,
    /// Hosts without proxy, separated by commas.
    pub no_proxy: Option<String>,
}

/// They may hold passwords.
impl fmt::Debug for ProxyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |value: &Option<String>| if value.is_some() { "set" } else { "none" };
        write!(f, "ProxyOptions {{ http: {}, https: {} }}", set(&self.http), set(&self.https))
    }
}

/// Patience.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Attempts at one request before its error counts.
    pub attempts: u32,
    /// Wait before the second attempt; doubles every time, and is spread by chance.
    pub backoff: Duration,
    /// The longest wait, also when the server asks for more.
    pub max_wait: Duration,
    /// To be connected.
    pub connect_timeout: Duration,
    /// Without a byte.
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attempts: 5,
            backoff: Duration::from_millis(200),
            max_wait: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
        }
    }
}

/// What proves who we are to a registry. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// Name and password (or access token).
    Basic {
        /// Name.
        username: String,
        /// Password.
        password: String,
    },
    /// A refresh token, exchanged for access tokens at the registry's token server.
    IdentityToken(String),
    /// An access token, used as it is.
    Bearer(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Credential(name and password)",
            Self::IdentityToken(_) => "Credential(identity token)",
            Self::Bearer(_) => "Credential(access token)",
        })
    }
}

/// What a token server is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenRequest {
    /// The registry.
    pub host: String,
    /// Address of the token server.
    pub realm: String,
    /// As the registry named it.
    pub service: String,
    /// `repository:library/busybox:pull`, …
    pub scopes: Vec<String>,
}

/// Where credentials come from. Called from threads that may wait.
pub trait CredentialSource: Send + Sync {
    /// Credentials for `host` (`docker.io` for Docker Hub) and `repository`, or `None` to go on without.
    ///
    /// # Errors
    /// If they are there and cannot be used; the build stops rather than go on without them.
    fn credential(&self, host: &str, repository: &str) -> Result<Option<Credential>>;

    /// An access token fetched by somebody else (a client's session), or `None` to fetch it here.
    ///
    /// # Errors
    /// If it cannot be had.
    fn token(&self, request: &TokenRequest) -> Result<Option<String>> {
        let _ = request;
        Ok(None)
    }
}

/// No credentials.
pub struct Anonymous;

impl CredentialSource for Anonymous {
    fn credential(&self, _host: &str, _repository: &str) -> Result<Option<Credential>> {
        Ok(None)
    }
}

impl RegistryOptions {
    /// Anonymous, with the system's certificates, without proxy.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            runtime: None,
            hosts: BTreeMap::new(),
            credentials: Arc::new(Anonymous),
            trust: TrustOptions::system(),
            proxy: ProxyOptions::default(),
            limits: Limits::default(),
            user_agent: concat!("rbuild/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

impl fmt::Debug for RegistryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryOptions")
            .field("hosts", &self.hosts)
            .field("proxy", &self.proxy)
            .finish_non_exhaustive()
    }
}
