//! The database's tables and how values are written in them. A change here is a change of the format: give it a new
//! number and say so in `FORMAT.md`.

use rbuild_digest::{Digest, Hasher};
use rbuild_oci::Descriptor;
use rbuild_ports::{LayerId, RecordKind, Snapshot};

use crate::fault::{Fault, Outcome};

/// `PRAGMA user_version`.
pub(crate) const VERSION: i32 = 2;

/// `PRAGMA application_id`: "rbld".
pub(crate) const APPLICATION: i32 = 0x7262_6c64;

/// All tables. A row's `sum` is over the columns that a build's result depends on.
pub(crate) const SCHEMA: &str = "
CREATE TABLE boots(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, next INTEGER NOT NULL,
  synced INTEGER NOT NULL, sum INTEGER NOT NULL);
CREATE TABLE keys(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE links(src INTEGER NOT NULL, op BLOB NOT NULL, output INTEGER NOT NULL, input INTEGER NOT NULL,
  selector BLOB NOT NULL, dst INTEGER NOT NULL, sum INTEGER NOT NULL,
  PRIMARY KEY(src, op, output, input, selector, dst)) WITHOUT ROWID;
CREATE INDEX links_dst ON links(dst);
CREATE TABLE records(id INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL, layers TEXT NOT NULL,
  created INTEGER NOT NULL, description TEXT NOT NULL, cost INTEGER NOT NULL, kind INTEGER NOT NULL,
  preimage TEXT NOT NULL, last_used INTEGER NOT NULL, uses INTEGER NOT NULL, sum INTEGER NOT NULL);
CREATE INDEX records_key ON records(key);
CREATE INDEX records_description ON records(description, created);
CREATE TABLE record_layers(layer INTEGER NOT NULL, record INTEGER NOT NULL, PRIMARY KEY(layer, record)) WITHOUT ROWID;
CREATE INDEX record_layers_record ON record_layers(record);
CREATE TABLE layers(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, entries INTEGER NOT NULL, bytes INTEGER NOT NULL,
  diff_id BLOB, created INTEGER NOT NULL, boot INTEGER NOT NULL, seq INTEGER NOT NULL, stored INTEGER NOT NULL,
  sum INTEGER NOT NULL, stamp INTEGER NOT NULL DEFAULT 0);
CREATE INDEX layers_seq ON layers(boot, seq);
CREATE TABLE layer_blobs(layer INTEGER NOT NULL, digest BLOB NOT NULL, maker TEXT NOT NULL, descriptor TEXT NOT NULL,
  sum INTEGER NOT NULL, PRIMARY KEY(layer, digest, maker)) WITHOUT ROWID;
CREATE INDEX layer_blobs_digest ON layer_blobs(digest);
CREATE TABLE layer_remotes(layer INTEGER NOT NULL, location TEXT NOT NULL, digest BLOB NOT NULL,
  descriptor TEXT NOT NULL, sum INTEGER NOT NULL, PRIMARY KEY(layer, location, digest)) WITHOUT ROWID;
CREATE TABLE images(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, config TEXT NOT NULL, layers TEXT NOT NULL,
  platform TEXT NOT NULL, created INTEGER NOT NULL, manifest BLOB, sum INTEGER NOT NULL);
CREATE TABLE image_layers(layer INTEGER NOT NULL, image INTEGER NOT NULL, PRIMARY KEY(layer, image)) WITHOUT ROWID;
CREATE INDEX image_layers_image ON image_layers(image);
CREATE TABLE notes(name TEXT PRIMARY KEY, value TEXT NOT NULL, updated INTEGER NOT NULL, sum INTEGER NOT NULL)
  WITHOUT ROWID;
CREATE TABLE tombstones(id INTEGER PRIMARY KEY, description TEXT NOT NULL, preimage TEXT NOT NULL,
  created INTEGER NOT NULL, removed INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE INDEX tombstones_description ON tombstones(description, created);
";

/// Makes format 2 of format 1: layers of then have no stamp.
pub(crate) const FROM_1: &str =
    "ALTER TABLE layers ADD COLUMN stamp INTEGER NOT NULL DEFAULT 0; PRAGMA user_version=2;";

/// A row's checksum: over its values, each with its length.
pub(crate) struct Sum(Hasher);

impl Sum {
    pub(crate) fn new(table: &str) -> Self {
        Self(Hasher::new()).text(table)
    }

    pub(crate) fn bytes(mut self, value: &[u8]) -> Self {
        self.0.update(&(value.len() as u64).to_le_bytes());
        self.0.update(value);
        self
    }

    pub(crate) fn text(self, value: &str) -> Self {
        self.bytes(value.as_bytes())
    }

    pub(crate) fn int(self, value: i64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn digest(self, value: Option<&Digest>) -> Self {
        self.bytes(value.map_or(&[], |digest| digest.as_bytes().as_slice()))
    }

    pub(crate) fn finish(self) -> i64 {
        let digest = self.0.finish();
        let mut out = [0; 8];
        out.copy_from_slice(&digest.as_bytes()[..8]);
        i64::from_le_bytes(out)
    }

    /// Whether the row still has the sum it was written with.
    pub(crate) fn check(self, stored: i64, what: &str) -> Outcome<()> {
        if self.finish() == stored {
            Ok(())
        } else {
            Err(Fault::Damaged(format!("a row of {what} has changed")))
        }
    }
}

/// A count as SQLite stores it.
pub(crate) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A count as it was stored.
pub(crate) fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A digest column.
pub(crate) fn digest(bytes: &[u8]) -> Outcome<Digest> {
    let bytes = bytes.try_into().map_err(|_| Fault::Damaged("a digest has the wrong length".to_owned()))?;
    Ok(Digest::from_bytes(bytes))
}

/// A digest column that may be null.
pub(crate) fn optional_digest(bytes: Option<Vec<u8>>) -> Outcome<Option<Digest>> {
    bytes.as_deref().map(digest).transpose()
}

/// A selector: empty for none.
pub(crate) fn selector(value: Option<&Digest>) -> &[u8] {
    value.map_or(&[], |digest| digest.as_bytes().as_slice())
}

/// Layer names with spaces between them.
pub(crate) fn layers_text(snapshot: &Snapshot) -> String {
    snapshot.layers.iter().map(LayerId::as_str).collect::<Vec<_>>().join(" ")
}

/// The other way round.
pub(crate) fn snapshot(text: &str) -> Outcome<Snapshot> {
    let parse = |name: &str| name.parse().map_err(|error| Fault::Damaged(format!("{error}")));
    Ok(Snapshot { layers: text.split_ascii_whitespace().map(parse).collect::<Outcome<_>>()? })
}

pub(crate) fn kind_number(kind: RecordKind) -> i64 {
    match kind {
        RecordKind::Local => 0,
        RecordKind::Imported => 1,
    }
}

pub(crate) fn kind(number: i64) -> Outcome<RecordKind> {
    match number {
        0 => Ok(RecordKind::Local),
        1 => Ok(RecordKind::Imported),
        other => Err(Fault::Damaged(format!("a record has the kind {other}"))),
    }
}

pub(crate) fn descriptor_text(descriptor: &Descriptor) -> String {
    serde_json::to_string(descriptor).unwrap_or_default()
}

pub(crate) fn descriptor(text: &str) -> Outcome<Descriptor> {
    serde_json::from_str(text).map_err(|error| Fault::Damaged(format!("a descriptor: {error}")))
}
