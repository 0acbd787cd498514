//! Named images and notes.

use rbuild_ports::{ImageRecord, Result, Timestamp};
use rbuild_store::Pin;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use crate::Index;
use crate::fault::Outcome;
use crate::format::{Sum, layers_text, optional_digest, snapshot};
use crate::layers::Condition;

const COLUMNS: &str = "SELECT name, config, layers, platform, created, manifest, sum FROM images";

impl Index {
    /// Removes a name; what it held stays as cache until it is pruned. Whether there was such a name.
    ///
    /// # Errors
    /// If the index cannot be written.
    pub fn remove_image(&self, name: &str) -> Result<bool> {
        self.heal(|| self.db.write(|tx| delete(tx, name)))
    }

    pub(crate) fn find_image(&self, name: &str) -> Outcome<Option<ImageRecord>> {
        loop {
            let shared = self.root.shared()?;
            let found = self.db.read(|db| {
                let image = db
                    .prepare_cached(&format!("{COLUMNS} WHERE name = ?"))?
                    .query_row([name], |row| Ok(image(row)))
                    .optional()?
                    .transpose()?;
                let Some(image) = image else { return Ok(None) };
                let condition = self.snapshot_condition(db, &image.snapshot)?;
                Ok(Some((image, condition)))
            })?;
            match found {
                None => return Ok(None),
                Some((image, Condition::Sound)) => {
                    self.root.pin(&shared, image.snapshot.layers.iter().cloned().map(Pin::Layer))?;
                    self.sound().extend(image.snapshot.layers.iter().cloned());
                    return Ok(Some(image));
                }
                Some((_, Condition::Doubtful(layer))) => {
                    drop(shared);
                    self.settle(&layer)?;
                }
                Some((_, Condition::Lost)) => {
                    drop(shared);
                    self.db.write(|tx| delete(tx, name))?;
                    return Ok(None);
                }
            }
        }
    }

    pub(crate) fn all_images(&self) -> Outcome<Vec<ImageRecord>> {
        let shared = self.root.shared()?;
        let found = self.db.read(all)?;
        self.root.pin(
            &shared,
            found.iter().flat_map(|image| image.snapshot.layers.iter().cloned()).map(Pin::Layer),
        )?;
        Ok(found)
    }

    pub(crate) fn save_image(&self, image: &ImageRecord) -> Outcome<()> {
        for layer in &image.snapshot.layers {
            self.root.pin_layer(layer)?;
        }
        self.db.write(|tx| {
            delete(tx, &image.name)?;
            tx.prepare_cached(
                "INSERT INTO images(name, config, layers, platform, created, manifest, sum) VALUES(?,?,?,?,?,?,?)",
            )?
            .execute(params![
                image.name,
                image.config,
                layers_text(&image.snapshot),
                image.platform,
                image.created.0,
                image.manifest.as_ref().map(|digest| digest.as_bytes().as_slice()),
                sum(image).finish(),
            ])?;
            let id = tx.last_insert_rowid();
            for layer in &image.snapshot.layers {
                let layer = self.layer_number(tx, layer)?;
                tx.prepare_cached("INSERT OR IGNORE INTO image_layers(layer, image) VALUES(?,?)")?
                    .execute(params![layer, id])?;
            }
            Ok(())
        })
    }

    pub(crate) fn find_note(&self, name: &str) -> Outcome<Option<String>> {
        self.db.read(|db| {
            let found: Option<(String, i64)> = db
                .prepare_cached("SELECT value, sum FROM notes WHERE name = ?")?
                .query_row([name], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((value, stored)) = found else { return Ok(None) };
            note_sum(name, &value).check(stored, "notes")?;
            Ok(Some(value))
        })
    }

    pub(crate) fn save_note(&self, name: &str, value: &str) -> Outcome<()> {
        let now = self.clock.now().0;
        self.db.write(|tx| {
            tx.prepare_cached("INSERT OR REPLACE INTO notes(name, value, updated, sum) VALUES(?,?,?,?)")?
                .execute(params![name, value, now, note_sum(name, value).finish()])?;
            Ok(())
        })
    }
}

/// All images, by name.
pub(crate) fn all(db: &Connection) -> Outcome<Vec<ImageRecord>> {
    let mut statement = db.prepare_cached(&format!("{COLUMNS} ORDER BY name"))?;
    let mut rows = statement.query([])?;
    let mut out = vec![];
    while let Some(row) = rows.next()? {
        out.push(image(row)?);
    }
    Ok(out)
}

/// Compares all images and notes with their sums.
pub(crate) fn check_rows(db: &Connection) -> Outcome<()> {
    all(db)?;
    let mut statement = db.prepare("SELECT name, value, sum FROM notes")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (name, value): (String, String) = (row.get(0)?, row.get(1)?);
        note_sum(&name, &value).check(row.get(2)?, "notes")?;
    }
    Ok(())
}

fn delete(tx: &Transaction<'_>, name: &str) -> Outcome<bool> {
    tx.prepare_cached("DELETE FROM image_layers WHERE image IN (SELECT id FROM images WHERE name = ?)")?
        .execute([name])?;
    Ok(tx.prepare_cached("DELETE FROM images WHERE name = ?")?.execute([name])? > 0)
}

fn image(row: &Row<'_>) -> Outcome<ImageRecord> {
    let image = ImageRecord {
        name: row.get(0)?,
        config: row.get(1)?,
        snapshot: snapshot(&row.get::<_, String>(2)?)?,
        platform: row.get(3)?,
        created: Timestamp(row.get(4)?),
        manifest: optional_digest(row.get(5)?)?,
    };
    sum(&image).check(row.get(6)?, "images")?;
    Ok(image)
}

fn sum(image: &ImageRecord) -> Sum {
    let ImageRecord { name, config, snapshot, platform, created, manifest } = image;
    Sum::new("images")
        .text(name)
        .text(config)
        .text(&layers_text(snapshot))
        .text(platform)
        .int(created.0)
        .digest(manifest.as_ref())
}

fn note_sum(name: &str, value: &str) -> Sum {
    Sum::new("notes").text(name).text(value)
}
