//! The inline cache: records inside an image config (`moby.buildkit.cache.v0`), whose layers are the image's own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rbuild_digest::Digest;

use crate::config::{
    CacheConfig, ConfigError, Layer, RecordResult, ResultLayers, parse_records, records_json,
};

/// The records of an image config's field (base64), on the image's layers from the bottom up.
///
/// # Errors
/// If the field is no base64 or no list of records.
pub fn inline_config(field: &str, blobs: &[Digest]) -> Result<CacheConfig, ConfigError> {
    let records = parse_records(&STANDARD.decode(field)?)?;
    let layers =
        blobs.iter().enumerate().map(|(at, blob)| Layer { blob: Some(*blob), parent: at.checked_sub(1) });
    Ok(CacheConfig { layers: layers.collect(), records })
}

/// What an image config gets (base64): all records, with those results whose layers are the image's. `None` when there are
/// none.
#[must_use]
pub fn inline_records(config: &CacheConfig, image: &[Digest]) -> Option<String> {
    let mut records = config.records.clone();
    let mut any = false;
    for (record, from) in records.iter_mut().zip(&config.records) {
        record.results = from.results.iter().filter_map(|result| on_image(config, result, image)).collect();
        any |= !record.results.is_empty();
    }
    any.then(|| STANDARD.encode(records_json(&records)))
}

/// The lower layers of an image are named by the topmost; others one by one, as BuildKit does without their time.
fn on_image(config: &CacheConfig, result: &RecordResult, image: &[Digest]) -> Option<RecordResult> {
    let blobs = config.blobs(result)?;
    if image.starts_with(&blobs) {
        return Some(RecordResult { layers: ResultLayers::Top(blobs.len() - 1), created: result.created });
    }
    let places: Option<Vec<usize>> =
        blobs.iter().map(|blob| image.iter().position(|layer| layer == blob)).collect();
    Some(RecordResult { layers: ResultLayers::List(places?), created: 0 })
}
