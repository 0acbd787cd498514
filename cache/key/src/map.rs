//! What a node contributes to its key: its digest, and for each input what of it counts.

use rbuild_digest::Digest;
use rbuild_tree::SelectOptions;

use crate::{OpDigest, Preimage};

/// A node's contribution to its key.
#[derive(Clone, Debug)]
pub struct CacheMap {
    /// The operation without its inputs.
    pub digest: OpDigest,
    /// Other digests under which the same result is known: an image's chain of layers.
    pub extra_roots: Vec<Digest>,
    /// One for each input of the node.
    pub deps: Vec<Dep>,
    /// What it was made from.
    pub preimage: Preimage,
}

/// What counts of one input.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dep {
    /// Stands in links from the input's definition keys.
    pub selector: Option<Digest>,
    /// How the input can be known by its content instead; `None` where only its definition counts.
    pub content: Option<ContentSpec>,
}

/// The parts of an input whose content hashes, combined, stand for it (see `content_key`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContentSpec {
    /// In the order of combination; never empty.
    pub selectors: Vec<ContentSelector>,
}

/// One part of an input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContentSelector {
    /// Absolute path or glob.
    pub path: String,
    /// How it selects.
    pub options: SelectOptions,
}

/// What is known of the world and not of the node.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Makes the keys of local directories differ from those of every other session.
    pub session: String,
    /// For web sources: what the server gave.
    pub http: Option<HttpFacts>,
}

/// What a web server gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpFacts {
    /// Digest of the content.
    pub content: Digest,
    /// The `Last-Modified` header as it came, if any; not used where the checksum is pinned.
    pub last_modified: Option<String>,
}

/// Why a node has no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Content caching was asked for where it would be wrong.
    #[error(
        "mount {dest:?} cannot be cached by its content: it is writable, selects a part of its input and keeps its changes"
    )]
    ContentCache {
        /// The mount's target.
        dest: String,
    },
    /// A web source's content is not known.
    #[error("the content of {url} is not known yet")]
    HttpContent {
        /// Its address.
        url: String,
    },
    /// An operation refers to an input that the node does not have.
    #[error("the operation refers to input {input} of {inputs}")]
    NoSuchInput {
        /// Which.
        input: u32,
        /// How many there are.
        inputs: usize,
    },
}
