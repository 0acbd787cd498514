//! What lowering has to know about the world and cannot find out: digests and configs of images, commits of git
//! references. The caller resolves what `Outcome::Need` names, adds it here and calls again.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rbuild_diag::{SourceFile, Span};
use rbuild_digest::Digest;
use rbuild_oci::{ImageConfig, Platform, Reference};

/// A question about an image.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ImageQuery {
    /// Where it is.
    pub origin: ImageOrigin,
    /// For which platform.
    pub platform: Platform,
}

/// Where an image is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ImageOrigin {
    /// In a registry (or in the own store), by a reference with tag or digest.
    Registry(Reference),
    /// In an OCI layout directory.
    OciLayout {
        /// The named context it is known by.
        store: String,
        /// Directory of the layout.
        path: String,
        /// Tag or digest; empty is the only image.
        reference: String,
    },
}

/// The answer to an `ImageQuery`.
#[derive(Clone, Debug)]
pub struct ImageFacts {
    /// What the reference resolved to: the index for multi-platform images, else the manifest.
    pub digest: Digest,
    /// The manifest of the platform.
    pub manifest: Digest,
    /// The platform of that manifest.
    pub platform: Platform,
    /// Its config.
    pub config: Arc<ImageConfig>,
}

/// A question about a git reference.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GitQuery {
    /// Repository URL without fragment.
    pub url: String,
    /// Branch, tag or commit; empty is the default branch.
    pub reference: String,
    /// Whether it must be known when the commit was made, for which it has to be fetched.
    pub committed: bool,
}

/// The answer to a `GitQuery`.
#[derive(Clone, Debug, Default)]
pub struct GitFacts {
    /// The whole name of the reference: `refs/heads/main`; empty for a commit.
    pub name: String,
    /// The commit (of an annotated tag: the commit it points to).
    pub commit: String,
    /// The tag object, where the reference is an annotated tag.
    pub tag_object: Option<String>,
    /// When the commit was made, in seconds since 1970, where that was asked for (`SOURCE_DATE_EPOCH=context`).
    pub committed: Option<i64>,
}

/// Everything known so far.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Images.
    pub images: HashMap<ImageQuery, ImageFacts>,
    /// Git references.
    pub git: HashMap<GitQuery, GitFacts>,
}

/// One missing fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need<Q> {
    /// The question.
    pub query: Q,
    /// Where it was asked first, to show when it has no answer.
    pub place: Option<(SourceFile, Span)>,
    /// A stage with a similar name: a slip, when there is no such image.
    pub similar: Option<String>,
}

/// What is not known yet: each question once, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Images.
    pub images: Vec<Need<ImageQuery>>,
    /// Git references.
    pub git: Vec<Need<GitQuery>>,
}

impl Needs {
    /// Whether nothing is missing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.images.is_empty() && self.git.is_empty()
    }
}

impl fmt::Display for ImageQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            ImageOrigin::Registry(reference) => write!(f, "{reference} for {}", self.platform),
            ImageOrigin::OciLayout { store, path, reference } => {
                write!(f, "oci-layout://{store} ({path}:{reference}) for {}", self.platform)
            }
        }
    }
}

impl fmt::Display for GitQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reference = if self.reference.is_empty() { "HEAD" } else { &self.reference };
        write!(f, "{} {reference}", self.url)
    }
}
