//! All that usage and garbage collection decide by, read in one go: plain values with indices between them.

use std::collections::{BTreeMap, HashMap, HashSet};

use rbuild_digest::Digest;
use rbuild_ports::{CacheMountInfo, LayerId, RecordKind};
use rbuild_store::{BlobInfo, Pin};
use rusqlite::Connection;

use crate::Index;
use crate::fault::{Fault, Outcome};
use crate::format::{count, digest, kind};

/// What is in the store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) now: i64,
    /// Bytes free on the file system.
    pub(crate) free: u64,
    pub(crate) layers: Vec<LayerFact>,
    pub(crate) stacks: Vec<Stack>,
    /// Blobs of no layer: manifests, configs, and what a crash left.
    pub(crate) blobs: Vec<(BlobInfo, bool)>,
    pub(crate) mounts: Vec<CacheMountInfo>,
}

/// A layer and its blobs.
#[derive(Clone, Debug)]
pub(crate) struct LayerFact {
    pub(crate) row: i64,
    pub(crate) id: LayerId,
    /// Of its directory and of its blobs; a blob of several layers counts for the first.
    pub(crate) bytes: u64,
    pub(crate) created: i64,
    /// Named images that have it.
    pub(crate) images: Vec<String>,
    /// Where it can be fetched, if anywhere.
    pub(crate) place: Option<String>,
    pub(crate) pinned: bool,
}

/// All records with the same layers: they live and die together, since one keeps the others' data.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    /// Indices of the layers, from the bottom up.
    pub(crate) layers: Vec<usize>,
    pub(crate) records: Vec<RecordFact>,
}

/// A record.
#[derive(Clone, Debug)]
pub(crate) struct RecordFact {
    pub(crate) id: i64,
    pub(crate) created: i64,
    pub(crate) last_used: i64,
    pub(crate) uses: u64,
    pub(crate) cost_ms: u64,
    pub(crate) kind: RecordKind,
    pub(crate) description: String,
    /// A newer record of the same key is there.
    pub(crate) superseded: bool,
    pub(crate) pinned: bool,
}

impl Stack {
    pub(crate) fn last_used(&self) -> i64 {
        self.records.iter().map(|record| record.last_used).max().unwrap_or(0)
    }

    pub(crate) fn created(&self) -> i64 {
        self.records.iter().map(|record| record.created).max().unwrap_or(0)
    }

    pub(crate) fn uses(&self) -> u64 {
        self.records.iter().map(|record| record.uses).sum()
    }

    pub(crate) fn cost_ms(&self) -> u64 {
        self.records.iter().map(|record| record.cost_ms).max().unwrap_or(0)
    }

    pub(crate) fn description(&self) -> &str {
        self.records
            .iter()
            .max_by_key(|record| (record.created, record.id))
            .map_or("", |record| &record.description)
    }

    /// Whether it is a base image: made here, and of nothing but layers that are named by their diff id.
    pub(crate) fn is_base(&self, layers: &[LayerFact]) -> bool {
        let from_image =
            |index: &usize| layers.get(*index).is_some_and(|layer| layer.id.as_str().starts_with('d'));
        !self.layers.is_empty()
            && self.layers.iter().all(from_image)
            && self.records.iter().all(|record| record.kind == RecordKind::Local)
    }
}

impl Facts {
    /// Bytes of everything.
    pub(crate) fn total(&self) -> u64 {
        let layers: u64 = self.layers.iter().map(|layer| layer.bytes).sum();
        let blobs: u64 = self.blobs.iter().map(|(blob, _)| blob.size).sum();
        let mounts: u64 = self.mounts.iter().map(|mount| mount.bytes).sum();
        layers.saturating_add(blobs).saturating_add(mounts)
    }
}

impl Index {
    pub(crate) fn facts(&self) -> Outcome<Facts> {
        let mut pins = self.root.pins();
        pins.refresh()?;
        let on_disk: BTreeMap<Digest, BlobInfo> =
            self.blobs.list()?.into_iter().map(|blob| (blob.digest, blob)).collect();
        let mut facts = self.db.read(|db| {
            // One transaction, so that all tables are of one moment.
            let tx = db.unchecked_transaction()?;
            let mut facts = Facts { layers: layers(&tx)?, ..Facts::default() };
            let index: HashMap<i64, usize> =
                facts.layers.iter().enumerate().map(|(at, layer)| (layer.row, at)).collect();
            add_images(&tx, &index, &mut facts)?;
            add_places(&tx, &index, &mut facts)?;
            facts.stacks = stacks(&tx, &facts.layers)?;
            let owned = add_blobs(&tx, &index, &on_disk, &mut facts)?;
            facts.blobs = on_disk
                .values()
                .filter(|blob| !owned.contains(&blob.digest))
                .map(|blob| (*blob, false))
                .collect();
            Ok(facts)
        })?;
        for layer in &mut facts.layers {
            layer.pinned = pins.contains(&Pin::Layer(layer.id.clone()));
        }
        for record in facts.stacks.iter_mut().flat_map(|stack| &mut stack.records) {
            record.pinned = pins.contains(&Pin::Record(record.id));
        }
        for (blob, pinned) in &mut facts.blobs {
            *pinned = pins.contains(&Pin::Blob(blob.digest));
        }
        facts.mounts = self.snapshots.cache_mounts()?;
        facts.now = self.clock.now().0;
        facts.free = self.free_space()?;
        self.count_directories(&mut facts)?;
        Ok(facts)
    }

    /// Layers whose directory is not there weigh only their blobs.
    fn count_directories(&self, facts: &mut Facts) -> Outcome<()> {
        let there: HashSet<LayerId> = self.root.layer_dirs()?.into_iter().collect();
        let bytes: HashMap<i64, u64> = self.db.read(|db| {
            let mut statement = db.prepare_cached("SELECT id, bytes FROM layers")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, count(row.get(1)?))))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        for layer in facts.layers.iter_mut().filter(|layer| there.contains(&layer.id)) {
            layer.bytes = layer.bytes.saturating_add(bytes.get(&layer.row).copied().unwrap_or(0));
        }
        Ok(())
    }

    fn free_space(&self) -> Outcome<u64> {
        let path = self.root.path();
        let stat = rustix::fs::statvfs(path)
            .map_err(|error| rbuild_ports::PortError::io("read the free space of", path, error))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

fn layers(db: &Connection) -> Outcome<Vec<LayerFact>> {
    let mut statement = db.prepare_cached("SELECT id, name, created FROM layers ORDER BY id")?;
    let mut rows = statement.query([])?;
    let mut out = vec![];
    while let Some(row) = rows.next()? {
        let name: String = row.get(1)?;
        out.push(LayerFact {
            row: row.get(0)?,
            id: name.parse().map_err(|error| Fault::Damaged(format!("{error}")))?,
            bytes: 0,
            created: row.get(2)?,
            images: vec![],
            place: None,
            pinned: false,
        });
    }
    Ok(out)
}

/// One place a layer, for people.
fn add_places(db: &Connection, index: &HashMap<i64, usize>, facts: &mut Facts) -> Outcome<()> {
    let mut statement = db.prepare_cached("SELECT layer, min(location) FROM layer_remotes GROUP BY layer")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(layer) = index.get(&row.get(0)?).and_then(|at| facts.layers.get_mut(*at)) {
            layer.place = row.get(1)?;
        }
    }
    Ok(())
}

fn add_images(db: &Connection, index: &HashMap<i64, usize>, facts: &mut Facts) -> Outcome<()> {
    let mut statement = db.prepare_cached(
        "SELECT l.layer, i.name FROM image_layers l JOIN images i ON i.id = l.image ORDER BY i.name",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(layer) = index.get(&row.get(0)?).and_then(|at| facts.layers.get_mut(*at)) {
            layer.images.push(row.get(1)?);
        }
    }
    Ok(())
}

fn stacks(db: &Connection, layers: &[LayerFact]) -> Outcome<Vec<Stack>> {
    let index: HashMap<&str, usize> =
        layers.iter().enumerate().map(|(at, layer)| (layer.id.as_str(), at)).collect();
    let mut statement = db.prepare_cached(
        "SELECT id, layers, created, last_used, uses, cost, kind, description,
           EXISTS(SELECT 1 FROM records n WHERE n.key = r.key AND (n.created, n.id) > (r.created, r.id))
         FROM records r ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    let mut found: BTreeMap<Vec<usize>, Vec<RecordFact>> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let text: String = row.get(1)?;
        let stack = text.split_ascii_whitespace().filter_map(|name| index.get(name).copied()).collect();
        found.entry(stack).or_default().push(RecordFact {
            id: row.get(0)?,
            created: row.get(2)?,
            last_used: row.get(3)?,
            uses: count(row.get(4)?),
            cost_ms: count(row.get(5)?),
            kind: kind(row.get(6)?)?,
            description: row.get(7)?,
            superseded: row.get(8)?,
            pinned: false,
        });
    }
    Ok(found.into_iter().map(|(layers, records)| Stack { layers, records }).collect())
}

/// Adds the blobs' bytes to their layers, and says which blobs have one.
fn add_blobs(
    db: &Connection,
    index: &HashMap<i64, usize>,
    on_disk: &BTreeMap<Digest, BlobInfo>,
    facts: &mut Facts,
) -> Outcome<HashSet<Digest>> {
    let mut statement = db.prepare_cached("SELECT layer, digest FROM layer_blobs ORDER BY layer, digest")?;
    let mut rows = statement.query([])?;
    let mut owned = HashSet::new();
    while let Some(row) = rows.next()? {
        let name = digest(&row.get::<_, Vec<u8>>(1)?)?;
        let (Some(blob), true) = (on_disk.get(&name), owned.insert(name)) else { continue };
        if let Some(layer) = index.get(&row.get(0)?).and_then(|at| facts.layers.get_mut(*at)) {
            layer.bytes = layer.bytes.saturating_add(blob.size);
        }
    }
    Ok(owned)
}
