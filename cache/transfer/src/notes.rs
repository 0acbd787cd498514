//! What caches tell of the builds that exported them, in and out, as bytes: blobs beside the layers, which BuildKit leaves alone.

use std::collections::HashSet;
use std::io::Read as _;

use rbuild_cache_remote::NOTES_TYPE;
use rbuild_digest::Digest;
use rbuild_export::ExportContext;
use rbuild_oci::Descriptor;
use rbuild_ports::{CancelToken, ErrorKind, PortError, Result, Sources};

use crate::merge::{EXPORTED_AT, is_recent, today};
use crate::restore::small_blob;
use crate::{CacheTarget, CombinedIndex, ExistingCache};

/// On a blob of notes: their place among the cache's notes, the latest first, and what they are about. Manifests are sorted.
const KEY: &str = "rbuild/notes";
/// Builds that a cache tells of: those of other platforms and branches stay beside this one.
const MOST: usize = 4;
/// Bytes of notes, packed and plain.
const PACKED: u64 = 16 << 20;
const PLAIN: u64 = 64 << 20;
/// How hard they are compressed.
const LEVEL: i32 = 3;

/// What a build has to tell.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CacheNotes {
    /// The same for builds of the same; then what is there stays.
    pub key: String,
    /// What whoever imports it gets.
    pub bytes: Vec<u8>,
}

/// The notes among a cache's blobs, the latest first.
pub(crate) fn notes_of(layers: &[Descriptor]) -> Vec<Descriptor> {
    let mut out: Vec<Descriptor> =
        layers.iter().filter(|layer| layer.media_type == NOTES_TYPE).cloned().collect();
    out.sort_by_key(|notes| place_and_key(notes).0);
    out
}

fn place_and_key(notes: &Descriptor) -> (usize, &str) {
    let text = notes.annotations.get(KEY).map_or("", String::as_str);
    let parts = text.split_once(' ').and_then(|(place, key)| Some((place.parse().ok()?, key)));
    parts.unwrap_or((usize::MAX, text))
}

/// Sends `own` and says which notes the cache has then.
pub(crate) fn send(
    cx: &ExportContext<'_>,
    target: &dyn CacheTarget,
    own: Option<&CacheNotes>,
    existing: Option<&ExistingCache>,
) -> Result<Vec<Descriptor>> {
    let there = |notes: &Descriptor| target.has_blob(notes, &[], cx.cancel);
    let key = |notes: &Descriptor| place_and_key(notes).1.to_owned();
    let old = existing.map_or_else(Vec::new, |existing| notes_of(&existing.layers));
    let mut out: Vec<Descriptor> = vec![];
    if let Some(own) = own {
        let same = old.iter().find(|notes| key(notes) == own.key);
        let mut notes = match same {
            Some(same) if there(same)? => same.clone(),
            _ => {
                let packed = zstd::bulk::compress(&own.bytes, LEVEL).map_err(|error| {
                    PortError::new(ErrorKind::Io, format!("cannot compress what a cache tells: {error}"))
                })?;
                let notes = Descriptor::new(NOTES_TYPE, Digest::of(&packed), packed.len() as u64);
                if !there(&notes)? {
                    target.put_blob(&notes, &|| Ok(Box::new(packed.as_slice())), cx.cancel)?;
                }
                notes
            }
        };
        notes.annotations.insert(KEY.to_owned(), format!("0 {}", own.key));
        notes.annotations.insert(EXPORTED_AT.to_owned(), today(cx.clock.now()));
        out.push(notes);
    }
    let recent = |notes: &Descriptor| {
        notes.annotations.get(EXPORTED_AT).is_some_and(|day| is_recent(day, cx.clock.now()))
    };
    for mut notes in old.into_iter().filter(recent) {
        if out.len() < MOST && out.iter().all(|it| key(it) != key(&notes)) && there(&notes)? {
            let text = format!("{} {}", out.len(), key(&notes));
            notes.annotations.insert(KEY.to_owned(), text);
            out.push(notes);
        }
    }
    Ok(out)
}

impl CombinedIndex {
    /// Names of all records of the imported caches that are no roots.
    #[must_use]
    pub fn operations(&self) -> HashSet<Digest> {
        self.caches().iter().flat_map(|cache| cache.imported.operations().collect::<Vec<_>>()).collect()
    }

    /// What the imported caches tell, the latest of each first. What cannot be had is left out: it only explains.
    #[must_use]
    pub fn notes(&self, sources: &dyn Sources, cancel: &CancelToken) -> Vec<Vec<u8>> {
        let mut out = vec![];
        for cache in self.caches() {
            for notes in cache.notes.iter().take(MOST) {
                let Ok(packed) = small_blob(sources, &cache, notes, PACKED, cancel) else { continue };
                let Ok(plain) = zstd::Decoder::new(packed.as_slice()) else { continue };
                let mut bytes = vec![];
                if plain.take(PLAIN).read_to_end(&mut bytes).is_ok() {
                    out.push(bytes);
                }
            }
        }
        out
    }
}
