//! Where builds take things from: registries, OCI layouts, local directories read in place, files from the web; and
//! the registry client that exporters push with. Implements the `Sources` port. Reads no environment: options carry
//! everything. Knows nothing of Dockerfiles, steps or caches of results.

mod context;
mod documents;
mod file_view;
mod git;
mod http;
mod http_date;
mod image;
mod layout;
mod registry;
mod sources;

pub use context::{is_archive, unpack_context_tar};
pub use layout::{Layout, LayoutDocument};
pub use registry::{
    Anonymous, BlobStream, Credential, CredentialSource, DockerConfig, HostOptions, Limits, MAX_CONFIG,
    MAX_MANIFEST, ProxyOptions, RawDocument, Registry, RegistryOptions, Repository, Resolved, TokenRequest,
    TrustOptions, into_port_error,
};
pub use sources::{HostSources, SourceOptions};
