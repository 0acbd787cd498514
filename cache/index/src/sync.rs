//! Boots and durability. Results are visible at once and not synced; each layer row carries its boot and a running number.
//! `promote` syncs the file system and then says up to which number that holds. A new boot begins by taking out of
//! sight every layer directory that no row knows.

use std::collections::HashSet;
use std::time::Duration;

use rbuild_ports::{LayerId, Result};
use rbuild_store::{Pin, Root};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::Index;
use crate::fault::Outcome;
use crate::format::Sum;
use crate::index::in_use;

/// How long a new boot, or a sync, waits for lookups of others.
const PATIENCE: Duration = Duration::from_secs(10);

impl Index {
    /// Whether something is not durable that was made at least `age` ago.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn needs_promote(&self, age: Duration) -> Result<bool> {
        let oldest: Option<i64> = self.heal(|| {
            self.db.read(|db| {
                let sql = "SELECT min(l.stored) FROM boots b JOIN layers l ON l.boot = b.id AND l.seq > b.synced WHERE b.name = ?";
                Ok(db.prepare_cached(sql)?.query_row([self.root.boot().as_str()], |row| row.get(0))?)
            })
        })?;
        let age = i64::try_from(age.as_nanos()).unwrap_or(i64::MAX);
        Ok(oldest.is_some_and(|oldest| self.clock.now().0.saturating_sub(oldest) >= age))
    }

    /// Makes all results so far survive a power cut: one sync of the file system, then one row. Also removes layers
    /// that were taken out of sight before. Meant for the background.
    ///
    /// # Errors
    /// If the store cannot be synced; then nothing counts as synced.
    pub fn promote(&self) -> Result<()> {
        let boot = self.root.boot().as_str();
        let (marks, upto) = self.heal(|| {
            let alone = self.root.exclusive(PATIENCE)?.ok_or_else(in_use)?;
            let upto = self.db.read(|db| Ok(fetch(db, boot)?.map_or(0, |found| found.next - 1)))?;
            Ok((self.blobs.begin_sync(&alone)?, upto))
        })?;
        self.root.sync()?;
        self.heal(|| {
            self.db.write(|tx| {
                if let Some(found) = fetch(tx, boot)? {
                    write(tx, boot, found.next, found.synced.max(upto.min(found.next - 1)))?;
                }
                Ok(())
            })
        })?;
        marks.synced()?;
        self.remove_retired()?;
        self.heal(|| self.db.maintain("PRAGMA wal_checkpoint(TRUNCATE)"))
    }

    /// The first time in a boot, and with a new database: layers that no row knows may be anything.
    pub(crate) fn enter_boot(&self) -> Outcome<()> {
        let boot = self.root.boot().as_str();
        if self.db.read(|db| fetch(db, boot))?.is_some() {
            return Ok(());
        }
        let alone = self.root.exclusive(PATIENCE)?.ok_or_else(in_use)?;
        self.db.write(|tx| {
            if fetch(tx, boot)?.is_some() {
                return Ok(());
            }
            let known = layer_names(tx)?;
            let mut pins = self.root.pins();
            pins.refresh()?;
            for layer in self.root.layer_dirs()? {
                let unknown = !known.contains(layer.as_str()) && !pins.contains(&Pin::Layer(layer.clone()));
                if unknown && !Root::is_retired(&layer) {
                    self.root.retire_layer(&alone, &layer)?;
                }
            }
            tx.execute("DELETE FROM boots WHERE id NOT IN (SELECT boot FROM layers)", [])?;
            write(tx, boot, 1, 0)
        })
    }

    /// Removes the directories of layers that were taken out of sight.
    pub(crate) fn remove_retired(&self) -> Result<Vec<LayerId>> {
        let retired: Vec<LayerId> = self.root.layer_dirs()?.into_iter().filter(Root::is_retired).collect();
        retired.iter().try_for_each(|layer| self.snapshots.remove(layer))?;
        Ok(retired)
    }
}

struct Boot {
    row: i64,
    next: i64,
    synced: i64,
}

/// The boot's row and a number that no layer of it had before.
pub(crate) fn next(tx: &Transaction<'_>, boot: &str) -> Outcome<(i64, i64)> {
    let (next, synced) = fetch(tx, boot)?.map_or((1, 0), |found| (found.next, found.synced));
    write(tx, boot, next.saturating_add(1), synced)?;
    let row = fetch(tx, boot)?.map_or(0, |found| found.row);
    Ok((row, next))
}

/// The checksum of a boot's row.
pub(crate) fn sum(name: &str, next: i64, synced: i64) -> Sum {
    Sum::new("boots").text(name).int(next).int(synced)
}

/// The names of all layers that have a row.
pub(crate) fn layer_names(db: &Connection) -> Outcome<HashSet<String>> {
    let mut statement = db.prepare_cached("SELECT name FROM layers")?;
    let names = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(names)
}

fn fetch(db: &Connection, boot: &str) -> Outcome<Option<Boot>> {
    let row = db
        .prepare_cached("SELECT id, next, synced, sum FROM boots WHERE name = ?")?
        .query_row([boot], |row| {
            Ok((Boot { row: row.get(0)?, next: row.get(1)?, synced: row.get(2)? }, row.get(3)?))
        })
        .optional()?;
    let Some((found, stored)) = row else { return Ok(None) };
    sum(boot, found.next, found.synced).check(stored, "boots")?;
    Ok(Some(found))
}

fn write(tx: &Transaction<'_>, boot: &str, next: i64, synced: i64) -> Outcome<()> {
    tx.prepare_cached(
        "INSERT INTO boots(name, next, synced, sum) VALUES(?1, ?2, ?3, ?4)
         ON CONFLICT(name) DO UPDATE SET next = ?2, synced = ?3, sum = ?4",
    )?
    .execute(params![boot, next, synced, sum(boot, next, synced).finish()])?;
    Ok(())
}
