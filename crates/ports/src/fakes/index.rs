//! The index in memory: the algebra and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rbuild_digest::Digest;

use crate::{
    CacheIndex, ErrorKind, ImageRecord, KeyId, KeyQuery, LayerId, LayerRow, NewRecord, PortError, Record,
    Result,
};

type Link = (KeyId, usize, u32, Digest, Option<Digest>);

#[derive(Debug, Default)]
struct State {
    keys: BTreeSet<KeyId>,
    links: BTreeMap<Link, BTreeSet<KeyId>>,
    records: Vec<Record>,
    layers: BTreeMap<LayerId, LayerRow>,
    images: BTreeMap<String, ImageRecord>,
    notes: BTreeMap<String, String>,
    next: i64,
}

/// Keys, links and records in memory. It refuses queries with an input that has no alternatives.
#[derive(Debug, Default)]
pub struct MemoryIndex(Mutex<State>);

impl MemoryIndex {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Drops the records whose description `doomed` says, keeping keys and links, as garbage collection does.
    pub fn prune(&self, doomed: impl Fn(&str) -> bool) {
        self.state().records.retain(|record| !doomed(&record.description));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&self, query: &KeyQuery) -> Result<Vec<KeyId>> {
        if query.inputs.is_empty() {
            let root = root(query);
            return Ok(if self.keys.contains(&root) { vec![root] } else { vec![] });
        }
        let mut common: Option<BTreeSet<KeyId>> = None;
        for (input, alternatives) in query.inputs.iter().enumerate() {
            if alternatives.is_empty() {
                return Err(PortError::new(
                    ErrorKind::Internal,
                    format!("input {input} of a query has no alternatives"),
                ));
            }
            let mut here = BTreeSet::new();
            for alternative in alternatives {
                let link = (alternative.key.clone(), input, query.output, query.op, alternative.selector);
                here.extend(self.links.get(&link).into_iter().flatten().cloned());
            }
            common = Some(match common {
                None => here,
                Some(before) => before.intersection(&here).cloned().collect(),
            });
        }
        Ok(common.unwrap_or_default().into_iter().collect())
    }
}

fn root(query: &KeyQuery) -> KeyId {
    KeyId::root(&Digest::of(format!("{}@{}", query.op, query.output)))
}

impl CacheIndex for MemoryIndex {
    fn probe(&self, query: &KeyQuery) -> Result<Vec<KeyId>> {
        self.state().find(query)
    }

    fn records(&self, keys: &[KeyId]) -> Result<Vec<Record>> {
        let mut found: Vec<Record> =
            self.state().records.iter().filter(|record| keys.contains(&record.key)).cloned().collect();
        found.sort_by_key(|record| std::cmp::Reverse((record.created, record.id)));
        Ok(found)
    }

    fn save(&self, query: &KeyQuery, record: Option<&NewRecord>) -> Result<KeyId> {
        let mut state = self.state();
        let key = match state.find(query)?.into_iter().next() {
            Some(key) => key,
            None if query.inputs.is_empty() => root(query),
            None => {
                state.next += 1;
                KeyId(format!("key{}", state.next).into())
            }
        };
        state.keys.insert(key.clone());
        for (input, alternatives) in query.inputs.iter().enumerate() {
            for alternative in alternatives {
                state.keys.insert(alternative.key.clone());
                let link = (alternative.key.clone(), input, query.output, query.op, alternative.selector);
                state.links.entry(link).or_default().insert(key.clone());
            }
        }
        if let Some(new) = record {
            state.next += 1;
            let id = state.next;
            let (snapshot, description) = (new.snapshot.clone(), new.description.clone());
            state.records.push(Record {
                id,
                key: key.clone(),
                snapshot,
                created: new.created,
                description,
                cost_ms: new.cost_ms,
                kind: new.kind,
            });
        }
        Ok(key)
    }

    fn forget(&self, record: i64) -> Result<()> {
        self.state().records.retain(|it| it.id != record);
        Ok(())
    }

    fn layer(&self, layer: &LayerId) -> Result<Option<LayerRow>> {
        Ok(self.state().layers.get(layer).cloned())
    }

    fn put_layer(&self, row: &LayerRow) -> Result<()> {
        let mut state = self.state();
        let id = row.layer.layer.clone();
        match state.layers.get_mut(&id) {
            None => {
                state.layers.insert(id, row.clone());
            }
            Some(known) => {
                if row.layer.entries > 0 {
                    known.layer = row.layer.clone();
                }
                known.diff_id = known.diff_id.or(row.diff_id);
                known.blobs.extend(
                    row.blobs.iter().filter(|blob| !known.blobs.contains(blob)).cloned().collect::<Vec<_>>(),
                );
                known.remotes.extend(
                    row.remotes.iter().filter(|it| !known.remotes.contains(it)).cloned().collect::<Vec<_>>(),
                );
            }
        }
        Ok(())
    }

    fn image(&self, name: &str) -> Result<Option<ImageRecord>> {
        Ok(self.state().images.get(name).cloned())
    }

    fn images(&self) -> Result<Vec<ImageRecord>> {
        Ok(self.state().images.values().cloned().collect())
    }

    fn put_image(&self, image: &ImageRecord) -> Result<()> {
        self.state().images.insert(image.name.clone(), image.clone());
        Ok(())
    }

    fn note(&self, name: &str) -> Result<Option<String>> {
        Ok(self.state().notes.get(name).cloned())
    }

    fn put_note(&self, name: &str, value: &str) -> Result<()> {
        self.state().notes.insert(name.to_owned(), value.to_owned());
        Ok(())
    }
}
