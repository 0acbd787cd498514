//! Keys and links: BuildKit's algebra. A key with inputs is what, for every input, at least one alternative links to;
//! one without inputs is named by its operation.

use std::collections::BTreeMap;

use rbuild_digest::Digest;
use rbuild_ports::{Alternative, ErrorKind, KeyId, KeyQuery, NewRecord, PortError, Result};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::Index;
use crate::fault::Outcome;
use crate::format::{Sum, digest, selector};

/// A key's row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Key {
    pub(crate) row: i64,
    pub(crate) name: KeyId,
}

/// A way that leads to a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkRow {
    /// From which key.
    pub source: KeyId,
    /// As which input.
    pub input: u32,
    /// By which operation.
    pub op: Digest,
    /// Which of its outputs.
    pub output: u32,
    /// Which part of the input.
    pub selector: Option<Digest>,
}

impl Index {
    /// All links that lead to `key`, by input and source: how a record's key is written into an exported cache.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn links_to(&self, key: &KeyId) -> Result<Vec<LinkRow>> {
        self.heal(|| self.db.read(|db| links_to(db, key)))
    }

    pub(crate) fn save_key(&self, query: &KeyQuery, record: Option<&NewRecord>) -> Outcome<KeyId> {
        if let Some(record) = record {
            for layer in &record.snapshot.layers {
                self.root.pin_layer(layer)?;
            }
        }
        self.db.write(|tx| {
            let key = match find(tx, query)?.into_iter().next() {
                Some(key) => key,
                None => make(tx, &name_of(query))?,
            };
            for (input, alternatives) in query.inputs.iter().enumerate() {
                for alternative in alternatives {
                    link(tx, query, input, alternative, &key)?;
                }
            }
            if let Some(record) = record {
                self.insert_record(tx, &key, record)?;
            }
            Ok(key.name)
        })
    }
}

/// The keys that match a query, the oldest first.
pub(crate) fn find(db: &Connection, query: &KeyQuery) -> Outcome<Vec<Key>> {
    if query.inputs.is_empty() {
        return Ok(key(db, &name_of(query))?.into_iter().collect());
    }
    if let Some(input) = query.inputs.iter().position(Vec::is_empty) {
        let message = format!("input {input} of a query has no alternatives");
        return Err(PortError::new(ErrorKind::Internal, message).into());
    }
    let mut common: Option<BTreeMap<i64, KeyId>> = None;
    for (input, alternatives) in query.inputs.iter().enumerate() {
        let mut here = BTreeMap::new();
        for alternative in alternatives {
            targets(db, query, input, alternative, &mut here)?;
        }
        if let Some(before) = common {
            here.retain(|row, _| before.contains_key(row));
        }
        if here.is_empty() {
            return Ok(vec![]);
        }
        common = Some(here);
    }
    Ok(common.unwrap_or_default().into_iter().map(|(row, name)| Key { row, name }).collect())
}

/// Adds the keys that one alternative links to.
fn targets(
    db: &Connection,
    query: &KeyQuery,
    input: usize,
    alternative: &Alternative,
    out: &mut BTreeMap<i64, KeyId>,
) -> Outcome<()> {
    let mut statement = db.prepare_cached(
        "SELECT l.dst, k.name, l.sum FROM keys s JOIN links l ON l.src = s.id JOIN keys k ON k.id = l.dst
         WHERE s.name = ?1 AND l.op = ?2 AND l.output = ?3 AND l.input = ?4 AND l.selector = ?5",
    )?;
    let mut rows = statement.query(params![
        &*alternative.key.0,
        query.op.as_bytes().as_slice(),
        query.output,
        input_number(input)?,
        selector(alternative.selector.as_ref()),
    ])?;
    while let Some(row) = rows.next()? {
        let target = Key { row: row.get(0)?, name: KeyId(row.get::<_, String>(1)?.into()) };
        link_sum(query, input_number(input)?, alternative, &target.name).check(row.get(2)?, "links")?;
        out.insert(target.row, target.name);
    }
    Ok(())
}

fn input_number(input: usize) -> Outcome<i64> {
    i64::try_from(input).map_err(|_| PortError::new(ErrorKind::Internal, "too many inputs").into())
}

fn link_sum(query: &KeyQuery, input: i64, alternative: &Alternative, target: &KeyId) -> Sum {
    Sum::new("links")
        .text(&alternative.key.0)
        .digest(Some(&query.op))
        .int(query.output.into())
        .int(input)
        .digest(alternative.selector.as_ref())
        .text(&target.0)
}

/// Adds the link from an alternative; its key becomes a root when nobody knows it.
fn link(tx: &Transaction<'_>, query: &KeyQuery, input: usize, from: &Alternative, to: &Key) -> Outcome<()> {
    let source = match key(tx, &from.key)? {
        Some(key) => key,
        None => make(tx, &from.key)?,
    };
    let number = input_number(input)?;
    tx.prepare_cached(
        "INSERT OR IGNORE INTO links(src, op, output, input, selector, dst, sum) VALUES(?,?,?,?,?,?,?)",
    )?
    .execute(params![
        source.row,
        query.op.as_bytes().as_slice(),
        query.output,
        number,
        selector(from.selector.as_ref()),
        to.row,
        link_sum(query, number, from, &to.name).finish(),
    ])?;
    Ok(())
}

/// The key of this name.
pub(crate) fn key(db: &Connection, name: &KeyId) -> Outcome<Option<Key>> {
    let row = db
        .prepare_cached("SELECT id FROM keys WHERE name = ?")?
        .query_row([&*name.0], |row| row.get(0))
        .optional()?;
    Ok(row.map(|row| Key { row, name: name.clone() }))
}

/// Makes a key that [`find`] did not find. One of this name may be there all the same when links were lost.
fn make(tx: &Transaction<'_>, name: &KeyId) -> Outcome<Key> {
    if let Some(key) = key(tx, name)? {
        return Ok(key);
    }
    tx.prepare_cached("INSERT INTO keys(name) VALUES(?)")?.execute([&*name.0])?;
    Ok(Key { row: tx.last_insert_rowid(), name: name.clone() })
}

/// The name of a new key: `sha256(op@output)` for a root, as in BuildKit; otherwise made of the whole query, so that two
/// processes that find the same thing new give it the same name.
fn name_of(query: &KeyQuery) -> KeyId {
    let root = format!("{}@{}", query.op, query.output);
    if query.inputs.is_empty() {
        return KeyId::root(&Digest::of(root));
    }
    let mut text = root;
    for alternatives in &query.inputs {
        let part = |it: &Alternative| {
            format!("{} {}", it.key, it.selector.map_or_else(String::new, |it| it.to_string()))
        };
        let mut parts: Vec<String> = alternatives.iter().map(part).collect();
        parts.sort_unstable();
        parts.dedup();
        text.push_str("\n\n");
        text.push_str(&parts.join("\n"));
    }
    KeyId(format!("k{}", Digest::of(text).hex().get(..40).unwrap_or_default()).into())
}

/// What leads to a key.
pub(crate) fn links_to(db: &Connection, key: &KeyId) -> Outcome<Vec<LinkRow>> {
    let mut statement = db.prepare_cached(
        "SELECT s.name, l.input, l.op, l.output, l.selector, l.sum FROM keys k JOIN links l ON l.dst = k.id
         JOIN keys s ON s.id = l.src WHERE k.name = ? ORDER BY l.input, s.name, l.selector, l.op, l.output",
    )?;
    let mut rows = statement.query([&*key.0])?;
    let mut out = vec![];
    while let Some(row) = rows.next()? {
        let chosen: Vec<u8> = row.get(4)?;
        let link = LinkRow {
            source: KeyId(row.get::<_, String>(0)?.into()),
            input: row.get(1)?,
            op: digest(&row.get::<_, Vec<u8>>(2)?)?,
            output: row.get(3)?,
            selector: if chosen.is_empty() { None } else { Some(digest(&chosen)?) },
        };
        let query = KeyQuery { op: link.op, output: link.output, inputs: vec![] };
        let from = Alternative { key: link.source.clone(), selector: link.selector };
        link_sum(&query, link.input.into(), &from, key).check(row.get(5)?, "links")?;
        out.push(link);
    }
    Ok(out)
}
