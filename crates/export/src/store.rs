//! `-t`: names for a result in the own store. Nothing is tarred or hashed: the image is its layers and its lowered
//! config, and documents are made when somebody asks for them.

use rbuild_oci::{ImageConfig, Platform, Reference};
use rbuild_ports::{ErrorKind, ImageRecord, PortError, Result};

use crate::{BuiltImage, ExportContext};

/// Gives the image these names. Of several platforms the one that runs here is taken.
pub(crate) fn put(
    cx: &ExportContext<'_>,
    images: &[BuiltImage],
    names: &[Reference],
    manifest: Option<rbuild_digest::Digest>,
) -> Result<()> {
    let host = Platform::host();
    let best = images.iter().min_by_key(|image| image.platform.serves(&host).unwrap_or(u32::MAX));
    let Some(image) = best else { return Ok(()) };
    let config = lowered_config(&image.config)?;
    for name in names {
        let name = name.clone().with_default_tag().to_string();
        cx.index.put_image(&ImageRecord {
            name: name.clone(),
            config: config.clone(),
            snapshot: image.snapshot.clone(),
            platform: image.platform.to_string(),
            created: cx.clock.now(),
            manifest,
        })?;
        cx.progress.status(&format!("naming to {name}"), 1, Some(1), true);
    }
    Ok(())
}

fn lowered_config(config: &ImageConfig) -> Result<String> {
    let unserializable = |error: serde_json::Error| PortError::new(ErrorKind::Internal, error.to_string());
    let mut value = serde_json::to_value(config).map_err(unserializable)?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("rootfs");
    }
    serde_json::to_string(&value).map_err(unserializable)
}
