//! An imported cache as an index in memory: which records a query matches, and what their results are. Answers from
//! memory alone, in time that depends on the question and not on the cache.

use std::collections::{BTreeSet, HashMap};

use rbuild_digest::Digest;
use rbuild_oci::Descriptor;

use crate::config::{CacheConfig, nanos};
use crate::manifest::{CREATED_AT, diff_id, is_layer};

/// A cache that was read.
#[derive(Debug, Default)]
pub struct Imported {
    config: CacheConfig,
    layers: HashMap<Digest, ImportedLayer>,
    /// Records without inputs.
    roots: HashMap<Digest, usize>,
    /// Where a link leads: from a record, as which input, to which digest, by which selector.
    links: HashMap<(usize, usize, Digest, Option<Digest>), Vec<usize>>,
}

/// A layer of an imported cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImportedLayer {
    /// Its blob.
    pub descriptor: Descriptor,
    /// Digest of its tar, as the cache says.
    pub diff_id: Digest,
    /// When it was made; 0 when that is not known.
    pub created: i64,
}

/// A result of an imported record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImportedResult {
    /// From the bottom up.
    pub layers: Vec<ImportedLayer>,
    /// When it was made; 0 when that is not known.
    pub created: i64,
}

/// A record that was found, by its position.
pub type Found = usize;

/// One way into an input of a query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// A record that was found before.
    Record(Found, Option<Digest>),
    /// A root: a source's key, or a content key.
    Root(Digest, Option<Digest>),
}

impl Imported {
    /// From a config and the descriptors of its layers.
    #[must_use]
    pub fn new(config: CacheConfig, descriptors: &[Descriptor]) -> Self {
        let layers = descriptors.iter().filter(|layer| is_layer(layer)).filter_map(|layer| {
            let created = layer.annotations.get(CREATED_AT).map_or(0, |text| nanos(text));
            let known = ImportedLayer { descriptor: layer.clone(), diff_id: diff_id(layer)?, created };
            Some((layer.digest, known))
        });
        Self::with_layers(config, layers.collect())
    }

    /// From the records inside an image config, on the image's layers.
    #[must_use]
    pub fn of_image(config: CacheConfig, layers: Vec<ImportedLayer>) -> Self {
        let usable = layers.into_iter().filter(|layer| is_layer(&layer.descriptor));
        Self::with_layers(config, usable.map(|layer| (layer.descriptor.digest, layer)).collect())
    }

    fn with_layers(config: CacheConfig, layers: HashMap<Digest, ImportedLayer>) -> Self {
        let mut out = Self { layers, ..Self::default() };
        for (at, record) in config.records.iter().enumerate() {
            let Some(digest) = record.digest else { continue };
            if record.inputs.is_empty() {
                out.roots.entry(digest).or_insert(at);
            }
            for (input, links) in record.inputs.iter().enumerate() {
                for link in links {
                    out.links.entry((link.record, input, digest, link.selector)).or_default().push(at);
                }
            }
        }
        Self { config, ..out }
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.config.records.len()
    }

    /// Names of all records that have inputs.
    pub fn operations(&self) -> impl Iterator<Item = Digest> + '_ {
        self.config
            .records
            .iter()
            .filter(|record| !record.inputs.is_empty())
            .filter_map(|record| record.digest)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.config.records.is_empty()
    }

    /// The records of `digest` (`sha256(<operation>@<output>)`) that for every input one of its ways leads to; without
    /// inputs the root.
    #[must_use]
    pub fn probe(&self, digest: &Digest, inputs: &[Vec<Way>]) -> Vec<Found> {
        if inputs.is_empty() {
            return self.roots.get(digest).copied().into_iter().collect();
        }
        let mut common: Option<BTreeSet<usize>> = None;
        for (input, ways) in inputs.iter().enumerate() {
            let mut here = BTreeSet::new();
            for way in ways {
                let (from, selector) = match way {
                    Way::Record(record, selector) => (Some(*record), *selector),
                    Way::Root(root, selector) => (self.roots.get(root).copied(), *selector),
                };
                let Some(from) = from else { continue };
                here.extend(self.links.get(&(from, input, *digest, selector)).into_iter().flatten());
            }
            if let Some(before) = &common {
                here.retain(|record| before.contains(record));
            }
            if here.is_empty() {
                return vec![];
            }
            common = Some(here);
        }
        // Links for every input of the query do not mean that the record has no more inputs.
        let fits =
            |at: &usize| self.config.records.get(*at).is_some_and(|it| it.inputs.len() == inputs.len());
        common.unwrap_or_default().into_iter().filter(fits).collect()
    }

    /// The roots that lead to a record directly, for each of its inputs with their selectors: other names of the same
    /// input, such as its content.
    #[must_use]
    pub fn roots_of(&self, record: Found) -> Vec<Vec<(Digest, Option<Digest>)>> {
        let Some(record) = self.config.records.get(record) else { return vec![] };
        let roots = |links: &Vec<crate::Link>| {
            let root = |link: &crate::Link| {
                let from = self.config.records.get(link.record)?;
                Some((from.digest.filter(|_| from.inputs.is_empty())?, link.selector))
            };
            links.iter().filter_map(root).collect()
        };
        record.inputs.iter().map(roots).collect()
    }

    /// A record's results whose layers are all known, the newest first.
    #[must_use]
    pub fn results(&self, record: Found) -> Vec<ImportedResult> {
        let Some(record) = self.config.records.get(record) else { return vec![] };
        let usable = |result: &crate::RecordResult| {
            let blobs = self.config.blobs(result)?;
            let layers = blobs.iter().map(|blob| self.layers.get(blob).cloned()).collect::<Option<_>>()?;
            Some(ImportedResult { layers, created: result.created })
        };
        let mut out: Vec<ImportedResult> = record.results.iter().filter_map(usable).collect();
        out.sort_by_key(|result| std::cmp::Reverse(result.created));
        out
    }
}
