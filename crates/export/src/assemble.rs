//! Config, manifest and index from a lowered config and its layers, with the bytes that BuildKit writes. Pure: layers
//! come as descriptors, times as values.

use std::collections::BTreeMap;

use rbuild_digest::Digest;
use rbuild_oci::media_type::{self, Compression};
use rbuild_oci::rfc3339 as time;
use rbuild_oci::{Descriptor, History, ImageConfig, Index, Manifest, RootFs};
use rbuild_ports::{ErrorKind, PortError, Result, Timestamp};
use serde_json::{Map, Value};

use crate::json;
use crate::layers::REWRITTEN;

/// BuildKit's comment on history entries that no instruction made.
const EXPORTER_COMMENT: &str = "buildkit.exporter.image.v0";

/// A document and the descriptor that points to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Document {
    pub(crate) descriptor: Descriptor,
    pub(crate) bytes: Vec<u8>,
}

/// What the config and the history need to know of a layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LayerFacts {
    pub(crate) diff_id: Digest,
    pub(crate) created: Timestamp,
}

/// What goes into an image config.
pub(crate) struct ConfigParts<'a> {
    pub(crate) config: &'a ImageConfig,
    pub(crate) layers: &'a [LayerFacts],
    /// History entries of the base image, which a clamp leaves alone.
    pub(crate) base_history: usize,
    /// Seconds since 1970.
    pub(crate) epoch: Option<i64>,
    /// Base64.
    pub(crate) inline_cache: Option<&'a str>,
}

/// A finished config: its bytes, and its `created` in whole seconds.
pub(crate) struct FinishedConfig {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) created: Option<String>,
}

/// The final image config.
pub(crate) fn config(parts: &ConfigParts<'_>) -> Result<FinishedConfig> {
    let lowered = parts.config;
    for (what, value) in [("os", &lowered.os), ("architecture", &lowered.architecture)] {
        if value.is_empty() {
            return Err(PortError::new(ErrorKind::Invalid, format!("the image config has no {what}")));
        }
    }
    let mut history = normalized_history(&lowered.history, parts.layers);
    if let Some(epoch) = parts.epoch {
        for entry in history.iter_mut().skip(parts.base_history) {
            entry.created = Some(clamped(entry.created.take(), epoch));
        }
    }
    let created = lowered
        .created
        .as_deref()
        .filter(|text| parts.epoch.is_none_or(|epoch| !is_after(text, epoch)))
        .map(time::normalize)
        .or_else(|| history.iter().rev().find_map(|entry| entry.created.clone()));

    let Value::Object(mut fields) = serde_json::to_value(lowered).map_err(unserializable)? else {
        return Err(PortError::new(ErrorKind::Internal, "an image config did not become a JSON object"));
    };
    let rootfs =
        RootFs { diff_ids: parts.layers.iter().map(|layer| layer.diff_id).collect(), ..RootFs::default() };
    fields.insert("rootfs".to_owned(), serde_json::to_value(&rootfs).map_err(unserializable)?);
    fields.insert("history".to_owned(), serde_json::to_value(&history).map_err(unserializable)?);
    fields.insert("created".to_owned(), created.clone().map_or(Value::Null, Value::String));
    // A base image's inline cache says nothing about this one.
    fields.remove("moby.buildkit.cache.v0");
    if let Some(cache) = parts.inline_cache {
        fields.insert("moby.buildkit.cache.v0".to_owned(), Value::String(cache.to_owned()));
    }
    // BuildKit writes a Go map here: the names are sorted on this level, and on this level only.
    let mut sorted: Vec<(String, Value)> = fields.into_iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let bytes = json::compact(&sorted.into_iter().collect::<Map<_, _>>()).map_err(unserializable)?;
    let created = created.and_then(|text| time::parse(&text)).and_then(whole_seconds);
    Ok(FinishedConfig { digest: Digest::of(&bytes), bytes, created })
}

/// A manifest of `config` and `layers`. Layers are written with the media types of the family, without URLs and
/// annotations, but for what says that their times were rewritten.
pub(crate) fn manifest(
    config: &FinishedConfig,
    layers: &[Descriptor],
    oci: bool,
    annotations: BTreeMap<String, String>,
) -> Result<Document> {
    let (manifest_type, config_type) = if oci {
        (media_type::OCI_MANIFEST, media_type::OCI_CONFIG)
    } else {
        (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG)
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: manifest_type.to_owned(),
        artifact_type: None,
        config: Descriptor::new(config_type, config.digest, config.bytes.len() as u64),
        layers: layers.iter().map(|layer| layer_entry(layer, oci)).collect::<Result<_>>()?,
        subject: None,
        annotations,
    };
    document(manifest_type, &manifest)
}

/// An index of `manifests`, whose descriptors carry their platforms.
pub(crate) fn index(
    manifests: Vec<Descriptor>,
    oci: bool,
    annotations: BTreeMap<String, String>,
) -> Result<Document> {
    let index_type = if oci { media_type::OCI_INDEX } else { media_type::DOCKER_INDEX };
    let index = Index { schema_version: 2, media_type: index_type.to_owned(), manifests, annotations };
    document(index_type, &index)
}

/// The `index.json` of a layout: one entry a name, or one without a name.
pub(crate) fn layout_index(entries: Vec<Descriptor>) -> Result<Vec<u8>> {
    let media_type = media_type::OCI_INDEX.to_owned();
    let index = Index { schema_version: 2, media_type, manifests: entries, annotations: BTreeMap::new() };
    json::compact(&index).map_err(unserializable)
}

fn document(media_type: &str, value: &impl serde::Serialize) -> Result<Document> {
    let bytes = json::indented(value).map_err(unserializable)?;
    Ok(Document { descriptor: Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64), bytes })
}

fn layer_entry(layer: &Descriptor, oci: bool) -> Result<Descriptor> {
    let kind = Compression::of_layer(&layer.media_type).ok_or_else(|| {
        let message = format!(
            "layer {} has the media type {:?}, which no image can hold",
            layer.digest, layer.media_type
        );
        PortError::new(ErrorKind::Unsupported, message)
    })?;
    let media_type = match (oci, kind) {
        (false, Compression::None) => media_type::DOCKER_LAYER,
        (false, Compression::Gzip) => media_type::DOCKER_LAYER_GZIP,
        (true, _) | (false, Compression::Zstd) => kind.oci_layer(),
    };
    let mut out = Descriptor::new(media_type, layer.digest, layer.size);
    if let Some(time) = layer.annotations.get(REWRITTEN) {
        out.annotations.insert(REWRITTEN.to_owned(), time.clone());
    }
    Ok(out)
}

/// History with one non-empty entry a layer and a time in every entry that can have one.
fn normalized_history(lowered: &[History], layers: &[LayerFacts]) -> Vec<History> {
    let mut history: Vec<History> = lowered.to_vec();
    let mut left = layers.iter();
    for entry in &mut history {
        entry.created = entry.created.as_deref().map(time::normalize);
        if entry.empty_layer {
            continue;
        }
        match left.next() {
            Some(layer) if entry.created.is_none() => {
                entry.created = Some(time::format_nanos(layer.created.0))
            }
            Some(_) => {}
            // More entries than layers: a config that does not fit; BuildKit declares the rest empty.
            None => entry.empty_layer = true,
        }
    }
    history.extend(left.map(|layer| History {
        created: Some(time::format_nanos(layer.created.0)),
        comment: EXPORTER_COMMENT.to_owned(),
        ..History::default()
    }));
    fill_times(&mut history);
    history
}

/// Entries without a time get that of the nearest layer before them; those before the first new layer get the first
/// new layer's, for otherwise they would seem as old as the base image.
fn fill_times(history: &mut [History]) {
    let first_gap = history.iter().position(|entry| entry.created.is_none()).unwrap_or(history.len());
    let (before, after) = history.split_at(first_gap);
    let first_new = after.iter().find_map(|entry| entry.created.clone());
    let mut current = first_new.or_else(|| before.iter().rev().find_map(|entry| entry.created.clone()));
    for entry in history.iter_mut().skip(first_gap) {
        match &entry.created {
            Some(created) => current = Some(created.clone()),
            None => entry.created.clone_from(&current),
        }
    }
}

fn clamped(created: Option<String>, epoch: i64) -> String {
    created.filter(|text| !is_after(text, epoch)).unwrap_or_else(|| time::format_secs(epoch))
}

fn is_after(text: &str, epoch: i64) -> bool {
    time::parse(text).is_some_and(|nanos| nanos > i128::from(epoch) * 1_000_000_000)
}

fn whole_seconds(nanos: i128) -> Option<String> {
    i64::try_from(nanos.div_euclid(1_000_000_000)).ok().map(time::format_secs)
}

fn unserializable(error: serde_json::Error) -> PortError {
    PortError::new(ErrorKind::Internal, format!("cannot write an image document: {error}"))
}

#[cfg(test)]
mod tests;
