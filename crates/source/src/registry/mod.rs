//! The registry client (OCI distribution specification): pull and push. Blocking calls over an asynchronous
//! transport. Constructing one does nothing: certificates, connections and threads come with the first request that
//! needs them. It verifies the documents it returns; whoever reads a blob verifies the blob.

mod auth;
mod blob;
mod challenge;
mod credentials;
mod endpoint;
mod failure;
mod options;
mod push;
mod realm;
mod runtime;
mod tls;
mod transport;

use std::sync::Arc;

use rbuild_digest::Digest;
use rbuild_oci::{Descriptor, Reference};
use rbuild_ports::{CancelToken, ErrorKind, PortError, Result};
use reqwest::Method;

pub use blob::{BlobStream, into_port_error};
pub use credentials::DockerConfig;
pub use options::{
    Anonymous, Credential, CredentialSource, HostOptions, Limits, ProxyOptions, RegistryOptions,
    TokenRequest, TrustOptions,
};

pub(crate) use endpoint::Endpoint;
pub(crate) use failure::{Failure, Problem};
pub(crate) use runtime::until;
pub(crate) use transport::{Answer, Call, Transport};

use auth::Scope;

/// The largest manifest or index that is read.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// The largest image config that is read.
pub const MAX_CONFIG: u64 = 8 << 20;

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// A repository of a registry.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Repository {
    /// Registry host as in references.
    pub domain: String,
    /// Path.
    pub path: String,
}

impl Repository {
    /// The repository of a reference.
    #[must_use]
    pub fn of(reference: &Reference) -> Self {
        Self { domain: reference.domain.clone(), path: reference.path.clone() }
    }

    /// The repository that `location` (`registry/repository`) names.
    ///
    /// # Errors
    /// `Invalid` when it names none.
    pub fn parse(location: &str) -> Result<Self> {
        let reference: Reference = location.parse().map_err(|error: rbuild_oci::ParseReferenceError| {
            PortError::new(ErrorKind::Invalid, error.to_string())
        })?;
        Ok(Self::of(&reference))
    }
}

impl std::fmt::Display for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)
    }
}

/// What a tag points to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// Digest of the manifest or index.
    pub digest: Digest,
    /// As the registry says; empty when it does not.
    pub media_type: String,
    /// In bytes, where the registry says.
    pub size: Option<u64>,
}

/// A manifest or index as received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawDocument {
    /// Of `bytes`.
    pub digest: Digest,
    /// As the registry says; empty when it does not.
    pub media_type: String,
    /// What was received.
    pub bytes: Vec<u8>,
}

/// A client for all registries. Clones share connections and tokens.
#[derive(Clone)]
pub struct Registry(Arc<Transport>);

impl Registry {
    /// A client. Nothing is read or connected yet.
    #[must_use]
    pub fn new(options: RegistryOptions) -> Self {
        Self(Arc::new(Transport::new(options)))
    }

    pub(crate) fn transport(&self) -> &Arc<Transport> {
        &self.0
    }

    /// Asks what a reference points to, without reading it (one `HEAD`).
    ///
    /// # Errors
    /// `NotFound`, `Auth`, `Network`, with host, repository and cause.
    pub fn resolve(&self, reference: &Reference, cancel: &CancelToken) -> Result<Resolved> {
        let transport = self.0.clone();
        let reference = reference.clone().with_default_tag();
        self.0.block(cancel, async move { transport.resolve(&reference).await })
    }

    /// Reads the manifest or index that a reference points to and verifies it.
    ///
    /// # Errors
    /// `NotFound`, `Auth`, `Network`, `Corrupt` when its digest is not the one asked for or announced.
    pub fn fetch_manifest(&self, reference: &Reference, cancel: &CancelToken) -> Result<RawDocument> {
        let transport = self.0.clone();
        let reference = reference.clone().with_default_tag();
        self.0.block(cancel, async move { transport.manifest(&reference).await })
    }

    /// Reads a small blob (an image config) of at most `limit` bytes and verifies it.
    ///
    /// # Errors
    /// `NotFound`, `Auth`, `Network`, `Corrupt`, `Invalid` when it is larger.
    pub fn fetch_small_blob(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        limit: u64,
        cancel: &CancelToken,
    ) -> Result<Vec<u8>> {
        if blob.size > limit {
            let what = format!(
                "{} of {repository} has {} bytes, more than the {limit} allowed",
                blob.digest, blob.size
            );
            return Err(PortError::new(ErrorKind::Invalid, what));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(blob.size).unwrap_or(0));
        let mut stream = self.fetch_blob(repository, blob, cancel)?;
        std::io::Read::read_to_end(&mut stream, &mut bytes)
            .map_err(|error| into_port_error(error, &blob.digest.to_string()))?;
        let digest = Digest::of(&bytes);
        if digest != blob.digest {
            return Err(failure::wrong_digest(
                &repository.domain,
                &format!("blob {} of {repository}", blob.digest),
                digest,
            ));
        }
        Ok(bytes)
    }

    /// Opens a blob. Broken transfers are resumed inside; it fails when more or fewer bytes come than `blob.size`.
    /// The caller verifies the digest.
    ///
    /// # Errors
    /// `NotFound`, `Auth`, `Network`.
    pub fn fetch_blob(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        cancel: &CancelToken,
    ) -> Result<BlobStream> {
        BlobStream::open(&self.0, repository, blob, cancel)
    }

    /// The size of a blob in the repository, or `None` when it is not there.
    ///
    /// # Errors
    /// `Auth`, `Network`.
    pub fn blob_exists(
        &self,
        repository: &Repository,
        digest: &Digest,
        cancel: &CancelToken,
    ) -> Result<Option<u64>> {
        let (transport, repository, digest) = (self.0.clone(), repository.clone(), *digest);
        self.0.block(cancel, async move { push::exists(&transport, &repository, &digest).await })
    }

    /// Makes a blob of the repository `from` on the same registry one of `repository`. `false` when the registry does
    /// not: then the blob is to be pushed.
    ///
    /// # Errors
    /// `Auth`, `Network`.
    pub fn mount_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: &Repository,
        cancel: &CancelToken,
    ) -> Result<bool> {
        if from.domain != repository.domain || from.path == repository.path {
            return Ok(false);
        }
        let (transport, repository, digest, from) =
            (self.0.clone(), repository.clone(), *digest, from.path.clone());
        self.0.block(cancel, async move { push::mount(&transport, &repository, &digest, &from).await })
    }

    /// Uploads `size` bytes. `open` gives them from the start, again for every attempt; they are read on the
    /// calling thread.
    ///
    /// # Errors
    /// `Auth`, `Network`, or what `open` and its reader say.
    pub fn push_blob<'a>(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
        open: &mut dyn FnMut() -> Result<Box<dyn std::io::Read + 'a>>,
        cancel: &CancelToken,
    ) -> Result<()> {
        push::push(&self.0, repository, digest, size, open, cancel)
    }

    /// Stores a manifest or index under the tag of `reference`, or under its digest when it has no tag.
    ///
    /// # Errors
    /// `Auth`, `Network`, `Invalid` when the registry refuses it.
    pub fn put_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
        cancel: &CancelToken,
    ) -> Result<Digest> {
        let (transport, reference) = (self.0.clone(), reference.clone());
        let (media_type, bytes) = (media_type.to_owned(), bytes.to_vec());
        self.0.block(
            cancel,
            async move { push::put_manifest(&transport, &reference, &media_type, bytes).await },
        )
    }
}

impl Transport {
    async fn resolve(self: &Arc<Self>, reference: &Reference) -> Result<Resolved> {
        let doing = format!("resolving {reference}");
        let response = self
            .pull(&reference.domain, &reference.path, &doing, |endpoint| {
                manifest_call(Method::HEAD, endpoint, reference)
            })
            .await
            .map_err(|failure| failure.for_manifest(reference))?;
        let media_type = response.header("content-type").unwrap_or_default().to_owned();
        let size = response.header("content-length").and_then(|n| n.parse().ok());
        let announced = response.header("docker-content-digest").and_then(|d| d.parse::<Digest>().ok());
        match (announced, reference.digest) {
            (Some(found), Some(wanted)) if found != wanted => {
                Err(failure::wrong_digest(&reference.domain, &reference.to_string(), found))
            }
            (Some(digest), _) => Ok(Resolved { digest, media_type, size }),
            // An old or a simple registry: only the content tells.
            (None, _) => {
                let document = self.manifest(reference).await?;
                let size = Some(document.bytes.len() as u64);
                Ok(Resolved { digest: document.digest, media_type: document.media_type, size })
            }
        }
    }

    async fn manifest(self: &Arc<Self>, reference: &Reference) -> Result<RawDocument> {
        let doing = format!("fetching the manifest of {reference}");
        let mut last = None;
        // A document with another digest than announced is asked for once more: caches in between do that.
        for _ in 0..2 {
            let mut response = self
                .pull(&reference.domain, &reference.path, &doing, |endpoint| {
                    manifest_call(Method::GET, endpoint, reference)
                })
                .await
                .map_err(|failure| failure.for_manifest(reference))?;
            let media_type = response.header("content-type").unwrap_or_default().to_owned();
            let announced = response.header("docker-content-digest").and_then(|d| d.parse::<Digest>().ok());
            let bytes = match response.bytes(MAX_MANIFEST).await {
                Ok(bytes) => bytes,
                Err(failure) if failure.retryable() => {
                    last = Some(failure.into_error(&doing));
                    continue;
                }
                Err(failure) => return Err(failure.into_error(&doing)),
            };
            let digest = Digest::of(&bytes);
            if reference.digest.or(announced).is_none_or(|wanted| wanted == digest) {
                return Ok(RawDocument { digest, media_type, bytes });
            }
            last = Some(failure::wrong_digest(&reference.domain, &reference.to_string(), digest));
        }
        Err(last.unwrap_or_else(|| PortError::new(ErrorKind::Internal, "no attempt was made")))
    }

    /// A request for reading: mirrors first, with retries.
    pub(crate) async fn pull(
        self: &Arc<Self>,
        domain: &str,
        repository: &str,
        doing: &str,
        call: impl Fn(&Endpoint) -> Call,
    ) -> std::result::Result<Answer, Failure> {
        let scope = Scope::pull(repository);
        let endpoints = self.endpoints(domain).map_err(|failure| failure.while_doing(doing))?;
        let mut last = None;
        for (n, endpoint) in endpoints.iter().enumerate() {
            // A mirror gets one chance: behind it is the registry itself.
            let attempts = if n + 1 == endpoints.len() { self.options().limits.attempts } else { 1 };
            match self.with_retries(endpoint, &scope, attempts, || call(endpoint)).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => last = Some(failure.while_doing(doing)),
            }
        }
        Err(last
            .unwrap_or_else(|| Failure::new(domain, Problem::Protocol("there is no endpoint".to_owned()))))
    }
}

fn manifest_call(method: Method, endpoint: &Endpoint, reference: &Reference) -> Call {
    let target = match (&reference.digest, &reference.tag) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.clone(),
        (None, None) => "latest".to_owned(),
    };
    Call::new(method, endpoint.url(&format!("{}/manifests/{target}", reference.path)))
        .header("accept", ACCEPT)
}
