//! What a build made.

use rbuild_export::{Exported, iidfile, metadata_file};

/// What a build made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Unique in practice: names the build in `--metadata-file`.
    pub build_ref: String,
    /// What was exported.
    pub exported: Exported,
    /// Steps found in the cache.
    pub cached: usize,
    /// Steps that ran.
    pub ran: usize,
}

impl Report {
    /// The content of `--iidfile`; `None` when no image was made.
    #[must_use]
    pub fn iidfile(&self) -> Option<String> {
        iidfile(&self.exported)
    }

    /// The content of `--metadata-file`: buildx's keys.
    #[must_use]
    pub fn metadata_file(&self) -> String {
        metadata_file(&self.exported, Some(&self.build_ref), serde_json::Map::new())
    }
}
