//! Layers: what is known of each, and whether its directory can be trusted. A layer that was made in another boot of the
//! machine and never synced is doubtful: before anything is said of it, the directory is counted again.

use std::time::Duration;

use rbuild_digest::Digest;
use rbuild_ports::{CommittedLayer, ErrorKind, LayerBlob, LayerId, LayerRow, RemoteBlob, Timestamp};
use rbuild_store::{Exclusive, Pin};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::Index;
use crate::fault::{Fault, Outcome};
use crate::format::{Sum, count, descriptor, descriptor_text, digest, int, optional_digest};
use crate::index::in_use;
use crate::sync;

/// How long the removal of a damaged layer waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// A layer's row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stored {
    pub(crate) row: i64,
    pub(crate) layer: CommittedLayer,
    pub(crate) diff_id: Option<Digest>,
    pub(crate) created: Timestamp,
    /// Which boot wrote it, and as its how manieth.
    boot: i64,
    seq: i64,
    /// The boot's name, and up to which number it was synced.
    boot_name: String,
    synced: i64,
}

/// Whether a layer can be used.
pub(crate) enum Condition {
    /// It is on the disk, whole, or can be fetched.
    Sound,
    /// It must be counted before use.
    Doubtful(Box<Stored>),
    /// It is nowhere.
    Lost,
}

impl Stored {
    /// Whether a power cut may have damaged its directory. A row without counts was written before its directory was
    /// filled, and says nothing of when that was.
    pub(crate) fn is_doubtful(&self, boot: &str) -> bool {
        self.boot_name != boot && (self.seq > self.synced || self.layer.entries == 0)
    }
}

impl Index {
    pub(crate) fn condition(&self, db: &Connection, layer: &LayerId) -> Outcome<Condition> {
        if self.sound().contains(layer) {
            return Ok(Condition::Sound);
        }
        let Some(stored) = fetch(db, layer)? else { return Ok(Condition::Lost) };
        if self.snapshots.present(layer) {
            let doubtful = stored.is_doubtful(self.root.boot().as_str());
            return Ok(if doubtful { Condition::Doubtful(Box::new(stored)) } else { Condition::Sound });
        }
        if !remotes(db, stored.row)?.is_empty() || !self.blobs_there(db, stored.row)?.is_empty() {
            return Ok(Condition::Sound);
        }
        Ok(Condition::Lost)
    }

    pub(crate) fn find_layer(&self, layer: &LayerId) -> Outcome<Option<LayerRow>> {
        loop {
            let shared = self.root.shared()?;
            let found = self.db.read(|db| {
                let Some(stored) = fetch(db, layer)? else { return Ok(None) };
                let condition = self.condition(db, layer)?;
                let (blobs, remotes) = (self.blobs_there(db, stored.row)?, remotes(db, stored.row)?);
                Ok(Some((stored, condition, blobs, remotes)))
            })?;
            let Some((stored, condition, blobs, remotes)) = found else { return Ok(None) };
            if let Condition::Doubtful(stored) = condition {
                drop(shared);
                self.settle(&stored)?;
                continue;
            }
            let absent = !self.snapshots.present(layer);
            if absent {
                self.adopt(&stored)?;
            }
            let pins = blobs.iter().map(|blob| Pin::Blob(blob.descriptor.digest));
            self.root.pin(&shared, pins.chain([Pin::Layer(layer.clone())]))?;
            if matches!(condition, Condition::Sound) {
                self.sound().insert(layer.clone());
            }
            let Stored { layer: mut counts, diff_id, created, .. } = stored;
            if absent {
                counts = CommittedLayer::unseen(layer.clone());
            }
            return Ok(Some(LayerRow { layer: counts, diff_id, blobs, remotes, created }));
        }
    }

    pub(crate) fn join_layer(&self, new: &LayerRow) -> Outcome<()> {
        let id = &new.layer.layer;
        self.root.pin_layer(id)?;
        // Asking settles a doubtful one, and takes an absent one over into this boot.
        self.find_layer(id)?;
        if !new.blobs.is_empty() {
            let shared = self.root.shared()?;
            self.root.pin(&shared, new.blobs.iter().map(|blob| Pin::Blob(blob.descriptor.digest)))?;
        }
        self.db.write(|tx| {
            let row = self.layer_number(tx, id)?;
            let Some(old) = fetch(tx, id)? else { return Ok(()) };
            let filled = new.layer.entries > 0 || new.layer.bytes > 0;
            let diff_id = new.diff_id.or(old.diff_id);
            if filled {
                self.write_layer(tx, row, &new.layer, diff_id)?;
            } else if diff_id != old.diff_id {
                set_diff_id(tx, &Stored { diff_id, ..old })?;
            }
            new.blobs.iter().try_for_each(|blob| insert_blob(tx, row, blob))?;
            new.remotes.iter().try_for_each(|remote| insert_remote(tx, row, remote))?;
            tx.prepare_cached("UPDATE layers SET created = min(created, ?) WHERE id = ?")?
                .execute(params![new.created.0, row])?;
            Ok(())
        })
    }

    /// Takes the row of a layer that is not on the disk over into this boot: whoever unpacks it asked for its row before,
    /// and what appears from now on is not what an earlier boot left.
    fn adopt(&self, stored: &Stored) -> Outcome<()> {
        if stored.boot_name == self.root.boot().as_str() {
            return Ok(());
        }
        self.db.write(|tx| {
            let id = &stored.layer.layer;
            let Some(now) = fetch(tx, id)?.filter(|now| now == stored) else { return Ok(()) };
            let empty = CommittedLayer::unseen(id.clone());
            self.write_layer(tx, now.row, &empty, now.diff_id)
        })
    }

    /// Finds out whether a doubtful layer is whole. One that is not leaves the disk, and what can fetch it again stays.
    pub(crate) fn settle(&self, stored: &Stored) -> Outcome<()> {
        let id = &stored.layer.layer;
        let whole = match self.snapshots.matches(&stored.layer) {
            Ok(whole) => whole,
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Corrupt) => false,
            Err(error) => return Err(error.into()),
        };
        if whole {
            return self.db.write(|tx| match fetch(tx, id)? {
                Some(now) if now == *stored => self.write_layer(tx, now.row, &now.layer, now.diff_id),
                _ => Ok(()),
            });
        }
        let alone = self.root.exclusive(PATIENCE)?.ok_or_else(in_use)?;
        let unchanged = self.db.read(|db| Ok(fetch(db, id)?.is_some_and(|now| now == *stored)))?;
        let retired = if unchanged { self.retire_damaged(&alone, stored)? } else { None };
        drop(alone);
        if let Some(retired) = retired {
            self.snapshots.remove(&retired)?;
        }
        Ok(())
    }

    /// Takes a damaged layer's directory out of sight; its row stays, with what can fetch it again. Its new name is returned.
    pub(crate) fn retire_damaged(&self, alone: &Exclusive, stored: &Stored) -> Outcome<Option<LayerId>> {
        let id = &stored.layer.layer;
        self.sound().remove(id);
        self.db.write(|tx| {
            let retired = self.root.retire_layer(alone, id)?;
            let empty = CommittedLayer::unseen(id.clone());
            self.write_layer(tx, stored.row, &empty, stored.diff_id)?;
            Ok(retired)
        })
    }

    /// Whether a layer can be made from its blob, here or elsewhere.
    pub(crate) fn can_be_fetched(&self, db: &Connection, layer: &LayerId) -> Outcome<bool> {
        let Some(stored) = fetch(db, layer)? else { return Ok(false) };
        Ok(!remotes(db, stored.row)?.is_empty() || !self.blobs_there(db, stored.row)?.is_empty())
    }

    /// The row number of a layer; a row that says nothing is made when there is none.
    pub(crate) fn layer_number(&self, tx: &Transaction<'_>, layer: &LayerId) -> Outcome<i64> {
        let known: Option<i64> = tx
            .prepare_cached("SELECT id FROM layers WHERE name = ?")?
            .query_row([layer.as_str()], |row| row.get(0))
            .optional()?;
        if let Some(row) = known {
            return Ok(row);
        }
        let now = self.clock.now().0;
        tx.prepare_cached(
            "INSERT INTO layers(name, entries, bytes, diff_id, created, boot, seq, stored, sum)
             VALUES(?, 0, 0, NULL, ?, 0, 0, ?, 0)",
        )?
        .execute(params![layer.as_str(), now, now])?;
        let row = tx.last_insert_rowid();
        self.write_layer(tx, row, &CommittedLayer::unseen(layer.clone()), None)?;
        Ok(row)
    }

    /// Writes what the directory holds, as of this boot and not synced.
    fn write_layer(
        &self,
        tx: &Transaction<'_>,
        row: i64,
        layer: &CommittedLayer,
        diff_id: Option<Digest>,
    ) -> Outcome<()> {
        let (boot, seq) = sync::next(tx, self.root.boot().as_str())?;
        let sum = sum(layer, diff_id.as_ref(), boot, seq).finish();
        tx.prepare_cached(
            "UPDATE layers SET entries = ?, bytes = ?, stamp = ?, diff_id = ?, boot = ?, seq = ?, stored = ?, sum = ?
             WHERE id = ?",
        )?
        .execute(params![
            int(layer.entries),
            int(layer.bytes),
            layer.stamp.cast_signed(),
            diff_id.as_ref().map(|digest| digest.as_bytes().as_slice()),
            boot,
            seq,
            self.clock.now().0,
            sum,
            row,
        ])?;
        Ok(())
    }

    /// The layer's blobs that are in the store.
    fn blobs_there(&self, db: &Connection, layer: i64) -> Outcome<Vec<LayerBlob>> {
        let mut out = blobs(db, layer)?;
        let mut error = None;
        out.retain(|blob| match self.blobs.info(&blob.descriptor.digest) {
            Ok(info) => info.is_some_and(|info| info.size == blob.descriptor.size),
            Err(failed) => {
                error = Some(failed);
                false
            }
        });
        error.map_or(Ok(out), |error| Err(error.into()))
    }
}

/// Compares a layer's rows with their sums.
pub(crate) fn check_row(db: &Connection, layer: &LayerId) -> Outcome<()> {
    let Some(stored) = fetch(db, layer)? else { return Ok(()) };
    blobs(db, stored.row)?;
    remotes(db, stored.row).map(drop)
}

/// The row of a layer.
pub(crate) fn fetch(db: &Connection, layer: &LayerId) -> Outcome<Option<Stored>> {
    let mut statement = db.prepare_cached(
        "SELECT l.id, l.entries, l.bytes, l.diff_id, l.created, l.boot, l.seq, l.sum, b.name, b.next, b.synced, b.sum,
                l.stamp
         FROM layers l LEFT JOIN boots b ON b.id = l.boot WHERE l.name = ?",
    )?;
    let mut rows = statement.query([layer.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let Some(boot_name) = row.get::<_, Option<String>>(8)? else {
        return Err(Fault::Damaged(format!("the boot of layer {layer} is missing")));
    };
    let stored = Stored {
        row: row.get(0)?,
        layer: CommittedLayer {
            layer: layer.clone(),
            entries: count(row.get(1)?),
            bytes: count(row.get(2)?),
            stamp: row.get::<_, i64>(12)?.cast_unsigned(),
        },
        diff_id: optional_digest(row.get(3)?)?,
        created: Timestamp(row.get(4)?),
        boot: row.get(5)?,
        seq: row.get(6)?,
        boot_name,
        synced: row.get(10)?,
    };
    sum(&stored.layer, stored.diff_id.as_ref(), stored.boot, stored.seq).check(row.get(7)?, "layers")?;
    sync::sum(&stored.boot_name, row.get(9)?, stored.synced).check(row.get(11)?, "boots")?;
    Ok(Some(stored))
}

fn sum(layer: &CommittedLayer, diff_id: Option<&Digest>, boot: i64, seq: i64) -> Sum {
    let CommittedLayer { layer, entries, bytes, stamp } = layer;
    let sum = Sum::new("layers")
        .text(layer.as_str())
        .int(int(*entries))
        .int(int(*bytes))
        .digest(diff_id)
        .int(boot)
        .int(seq);
    // Rows of format 1 have none, and keep the sums they had.
    if *stamp == 0 { sum } else { sum.int(stamp.cast_signed()) }
}

fn set_diff_id(tx: &Transaction<'_>, new: &Stored) -> Outcome<()> {
    let sum = sum(&new.layer, new.diff_id.as_ref(), new.boot, new.seq).finish();
    let diff_id = new.diff_id.as_ref().map(|digest| digest.as_bytes().as_slice());
    tx.prepare_cached("UPDATE layers SET diff_id = ?, sum = ? WHERE id = ?")?
        .execute(params![diff_id, sum, new.row])?;
    Ok(())
}

/// Deletes a layer's row and what hangs on it.
pub(crate) fn delete(tx: &Transaction<'_>, layer: i64) -> Outcome<()> {
    for statement in [
        "DELETE FROM layer_blobs WHERE layer = ?",
        "DELETE FROM layer_remotes WHERE layer = ?",
        "DELETE FROM record_layers WHERE layer = ?",
        "DELETE FROM image_layers WHERE layer = ?",
        "DELETE FROM layers WHERE id = ?",
    ] {
        tx.prepare_cached(statement)?.execute([layer])?;
    }
    Ok(())
}

/// The layer's blobs as the rows say.
pub(crate) fn blobs(db: &Connection, layer: i64) -> Outcome<Vec<LayerBlob>> {
    let mut statement = db.prepare_cached(
        "SELECT digest, maker, descriptor, sum FROM layer_blobs WHERE layer = ? ORDER BY maker, digest",
    )?;
    let mut rows = statement.query([layer])?;
    let mut out = vec![];
    while let Some(row) = rows.next()? {
        let (name, maker, text): (Vec<u8>, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        place_sum("layer_blobs", layer, &digest(&name)?, &maker, &text).check(row.get(3)?, "layer_blobs")?;
        out.push(LayerBlob { descriptor: descriptor(&text)?, maker });
    }
    Ok(out)
}

/// Where a layer can be fetched.
fn remotes(db: &Connection, layer: i64) -> Outcome<Vec<RemoteBlob>> {
    let mut statement = db.prepare_cached(
        "SELECT digest, location, descriptor, sum FROM layer_remotes WHERE layer = ? ORDER BY location, digest",
    )?;
    let mut rows = statement.query([layer])?;
    let mut out = vec![];
    while let Some(row) = rows.next()? {
        let (name, location, text): (Vec<u8>, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        place_sum("layer_remotes", layer, &digest(&name)?, &location, &text)
            .check(row.get(3)?, "layer_remotes")?;
        out.push(RemoteBlob { location, descriptor: descriptor(&text)? });
    }
    Ok(out)
}

fn insert_blob(tx: &Transaction<'_>, layer: i64, blob: &LayerBlob) -> Outcome<()> {
    let (digest, text) = (&blob.descriptor.digest, descriptor_text(&blob.descriptor));
    let sum = place_sum("layer_blobs", layer, digest, &blob.maker, &text).finish();
    tx.prepare_cached(
        "INSERT OR REPLACE INTO layer_blobs(layer, digest, maker, descriptor, sum) VALUES(?,?,?,?,?)",
    )?
    .execute(params![layer, digest.as_bytes().as_slice(), blob.maker, text, sum])?;
    Ok(())
}

fn insert_remote(tx: &Transaction<'_>, layer: i64, remote: &RemoteBlob) -> Outcome<()> {
    let (digest, text) = (&remote.descriptor.digest, descriptor_text(&remote.descriptor));
    let sum = place_sum("layer_remotes", layer, digest, &remote.location, &text).finish();
    tx.prepare_cached(
        "INSERT OR REPLACE INTO layer_remotes(layer, digest, location, descriptor, sum) VALUES(?,?,?,?,?)",
    )?
    .execute(params![layer, digest.as_bytes().as_slice(), remote.location, text, sum])?;
    Ok(())
}

fn place_sum(table: &str, layer: i64, digest: &Digest, place: &str, descriptor: &str) -> Sum {
    Sum::new(table).int(layer).digest(Some(digest)).text(place).text(descriptor)
}
