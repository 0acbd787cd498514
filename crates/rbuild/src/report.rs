//! What a build made.

use rbuild_digest::Digest;
use rbuild_export::OutputReport;
use rbuild_oci::Descriptor;
use serde_json::json;

/// What a build made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Unique in practice: names the build in `--metadata-file`.
    pub build_ref: String,
    /// The manifest, or the index of several platforms, where one was made.
    pub descriptor: Option<Descriptor>,
    /// The image id, where there is one image.
    pub config_digest: Option<Digest>,
    /// Full names that now mean this image.
    pub names: Vec<String>,
    /// One an output.
    pub outputs: Vec<OutputReport>,
    /// Steps found in the cache.
    pub cached: usize,
    /// Steps that ran.
    pub ran: usize,
}

impl Report {
    /// What `--iidfile` holds: the image id, or the digest of the index of several platforms.
    #[must_use]
    pub fn image_id(&self) -> Option<Digest> {
        self.config_digest.or_else(|| self.descriptor.as_ref().map(|descriptor| descriptor.digest))
    }

    /// What `--metadata-file` holds: buildx's keys.
    #[must_use]
    pub fn metadata_json(&self) -> String {
        let mut out = serde_json::Map::new();
        out.insert("buildx.build.ref".to_owned(), json!(self.build_ref));
        if let Some(digest) = &self.config_digest {
            out.insert("containerimage.config.digest".to_owned(), json!(digest.to_string()));
        }
        if let Some(descriptor) = &self.descriptor {
            out.insert("containerimage.descriptor".to_owned(), json!(descriptor));
            out.insert("containerimage.digest".to_owned(), json!(descriptor.digest.to_string()));
        }
        if !self.names.is_empty() {
            out.insert("image.name".to_owned(), json!(self.names.join(",")));
        }
        format!("{:#}", serde_json::Value::Object(out))
    }
}
