//! `FROM` an image that was built here: its layers are on the disk under names of their own, and what is known of it by
//! content (diff ids) is computed when it is first asked for.

use std::collections::HashMap;
use std::sync::Arc;

use rbuild_digest::Digest;
use rbuild_engine::Ports;
use rbuild_export::LayerMaker;
use rbuild_lower::ImageFacts;
use rbuild_oci::{ImageConfig, Platform, Reference};
use rbuild_ports::{CancelToken, ErrorKind, ImageRecord, LayerId, PortError, Result};

use crate::export_context::layers_only;

/// What lowering must know of it, and what the engine must.
pub(crate) struct OwnImage {
    pub(crate) facts: ImageFacts,
    /// Name by diff id → name on the disk.
    pub(crate) aliases: HashMap<LayerId, LayerId>,
}

/// The image of this name in the own store, if there is one for the platform.
pub(crate) fn own_image(
    ports: &Ports,
    reference: &Reference,
    platform: &Platform,
    cancel: &CancelToken,
) -> Result<Option<OwnImage>> {
    if reference.digest.is_some() {
        return Ok(None);
    }
    let Some(record) = ports.index.image(&reference.clone().with_default_tag().to_string())? else {
        return Ok(None);
    };
    let found: Platform = record.platform.parse().unwrap_or_else(|_| Platform::host());
    if found.serves(platform).is_none() {
        return Ok(None);
    }
    let mut config: ImageConfig = serde_json::from_str(&record.config).map_err(|error| {
        PortError::new(
            ErrorKind::Corrupt,
            format!("the stored config of {} is damaged: {error}", record.name),
        )
        .help("build that image again")
    })?;
    let diff_ids = diff_ids(ports, &record, cancel)?;
    let by_content = diff_ids.iter().map(LayerId::of_diff_id);
    let aliases = by_content
        .zip(record.snapshot.layers.iter().cloned())
        .filter(|(name, on_disk)| name != on_disk)
        .collect();
    config.rootfs.diff_ids = diff_ids;
    let digest = record.manifest.unwrap_or_else(|| identity(&record, &config));
    let facts = ImageFacts { digest, manifest: digest, platform: found, config: Arc::new(config) };
    Ok(Some(OwnImage { facts, aliases }))
}

/// What stands for its manifest as long as none was assembled: changes with every byte of config and layers.
fn identity(record: &ImageRecord, config: &ImageConfig) -> Digest {
    let layers: Vec<String> = config.rootfs.diff_ids.iter().map(ToString::to_string).collect();
    Digest::of(format!("{}\n{}", record.config, layers.join("\n")))
}

fn diff_ids(ports: &Ports, record: &ImageRecord, cancel: &CancelToken) -> Result<Vec<Digest>> {
    let mut known = Vec::with_capacity(record.snapshot.layers.len());
    for layer in &record.snapshot.layers {
        known.push(ports.index.layer(layer)?.and_then(|row| row.diff_id));
    }
    if let Some(all) = known.iter().copied().collect() {
        return Ok(all);
    }
    let context = layers_only(ports, cancel);
    let maker = LayerMaker::new(&context);
    record.snapshot.layers.iter().map(|layer| maker.ensure_diff_id(layer)).collect()
}
