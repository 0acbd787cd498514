//! The index of a build with imports: what is local is answered from there alone; only what it does not know is looked up in
//! the imports. A hit there becomes a local record, with the keys that lead to it and its own time, whose layers
//! are fetched when something reads them. Keys of imports have names of their own and never reach the local index.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rbuild_cache_remote::{Found, ImportedResult, Way};
use rbuild_digest::Digest;
use rbuild_oci::Descriptor;
use rbuild_ports::{
    Alternative, CacheIndex, Clock, CommittedLayer, ImageRecord, KeyId, KeyQuery, LayerId, LayerRow,
    NewRecord, Record, RecordKind, RemoteBlob, Result, Snapshot, Timestamp,
};

use crate::steps::record_digest;
use crate::{ImportedCache, Imports};

/// Before the cache's and the record's position in the name of an import's key. No local key begins so.
const PREFIX: &str = "import:";

/// A record of an import: which cache, which record.
type Place = (usize, Found);

/// A local index and imports as one.
pub struct CombinedIndex {
    local: Arc<dyn CacheIndex>,
    imports: Imports,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    watch: Option<Watch>,
}

/// Told of every result that is saved or found.
type Watch = Arc<dyn Fn(&Snapshot) + Send + Sync>;

#[derive(Default)]
struct State {
    /// How each key was found first: what leads to it here may lead to it elsewhere.
    reached: HashMap<KeyId, KeyQuery>,
    /// What a key is in the imports.
    places: HashMap<KeyId, Vec<Place>>,
    /// What a record of an import is locally.
    saved: HashMap<Place, KeyId>,
    /// Where local records came from.
    origins: HashMap<i64, (Place, Snapshot)>,
    /// Results that turned out to be gone.
    bad: HashSet<(Place, Snapshot)>,
    /// Layers that the local index was told of.
    layers: HashSet<LayerId>,
    /// Operations of this build by their digests: what records of them are for, and their preimages.
    steps: HashMap<Digest, (String, String)>,
}

impl CombinedIndex {
    /// `local` with `imports`.
    #[must_use]
    pub fn new(local: Arc<dyn CacheIndex>, imports: Imports, clock: Arc<dyn Clock>) -> Self {
        Self { local, imports, clock, state: Mutex::default(), watch: None }
    }

    /// The same, where `watch` is told of every result that is saved or found.
    #[must_use]
    pub fn watched(self, watch: Watch) -> Self {
        Self { watch: Some(watch), ..self }
    }

    /// Says what the operations of this build are for, and their keys' preimages, which no exported cache says: records that
    /// are hit have them as those that were made here.
    pub fn describe(&self, steps: impl IntoIterator<Item = (Digest, String, String)>) {
        let steps = steps.into_iter().map(|(op, name, preimage)| (op, (name, preimage)));
        self.state().steps.extend(steps);
    }

    /// All caches, once they are read.
    #[must_use]
    pub(crate) fn caches(&self) -> Vec<Arc<ImportedCache>> {
        self.imports.wait()
    }

    /// The name in the local index of a key that a lookup or a build gave.
    ///
    /// # Errors
    /// If the local index cannot be written.
    pub fn local_key(&self, key: &KeyId) -> Result<KeyId> {
        match place_of(key) {
            Some(place) => self.save_place(place, None),
            None => Ok(key.clone()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The query with those alternatives that the local index can know; `None` when an input has none.
    fn local_query(&self, query: &KeyQuery) -> Option<KeyQuery> {
        let state = self.state();
        let local = |alternative: &Alternative| {
            let key = match place_of(&alternative.key) {
                Some(place) => state.saved.get(&place)?.clone(),
                None => alternative.key.clone(),
            };
            Some(Alternative { key, ..alternative.clone() })
        };
        let inputs: Vec<Vec<Alternative>> =
            query.inputs.iter().map(|input| input.iter().filter_map(local).collect()).collect();
        (!inputs.iter().any(Vec::is_empty)).then(|| KeyQuery { inputs, ..query.clone() })
    }

    /// The query with keys of imports as local ones, which are made if need be.
    fn saving_query(&self, query: &KeyQuery) -> Result<KeyQuery> {
        let unsaved = self.inputs_first(query, &|state, key| {
            place_of(key).is_none_or(|place| state.saved.contains_key(&place))
        });
        for place in unsaved.iter().filter_map(place_of) {
            self.save_place(place, None)?;
        }
        let mut out = query.clone();
        let state = self.state();
        for alternative in out.inputs.iter_mut().flatten() {
            let saved = place_of(&alternative.key).and_then(|place| state.saved.get(&place));
            alternative.key = saved.unwrap_or(&alternative.key).clone();
        }
        Ok(out)
    }

    /// The keys that lead to a query and are not `done`, those that lead to others before these. Without recursion:
    /// stages may have any number of steps.
    fn inputs_first(&self, query: &KeyQuery, done: &dyn Fn(&State, &KeyId) -> bool) -> Vec<KeyId> {
        let state = self.state();
        let of = |query: &KeyQuery| -> Vec<(KeyId, bool)> {
            query.inputs.iter().flatten().map(|alternative| (alternative.key.clone(), false)).collect()
        };
        let (mut out, mut seen, mut path) = (vec![], HashSet::new(), of(query));
        while let Some((key, visited)) = path.pop() {
            if visited {
                out.push(key);
            } else if !done(&state, &key) && seen.insert(key.clone()) {
                path.push((key.clone(), true));
                path.extend(state.reached.get(&key).map(of).unwrap_or_default());
            }
        }
        out
    }

    fn reached(&self, keys: &[KeyId], query: &KeyQuery) {
        let mut state = self.state();
        for key in keys {
            state.reached.entry(key.clone()).or_insert_with(|| query.clone());
        }
    }

    /// Records of imports that a query matches.
    fn probe_imports(&self, caches: &[Arc<ImportedCache>], query: &KeyQuery) -> Vec<Place> {
        let unknown = self.inputs_first(query, &|state, key| {
            state.places.contains_key(key) || key.0.parse::<Digest>().is_ok()
        });
        for key in unknown {
            let mut places: Vec<Place> = place_of(&key).into_iter().collect();
            let reached = self.state().reached.get(&key).cloned();
            places.extend(reached.map(|query| self.lookup(caches, &query)).unwrap_or_default());
            places.sort_unstable();
            places.dedup();
            self.state().places.insert(key, places);
        }
        self.lookup(caches, query)
    }

    /// The same, where all inputs' keys were looked up before.
    fn lookup(&self, caches: &[Arc<ImportedCache>], query: &KeyQuery) -> Vec<Place> {
        let digest = record_digest(&query.op, query.output);
        let inputs: Vec<Vec<(Known, Option<Digest>)>> = {
            let state = self.state();
            let known = |key: &KeyId| match key.0.parse() {
                Ok(root) => Known::Root(root),
                Err(_) => Known::Places(state.places.get(key).cloned().unwrap_or_default()),
            };
            let input =
                |input: &Vec<Alternative>| input.iter().map(|it| (known(&it.key), it.selector)).collect();
            query.inputs.iter().map(input).collect()
        };
        let mut out = vec![];
        for (cache, imported) in caches.iter().enumerate() {
            let ways: Vec<Vec<Way>> = inputs
                .iter()
                .map(|input| input.iter().flat_map(|(it, selector)| it.ways(cache, *selector)).collect())
                .collect();
            let found = imported.imported.probe(&digest, &ways);
            out.extend(found.into_iter().map(|found| (cache, found)));
        }
        out
    }

    /// Makes a record of an import one of the local index, with the keys that lead to it.
    fn save_place(&self, place: Place, record: Option<&NewRecord>) -> Result<KeyId> {
        let key = key_of(place);
        let query = {
            let state = self.state();
            match state.saved.get(&place) {
                Some(saved) if record.is_none() => return Ok(saved.clone()),
                _ => state.reached.get(&key).cloned(),
            }
        };
        // Nobody can have the key without having asked for it.
        let Some(query) = query else { return Ok(key) };
        let mut query = self.saving_query(&query)?;
        let caches = self.imports.wait();
        if let Some(cache) = caches.get(place.0) {
            for (input, roots) in query.inputs.iter_mut().zip(cache.imported.roots_of(place.1)) {
                for (root, selector) in roots {
                    let alternative = Alternative { key: KeyId::root(&root), selector };
                    if !input.contains(&alternative) {
                        input.push(alternative);
                    }
                }
            }
        }
        let saved = self.local.save(&query, record)?;
        self.state().saved.insert(place, saved.clone());
        Ok(saved)
    }

    /// Makes the newest result of `places` that is still good a local record.
    fn adopt(&self, places: &[Place]) -> Result<Vec<Record>> {
        let caches = self.imports.wait();
        let mut offers: Vec<(Place, ImportedResult)> = vec![];
        for place in places {
            let Some(cache) = caches.get(place.0) else { continue };
            offers.extend(cache.imported.results(place.1).into_iter().map(|result| (*place, result)));
        }
        offers.sort_by_key(|(place, result)| (std::cmp::Reverse(result.created), *place));
        for (place, result) in offers {
            let layers = result.layers.iter().map(|layer| LayerId::of_diff_id(&layer.diff_id)).collect();
            let snapshot = Snapshot { layers };
            let Some(cache) = caches.get(place.0) else { continue };
            if self.state().bad.contains(&(place, snapshot.clone())) {
                continue;
            }
            self.put_layers(cache, &result)?;
            let (description, preimage) = self
                .step_of(place)
                .unwrap_or_else(|| (format!("imported from {}", cache.name), String::new()));
            let created = if result.created == 0 { self.clock.now() } else { Timestamp(result.created) };
            let record = NewRecord {
                snapshot: snapshot.clone(),
                created,
                description,
                cost_ms: 0,
                kind: RecordKind::Imported,
                preimage,
            };
            let key = self.save_place(place, Some(&record))?;
            let found = self.local.records(&[key])?;
            if !found.is_empty() {
                let mut state = self.state();
                let same = found.iter().filter(|record| record.snapshot == snapshot);
                state.origins.extend(same.map(|record| (record.id, (place, snapshot.clone()))));
                return Ok(found);
            }
        }
        Ok(vec![])
    }

    fn step_of(&self, place: Place) -> Option<(String, String)> {
        let state = self.state();
        state.steps.get(&state.reached.get(&key_of(place))?.op).cloned()
    }

    /// Tells the local index where the layers of a result are.
    fn put_layers(&self, cache: &ImportedCache, result: &ImportedResult) -> Result<()> {
        for layer in &result.layers {
            let id = LayerId::of_diff_id(&layer.diff_id);
            if self.state().layers.contains(&id) {
                continue;
            }
            // Nothing else that a foreign document says is kept.
            let Descriptor { media_type, digest, size, .. } = &layer.descriptor;
            let descriptor = Descriptor::new(media_type.clone(), *digest, *size);
            let remote = RemoteBlob { location: cache.location.clone(), descriptor };
            if !self.local.layer(&id)?.is_some_and(|row| row.remotes.contains(&remote)) {
                let created = if layer.created == 0 { result.created } else { layer.created };
                self.local.put_layer(&LayerRow {
                    layer: CommittedLayer::unseen(id.clone()),
                    diff_id: Some(layer.diff_id),
                    blobs: vec![],
                    remotes: vec![remote],
                    created: Timestamp(created),
                })?;
            }
            self.state().layers.insert(id);
        }
        Ok(())
    }
}

/// What a key is in the imports.
enum Known {
    /// The same everywhere.
    Root(Digest),
    /// These records.
    Places(Vec<Place>),
}

impl Known {
    fn ways(&self, cache: usize, selector: Option<Digest>) -> Vec<Way> {
        match self {
            Self::Root(root) => vec![Way::Root(*root, selector)],
            Self::Places(places) => {
                let here = places.iter().filter(|place| place.0 == cache);
                here.map(|place| Way::Record(place.1, selector)).collect()
            }
        }
    }
}

fn key_of(place: Place) -> KeyId {
    KeyId(format!("{PREFIX}{}:{}", place.0, place.1).into())
}

fn place_of(key: &KeyId) -> Option<Place> {
    let (cache, record) = key.0.strip_prefix(PREFIX)?.split_once(':')?;
    Some((cache.parse().ok()?, record.parse().ok()?))
}

impl CacheIndex for CombinedIndex {
    fn probe(&self, query: &KeyQuery) -> Result<Vec<KeyId>> {
        let mut keys = match self.local_query(query) {
            Some(local) => self.local.probe(&local)?,
            None => vec![],
        };
        self.reached(&keys, query);
        if !keys.is_empty() && !self.local.records(&keys)?.is_empty() {
            return Ok(keys);
        }
        let caches = self.imports.wait();
        let found: Vec<KeyId> = self.probe_imports(&caches, query).into_iter().map(key_of).collect();
        self.reached(&found, query);
        keys.extend(found);
        Ok(keys)
    }

    fn records(&self, keys: &[KeyId]) -> Result<Vec<Record>> {
        let (mut local, mut places) = (vec![], vec![]);
        {
            let state = self.state();
            for key in keys {
                match place_of(key) {
                    None => local.push(key.clone()),
                    Some(place) => {
                        local.extend(state.saved.get(&place).cloned());
                        places.push(place);
                    }
                }
            }
        }
        let found = self.local.records(&local)?;
        if !found.is_empty() || places.is_empty() {
            if let (Some(watch), Some(record)) = (&self.watch, found.first()) {
                watch(&record.snapshot);
            }
            return Ok(found);
        }
        self.adopt(&places)
    }

    fn save(&self, query: &KeyQuery, record: Option<&NewRecord>) -> Result<KeyId> {
        let key = self.local.save(&self.saving_query(query)?, record)?;
        self.reached(std::slice::from_ref(&key), query);
        if let (Some(watch), Some(record)) = (&self.watch, record) {
            watch(&record.snapshot);
        }
        Ok(key)
    }

    fn forget(&self, record: i64) -> Result<()> {
        {
            let mut state = self.state();
            if let Some(origin) = state.origins.remove(&record) {
                state.bad.insert(origin);
            }
        }
        self.local.forget(record)
    }

    fn layer(&self, layer: &LayerId) -> Result<Option<LayerRow>> {
        self.local.layer(layer)
    }

    fn put_layer(&self, row: &LayerRow) -> Result<()> {
        self.local.put_layer(row)
    }

    fn image(&self, name: &str) -> Result<Option<ImageRecord>> {
        self.local.image(name)
    }

    fn images(&self) -> Result<Vec<ImageRecord>> {
        self.local.images()
    }

    fn put_image(&self, image: &ImageRecord) -> Result<()> {
        self.local.put_image(image)
    }

    fn note(&self, name: &str) -> Result<Option<String>> {
        self.local.note(name)
    }

    fn put_note(&self, name: &str, value: &str) -> Result<()> {
        self.local.put_note(name, value)
    }
}
