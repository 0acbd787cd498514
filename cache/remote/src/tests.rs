//! What BuildKit wrote is read, looked up and written again; what nobody wrote does no harm.

#![expect(clippy::disallowed_methods, reason = "what BuildKit wrote is read from files")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rbuild_digest::Digest;
use rbuild_oci::{Descriptor, Manifest};
use serde_json::Value;

use crate::{
    CacheConfig, Chains, Form, Imported, RecordId, RemoteDocument, Way, inline_config, inline_records,
    read_document, write_manifest,
};

const PROJECTS: [&str; 4] = ["linear", "copy", "stages", "mounts"];

fn recorded(project: &str, cache: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/test_data/buildkit").join(project).join(cache)
}

fn blob(dir: &Path, digest: &Digest) -> Vec<u8> {
    fs::read(dir.join("blobs/sha256").join(digest.hex())).unwrap()
}

/// Manifest bytes, what they say, and the bytes of the config.
fn cache(project: &str, name: &str) -> (Vec<u8>, crate::CacheManifest, Vec<u8>) {
    let dir = recorded(project, name);
    let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
    let bytes = blob(&dir, &digest);
    let RemoteDocument::Cache(manifest) = read_document(&bytes, "").unwrap() else { panic!("no cache") };
    let config = blob(&dir, &manifest.config.digest);
    (bytes, manifest, config)
}

/// Every record and every way that leads to it, with its results' blobs, by what they are.
fn described(config: &CacheConfig) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for record in &config.records {
        let digest = record.digest.unwrap();
        for result in &record.results {
            out.insert(format!("{digest} = {:?} at {}", config.blobs(result).unwrap(), result.created));
        }
        for (input, links) in record.inputs.iter().enumerate() {
            for link in links {
                let from = config.records[link.record].digest.unwrap();
                out.insert(format!("{digest} input {input} from {from} {:?}", link.selector));
            }
        }
        out.insert(digest.to_string());
    }
    out
}

fn again(config: &CacheConfig) -> CacheConfig {
    let mut chains = Chains::default();
    chains.merge(config, &|_, _| true);
    chains.config()
}

#[test]
fn what_buildkit_wrote_is_written_again_with_its_bytes() {
    for project in PROJECTS {
        for name in ["cache-max", "cache-min"] {
            let (_, _, bytes) = cache(project, name);
            let config = CacheConfig::parse(&bytes).unwrap();
            assert_eq!(
                String::from_utf8(config.to_json()).unwrap(),
                String::from_utf8(bytes).unwrap(),
                "{project} {name}"
            );
        }
    }
}

#[test]
fn gathering_a_config_keeps_what_it_says() {
    for project in PROJECTS {
        for name in ["cache-max", "cache-min"] {
            let config = CacheConfig::parse(&cache(project, name).2).unwrap();
            let once = again(&config);
            assert_eq!(described(&config), described(&once), "{project} {name}");
            assert_eq!(once.to_json(), again(&once).to_json(), "{project} {name}");
        }
    }
}

#[test]
fn the_order_of_adding_does_not_count() {
    let config = CacheConfig::parse(&cache("stages", "cache-max").2).unwrap();
    let mut turned = config.clone();
    let last = config.records.len() - 1;
    turned.records.reverse();
    turned.records.iter_mut().flat_map(|record| record.inputs.iter_mut().flatten()).for_each(|link| {
        link.record = last - link.record;
    });
    assert_eq!(again(&config).to_json(), again(&turned).to_json());
}

#[test]
fn both_forms_of_the_manifest_are_read() {
    let (bytes, manifest, _) = cache("stages", "cache-max");
    for (image_manifest, oci) in [(true, true), (false, true), (false, false)] {
        let (descriptor, written) = write_manifest(&manifest, Form { image_manifest, oci });
        assert_eq!(descriptor.digest, Digest::of(&written));
        let RemoteDocument::Cache(read) = read_document(&written, &descriptor.media_type).unwrap() else {
            panic!("no cache")
        };
        assert_eq!(read.config, manifest.config);
        let digests = |layers: &[Descriptor]| layers.iter().map(|l| l.digest).collect::<BTreeSet<_>>();
        assert_eq!(digests(&read.layers), digests(&manifest.layers));
        assert_eq!(oci, !String::from_utf8(written).unwrap().contains("docker"));
    }
    // The same fields in the same order as BuildKit's; it lists a layer once for every place that it has.
    let ours: Manifest =
        serde_json::from_slice(&write_manifest(&manifest, Form { image_manifest: true, oci: true }).1)
            .unwrap();
    let theirs: Manifest = serde_json::from_slice(&bytes).unwrap();
    let mut layers = theirs.layers.clone();
    layers.dedup();
    assert_eq!((ours.layers, ours.config), (layers, theirs.config));
}

#[test]
fn a_query_finds_what_its_inputs_lead_to() {
    let (_, manifest, bytes) = cache("stages", "cache-max");
    let imported = Imported::new(CacheConfig::parse(&bytes).unwrap(), &manifest.layers);
    let digest = |start: &str| {
        let config = CacheConfig::parse(&bytes).unwrap();
        config.records.iter().filter_map(|it| it.digest).find(|it| it.hex().starts_with(start)).unwrap()
    };
    let (base, chain, content) = (digest("81173e71"), digest("d85e9661"), digest("043decc5"));
    let copy = digest("0bd0b710");
    let ways = |root: Digest| vec![vec![Way::Root(root, None)], vec![Way::Root(content, None)]];
    let found = imported.probe(&copy, &ways(base));
    assert_eq!(found, imported.probe(&copy, &ways(chain)));
    assert_eq!(found.len(), 1);
    assert!(imported.probe(&copy, &[vec![Way::Root(base, None)], vec![Way::Root(base, None)]]).is_empty());
    assert!(imported.probe(&copy, &[vec![Way::Root(base, None)]]).is_empty());
    assert!(imported.probe(&copy, &[vec![Way::Root(base, None)], vec![]]).is_empty());
    let results = imported.results(found[0]);
    assert_eq!(results.len(), 1);
    assert_eq!(results[0].layers.len(), 2);
    let run = digest("68952ca2");
    let selector = Some(Digest::of("/"));
    assert_eq!(imported.probe(&run, &[vec![Way::Record(found[0], selector)]]).len(), 1);
    assert!(imported.probe(&run, &[vec![Way::Record(found[0], None)]]).is_empty());
    let names: Vec<usize> = imported.roots_of(found[0]).iter().map(Vec::len).collect();
    assert_eq!(names, [2, 1]);
}

#[test]
fn inline_records_are_those_of_buildkit() {
    for project in PROJECTS {
        let dir = recorded(project, "inline");
        let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
        let manifest: Manifest = serde_json::from_slice(&blob(&dir, &digest)).unwrap();
        let config: Value = serde_json::from_slice(&blob(&dir, &manifest.config.digest)).unwrap();
        let field = config["moby.buildkit.cache.v0"].as_str().unwrap();
        let blobs: Vec<Digest> = manifest.layers.iter().map(|layer| layer.digest).collect();
        let read = inline_config(field, &blobs).unwrap();
        assert_eq!(inline_records(&read, &blobs).as_deref(), Some(field), "{project}");
        assert_eq!(described(&read), described(&again(&read)), "{project}");
    }
    assert!(inline_config("no base64!", &[]).is_err());
    assert!(inline_records(&CacheConfig::default(), &[]).is_none());
}

#[test]
fn what_makes_no_sense_is_left_out() {
    let config = |text: &str| CacheConfig::parse(text.as_bytes()).unwrap();
    let (a, b) = (Digest::of("a"), Digest::of("b"));
    assert_eq!(config("{}"), CacheConfig::default());
    assert_eq!(config(r#"{"layers":null,"records":null,"more":1}"#), CacheConfig::default());
    // A layer on itself, one on nothing, and one on something that is not there.
    let read = config(&format!(
        r#"{{"layers":[{{"blob":"{a}"}},{{"blob":"{b}","parent":-1}},{{"blob":"{b}","parent":9}}],"records":[
        {{"digest":"{a}","layers":[{{"layer":0,"createdAt":"x"}},{{"layer":1,"createdAt":"1970-01-01T00:00:01Z"}},{{"layer":2}},{{"layer":77}},{{"layer":-1}}],
          "chains":[{{"layers":[1,1]}},{{"layers":[]}},{{"layers":[-1]}},{{"layers":[5]}}]}},
        {{"digest":"{b}","inputs":[[{{"link":0}},{{"link":44}},{{"link":-1}},{{"selector":"no digest","link":0}}],null]}},
        {{"digest":"md5:1"}}]}}"#
    ));
    let blobs: Vec<_> = read.records[0].results.iter().map(|it| (read.blobs(it), it.created)).collect();
    let none = (None, 0);
    assert_eq!(
        blobs,
        [
            none.clone(),
            (Some(vec![b]), 1_000_000_000),
            none.clone(),
            none.clone(),
            (Some(vec![b, b]), 0),
            none.clone(),
            none
        ]
    );
    assert_eq!(read.records[1].inputs.iter().map(Vec::len).collect::<Vec<_>>(), [1, 0]);
    assert_eq!(read.records[2].digest, None);
    // What cannot be reached is not written on.
    assert_eq!(again(&read).records.len(), 1);
    // Loops end somewhere.
    let looped = config(&format!(
        r#"{{"records":[{{"digest":"{a}","inputs":[[{{"link":1}}]]}},{{"digest":"{b}","inputs":[[{{"link":0}},{{"link":1}}]]}}]}}"#
    ));
    assert_eq!(looped.records.iter().map(|it| it.inputs[0].len()).sum::<usize>(), 1);
}

#[test]
fn joined_records_never_loop() {
    let (a, b) = (Digest::of("a"), Digest::of("b"));
    let mut chains = Chains::default();
    let root = chains.add(Digest::of("root"), vec![]).unwrap();
    let first = chains.add(a, vec![vec![(root, None)]]).unwrap();
    let second = chains.add(b, vec![vec![(first, None)]]).unwrap();
    assert_eq!(chains.add(a, vec![vec![(second, None), (root, None)]]), Some(first));
    chains.add_result(second, vec![a], 7);
    let config = chains.config();
    assert_eq!(CacheConfig::parse(&config.to_json()).unwrap(), config);
    assert_eq!(config.records.len(), 3);
    assert_eq!(chains.add(b, vec![vec![]]), None);
    assert_eq!(chains.add(Digest::of("root"), vec![]), Some(root));
}

#[test]
fn merging_keeps_the_other_and_prefers_ours() {
    let (a, b, c) = (Digest::of("a"), Digest::of("b"), Digest::of("c"));
    let make = |content: Digest, blob: Digest, created: i64| {
        let mut chains = Chains::default();
        let root = chains.add(content, vec![]).unwrap();
        let step: RecordId = chains.add(a, vec![vec![(root, None)]]).unwrap();
        chains.add_result(step, vec![blob], created);
        chains
    };
    let mut ours = make(b, b, 2);
    ours.merge(&make(c, c, 1).config(), &|_, _| true);
    assert_eq!((ours.results(), ours.blobs().len()), (2, 2));
    // The same step again, made at another time: one result a record.
    ours.merge(&make(b, a, 3).config(), &|_, _| true);
    assert_eq!((ours.results(), ours.blobs().contains(&a)), (2, false));
    ours.merge(&make(a, a, 3).config(), &|_, created| created > 3);
    assert_eq!((ours.results(), ours.config().records.len()), (2, 4));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Mutated configs are read or refused, looked up and written without harm.
    #[test]
    fn mutations_do_no_harm(project in 0usize..4, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let (manifest_bytes, manifest, mut bytes) = cache(PROJECTS[project], "cache-max");
        let mut documents = manifest_bytes;
        for (at, byte) in changes {
            // Digits stay digits, so that most of it still parses.
            let at_config = at.index(bytes.len());
            bytes[at_config] = if bytes[at_config].is_ascii_digit() { b'0' + byte % 10 } else { byte };
            let at_manifest = at.index(documents.len());
            documents[at_manifest] = byte;
        }
        drop(read_document(&documents, ""));
        if let Ok(config) = CacheConfig::parse(&bytes) {
            exercise(config, &manifest.layers);
        }
    }

    /// So are links and parents drawn at random.
    #[test]
    fn random_links_do_no_harm(
        parents in prop::collection::vec(-2i64..8, 0..8),
        records in prop::collection::vec((0u8..4, prop::collection::vec(-1i64..9, 0..3), prop::collection::vec(prop::collection::vec(-1i64..10, 0..3), 0..3)), 0..9),
    ) {
        let layers: Vec<Value> = parents.iter().enumerate().map(|(at, parent)| {
            serde_json::json!({"blob": Digest::of(at.to_string()).to_string(), "parent": parent})
        }).collect();
        let records: Vec<Value> = records.iter().map(|(digest, layers, inputs)| serde_json::json!({
            "digest": Digest::of([*digest]).to_string(),
            "layers": layers.iter().map(|layer| serde_json::json!({"layer": layer, "createdAt": "2026-01-01T00:00:00Z"})).collect::<Vec<_>>(),
            "inputs": inputs.iter().map(|links| links.iter().map(|link| serde_json::json!({"link": link})).collect::<Vec<_>>()).collect::<Vec<_>>(),
        })).collect();
        let bytes = serde_json::to_vec(&serde_json::json!({"layers": layers, "records": records})).unwrap();
        let config = CacheConfig::parse(&bytes).unwrap();
        let written = again(&config);
        prop_assert_eq!(&CacheConfig::parse(&written.to_json()).unwrap(), &written);
        prop_assert!(written.records.iter().flat_map(|record| &record.inputs).all(|links| !links.is_empty()));
        exercise(config, &[]);
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,80}") {
        drop(CacheConfig::parse(&bytes));
        drop(read_document(&bytes, &text));
        drop(inline_config(&text, &[]));
    }
}

fn exercise(config: CacheConfig, layers: &[Descriptor]) {
    let written = again(&config);
    drop(CacheConfig::parse(&written.to_json()).unwrap());
    let image: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
    drop(inline_records(&config, &image));
    let digests: Vec<Digest> = config.records.iter().filter_map(|record| record.digest).collect();
    let count = config.records.len();
    let imported = Imported::new(config, layers);
    for digest in &digests {
        for at in 0..count {
            drop(imported.probe(digest, &[vec![Way::Record(at, None), Way::Root(*digest, None)]]));
            drop((imported.results(at), imported.roots_of(at)));
        }
        drop(imported.probe(digest, &[]));
    }
}
