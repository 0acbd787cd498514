//! The registry client (OCI distribution specification): pull and push. Blocking calls over an asynchronous
//! transport. Constructing one does nothing: certificates, connections and threads come with the first request that
//! needs them. It verifies the documents it returns; whoever reads a blob verifies the blob.

mod auth;
mod blob;
mod challenge;
mod credentials;
mod endpoint;
mod failure;
mod manifest;
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

/// The largest manifest or index that is read.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// The largest image config that is read.
pub const MAX_CONFIG: u64 = 8 << 20;

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
