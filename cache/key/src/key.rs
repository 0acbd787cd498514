//! How digests become keys: of records (an operation's output) and of contents.

use std::fmt;

use rbuild_digest::Digest;

/// The digest of an operation without its inputs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum OpDigest {
    /// Equal operations have equal digests.
    Fixed(Digest),
    /// New in every session (a local directory): never found again by definition, never exported.
    Random(Digest),
}

impl OpDigest {
    /// The key of one output of an operation without inputs; `None` where no later build can ask for it.
    #[must_use]
    pub fn record_key(&self, output: u32) -> Option<Digest> {
        match self {
            Self::Fixed(digest) => Some(record_key(digest, output)),
            Self::Random(_) => None,
        }
    }
}

/// As BuildKit writes it: `sha256:…` or `random:…`.
impl fmt::Display for OpDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(digest) => digest.fmt(f),
            Self::Random(digest) => write!(f, "random:{}", digest.hex()),
        }
    }
}

/// The key of an output of an operation, as in links and exported records: `<digest>@<output>`, hashed.
#[must_use]
pub fn record_key(digest: &Digest, output: u32) -> Digest {
    Digest::of(format!("{digest}@{output}"))
}

/// One digest for the content hashes of an input's selectors, in their order. Also for a single one.
#[must_use]
pub fn combine_content(digests: &[Digest]) -> Digest {
    let texts: Vec<String> = digests.iter().map(ToString::to_string).collect();
    Digest::of(texts.join("\0"))
}

/// The key by which an input is known by its content: `<combined>@-1`, hashed.
#[must_use]
pub fn content_key(digests: &[Digest]) -> Digest {
    Digest::of(format!("{}@-1", combine_content(digests)))
}
