//! Garbage collection as it is carried out: in small batches, each alone in the store for moments. Rows go first, in one
//! transaction; then directories are renamed out of sight and blobs unlinked; what was renamed is removed at leisure.
//! A crash anywhere leaves data without rows, which the next one removes, and never rows without data.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rbuild_digest::Digest;
use rbuild_ports::{BlobStore, ErrorKind, LayerId, PortError, Result};
use rbuild_store::{Exclusive, Pin, Pins, Root};
use rusqlite::{OptionalExtension, Transaction};

use crate::facts::{Facts, Stack};
use crate::fault::Outcome;
use crate::format::{count, digest};
use crate::index::in_use;
use crate::plan::{Plan, PruneOptions, Reason, Unit, plan};
use crate::policy::{GcPolicy, passes};
use crate::usage::{self, UsageKind, UsageRow};
use crate::{Index, layers, records, sync};

/// How long a batch waits for lookups of others.
const PATIENCE: Duration = Duration::from_secs(30);

/// Units in a batch.
const BATCH: usize = 64;

/// How long and how many preimages of removed records are kept.
const TOMBSTONE_NANOS: i64 = 30 * 24 * 3600 * 1_000_000_000;
const TOMBSTONES: i64 = 10_000;

/// Notes that are kept.
const NOTES: i64 = 10_000;

/// What garbage collection did, or would do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PruneReport {
    /// What went, in order.
    pub removed: Vec<PrunedRow>,
    /// Bytes that came free.
    pub reclaimed: u64,
    /// Records that went.
    pub records: usize,
    /// What would have gone, had no live build used it.
    pub in_use: usize,
}

/// Something that went, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrunedRow {
    /// What it was.
    pub row: UsageRow,
    /// Why.
    pub reason: Reason,
}

impl PruneReport {
    fn add(&mut self, row: UsageRow, reason: Reason) {
        self.reclaimed = self.reclaimed.saturating_add(row.size);
        self.removed.push(PrunedRow { row, reason });
    }
}

impl Index {
    /// Removes what `options` say. Builds go on meanwhile: what they looked up or made stays.
    ///
    /// # Errors
    /// If the store cannot be read or written, or another process holds all of it.
    pub fn prune(&self, options: &PruneOptions) -> Result<PruneReport> {
        let mut report = PruneReport::default();
        if !options.dry_run {
            self.remove_retired()?;
            let mut pins = self.root.pins();
            pins.refresh()?;
            if let Some(oldest) = pins.oldest() {
                self.sweep_layers(oldest, &mut report)?;
            }
        }
        let facts = self.heal(|| self.facts())?;
        let plan = plan(&facts, options);
        report.in_use = plan.in_use;
        if options.dry_run {
            describe(&facts, &plan, &mut report);
            return Ok(report);
        }
        self.carry_out(&facts, &plan, &mut report)?;
        self.tidy()?;
        Ok(report)
    }

    /// Removes what a policy says; nothing is touched when nothing has to go. Builds go on meanwhile.
    ///
    /// # Errors
    /// As [`Index::prune`].
    pub fn collect(&self, policy: &GcPolicy) -> Result<PruneReport> {
        let path = self.root.path();
        let stat =
            rustix::fs::statvfs(path).map_err(|error| PortError::io("read the size of", path, error))?;
        let disk = stat.f_blocks.saturating_mul(stat.f_frsize);
        let mut report = PruneReport::default();
        let mut pins = self.root.pins();
        pins.refresh()?;
        if let Some(oldest) = pins.oldest() {
            self.sweep_layers(oldest, &mut report)?;
        }
        let mut facts = self.heal(|| self.facts())?;
        for pass in passes(policy, disk) {
            let plan = plan(&facts, &pass);
            if !plan.units.is_empty() || !plan.layers.is_empty() {
                self.carry_out(&facts, &plan, &mut report)?;
                facts = self.heal(|| self.facts())?;
            }
        }
        if !report.removed.is_empty() {
            self.tidy()?;
        }
        Ok(report)
    }

    /// Takes layer directories away that no row knows, that no live process pinned, and that are older than `limit`: when
    /// the oldest live process opened the store.
    pub(crate) fn sweep_layers(&self, limit: SystemTime, report: &mut PruneReport) -> Result<()> {
        let retired = self.heal(|| {
            let alone = self.root.exclusive(PATIENCE)?.ok_or_else(in_use)?;
            let mut pins = self.root.pins();
            pins.refresh()?;
            let known = self.db.read(sync::layer_names)?;
            let mut retired = vec![];
            for layer in self.root.layer_dirs()? {
                let unknown = !known.contains(layer.as_str()) && !pins.contains(&Pin::Layer(layer.clone()));
                if unknown && !Root::is_retired(&layer) && self.is_older(&layer, limit) {
                    let to = self.root.retire_layer(&alone, &layer)?;
                    retired.extend(to.map(|to| (layer.clone(), to)));
                }
            }
            Ok(retired)
        })?;
        for (layer, retired) in retired {
            let row = UsageRow {
                id: layer.to_string(),
                kind: UsageKind::Layer,
                description: String::new(),
                size: size_of(&self.root.layer_dir(&retired)),
                shared: false,
                created: None,
                last_used: None,
                use_count: 0,
                in_use: false,
            };
            self.snapshots.remove(&retired)?;
            report.add(row, Reason::Orphan);
        }
        Ok(())
    }

    /// Whether a layer's directory was there before `limit`.
    pub(crate) fn is_older(&self, layer: &LayerId, limit: SystemTime) -> bool {
        let limit = limit.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        std::fs::symlink_metadata(self.root.layer_dir(layer)).is_ok_and(|meta| count(meta.ctime()) < limit)
    }

    pub(crate) fn carry_out(&self, facts: &Facts, plan: &Plan, report: &mut PruneReport) -> Result<()> {
        let reasons: BTreeMap<usize, Reason> = plan.layers.iter().copied().collect();
        let orphans = plan.layers.iter().filter(|(_, reason)| *reason == Reason::Orphan).map(|(at, _)| *at);
        let orphans: Vec<usize> = orphans.collect();
        let rows = usage::layer_rows(facts);
        let mut batches: Vec<Batch<'_>> =
            orphans.chunks(BATCH).map(|orphans| Batch { units: &[], orphans }).collect();
        batches.extend(plan.units.chunks(BATCH).map(|units| Batch { units, orphans: &[] }));
        for batch in &batches {
            let done = match self.heal(|| self.remove_batch(facts, batch)) {
                Err(error) if error.kind == ErrorKind::NoSpace => {
                    self.root.release_reserve()?;
                    self.heal(|| self.remove_batch(facts, batch))?
                }
                other => other?,
            };
            report.records += done.records;
            for (at, retired) in &done.layers {
                if let Some(retired) = retired {
                    self.snapshots.remove(retired)?;
                }
                if let Some(row) = rows.get(*at) {
                    report.add(row.clone(), reasons.get(at).copied().unwrap_or(Reason::Requested));
                }
            }
            for (unit, reason) in batch.units {
                let row = match *unit {
                    Unit::Blob(at) if done.blobs.contains(&at) => usage::blob_row(facts, at),
                    Unit::Mount(at) => self.remove_mount(facts, at)?,
                    _ => None,
                };
                if let Some(row) = row {
                    report.add(row, *reason);
                }
            }
        }
        Ok(())
    }

    fn remove_mount(&self, facts: &Facts, at: usize) -> Result<Option<UsageRow>> {
        let Some(mount) = facts.mounts.get(at) else { return Ok(None) };
        Ok(if self.snapshots.remove_cache_mount(&mount.id)? { usage::mount_row(facts, at) } else { None })
    }

    /// Removes some units, alone in the store: rows, then what they named.
    fn remove_batch(&self, facts: &Facts, batch: &Batch<'_>) -> Outcome<Done> {
        let alone = self.root.exclusive(PATIENCE)?.ok_or_else(in_use)?;
        let mut pins = self.root.pins();
        pins.refresh()?;
        let mut done = Done::default();
        let mut freed: HashSet<Digest> = HashSet::new();
        let gone = self.db.write(|tx| {
            let mut gone: Vec<usize> = vec![];
            for (unit, reason) in batch.units {
                match *unit {
                    Unit::Stack(at) => {
                        let Some(stack) = facts.stacks.get(at) else { continue };
                        done.records += self.delete_records(tx, stack, *reason, &pins)?;
                        gone.extend(&stack.layers);
                    }
                    Unit::Blob(at) => freed.extend(facts.blobs.get(at).map(|(blob, _)| blob.digest)),
                    Unit::Mount(_) => {}
                }
            }
            gone.extend(batch.orphans);
            gone.sort_unstable();
            gone.dedup();
            let mut deleted = vec![];
            for at in gone {
                let Some(layer) = facts.layers.get(at) else { continue };
                if !pins.contains(&Pin::Layer(layer.id.clone())) && delete_unheld(tx, &layer.id, &mut freed)?
                {
                    deleted.push(at);
                }
            }
            freed.retain(|digest| !pins.contains(&Pin::Blob(*digest)));
            let mut still_held = None;
            freed.retain(|digest| match is_held(tx, digest) {
                Ok(held) => !held,
                Err(fault) => {
                    still_held = Some(fault);
                    false
                }
            });
            still_held.map_or(Ok(deleted), Err)
        })?;
        self.take_away(&alone, facts, gone, &freed, &mut done)?;
        Ok(done)
    }

    /// After the rows are gone: directories out of sight, blobs unlinked.
    fn take_away(
        &self,
        alone: &Exclusive,
        facts: &Facts,
        gone: Vec<usize>,
        freed: &HashSet<Digest>,
        done: &mut Done,
    ) -> Outcome<()> {
        for at in gone {
            let Some(layer) = facts.layers.get(at) else { continue };
            self.sound().remove(&layer.id);
            done.layers.push((at, self.root.retire_layer(alone, &layer.id)?));
        }
        for digest in freed {
            self.blobs.remove(digest)?;
        }
        let removed = |at: &usize| facts.blobs.get(*at).is_some_and(|(blob, _)| freed.contains(&blob.digest));
        done.blobs = (0..facts.blobs.len()).filter(removed).collect();
        Ok(())
    }

    /// Deletes a stack's records, unless one was used since the facts were read.
    fn delete_records(
        &self,
        tx: &Transaction<'_>,
        stack: &Stack,
        reason: Reason,
        pins: &Pins,
    ) -> Outcome<usize> {
        let mut unused = vec![];
        for record in &stack.records {
            let last_used: Option<i64> = tx
                .prepare_cached("SELECT last_used FROM records WHERE id = ?")?
                .query_row([record.id], |row| row.get(0))
                .optional()?;
            match last_used {
                _ if pins.contains(&Pin::Record(record.id)) => return Ok(0),
                Some(last_used) if last_used > record.last_used => return Ok(0),
                Some(_) => unused.push(record.id),
                None => {}
            }
        }
        for record in &unused {
            records::bury(tx, *record, self.clock.now(), reason.as_str())?;
        }
        Ok(unused.len())
    }

    /// Forgets keys that lead nowhere and old tombstones and notes, and gives pages back.
    fn tidy(&self) -> Result<()> {
        let now = self.clock.now().0;
        self.heal(|| {
            self.db.write(|tx| {
                // A key without record and without links from it can answer nothing; its going may bare others.
                while tx.execute(
                    "DELETE FROM keys WHERE NOT EXISTS(SELECT 1 FROM records WHERE key = keys.id)
                     AND NOT EXISTS(SELECT 1 FROM links WHERE src = keys.id)",
                    [],
                )? > 0
                {
                    tx.execute("DELETE FROM links WHERE dst NOT IN (SELECT id FROM keys)", [])?;
                }
                tx.execute(
                    "DELETE FROM tombstones WHERE removed < ?1
                     OR id <= (SELECT coalesce(max(id), 0) FROM tombstones) - ?2",
                    [now.saturating_sub(TOMBSTONE_NANOS), TOMBSTONES],
                )?;
                tx.execute(
                    "DELETE FROM notes WHERE name IN
                     (SELECT name FROM notes ORDER BY updated DESC, name LIMIT -1 OFFSET ?)",
                    [NOTES],
                )?;
                Ok(())
            })?;
            self.db.maintain("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")
        })
    }
}

/// What is removed at once.
struct Batch<'a> {
    units: &'a [(Unit, Reason)],
    /// Layers that nothing refers to.
    orphans: &'a [usize],
}

/// What a batch did.
#[derive(Default)]
struct Done {
    records: usize,
    /// Layers that lost their row, and under which name their directory waits for removal.
    layers: Vec<(usize, Option<LayerId>)>,
    blobs: Vec<usize>,
}

/// Deletes a layer that no record and no image has, and says so; its blobs may go too.
fn delete_unheld(tx: &Transaction<'_>, layer: &LayerId, freed: &mut HashSet<Digest>) -> Outcome<bool> {
    let row: Option<i64> = tx
        .prepare_cached(
            "SELECT id FROM layers l WHERE name = ?
             AND NOT EXISTS(SELECT 1 FROM record_layers WHERE layer = l.id)
             AND NOT EXISTS(SELECT 1 FROM image_layers WHERE layer = l.id)",
        )?
        .query_row([layer.as_str()], |row| row.get(0))
        .optional()?;
    let Some(row) = row else { return Ok(false) };
    let mut statement = tx.prepare_cached("SELECT digest FROM layer_blobs WHERE layer = ?")?;
    let mut rows = statement.query([row])?;
    while let Some(row) = rows.next()? {
        freed.insert(digest(&row.get::<_, Vec<u8>>(0)?)?);
    }
    drop(rows);
    layers::delete(tx, row)?;
    Ok(true)
}

fn is_held(tx: &Transaction<'_>, blob: &Digest) -> Outcome<bool> {
    let sql = "SELECT EXISTS(SELECT 1 FROM layer_blobs WHERE digest = ?)";
    Ok(tx.prepare_cached(sql)?.query_row([blob.as_bytes().as_slice()], |row| row.get(0))?)
}

/// What would go.
fn describe(facts: &Facts, plan: &Plan, report: &mut PruneReport) {
    let rows = usage::layer_rows(facts);
    for (at, reason) in &plan.layers {
        if let Some(row) = rows.get(*at) {
            report.add(row.clone(), *reason);
        }
    }
    for (unit, reason) in &plan.units {
        let row = match *unit {
            Unit::Stack(at) => {
                report.records += facts.stacks.get(at).map_or(0, |stack| stack.records.len());
                None
            }
            Unit::Blob(at) => usage::blob_row(facts, at),
            Unit::Mount(at) => usage::mount_row(facts, at),
        };
        if let Some(row) = row {
            report.add(row, *reason);
        }
    }
}

/// Bytes of the regular files under a directory, as far as they can be read. Links are not followed.
fn size_of(dir: &Path) -> u64 {
    let mut total: u64 = 0;
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => waiting.push(entry.path()),
                Ok(meta) if meta.is_file() => total = total.saturating_add(meta.len()),
                _ => {}
            }
        }
    }
    total
}
