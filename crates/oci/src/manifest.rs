//! Manifests and indexes, told apart as strictly as the advisory on confused documents asks (CVE-2021-41190):
//! one that has both `layers` and `manifests` is refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Descriptor, media_type};

/// An image manifest, OCI or Docker schema 2.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Empty in some OCI documents.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// For artifacts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// From the bottom up.
    pub layers: Vec<Descriptor>,
    /// What this is about (attestations).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free text, sorted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An image index, OCI or Docker manifest list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Empty in some OCI documents.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// One entry a platform, and others.
    pub manifests: Vec<Descriptor>,
    /// Free text, sorted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Either of the two.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time is alive, and only for a moment")]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

/// Why bytes are neither a manifest nor an index.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON of the expected shape.
    #[error("malformed image manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// Schema 1 or something newer than 2.
    #[error("image manifest has schema version {0}; only version 2 is supported")]
    Schema(u32),
    /// `layers` and `manifests` in one document, or a media type that contradicts the content.
    #[error("image manifest is ambiguous: {0}")]
    Ambiguous(String),
}

/// Reads a manifest or an index. `declared` is the media type the transport gave, if any.
///
/// # Errors
/// If the bytes are malformed, of another schema version, or contradict their media type.
pub fn parse_document(bytes: &[u8], declared: Option<&str>) -> Result<Document, DocumentError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        schema_version: u32,
        #[serde(default)]
        media_type: String,
        layers: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let probe: Probe = serde_json::from_slice(bytes)?;
    if probe.schema_version != 2 {
        return Err(DocumentError::Schema(probe.schema_version));
    }
    let image_like = probe.layers.is_some() || probe.config.is_some();
    if image_like && probe.manifests.is_some() {
        return Err(DocumentError::Ambiguous("it has both layers and manifests".to_owned()));
    }
    let known = |t: &str| media_type::is_index(t) || media_type::is_manifest(t);
    let declared = declared.map(|t| t.split(';').next().unwrap_or(t).trim()).filter(|t| known(t));
    for said in [Some(probe.media_type.as_str()), declared].into_iter().flatten() {
        if (media_type::is_index(said) && image_like)
            || (media_type::is_manifest(said) && probe.manifests.is_some())
        {
            return Err(DocumentError::Ambiguous(format!("its content contradicts the media type {said}")));
        }
    }
    if probe.manifests.is_some() {
        return Ok(Document::Index(serde_json::from_slice(bytes)?));
    }
    Ok(Document::Manifest(serde_json::from_slice(bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn tells_documents_apart() {
        let index =
            format!(r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"x","digest":"{D}","size":0}}]}}"#);
        assert!(matches!(parse_document(index.as_bytes(), None), Ok(Document::Index(_))));
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{D}","size":0}},"layers":[]}}"#
        );
        assert!(matches!(parse_document(manifest.as_bytes(), Some("text/plain")), Ok(Document::Manifest(_))));
        assert!(parse_document(manifest.as_bytes(), Some(media_type::OCI_INDEX)).is_err());
        let both = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{D}","size":0}},"layers":[],"manifests":[]}}"#
        );
        assert!(matches!(parse_document(both.as_bytes(), None), Err(DocumentError::Ambiguous(_))));
        assert!(matches!(parse_document(br#"{"schemaVersion":1}"#, None), Err(DocumentError::Schema(1))));
        assert!(parse_document(b"{", None).is_err());
    }
}
