//! What the store holds and what it costs, for people.

use rbuild_ports::{CommittedLayer, Result, Timestamp};
use std::fmt;

use crate::Index;
use crate::facts::Facts;
use crate::format::count;

/// What a row is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum UsageKind {
    /// A layer: its directory and its blobs.
    Layer,
    /// A blob of no layer: a manifest, a config.
    Blob,
    /// A cache mount.
    CacheMount,
}

impl fmt::Display for UsageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Layer => "layer",
            Self::Blob => "blob",
            Self::CacheMount => "cache mount",
        })
    }
}

/// Something that takes space.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UsageRow {
    /// Layer id, digest, or the cache mount's id.
    pub id: String,
    /// What it is.
    pub kind: UsageKind,
    /// The step that made it, or the images that have it.
    pub description: String,
    /// Bytes on the disk.
    pub size: u64,
    /// Whether a named image has it.
    pub shared: bool,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// When it was last the answer to a lookup.
    pub last_used: Option<Timestamp>,
    /// How often.
    pub use_count: u64,
    /// Whether a live build uses it.
    pub in_use: bool,
}

impl UsageKind {
    /// BuildKit's word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        crate::filter::kind_word(self)
    }
}

impl Index {
    /// Entries and bytes of all layers that were seen full.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn layer_counts(&self) -> Result<Vec<CommittedLayer>> {
        self.heal(|| {
            self.db.read(|db| {
                let sql = "SELECT name, entries, bytes FROM layers WHERE entries > 0 ORDER BY id DESC";
                let mut statement = db.prepare_cached(sql)?;
                let mut rows = statement.query([])?;
                let mut out = vec![];
                while let Some(row) = rows.next()? {
                    // A name that is none is for a check to find.
                    let Ok(layer) = row.get::<_, String>(0)?.parse() else { continue };
                    out.push(CommittedLayer {
                        layer,
                        entries: count(row.get(1)?),
                        bytes: count(row.get(2)?),
                        stamp: 0,
                    });
                }
                Ok(out)
            })
        })
    }

    /// All that takes space: layers in the order they were made, then blobs, then cache mounts.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn usage(&self) -> Result<Vec<UsageRow>> {
        Ok(rows(&self.heal(|| self.facts())?))
    }
}

/// One row for every layer, blob and cache mount.
pub(crate) fn rows(facts: &Facts) -> Vec<UsageRow> {
    let mut out = layer_rows(facts);
    out.extend((0..facts.blobs.len()).filter_map(|at| blob_row(facts, at)));
    out.extend((0..facts.mounts.len()).filter_map(|at| mount_row(facts, at)));
    out
}

pub(crate) fn blob_row(facts: &Facts, at: usize) -> Option<UsageRow> {
    let (blob, pinned) = facts.blobs.get(at)?;
    Some(UsageRow {
        id: blob.digest.to_string(),
        kind: UsageKind::Blob,
        description: "blob of no layer".to_owned(),
        size: blob.size,
        shared: false,
        created: None,
        last_used: Some(blob.used),
        use_count: 0,
        in_use: *pinned,
    })
}

pub(crate) fn mount_row(facts: &Facts, at: usize) -> Option<UsageRow> {
    let mount = facts.mounts.get(at)?;
    Some(UsageRow {
        id: mount.id.clone(),
        kind: UsageKind::CacheMount,
        description: format!("cache mount {}", mount.id),
        size: mount.bytes,
        shared: false,
        created: None,
        last_used: Some(mount.last_used),
        use_count: 0,
        in_use: mount.in_use,
    })
}

/// The rows of all layers, in their order. A layer is named after the newest record it is the top of; it is used whenever
/// a record that has it is.
pub(crate) fn layer_rows(facts: &Facts) -> Vec<UsageRow> {
    let plain = |layer: &crate::facts::LayerFact| UsageRow {
        id: layer.id.to_string(),
        kind: UsageKind::Layer,
        description: match &layer.place {
            Some(place) if layer.images.is_empty() => format!("layer of {place}"),
            _ => layer.images.join(", "),
        },
        size: layer.bytes,
        shared: !layer.images.is_empty(),
        created: Some(Timestamp(layer.created)),
        last_used: None,
        use_count: 0,
        in_use: layer.pinned,
    };
    let mut out: Vec<UsageRow> = facts.layers.iter().map(plain).collect();
    let mut named = vec![i64::MIN; out.len()];
    for stack in &facts.stacks {
        for layer in &stack.layers {
            if let Some(row) = out.get_mut(*layer) {
                row.last_used = row.last_used.max(Some(Timestamp(stack.last_used())));
            }
        }
        let Some(top) = stack.layers.last() else { continue };
        if let (Some(row), Some(named)) = (out.get_mut(*top), named.get_mut(*top)) {
            row.use_count += stack.uses();
            if stack.created() >= *named {
                *named = stack.created();
                stack.description().clone_into(&mut row.description);
            }
        }
    }
    out
}
