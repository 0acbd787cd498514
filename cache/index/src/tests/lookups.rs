//! Records, layers, images and notes: what is found, and what is not.

use super::*;
use rbuild_ports::ImageRecord;
use rbuild_store::Pin;

#[test]
fn the_newest_record_comes_first_and_own_ones_before_imported() {
    let space = Space::new();
    let open = space.open();
    let (a, b, c, d) = (open.layer("a", 1), open.layer("b", 1), open.layer("c", 1), open.layer("d1", 1));
    let save = |name: &str, layer: &LayerId, created: i64, kind: RecordKind| {
        let record = NewRecord { created: Timestamp(created), kind, ..new_record(name, &[layer]) };
        open.index.save(&root_query("op"), Some(&record)).unwrap();
    };
    save("imported", &a, 9, RecordKind::Imported);
    save("own", &b, 9, RecordKind::Local);
    save("old", &c, 1, RecordKind::Local);
    save("new", &d, 10, RecordKind::Imported);
    assert_eq!(open.found("op"), ["new", "own", "imported", "old"]);
    let keys = open.index.probe(&root_query("op")).unwrap();
    let found = open.index.records(&[keys.clone(), keys].concat()).unwrap();
    assert_eq!(found.len(), 4, "a key asked twice answers once");
    assert_eq!(found[1].snapshot.layers, [b]);
    assert_eq!((found[1].cost_ms, found[1].kind, found[1].created), (1000, RecordKind::Local, Timestamp(9)));
    assert_eq!(open.index.records(&[KeyId("no".into())]).unwrap(), vec![]);
}

#[test]
fn the_same_result_again_is_the_same_record() {
    let space = Space::new();
    let open = space.open();
    let layer = open.layer("a", 1);
    open.record("op", &[&layer]);
    let newer = NewRecord { created: Timestamp(8), ..new_record("again", &[&layer]) };
    open.index.save(&root_query("op"), Some(&newer)).unwrap();
    let older =
        NewRecord { created: Timestamp(3), kind: RecordKind::Imported, ..new_record("import", &[&layer]) };
    open.index.save(&root_query("op"), Some(&older)).unwrap();
    assert_eq!(open.found("op"), ["again"]);
}

#[test]
fn a_forgotten_record_is_a_miss() {
    let space = Space::new();
    let open = space.open();
    let layer = open.layer("a", 1);
    let key = open.record("op", &[&layer]);
    let id = open.index.records(std::slice::from_ref(&key)).unwrap()[0].id;
    open.index.forget(id).unwrap();
    open.index.forget(id).unwrap();
    assert_eq!(open.index.records(&[key]).unwrap(), vec![]);
    assert_eq!(open.index.probe(&root_query("op")).unwrap().len(), 1, "the key stays");
}

#[test]
fn a_record_whose_layer_is_lost_is_left_out_and_forgotten() {
    let space = Space::new();
    let open = space.open();
    let (a, b) = (open.layer("a", 1), open.layer("b", 1));
    open.record("op", &[&a, &b]);
    open.record("other", &[&a]);
    drop(open);
    let open = space.open();
    std::fs::remove_dir_all(open.root.layer_dir(&b)).unwrap();
    assert_eq!(open.found("op"), Vec::<String>::new());
    assert_eq!(open.found("other"), ["other"]);
    open.directory("b", 1);
    assert_eq!(open.found("op"), Vec::<String>::new(), "it does not come back");
}

#[test]
fn a_layer_that_can_be_fetched_or_unpacked_is_not_lost() {
    let space = Space::new();
    let open = space.open();
    let (lazy, packed): (LayerId, LayerId) = ("lazy".parse().unwrap(), "packed".parse().unwrap());
    let digest = open.blob(b"blob");
    open.index.put_layer(&LayerRow { remotes: vec![remote_of("r")], ..row("lazy", 0, 0) }).unwrap();
    let usage = open.index.usage().unwrap();
    assert_eq!(
        usage.iter().map(|row| row.description.as_str()).collect::<Vec<_>>(),
        ["layer of registry.test/app", "blob of no layer"]
    );
    open.index.put_layer(&LayerRow { blobs: vec![blob_of(digest, 4)], ..row("packed", 0, 0) }).unwrap();
    open.record("op", &[&lazy, &packed]);
    assert_eq!(open.found("op"), ["op"]);
    drop(open);
    let open = space.open();
    open.blobs.remove(&digest).unwrap();
    assert_eq!(
        open.index.layer(&packed).unwrap().unwrap().blobs,
        vec![],
        "a blob that is gone is not offered"
    );
    assert_eq!(open.found("op"), Vec::<String>::new());
}

#[test]
fn what_is_known_of_a_layer_is_joined() {
    let space = Space::new();
    let open = space.open();
    let id: LayerId = "a".parse().unwrap();
    assert_eq!(open.index.layer(&id).unwrap(), None);
    let (one, two) = (open.blob(b"one"), open.blob(b"three"));
    let later = LayerRow { created: Timestamp(9), ..row("a", 0, 0) };
    open.index.put_layer(&LayerRow { remotes: vec![remote_of("x")], ..later.clone() }).unwrap();
    open.index
        .put_layer(&LayerRow {
            diff_id: Some(Digest::of("d")),
            blobs: vec![blob_of(one, 3)],
            ..later.clone()
        })
        .unwrap();
    open.directory("a", 10);
    open.index.put_layer(&row("a", 1, 10)).unwrap();
    let again = vec![blob_of(one, 3), blob_of(two, 5)];
    open.index
        .put_layer(&LayerRow { blobs: again, remotes: vec![remote_of("x"), remote_of("y")], ..later })
        .unwrap();
    let found = open.index.layer(&id).unwrap().unwrap();
    assert_eq!((found.layer.entries, found.layer.bytes), (1, 10));
    assert_eq!(found.diff_id, Some(Digest::of("d")));
    assert_eq!(found.created, Timestamp(5), "the earliest");
    assert_eq!(found.blobs.len(), 2);
    assert_eq!(found.remotes.len(), 2);
}

#[test]
fn descriptors_come_back_whole() {
    let space = Space::new();
    let open = space.open();
    let mut remote = remote_of("x");
    remote.descriptor.urls = vec!["https://test/x".to_owned()];
    remote.descriptor.annotations.insert("a".to_owned(), "b".to_owned());
    open.index.put_layer(&LayerRow { remotes: vec![remote.clone()], ..row("a", 0, 0) }).unwrap();
    assert_eq!(open.index.layer(&"a".parse().unwrap()).unwrap().unwrap().remotes, [remote]);
}

#[test]
fn a_record_may_name_layers_that_nobody_described() {
    let space = Space::new();
    let open = space.open();
    let dir = open.directory("a", 1).layer.layer;
    open.record("op", &[&dir]);
    assert_eq!(open.found("op"), ["op"]);
    open.record("scratch", &[]);
    assert_eq!(open.found("scratch"), ["scratch"]);
}

fn image(name: &str, layers: &[&LayerId]) -> ImageRecord {
    ImageRecord {
        name: name.to_owned(),
        config: "{}".to_owned(),
        snapshot: Snapshot { layers: layers.iter().map(|layer| (*layer).clone()).collect() },
        platform: "linux/amd64".to_owned(),
        created: Timestamp(4),
        manifest: Some(Digest::of("manifest")),
    }
}

#[test]
fn images_are_found_by_name_until_they_are_removed() {
    let space = Space::new();
    let open = space.open();
    let (a, b) = (open.layer("a", 1), open.layer("b", 1));
    assert_eq!(open.index.image("one").unwrap(), None);
    open.index.put_image(&image("two", &[&a])).unwrap();
    open.index.put_image(&image("one", &[&a])).unwrap();
    open.index.put_image(&image("one", &[&a, &b])).unwrap();
    assert_eq!(open.index.image("one").unwrap(), Some(image("one", &[&a, &b])));
    let names: Vec<String> = open.index.images().unwrap().into_iter().map(|image| image.name).collect();
    assert_eq!(names, ["one", "two"]);
    assert!(open.index.remove_image("two").unwrap());
    assert!(!open.index.remove_image("two").unwrap());
    assert_eq!(open.index.image("two").unwrap(), None);
    drop(open);
    let open = space.open();
    std::fs::remove_dir_all(open.root.layer_dir(&b)).unwrap();
    assert_eq!(open.index.image("one").unwrap(), None, "an image that cannot be read is none");
    assert_eq!(open.index.images().unwrap(), vec![]);
}

#[test]
fn notes_are_kept_and_overwritten() {
    let space = Space::new();
    let open = space.open();
    assert_eq!(open.index.note("a").unwrap(), None);
    open.index.put_note("a", "1").unwrap();
    open.index.put_note("a", "2").unwrap();
    open.index.put_note("b", "").unwrap();
    drop(open);
    let open = space.open();
    assert_eq!(open.index.note("a").unwrap().as_deref(), Some("2"));
    assert_eq!(open.index.note("b").unwrap().as_deref(), Some(""));
}

#[test]
fn what_a_lookup_returned_is_pinned_and_nothing_else() {
    let space = Space::new();
    let open = space.open();
    let layers: Vec<LayerId> = ["a", "b", "c", "e"].iter().map(|name| open.layer(name, 1)).collect();
    open.record("one", &[&layers[0]]);
    open.record("other", &[&layers[2]]);
    drop(open);
    let open = space.open();
    open.found("one");
    open.index.layer(&layers[1]).unwrap();
    open.record("made", &[&layers[3]]);
    let mut pins = open.root.pins();
    pins.refresh().unwrap();
    let pinned: Vec<bool> = layers.iter().map(|layer| pins.contains(&Pin::Layer(layer.clone()))).collect();
    assert_eq!(pinned, [true, true, false, true]);
}

#[test]
fn use_is_counted_when_told() {
    let space = Space::new();
    let open = space.open();
    let (a, b) = (open.layer("a", 1), open.layer("b", 1));
    open.record("one", &[&a]);
    open.record("two", &[&b]);
    let uses = |open: &Open| open.index.usage().unwrap().iter().map(|row| row.use_count).collect::<Vec<_>>();
    assert_eq!(uses(&open), [1, 1]);
    space.wait(50);
    open.found("one");
    open.found("one");
    assert_eq!(uses(&open), [1, 1], "a lookup writes nothing");
    open.index.touch_used().unwrap();
    open.index.touch_used().unwrap();
    assert_eq!(uses(&open), [2, 1], "a build counts once");
    let usage = open.index.usage().unwrap();
    assert_eq!(usage[0].last_used, Some(Timestamp(1_000_050 * 1_000_000_000)));
    assert_eq!(usage[1].last_used, Some(Timestamp(1_000_000 * 1_000_000_000)));
}

#[test]
fn preimages_of_a_step_are_told_newest_first() {
    let space = Space::new();
    let open = space.open();
    let (a, b) = (open.layer("a", 1), open.layer("b", 1));
    open.index.save(&root_query("v1"), Some(&new_record("RUN make", &[&a]))).unwrap();
    let second =
        NewRecord { preimage: "args v2".to_owned(), created: Timestamp(2), ..new_record("RUN make", &[&b]) };
    open.index.save(&root_query("v2"), Some(&second)).unwrap();
    drop(open);
    let open = space.open();
    let texts = |limit| {
        open.index.preimages("RUN make", limit).unwrap().into_iter().map(|it| it.text).collect::<Vec<_>>()
    };
    assert_eq!(texts(9), ["args v2", "op RUN make"]);
    assert_eq!(texts(1), ["args v2"]);
    open.prune(&everything());
    let gone = open.index.preimages("RUN make", 9).unwrap();
    assert_eq!(gone.len(), 2);
    assert_eq!(gone[0].removed.as_ref().map(|(_, reason)| reason.as_str()), Some("as requested"));
}
