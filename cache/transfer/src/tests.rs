//! Imports beside a local index, what of a cache stays, and directories that several write.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rbuild_cache_remote::{
    CREATED_AT, CacheManifest, Chains, Form, Imported, MountIndex, UNCOMPRESSED, write_manifest,
};
use rbuild_digest::Digest;
use rbuild_oci::Descriptor;
use rbuild_oci::media_type::{BUILDKIT_CACHE_CONFIG, OCI_LAYER, OCI_LAYER_GZIP};
use rbuild_ports::fakes::{MemoryIndex, StepClock};
use rbuild_ports::{
    Alternative, CacheIndex, CancelToken, ErrorKind, KeyId, KeyQuery, LayerId, NewRecord, RecordKind, Result,
    Snapshot, Timestamp,
};

use crate::merge::{EXPORTED_AT, Kept};
use crate::steps::record_digest;
use crate::{
    CacheSource, CacheTarget, CombinedIndex, ExistingCache, ImportedCache, Imports, LayoutSource,
    LayoutTarget,
};

const DAY: i64 = 86_400_000_000_000;

fn digest(text: &str) -> Digest {
    Digest::of(text)
}

/// A layer whose blob and tar are called `name`.
fn layer(name: &str, size: u64) -> Descriptor {
    let mut out = Descriptor::new(OCI_LAYER_GZIP, digest(name), size);
    out.annotations.insert(UNCOMPRESSED.to_owned(), digest(&format!("tar of {name}")).to_string());
    out.annotations.insert(CREATED_AT.to_owned(), "2026-01-01T00:00:00Z".to_owned());
    out
}

/// Base → `first` → `second`, where the second may also be reached by the content `c`.
fn chain() -> Chains {
    let mut chains = Chains::default();
    let base = chains.add(digest("base"), vec![]).unwrap();
    let first = chains.add(record_digest(&digest("first"), 0), vec![vec![(base, None)]]).unwrap();
    let content = chains.add(digest("c"), vec![]).unwrap();
    let inputs = vec![vec![(first, Some(digest("s"))), (content, None)]];
    let second = chains.add(record_digest(&digest("second"), 0), inputs).unwrap();
    chains.add_result(first, vec![digest("l1")], 5);
    chains.add_result(second, vec![digest("l1"), digest("l2")], 6);
    chains
}

struct Memory {
    asked: Arc<AtomicBool>,
}

fn cache_of(imported: Imported, name: String) -> ImportedCache {
    ImportedCache { imported, location: "h/r".to_owned(), name, mounts: None, notes: vec![] }
}

impl CacheSource for Memory {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn read(&self, _cancel: &CancelToken) -> Result<Vec<ImportedCache>> {
        self.asked.store(true, Ordering::SeqCst);
        let imported = Imported::new(chain().config(), &[layer("l1", 1), layer("l2", 2)]);
        Ok(vec![cache_of(imported, self.name())])
    }
}

/// Never answers until it is cancelled.
struct Silent;

impl CacheSource for Silent {
    fn name(&self) -> String {
        "silent".to_owned()
    }

    fn read(&self, cancel: &CancelToken) -> Result<Vec<ImportedCache>> {
        let (send, receive) = std::sync::mpsc::channel();
        let _guard = cancel.on_cancel(move || {
            let _ = send.send(());
        });
        let _ = receive.recv();
        cancel.check()?;
        Ok(vec![])
    }
}

fn combined(local: &Arc<MemoryIndex>, source: Arc<dyn CacheSource>) -> CombinedIndex {
    let imports = Imports::start(vec![source], &CancelToken::new());
    CombinedIndex::new(local.clone(), imports, Arc::new(StepClock::default()))
}

fn query(op: &str, inputs: &[&[(&KeyId, Option<&str>)]]) -> KeyQuery {
    let alternative = |(key, selector): &(&KeyId, Option<&str>)| Alternative {
        key: (*key).clone(),
        selector: selector.map(digest),
    };
    let inputs = inputs.iter().map(|input| input.iter().map(alternative).collect()).collect();
    KeyQuery { op: digest(op), output: 0, inputs }
}

fn record(name: &str) -> NewRecord {
    NewRecord {
        snapshot: Snapshot { layers: vec![name.parse().unwrap()] },
        created: Timestamp(1),
        description: name.to_owned(),
        cost_ms: 0,
        kind: RecordKind::Local,
        preimage: String::new(),
    }
}

#[test]
fn a_hit_of_an_import_becomes_a_local_record_with_its_path() {
    let local = Arc::new(MemoryIndex::new());
    let index = combined(&local, Arc::new(Memory { asked: Arc::default() }));
    index.describe([(digest("second"), "RUN second".to_owned(), "its preimage".to_owned())]);
    let base = KeyId::root(&digest("base"));
    let first = index.probe(&query("first", &[&[(&base, None)]])).unwrap();
    let second = query("second", &[&[(&first[0], Some("s"))]]);
    let keys = index.probe(&second).unwrap();
    assert_eq!((first.len(), keys.len()), (1, 1));
    let found = index.records(&keys).unwrap();
    assert_eq!((found[0].created, found[0].kind), (Timestamp(6), RecordKind::Imported));
    assert_eq!(found[0].description, "RUN second");
    let ids: Vec<LayerId> =
        ["l1", "l2"].map(|it| LayerId::of_diff_id(&digest(&format!("tar of {it}")))).to_vec();
    assert_eq!(found[0].snapshot.layers, ids);
    let row = index.layer(&ids[1]).unwrap().unwrap();
    assert_eq!((row.remotes[0].location.as_str(), row.remotes[0].descriptor.size), ("h/r", 2));
    // The same without the import: by the definition, and by the content that nobody asked for.
    let first = local.probe(&query("first", &[&[(&base, None)]])).unwrap();
    assert_eq!(first.len(), 1);
    assert!(local.records(&first).unwrap().is_empty(), "only what was hit is a record");
    for input in [(&first[0], Some("s")), (&KeyId::root(&digest("c")), None)] {
        let keys = local.probe(&query("second", &[&[input]])).unwrap();
        assert_eq!(local.records(&keys).unwrap().len(), 1);
    }
    assert_eq!(
        index.local_key(&keys[0]).unwrap(),
        local.probe(&query("second", &[&[(&first[0], Some("s"))]])).unwrap()[0]
    );
    // A result that turned out to be gone is not offered again.
    index.forget(found[0].id).unwrap();
    assert!(index.records(&keys).unwrap().is_empty());
}

#[test]
fn local_keys_lead_on_in_imports() {
    let local = Arc::new(MemoryIndex::new());
    let base = KeyId::root(&digest("base"));
    local.save(&query("first", &[&[(&base, None)]]), Some(&record("mine"))).unwrap();
    let index = combined(&local, Arc::new(Memory { asked: Arc::default() }));
    index.describe([(digest("other"), "another".to_owned(), String::new())]);
    let first = index.probe(&query("first", &[&[(&base, None)]])).unwrap();
    assert_eq!(index.records(&first).unwrap()[0].description, "mine");
    let second = index.probe(&query("second", &[&[(&first[0], Some("s"))]])).unwrap();
    assert_eq!(index.records(&second).unwrap()[0].description, "imported from memory");
    // What is saved below an import's key hangs on a local one.
    let third = index.save(&query("third", &[&[(&second[0], None)]]), Some(&record("third"))).unwrap();
    let second = index.local_key(&second[0]).unwrap();
    assert_eq!(local.probe(&query("third", &[&[(&second, None)]])).unwrap(), [third]);
}

#[test]
fn nobody_waits_for_an_import_that_is_not_needed() {
    let local = Arc::new(MemoryIndex::new());
    let base = KeyId::root(&digest("base"));
    local.save(&query("first", &[&[(&base, None)]]), Some(&record("mine"))).unwrap();
    let index = combined(&local, Arc::new(Silent));
    let first = index.probe(&query("first", &[&[(&base, None)]])).unwrap();
    assert_eq!(index.records(&first).unwrap().len(), 1);
    // Dropping stops it.
}

#[test]
fn stages_may_have_any_number_of_steps() {
    struct Long;
    impl CacheSource for Long {
        fn name(&self) -> String {
            "long".to_owned()
        }

        fn read(&self, _cancel: &CancelToken) -> Result<Vec<ImportedCache>> {
            let mut chains = Chains::default();
            let mut last = chains.add(digest("base"), vec![]).unwrap();
            for step in 0..STEPS {
                let record = record_digest(&digest(&step.to_string()), 0);
                last = chains.add(record, vec![vec![(last, None)]]).unwrap();
            }
            chains.add_result(last, vec![digest("l1")], 5);
            let imported = Imported::new(chains.config(), &[layer("l1", 1)]);
            Ok(vec![cache_of(imported, self.name())])
        }
    }
    const STEPS: usize = 3000;
    let step = |step: usize, key: &KeyId| query(&step.to_string(), &[&[(key, None)]]);
    let base = KeyId::root(&digest("base"));
    // All is known here but the last step; and nothing is.
    for known in [STEPS - 1, 0] {
        let local = Arc::new(MemoryIndex::new());
        let mut key = base.clone();
        for at in 0..known {
            key = local.save(&step(at, &key), Some(&record("mine"))).unwrap();
        }
        let index = combined(&local, Arc::new(Long));
        let mut key = base.clone();
        for at in 0..STEPS {
            key = index.probe(&step(at, &key)).unwrap().remove(0);
        }
        assert_eq!(index.records(&[key]).unwrap()[0].description, "imported from long");
    }
}

fn existing(results: &[(&str, i64)]) -> ExistingCache {
    let mut chains = Chains::default();
    let mut layers = vec![];
    for (name, day) in results {
        let record = chains.add(digest(&format!("record {name}")), vec![]).unwrap();
        chains.add_result(record, vec![digest("shared"), digest(name)], 1);
        let mut layer = layer(name, 300 << 20);
        layer.annotations.insert(EXPORTED_AT.to_owned(), crate::merge::today(Timestamp(day * DAY)));
        layers.push(layer);
    }
    let mut shared = layer("shared", 1);
    shared.annotations.insert(EXPORTED_AT.to_owned(), crate::merge::today(Timestamp(100 * DAY)));
    layers.push(shared);
    ExistingCache { digest: digest(""), config: chains.config(), layers, mounts: MountIndex::default() }
}

fn names(kept: &Kept) -> BTreeSet<&'static str> {
    let all = ["a", "b", "c", "d", "e", "shared"];
    let blobs: BTreeSet<Digest> = kept.layers().iter().map(|layer| layer.digest).collect();
    all.into_iter().filter(|name| blobs.contains(&digest(name))).collect()
}

#[test]
fn what_is_old_or_too_much_goes() {
    let now = Timestamp(100 * DAY + 1);
    let cache = existing(&[("a", 99), ("b", 98), ("c", 97), ("d", 96), ("e", 80)]);
    let mut kept = Kept::choose(&cache, &[], now);
    assert_eq!(names(&kept), BTreeSet::from(["a", "b", "c", "shared"]), "1 GiB holds three");
    kept.without(&BTreeSet::from([digest("b")]));
    assert_eq!(names(&kept), BTreeSet::from(["a", "c", "shared"]));
    kept.halve();
    assert_eq!(names(&kept), BTreeSet::from(["a", "shared"]));
    // Four times what this build has; and what it has itself costs nothing.
    let kept = Kept::choose(&cache, &[layer("d", 300 << 20)], now);
    assert_eq!(names(&kept), BTreeSet::from(["a", "b", "c", "d", "shared"]));
    let kept = Kept::choose(&cache, &[], Timestamp(200 * DAY));
    assert!(kept.is_empty() && kept.layers().is_empty());
}

/// Writes a cache of one layer.
fn put(target: &LayoutTarget, name: &str) {
    let cancel = CancelToken::new();
    let put = |bytes: Vec<u8>, media_type: &str| {
        let blob = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        target.put_blob(&blob, &|| Ok(Box::new(std::io::Cursor::new(bytes.clone()))), &cancel).unwrap();
        assert!(target.has_blob(&blob, &[], &cancel).unwrap());
        blob
    };
    let mut chains = Chains::default();
    let root = chains.add(digest("root"), vec![]).unwrap();
    let record = chains.add(digest(name), vec![vec![(root, None)]]).unwrap();
    let layer = put(name.into(), OCI_LAYER);
    chains.add_result(record, vec![layer.digest], 1);
    let config = put(chains.config().to_json(), BUILDKIT_CACHE_CONFIG);
    let cache = CacheManifest { config, layers: vec![layer] };
    let (descriptor, bytes) = write_manifest(&cache, Form { image_manifest: true, oci: true });
    assert!(target.put_manifest(&descriptor, &bytes, None, &cancel).unwrap());
    assert_eq!(target.existing(&cancel).unwrap().unwrap().config, chains.config());
}

#[test]
fn a_directory_keeps_what_its_names_need() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("a/cache");
    let cancel = CancelToken::new();
    let open = |tag| LayoutTarget::open(&dir, tag, &cancel).unwrap();
    let blobs = || fs::read_dir(dir.join("blobs/sha256")).unwrap().count();
    put(&open("one"), "first");
    assert_eq!(blobs(), 3);
    put(&open("two"), "second");
    assert_eq!(blobs(), 6);
    fs::write(dir.join("blobs/sha256/.partial-x"), "a killed process").unwrap();
    fs::write(dir.join("blobs/sha256/notes"), "of the user").unwrap();
    put(&open("one"), "third");
    assert_eq!(blobs(), 7);
    let read = |tag: &str| {
        let source = LayoutSource { dir: dir.clone(), tag: Some(tag.to_owned()), digest: None };
        source.read(&cancel).map(|caches| caches[0].imported.len())
    };
    assert_eq!((read("one").unwrap(), read("two").unwrap()), (2, 2));
    assert_eq!(read("three").unwrap_err().kind, ErrorKind::NotFound);
    // A damaged blob that is to be copied leaves nothing.
    let wrong = Descriptor::new(OCI_LAYER, digest("x"), 1);
    let error = open("one").put_blob(&wrong, &|| Ok(Box::new(&b"y"[..])), &cancel).unwrap_err();
    assert_eq!((error.kind, blobs()), (ErrorKind::Corrupt, 7));
    // An index that nobody understands is left alone.
    fs::write(dir.join("index.json"), "{").unwrap();
    let error = LayoutTarget::open(&dir, "one", &cancel).err().unwrap();
    assert!(error.message.contains("index.json"), "{error}");
    assert_eq!(blobs(), 7);
}

#[test]
fn writers_of_a_directory_wait_for_each_other() {
    let place = tempfile::tempdir().unwrap();
    let cancel = CancelToken::new();
    let held = LayoutTarget::open(place.path(), "one", &cancel).unwrap();
    let stop = CancelToken::new();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| LayoutTarget::open(place.path(), "two", &stop).err());
        let comes = scope.spawn(|| put(&LayoutTarget::open(place.path(), "three", &cancel).unwrap(), "x"));
        stop.cancel();
        assert_eq!(waits.join().unwrap().unwrap().kind, ErrorKind::Cancelled);
        put(&held, "y");
        drop(held);
        comes.join().unwrap();
    });
    let cancel = CancelToken::new();
    for tag in ["one", "three"] {
        assert!(LayoutTarget::open(place.path(), tag, &cancel).unwrap().existing(&cancel).unwrap().is_some());
    }
}
