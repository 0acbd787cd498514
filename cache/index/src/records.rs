//! Records: what a key's result was. Found only when all their layers are there and sound, or can be fetched.

use std::cmp::Reverse;

use rbuild_ports::{KeyId, NewRecord, Record, RecordKind, Result, Snapshot, Timestamp};
use rbuild_store::Pin;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::Index;
use crate::fault::Outcome;
use crate::format::{Sum, count, int, kind, kind_number, layers_text, snapshot};
use crate::keys::Key;
use crate::layers::Condition;

/// The preimage of a key, for telling why another one missed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Preimage {
    /// The key's fields as text.
    pub text: String,
    /// When its record was made.
    pub created: Timestamp,
    /// When and why the record was removed; none when it is still there.
    pub removed: Option<(Timestamp, String)>,
}

impl Index {
    /// The preimages of records with this description, the newest first, and of those that were pruned.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn preimages(&self, description: &str, limit: usize) -> Result<Vec<Preimage>> {
        self.heal(|| self.db.read(|db| preimages(db, description, limit)))
    }

    /// Counts records as used now, in one transaction: to be called at the end of a build.
    ///
    /// # Errors
    /// If the index cannot be written.
    pub fn touch(&self, records: &[i64]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let now = self.clock.now().0;
        self.heal(|| {
            self.db.write(|tx| {
                let mut statement = tx.prepare_cached(
                    "UPDATE records SET last_used = max(last_used, ?), uses = uses + 1 WHERE id = ?",
                )?;
                for record in records {
                    statement.execute(params![now, record])?;
                }
                Ok(())
            })
        })
    }

    /// Counts as used what lookups gave as their first answer since this was called last.
    ///
    /// # Errors
    /// If the index cannot be written.
    pub fn touch_used(&self) -> Result<()> {
        let used: Vec<i64> = std::mem::take(&mut *self.used()).into_iter().collect();
        self.touch(&used)
    }

    pub(crate) fn find_records(&self, keys: &[KeyId]) -> Outcome<Vec<Record>> {
        loop {
            let shared = self.root.shared()?;
            let (mut sound, mut lost, mut doubtful) = (vec![], vec![], vec![]);
            self.db.read(|db| {
                for record in fetch(db, keys)? {
                    match self.snapshot_condition(db, &record.snapshot)? {
                        Condition::Sound => sound.push(record),
                        Condition::Lost => lost.push(record.id),
                        Condition::Doubtful(layer) => doubtful.push(layer),
                    }
                }
                Ok(())
            })?;
            if doubtful.is_empty() {
                let layers = sound.iter().flat_map(|record| record.snapshot.layers.iter().cloned());
                let pins = layers.map(Pin::Layer).chain(sound.iter().map(|record| Pin::Record(record.id)));
                self.root.pin(&shared, pins)?;
                drop(shared);
                self.sound().extend(sound.iter().flat_map(|record| record.snapshot.layers.iter().cloned()));
                self.used().extend(sound.first().map(|record| record.id));
                if !lost.is_empty() {
                    self.forget_records(&lost)?;
                }
                return Ok(sound);
            }
            drop(shared);
            for layer in doubtful {
                self.settle(&layer)?;
            }
        }
    }

    pub(crate) fn insert_record(&self, tx: &Transaction<'_>, key: &Key, new: &NewRecord) -> Outcome<()> {
        let now = self.clock.now().0;
        let record = Record {
            id: 0,
            key: key.name.clone(),
            snapshot: new.snapshot.clone(),
            created: new.created,
            description: new.description.clone(),
            cost_ms: new.cost_ms,
            kind: new.kind,
        };
        let layers = layers_text(&record.snapshot);
        let same: Option<(i64, i64)> = tx
            .prepare_cached("SELECT id, created FROM records WHERE key = ? AND layers = ?")?
            .query_row(params![key.row, layers], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        // The same result again, as when a cache is imported twice, is not another record.
        if let Some((id, created)) = same {
            if created <= record.created.0 {
                tx.prepare_cached(
                    "UPDATE records SET created = ?, description = ?, cost = ?, kind = ?, preimage = ?, sum = ? WHERE id = ?",
                )?
                .execute(params![
                    record.created.0,
                    record.description,
                    int(record.cost_ms),
                    kind_number(record.kind),
                    new.preimage,
                    sum(&record).finish(),
                    id
                ])?;
            }
            tx.prepare_cached(
                "UPDATE records SET last_used = max(last_used, ?), uses = uses + 1 WHERE id = ?",
            )?
            .execute(params![now, id])?;
            return Ok(());
        }
        tx.prepare_cached(
            "INSERT INTO records(key, layers, created, description, cost, kind, preimage, last_used, uses, sum)
             VALUES(?,?,?,?,?,?,?,?,1,?)",
        )?
        .execute(params![
            key.row,
            layers,
            record.created.0,
            record.description,
            int(record.cost_ms),
            kind_number(record.kind),
            new.preimage,
            now,
            sum(&record).finish(),
        ])?;
        let id = tx.last_insert_rowid();
        for layer in &record.snapshot.layers {
            let layer = self.layer_number(tx, layer)?;
            tx.prepare_cached("INSERT OR IGNORE INTO record_layers(layer, record) VALUES(?,?)")?
                .execute(params![layer, id])?;
        }
        Ok(())
    }

    pub(crate) fn forget_records(&self, records: &[i64]) -> Outcome<()> {
        self.db.write(|tx| records.iter().try_for_each(|record| delete(tx, *record)))?;
        self.sound().clear();
        let mut used = self.used();
        records.iter().for_each(|record| {
            used.remove(record);
        });
        Ok(())
    }

    /// The worst condition of a snapshot's layers.
    pub(crate) fn snapshot_condition(&self, db: &Connection, snapshot: &Snapshot) -> Outcome<Condition> {
        let mut out = Condition::Sound;
        for layer in &snapshot.layers {
            match self.condition(db, layer)? {
                Condition::Sound => {}
                Condition::Lost => return Ok(Condition::Lost),
                Condition::Doubtful(layer) => out = Condition::Doubtful(layer),
            }
        }
        Ok(out)
    }
}

/// Deletes a record; its layers stay until garbage collection.
pub(crate) fn delete(tx: &Transaction<'_>, record: i64) -> Outcome<()> {
    tx.prepare_cached("DELETE FROM record_layers WHERE record = ?")?.execute([record])?;
    tx.prepare_cached("DELETE FROM records WHERE id = ?")?.execute([record])?;
    Ok(())
}

/// Deletes a record, and keeps its preimage to tell later why its step ran again.
pub(crate) fn bury(tx: &Transaction<'_>, record: i64, at: Timestamp, reason: &str) -> Outcome<()> {
    tx.prepare_cached(
        "INSERT INTO tombstones(description, preimage, created, removed, reason)
         SELECT description, preimage, created, ?, ? FROM records WHERE id = ? AND preimage <> ''",
    )?
    .execute(params![at.0, reason, record])?;
    delete(tx, record)
}

/// The records of `keys`: the newest first; of equally old ones those made here, then the one stored last.
pub(crate) fn fetch(db: &Connection, keys: &[KeyId]) -> Outcome<Vec<Record>> {
    let mut statement = db.prepare_cached(
        "SELECT r.id, r.layers, r.created, r.description, r.cost, r.kind, r.sum
         FROM keys k JOIN records r ON r.key = k.id WHERE k.name = ?",
    )?;
    let mut out = vec![];
    for key in keys {
        let mut rows = statement.query([&*key.0])?;
        while let Some(row) = rows.next()? {
            let record = Record {
                id: row.get(0)?,
                key: key.clone(),
                snapshot: snapshot(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?)?,
                created: Timestamp(row.get(2)?),
                description: row.get(3)?,
                cost_ms: count(row.get(4)?),
                kind: kind(row.get(5)?)?,
            };
            sum(&record).check(row.get(6)?, "records")?;
            out.push(record);
        }
    }
    out.sort_by_key(|record| {
        (Reverse(record.created), record.kind == RecordKind::Imported, Reverse(record.id))
    });
    out.dedup_by_key(|record| record.id);
    Ok(out)
}

fn sum(record: &Record) -> Sum {
    let Record { id: _, key, snapshot, created, description, cost_ms, kind } = record;
    Sum::new("records")
        .text(&key.0)
        .text(&layers_text(snapshot))
        .int(created.0)
        .text(description)
        .int(int(*cost_ms))
        .int(kind_number(*kind))
}

fn preimages(db: &Connection, description: &str, limit: usize) -> Outcome<Vec<Preimage>> {
    let mut statement = db.prepare_cached(
        "SELECT preimage, created, NULL, NULL FROM records WHERE description = ?1
         UNION ALL SELECT preimage, created, removed, reason FROM tombstones WHERE description = ?1
         ORDER BY 2 DESC, 1 LIMIT ?2",
    )?;
    let mut rows = statement.query(params![description, int(limit as u64)])?;
    let mut out = vec![];
    while let Some(row) = rows.next()? {
        let removed: Option<i64> = row.get(2)?;
        let reason: Option<String> = row.get(3)?;
        out.push(Preimage {
            text: row.get(0)?,
            created: Timestamp(row.get(1)?),
            removed: removed.map(|at| (Timestamp(at), reason.unwrap_or_default())),
        });
    }
    Ok(out)
}
