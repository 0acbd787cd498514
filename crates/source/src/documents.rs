//! What is remembered of images between builds: manifests, indexes and configs by digest, and what tags pointed to when
//! their registry was last asked. So a cached build asks one `HEAD` and reads the rest here. Files are checked against
//! their name when read; all of them may be deleted at any time.

use std::path::{Path, PathBuf};

use rbuild_digest::Digest;
use rbuild_oci::Reference;
use rbuild_store::replace_file;

use crate::registry::MAX_CONFIG;

/// The directory `images-meta`.
pub(crate) struct Documents {
    dir: Option<PathBuf>,
}

impl Documents {
    pub(crate) fn new(state: Option<&Path>) -> Self {
        Self { dir: state.map(|state| state.join("images-meta")) }
    }

    /// A document, if it is here and whole.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Vec<u8>> {
        let file = self.dir.as_ref()?.join(digest.hex());
        let bytes = read_limited(&file)?;
        (Digest::of(&bytes) == *digest).then_some(bytes)
    }

    /// Keeps a document. Failing to is no error.
    pub(crate) fn put(&self, digest: &Digest, bytes: &[u8]) {
        if let Some(dir) = &self.dir {
            let _ = replace_file(&dir.join(digest.hex()), bytes);
        }
    }

    /// What `reference` pointed to when its registry was last asked.
    pub(crate) fn tag(&self, reference: &Reference) -> Option<Digest> {
        let bytes = read_limited(&self.tag_file(reference)?)?;
        let text = String::from_utf8(bytes).ok()?;
        let (digest, name) = text.trim_end().split_once(' ')?;
        (name == reference.to_string()).then(|| digest.parse().ok())?
    }

    pub(crate) fn put_tag(&self, reference: &Reference, digest: &Digest) {
        if let Some(file) = self.tag_file(reference) {
            let _ = replace_file(&file, format!("{digest} {reference}\n").as_bytes());
        }
    }

    fn tag_file(&self, reference: &Reference) -> Option<PathBuf> {
        Some(self.dir.as_ref()?.join("tags").join(Digest::of(reference.to_string()).hex()))
    }
}

fn read_limited(file: &Path) -> Option<Vec<u8>> {
    let length = std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file)?.len();
    if length > MAX_CONFIG {
        return None;
    }
    std::fs::read(file).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_documents_are_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let documents = Documents::new(Some(dir.path()));
        let digest = Digest::of("x");
        assert_eq!(documents.get(&digest), None);
        documents.put(&digest, b"x");
        assert_eq!(documents.get(&digest).as_deref(), Some(&b"x"[..]));
        documents.put(&digest, b"y");
        assert_eq!(documents.get(&digest), None);
        let reference: Reference = "a.example/b:c".parse().unwrap();
        assert_eq!(documents.tag(&reference), None);
        documents.put_tag(&reference, &digest);
        assert_eq!(documents.tag(&reference), Some(digest));
        assert_eq!(documents.tag(&"a.example/b:d".parse().unwrap()), None);
        let nothing = Documents::new(None);
        nothing.put(&digest, b"x");
        assert_eq!(nothing.get(&digest), None);
    }
}
