//! SHA-256 digests (`sha256:<64 lower-case hex>`), hashing readers and writers, and the canonical JSON
//! that BuildKit's keys are made from (`canon`). Knows nothing of files, images or builds.

mod digest;
mod hasher;

pub mod canon;

pub use digest::{Digest, ParseDigestError};
pub use hasher::{Hasher, HashingReader, HashingWriter};
