//! A context that comes as a stream: a tar archive, or just a Dockerfile.

use std::io::Read;
use std::path::{Path, PathBuf};

use rbuild_ports::{CancelToken, ErrorKind, PortError, Result};
use rbuild_store::Scratch;

/// A Dockerfile is no larger.
const MAX_DOCKERFILE: u64 = 64 << 20;
/// A context is no larger: what is larger would fill disks by mistake.
const MAX_CONTEXT: u64 = 64 << 30;
/// What is enough to tell an archive.
const SNIFF: usize = 512;

/// What came.
pub enum ContextStream {
    /// A Dockerfile; there is no context.
    Dockerfile(Vec<u8>),
    /// An archive, unpacked.
    Archive(ContextDir),
}

/// An unpacked context; it is removed when dropped.
pub struct ContextDir {
    path: PathBuf,
    // Locked while this lives: what is left by a killed process is swept by the next.
    _scratch: Scratch,
}

impl ContextDir {
    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads a context from `input`; archives are unpacked below the store at `root`.
///
/// # Errors
/// If it cannot be read, is a hostile archive, or the store cannot be written.
pub fn read_context_stream(input: impl Read + Send, root: &Path) -> Result<ContextStream> {
    read_context_archive(input, root, "standard input", &CancelToken::new())
}

/// The same, where messages call it `name`.
pub(crate) fn read_context_archive(
    mut input: impl Read + Send,
    root: &Path,
    name: &str,
    cancel: &CancelToken,
) -> Result<ContextStream> {
    let mut head = Vec::new();
    let broken = |error| PortError::io("read", name, error);
    input.by_ref().take(SNIFF as u64).read_to_end(&mut head).map_err(broken)?;
    if !is_archive(&head) {
        let mut text = head;
        input.take(MAX_DOCKERFILE + 1).read_to_end(&mut text).map_err(broken)?;
        if text.len() as u64 > MAX_DOCKERFILE {
            return Err(PortError::new(
                ErrorKind::Invalid,
                format!("the Dockerfile from {name} is larger than 64 MiB"),
            ));
        }
        return Ok(ContextStream::Dockerfile(text));
    }
    let scratch = Scratch::create(&root.join("tmp"))?;
    let path = scratch.path().join("context");
    std::fs::create_dir(&path).map_err(|error| PortError::io("make", &path, error))?;
    rbuild_source::unpack_context_tar(&mut head.as_slice().chain(input), &path, MAX_CONTEXT, cancel)?;
    Ok(ContextStream::Archive(ContextDir { path, _scratch: scratch }))
}

/// tar, gzip, bzip2, xz or zstd, by their first bytes.
fn is_archive(head: &[u8]) -> bool {
    let magic: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    magic.iter().any(|magic| head.starts_with(magic)) || head.get(257..262) == Some(b"ustar")
}
