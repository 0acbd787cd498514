//! Looks the whole store over: rows against their sums, directories and blobs against rows, and what nobody knows. Builds may
//! go on meanwhile: what looks wrong is looked at again with the gate held alone before it counts.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rbuild_digest::{Digest, Hasher};
use rbuild_ports::{BlobStore, CommittedLayer, ErrorKind, KeyId, LayerId, PortError, Result};
use rbuild_store::{Pin, Root};
use rusqlite::Connection;

use crate::fault::{Fault, Outcome};
use crate::index::in_use;
use crate::{Index, PruneReport, keys, layers, records, sync};

/// How long it waits for the gate.
const PATIENCE: Duration = Duration::from_secs(30);

/// How to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CheckOptions {
    /// Also read the bytes of blobs and layers.
    pub read_data: bool,
    /// Drop what is damaged, so that the next build makes or fetches it again, and remove leftovers.
    pub repair: bool,
}

/// What a problem is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ProblemKind {
    /// The database.
    Index,
    /// A layer's directory.
    Layer,
    /// A blob.
    Blob,
    /// A record or an image whose layers are gone.
    Result,
    /// Something that nothing refers to: it takes space and harms nobody.
    Leftover,
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Index => "index",
            Self::Layer => "layer",
            Self::Blob => "blob",
            Self::Result => "result",
            Self::Leftover => "leftover",
        })
    }
}

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// What it is about.
    pub kind: ProblemKind,
    /// Which one.
    pub id: String,
    /// What is wrong.
    pub what: String,
    /// Whether it was put right.
    pub repaired: bool,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoreReport {
    /// In the order of the check.
    pub problems: Vec<Problem>,
    /// Layers and blobs that were looked at.
    pub layers: usize,
    /// Blobs that were looked at.
    pub blobs: usize,
    /// Bytes of blobs that were read.
    pub bytes: u64,
}

impl StoreReport {
    /// Whether damage is there that was not put right. Leftovers are none.
    #[must_use]
    pub fn damaged(&self) -> bool {
        self.problems.iter().any(|problem| !problem.repaired && problem.kind != ProblemKind::Leftover)
    }

    fn add(&mut self, kind: ProblemKind, id: impl fmt::Display, what: impl Into<String>, repaired: bool) {
        self.problems.push(Problem { kind, id: id.to_string(), what: what.into(), repaired });
    }
}

/// Reads a layer's directory, and says what is wrong with it.
pub type Inspect<'a> = &'a dyn Fn(&LayerId) -> Result<Option<String>>;

impl Index {
    /// Looks everything over. `inspect` is asked about each layer on the disk when data is to be read.
    ///
    /// # Errors
    /// If the store cannot be read or, for a repair, written. Damage is no error.
    pub fn check(&self, options: CheckOptions, inspect: Inspect<'_>) -> Result<StoreReport> {
        let mut report = StoreReport::default();
        if self.check_rows(options, &mut report)? {
            self.check_preimages(options, &mut report)?;
            let torn = self.settle_all()?;
            self.check_layers(options, inspect, &mut report)?;
            self.check_blobs(options, &mut report)?;
            self.check_results(options, &torn, &mut report)?;
            self.check_leftovers(options, &mut report)?;
        }
        Ok(report)
    }

    /// The database itself. Whether the rest can be looked at.
    fn check_rows(&self, options: CheckOptions, report: &mut StoreReport) -> Result<bool> {
        let generation = self.db.generation();
        let found = match self.db.read(damaged_rows) {
            Ok(found) => found,
            Err(Fault::Damaged(text)) => vec![text],
            Err(Fault::Missing) => vec!["it is not there".to_owned()],
            Err(other) => return Err(other.into_port(self.db.path())),
        };
        if found.is_empty() {
            return Ok(true);
        }
        if options.repair {
            self.db.replace(generation)?;
            self.sound().clear();
            self.heal(|| self.enter_boot())?;
        }
        for what in found {
            report.add(ProblemKind::Index, "index.db", what, options.repair);
        }
        Ok(options.repair)
    }

    /// Preimages have no sum of their own: their digest is the operation that leads to their key.
    fn check_preimages(&self, options: CheckOptions, report: &mut StoreReport) -> Result<()> {
        let wrong = self.heal(|| self.db.read(wrong_preimages))?;
        if wrong.is_empty() {
            return Ok(());
        }
        for (id, name) in &wrong {
            report.add(
                ProblemKind::Index,
                format!("record {name}"),
                "its preimage has changed",
                options.repair,
            );
            if options.repair {
                // Only explanations need it.
                let sql = "UPDATE records SET preimage = '' WHERE id = ?";
                self.heal(|| self.db.write(|tx| Ok(tx.prepare_cached(sql)?.execute([id])?)))?;
            }
        }
        Ok(())
    }

    /// What a power cut may have torn is looked at, as every use of it does first. Layers that did not survive.
    fn settle_all(&self) -> Result<HashSet<LayerId>> {
        let mut torn = HashSet::new();
        for name in self.known_layers()? {
            let fetch = || self.heal(|| self.db.read(|db| layers::fetch(db, &name)));
            let Some(stored) = fetch()?.filter(|it| it.is_doubtful(self.root.boot().as_str())) else {
                continue;
            };
            if self.snapshots.present(&name) {
                self.heal(|| self.settle(&stored))?;
            }
            if !self.snapshots.present(&name) {
                torn.insert(name);
            }
        }
        for blob in self.blobs.list()? {
            // Asking for it hashes one that was not synced before the machine went down.
            self.blobs.size(&blob.digest)?;
        }
        Ok(torn)
    }

    fn check_layers(
        &self,
        options: CheckOptions,
        inspect: Inspect<'_>,
        report: &mut StoreReport,
    ) -> Result<()> {
        for name in self.known_layers()? {
            report.layers += 1;
            let Some(what) = self.wrong_with(&name, options, inspect)? else { continue };
            // It may have been removed meanwhile, as it should be.
            let alone = self.root.exclusive(PATIENCE)?.ok_or_else(in_use)?;
            let still = self.heal(|| self.db.read(|db| layers::fetch(db, &name)))?;
            let Some(stored) = still.filter(|_| self.snapshots.present(&name)) else { continue };
            let mut retired = None;
            if options.repair {
                retired = self.heal(|| self.retire_damaged(&alone, &stored))?;
            }
            drop(alone);
            if let Some(retired) = &retired {
                self.snapshots.remove(retired)?;
            }
            report.add(ProblemKind::Layer, &name, what, options.repair);
        }
        Ok(())
    }

    fn known_layers(&self) -> Result<BTreeSet<LayerId>> {
        let names = self.heal(|| self.db.read(sync::layer_names))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// What is wrong with a layer's directory, if it is there.
    fn wrong_with(
        &self,
        name: &LayerId,
        options: CheckOptions,
        inspect: Inspect<'_>,
    ) -> Result<Option<String>> {
        let stored = self.heal(|| self.db.read(|db| layers::fetch(db, name)))?;
        let Some(stored) = stored.filter(|_| self.snapshots.present(name)) else { return Ok(None) };
        let gone_or = |error: PortError| match error.kind {
            ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::Io => Ok(Some(error.message)),
            _ => Err(error),
        };
        // A row without counts is of a layer that is being unpacked.
        if stored.layer.entries > 0 || stored.layer.bytes > 0 {
            match self.snapshots.matches(&stored.layer) {
                Ok(true) => {}
                Ok(false) => return Ok(Some(counted(&stored.layer))),
                Err(error) => return gone_or(error),
            }
        }
        if !options.read_data {
            return Ok(None);
        }
        inspect(name).or_else(gone_or)
    }

    /// Blobs: their sizes, and their bytes.
    fn check_blobs(&self, options: CheckOptions, report: &mut StoreReport) -> Result<()> {
        let sizes = self.heal(|| self.db.read(blob_sizes))?;
        for blob in self.blobs.list()? {
            report.blobs += 1;
            let expected = sizes.iter().find(|(digest, _)| *digest == blob.digest).map(|(_, size)| *size);
            let mut what = expected
                .filter(|size| *size != blob.size)
                .map(|size| format!("{} bytes of {size}", blob.size));
            if what.is_none() && options.read_data {
                report.bytes += blob.size;
                what = self.hash_differs(&blob.digest)?.then(|| "its bytes have another digest".to_owned());
            }
            let Some(what) = what else { continue };
            if options.repair {
                // Hashed again, so that one that was written anew meanwhile stays.
                self.blobs.verify(&blob.digest)?;
            }
            report.add(ProblemKind::Blob, blob.digest, what, options.repair);
        }
        Ok(())
    }

    fn hash_differs(&self, digest: &Digest) -> Result<bool> {
        let hex = digest.hex();
        let path = self.root.path().join("blobs/sha256").join(hex.get(..2).unwrap_or_default()).join(&hex);
        let fail = |error: std::io::Error| PortError::io("read", &path, error);
        let mut file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(fail(error)),
        };
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match file.read(&mut buffer).map_err(fail)? {
                0 => return Ok(hasher.finish() != *digest),
                n => hasher.update(buffer.get(..n).unwrap_or_default()),
            }
        }
    }

    /// Records and images whose layers are nowhere.
    fn check_results(
        &self,
        options: CheckOptions,
        torn: &HashSet<LayerId>,
        report: &mut StoreReport,
    ) -> Result<()> {
        if self.heal(|| self.lost_results())?.is_empty() {
            return Ok(());
        }
        let _alone = self.root.exclusive(PATIENCE)?.ok_or_else(in_use)?;
        for Lost { record, name, layers } in self.heal(|| self.lost_results())? {
            // What a power cut took is no damage: the next look-up would forget it too.
            let torn = layers.iter().all(|layer| torn.contains(layer));
            let repair = options.repair || torn;
            let why = if torn { "lost when the machine went down" } else { "damaged or gone" };
            match record {
                Some(id) if repair => {
                    let (now, reason) = (self.clock.now(), format!("its layers were {why}"));
                    self.heal(|| self.db.write(|tx| records::bury(tx, id, now, &reason)))?;
                    self.used().remove(&id);
                }
                None if repair => drop(self.remove_image(&name)?),
                _ => {}
            }
            let of = if record.is_some() { "record" } else { "image" };
            report.add(ProblemKind::Result, format!("{of} {name}"), format!("its layers are {why}"), repair);
        }
        Ok(())
    }

    fn lost_results(&self) -> Outcome<Vec<Lost>> {
        self.db.read(|db| {
            let mut out = vec![];
            for (id, layers, name) in all_records(db)? {
                let layers = layers.split_ascii_whitespace().filter_map(|name| name.parse::<LayerId>().ok());
                let layers = self.lost_layers(db, layers)?;
                out.push(Lost { record: Some(id), name, layers });
            }
            for image in crate::images::all(db)? {
                let layers = self.lost_layers(db, image.snapshot.layers.into_iter())?;
                out.push(Lost { record: None, name: image.name, layers });
            }
            out.retain(|lost| !lost.layers.is_empty());
            Ok(out)
        })
    }

    fn lost_layers(&self, db: &Connection, layers: impl Iterator<Item = LayerId>) -> Outcome<Vec<LayerId>> {
        let mut out = vec![];
        for layer in layers {
            if !self.snapshots.present(&layer) && !self.can_be_fetched(db, &layer)? {
                out.push(layer);
            }
        }
        Ok(out)
    }

    /// Directories that no row and no live process knows, and files of earlier damage.
    fn check_leftovers(&self, options: CheckOptions, report: &mut StoreReport) -> Result<()> {
        let mut pins = self.root.pins();
        pins.refresh()?;
        let oldest = pins.oldest().unwrap_or(SystemTime::UNIX_EPOCH);
        let known = self.known_layers()?;
        let mut found = vec![];
        for layer in self.root.layer_dirs()? {
            let pinned = pins.contains(&Pin::Layer(layer.clone()));
            if !known.contains(&layer) && !pinned && self.is_older(&layer, oldest) {
                found.push(layer);
            }
        }
        if options.repair && !found.is_empty() {
            self.remove_retired()?;
            self.sweep_layers(oldest, &mut PruneReport::default())?;
        }
        for layer in found {
            let what = if Root::is_retired(&layer) { "was being removed" } else { "no row knows it" };
            report.add(ProblemKind::Leftover, &layer, what, options.repair);
        }
        for path in self.old_databases()? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if options.repair {
                std::fs::remove_file(&path).map_err(|error| PortError::io("remove", &path, error))?;
            }
            report.add(ProblemKind::Leftover, name, "a damaged index that was put aside", options.repair);
        }
        Ok(())
    }

    fn old_databases(&self) -> Result<Vec<PathBuf>> {
        let dir = self.root.path();
        let entries = std::fs::read_dir(dir).map_err(|error| PortError::io("read", dir, error))?;
        let old = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("index.db.damaged-"))
        };
        let mut out: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(old).collect();
        out.sort();
        Ok(out)
    }
}

/// A record, or an image if it has no number, some of whose layers are nowhere.
struct Lost {
    record: Option<i64>,
    name: String,
    layers: Vec<LayerId>,
}

fn counted(layer: &CommittedLayer) -> String {
    format!(
        "it is not the {} entries and {} bytes it was made with, or somebody wrote to its files",
        layer.entries, layer.bytes
    )
}

/// What SQLite finds wrong with its pages, and rows that differ from their sums.
fn damaged_rows(db: &Connection) -> Outcome<Vec<String>> {
    let mut statement = db.prepare("PRAGMA integrity_check(20)")?;
    let found: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut out: Vec<String> = found.into_iter().filter(|text| text != "ok").collect();
    let mut note = |result: Outcome<()>| match result {
        Err(Fault::Damaged(text)) => {
            out.push(text);
            Ok(())
        }
        other => other,
    };
    for key in names(db, "SELECT name FROM keys")? {
        let key = KeyId(key.into());
        note(keys::links_to(db, &key).map(drop))?;
        note(records::fetch(db, &[key]).map(drop))?;
    }
    for layer in names(db, "SELECT name FROM layers")? {
        let Ok(layer) = layer.parse::<LayerId>() else {
            note(Err(Fault::Damaged(format!("{layer:?} is no name of a layer"))))?;
            continue;
        };
        note(layers::check_row(db, &layer))?;
    }
    note(crate::images::check_rows(db))?;
    Ok(out)
}

/// Records whose preimage is not that of any operation that leads to their key.
fn wrong_preimages(db: &Connection) -> Outcome<Vec<(i64, String)>> {
    let mut statement = db.prepare(
        "SELECT r.id, r.description, r.preimage, l.op FROM records r JOIN links l ON l.dst = r.key
         WHERE r.preimage <> '' ORDER BY r.id",
    )?;
    let mut rows = statement.query([])?;
    let mut out: Vec<(i64, String, bool)> = vec![];
    while let Some(row) = rows.next()? {
        let (id, name, text): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let fits = Digest::of(text).as_bytes().as_slice() == row.get::<_, Vec<u8>>(3)?;
        match out.last_mut().filter(|last| last.0 == id) {
            Some(last) => last.2 |= fits,
            None => out.push((id, name, fits)),
        }
    }
    Ok(out.into_iter().filter(|it| !it.2).map(|(id, name, _)| (id, name)).collect())
}

fn names(db: &Connection, sql: &str) -> Outcome<Vec<String>> {
    let mut statement = db.prepare(sql)?;
    Ok(statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

fn all_records(db: &Connection) -> Outcome<Vec<(i64, String, String)>> {
    let mut statement = db.prepare_cached("SELECT id, layers, description FROM records ORDER BY id")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The blobs of layers with the sizes they should have.
fn blob_sizes(db: &Connection) -> Outcome<Vec<(Digest, u64)>> {
    let mut out = vec![];
    for layer in names(db, "SELECT name FROM layers")? {
        let Ok(layer) = layer.parse::<LayerId>() else { continue };
        let Some(stored) = layers::fetch(db, &layer)? else { continue };
        let blobs = layers::blobs(db, stored.row)?;
        out.extend(blobs.into_iter().map(|blob| (blob.descriptor.digest, blob.descriptor.size)));
    }
    Ok(out)
}
