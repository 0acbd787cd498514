//! What stays of a cache when another build is exported to the same place: results that others exported not long ago,
//! the latest first, up to a size. BuildKit would overwrite it.

use std::collections::{BTreeMap, BTreeSet};

use rbuild_digest::Digest;
use rbuild_oci::{Descriptor, rfc3339};
use rbuild_ports::Timestamp;

use rbuild_cache_remote::CREATED_AT;

use crate::ExistingCache;

/// Annotation of a layer: the day on which a build that needs it was exported last.
pub(crate) const EXPORTED_AT: &str = "rbuild/exportedat";
/// Results that nobody has exported for so many days go.
const KEEP_DAYS: i64 = 14;
/// Layers of others may always have this size together,
const KEEP_BYTES: u64 = 1 << 30;
/// or so many times what this build exports.
const KEEP_TIMES: u64 = 4;
const DAY: i64 = 86_400;

/// Results of an existing cache that may stay.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The latest first: blobs from the bottom up.
    results: Vec<Vec<Digest>>,
    layers: BTreeMap<Digest, Descriptor>,
}

impl Kept {
    /// Chooses from `existing`, beside the `own` layers of this export.
    pub(crate) fn choose(existing: &ExistingCache, own: &[Descriptor], now: Timestamp) -> Self {
        let layers: BTreeMap<Digest, Descriptor> =
            existing.layers.iter().map(|layer| (layer.digest, layer.clone())).collect();
        let exported = |blob: &Digest| layers.get(blob).map_or(i64::MIN, last_export);
        let mut results: Vec<(i64, Vec<Digest>)> = existing
            .config
            .records
            .iter()
            .flat_map(|record| &record.results)
            .filter_map(|result| existing.config.blobs(result))
            .map(|blobs| (blobs.iter().map(exported).min().unwrap_or(i64::MIN), blobs))
            .filter(|(at, _)| *at > oldest(now))
            .collect();
        results.sort_by(|a, b| b.cmp(a));
        results.dedup();
        let mut have: BTreeSet<Digest> = own.iter().map(|layer| layer.digest).collect();
        let limit =
            KEEP_BYTES.max(own.iter().map(|layer| layer.size).sum::<u64>().saturating_mul(KEEP_TIMES));
        let mut bytes = 0u64;
        results.retain(|(_, blobs)| {
            let new = blobs.iter().filter(|blob| !have.contains(blob));
            let size = new.filter_map(|blob| layers.get(blob)).map(|layer| layer.size).sum::<u64>();
            let fits = bytes.saturating_add(size) <= limit;
            if fits {
                bytes += size;
                have.extend(blobs);
            }
            fits
        });
        Self { results: results.into_iter().map(|(_, blobs)| blobs).collect(), layers }
    }

    /// All layers of what stays.
    pub(crate) fn layers(&self) -> Vec<Descriptor> {
        let blobs: BTreeSet<&Digest> = self.results.iter().flatten().collect();
        blobs.into_iter().filter_map(|blob| self.layers.get(blob).cloned()).collect()
    }

    /// Without the results that need one of `gone`.
    pub(crate) fn without(&mut self, gone: &BTreeSet<Digest>) {
        self.results.retain(|blobs| !blobs.iter().any(|blob| gone.contains(blob)));
    }

    /// Only the later half.
    pub(crate) fn halve(&mut self) {
        self.results.truncate(self.results.len() / 2);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    pub(crate) fn has(&self, blobs: &[Digest]) -> bool {
        self.results.iter().any(|kept| kept == blobs)
    }
}

/// Whether something that was exported on this day still counts.
pub(crate) fn is_recent(exported: &str, now: Timestamp) -> bool {
    let nanos = rfc3339::parse(exported).and_then(|nanos| i64::try_from(nanos).ok());
    nanos.is_some_and(|nanos| nanos > oldest(now))
}

fn oldest(now: Timestamp) -> i64 {
    now.0.saturating_sub(KEEP_DAYS * DAY * 1_000_000_000)
}

/// When a build that needs the layer was exported last, as far as it is known.
fn last_export(layer: &Descriptor) -> i64 {
    let time = layer.annotations.get(EXPORTED_AT).or_else(|| layer.annotations.get(CREATED_AT));
    let nanos = time.and_then(|text| rfc3339::parse(text)).and_then(|nanos| i64::try_from(nanos).ok());
    nanos.unwrap_or(i64::MIN)
}

/// Today, as the annotation has it: two exports of a day write the same.
pub(crate) fn today(now: Timestamp) -> String {
    rfc3339::format_secs(now.0.div_euclid(DAY * 1_000_000_000) * DAY)
}
