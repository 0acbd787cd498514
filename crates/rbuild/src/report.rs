//! What a build made.

use rbuild_cache_explain::{Trace, to_json};
use rbuild_export::{Exported, iidfile, metadata_file};

/// What a build made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Unique in practice: names the build in `--metadata-file`.
    pub build_ref: String,
    /// What was exported.
    pub exported: Exported,
    /// The manifest of the exported cache.
    pub cache_manifest: Option<rbuild_oci::Descriptor>,
    /// Steps found in the cache.
    pub cached: usize,
    /// Steps that ran.
    pub ran: usize,
    /// The build written down, with the causes of what ran.
    pub trace: Option<Trace>,
}

impl Report {
    /// The content of `--iidfile`; `None` when no image was made.
    #[must_use]
    pub fn iidfile(&self) -> Option<String> {
        iidfile(&self.exported)
    }

    /// The content of `--metadata-file`: buildx's keys; and why steps ran, as `rbuild.explanation`, if that is wanted.
    #[must_use]
    pub fn metadata_file(&self, explained: bool) -> String {
        let mut more = serde_json::Map::new();
        if let Some(Ok(manifest)) = self.cache_manifest.as_ref().map(serde_json::to_value) {
            more.insert("cache.manifest".to_owned(), manifest);
        }
        if let (true, Some(trace)) = (explained, &self.trace) {
            more.insert("rbuild.explanation".to_owned(), to_json(trace));
        }
        metadata_file(&self.exported, Some(&self.build_ref), more)
    }
}
