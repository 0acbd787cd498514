//! Garbage collection on a real store: what goes leaves the disk, and what is used stays.

use super::*;
use rbuild_ports::ImageRecord;

fn tag(open: &Open, name: &str, layers: &[&LayerId]) {
    let image = ImageRecord {
        name: name.to_owned(),
        config: "{}".to_owned(),
        snapshot: Snapshot { layers: layers.iter().map(|layer| (*layer).clone()).collect() },
        platform: "linux/amd64".to_owned(),
        created: Timestamp(4),
        manifest: None,
    };
    open.index.put_image(&image).unwrap();
}

fn removed(report: &PruneReport) -> Vec<String> {
    report.removed.iter().map(|it| format!("{}: {}", short(it.row.kind, &it.row.id), it.reason)).collect()
}

#[test]
fn rows_directories_and_blobs_go() {
    let space = Space::new();
    let open = space.open();
    let digest = open.blob(b"compressed");
    let base = open.layer("dbase", 100);
    let top = open.directory("s1", 10);
    open.index.put_layer(&LayerRow { blobs: vec![blob_of(digest, 10)], ..top }).unwrap();
    let from = open.record("from", &[&base]);
    let run = query("run", &[&[&from.to_string()]]);
    open.index.save(&run, Some(&new_record("run", &[&base, &"s1".parse().unwrap()]))).unwrap();
    assert_eq!(open.usage(), ["layer dbase 100", "layer s1 20"]);
    drop(open);
    let open = space.open();
    let plain = PruneOptions { all: false, ..everything() };
    let would = open.prune(&PruneOptions { dry_run: true, ..plain.clone() });
    assert_eq!(open.usage().len(), 2, "a dry run removes nothing");
    let report = open.prune(&plain);
    assert_eq!(report, would);
    assert_eq!(removed(&report), ["s1: as requested"]);
    assert_eq!((report.reclaimed, report.records, report.in_use), (20, 1, 0));
    assert_eq!(report.removed[0].row.description, "run");
    assert_eq!(open.blobs.list().unwrap(), vec![]);
    assert_eq!(open.root.layer_dirs().unwrap(), [base]);
    assert_eq!(open.index.probe(&run).unwrap(), vec![], "a key that leads nowhere goes too");
    assert_eq!(open.found("from"), ["from"]);
    drop(open);
    let open = space.open();
    assert_eq!(removed(&open.prune(&everything())), ["dbase: as requested"]);
    assert_eq!(open.usage(), Vec::<String>::new());
    assert_eq!(open.index.probe(&root_query("from")).unwrap(), vec![]);
}

#[test]
fn what_another_process_looked_up_stays_until_it_ends() {
    let space = Space::new();
    let maker = space.open();
    let (a, b) = (maker.layer("a", 1), maker.layer("b", 1));
    maker.record("one", &[&a]);
    maker.record("two", &[&b]);
    let report = space.open().prune(&everything());
    assert_eq!((report.removed.len(), report.in_use), (0, 2), "who made it may need it");
    drop(maker);
    let build = space.open();
    assert_eq!(build.found("one"), ["one"]);
    let report = space.open().prune(&everything());
    assert_eq!(removed(&report), ["b: as requested"]);
    assert_eq!(report.in_use, 1);
    assert!(build.root.layer_dir(&a).exists());
    assert_eq!(build.found("one"), ["one"]);
    let usage = space.open().index.usage().unwrap();
    assert!(usage[0].in_use);
    drop(build);
    assert_eq!(removed(&space.open().prune(&everything())), ["a: as requested"]);
}

#[test]
fn a_blob_of_two_layers_goes_with_the_second() {
    let space = Space::new();
    let open = space.open();
    let digest = open.blob(b"shared");
    for name in ["a", "b"] {
        let row = open.directory(name, 1);
        open.index.put_layer(&LayerRow { blobs: vec![blob_of(digest, 6)], ..row }).unwrap();
    }
    let (a, b): (LayerId, LayerId) = ("a".parse().unwrap(), "b".parse().unwrap());
    open.record("one", &[&a]);
    open.record("two", &[&b]);
    assert_eq!(open.usage(), ["layer a 7", "layer b 1"]);
    drop(open);
    let open = space.open();
    tag(&open, "keep", &[&b]);
    drop(open);
    let open = space.open();
    assert_eq!(removed(&open.prune(&everything())), ["a: as requested"]);
    assert_eq!(open.blobs.list().unwrap().len(), 1);
    drop(open);
    let open = space.open();
    open.index.remove_image("keep").unwrap();
    open.prune(&everything());
    assert_eq!(open.blobs.list().unwrap(), vec![]);
}

#[test]
fn named_images_survive_and_work_after_it() {
    let space = Space::new();
    let open = space.open();
    let (base, top, other) = (open.layer("dbase", 1), open.layer("s1", 1), open.layer("s2", 1));
    open.record("run", &[&base, &top]);
    open.record("other", &[&base, &other]);
    tag(&open, "app", &[&base, &top]);
    drop(open);
    let open = space.open();
    assert_eq!(removed(&open.prune(&everything())), ["s2: as requested"]);
    drop(open);
    let open = space.open();
    assert_eq!(open.index.image("app").unwrap().unwrap().snapshot.layers, [base, top]);
    let rows = open.index.usage().unwrap();
    assert!(rows.iter().all(|row| row.shared && row.description == "app"));
}

#[test]
fn what_a_crash_left_is_swept() {
    let space = Space::new();
    let open = space.open();
    let crashed = open.directory("crashed", 30).layer.layer;
    let leftover = open.blob(&vec![1; 5 << 20]);
    let manifest = open.blob(b"{}");
    drop(open);
    let open = space.open();
    let report = open.prune(&PruneOptions { all: false, ..everything() });
    let ids: Vec<&str> = report.removed.iter().map(|it| it.row.id.as_str()).collect();
    assert_eq!(ids, [leftover.to_string()]);
    assert_eq!(open.blobs.list().unwrap()[0].digest, manifest);
    assert!(open.root.layer_dir(&crashed).exists(), "as young as a live process: that may have made it");
    let mut report = PruneReport::default();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    open.root.pin_layer(&crashed).unwrap();
    open.index.sweep_layers(later, &mut report).unwrap();
    assert_eq!(report, PruneReport::default(), "and what is pinned is nobody's rest");
    open.root.release_pins().unwrap();
    open.index.sweep_layers(later, &mut report).unwrap();
    assert_eq!(removed(&report), ["crashed: nothing refers to it"]);
    assert_eq!(report.reclaimed, 30);
    assert_eq!(open.root.layer_dirs().unwrap(), vec![]);
}

#[test]
fn an_interrupted_collection_is_finished_by_the_next() {
    let space = Space::new();
    let open = space.open();
    let layer = open.layer("a", 1);
    drop(open);
    let open = space.open();
    let alone = open.root.exclusive(std::time::Duration::from_secs(60)).unwrap().unwrap();
    open.root.retire_layer(&alone, &layer).unwrap();
    drop(alone);
    assert_eq!(open.root.layer_dirs().unwrap().len(), 1);
    open.prune(&everything());
    assert_eq!(open.root.layer_dirs().unwrap(), vec![]);
    assert_eq!(open.usage(), Vec::<String>::new());
}

#[test]
fn cache_mounts_go_unless_a_step_has_them() {
    let space = Space::new();
    let open = space.open();
    for name in ["busy", "idle"] {
        std::fs::write(open.root.path().join("cachemounts").join(name), "").unwrap();
    }
    assert_eq!(open.usage(), ["cache mount busy 1000", "cache mount idle 1000"]);
    let report = open.prune(&everything());
    assert_eq!(removed(&report), ["idle: as requested"]);
    assert_eq!((report.reclaimed, report.in_use), (1000, 1));
}

#[test]
fn a_record_that_was_used_meanwhile_stays() {
    let space = Space::new();
    let open = space.open();
    let layer = open.layer("a", 1);
    open.record("one", &[&layer]);
    drop(open);
    let pruner = space.open();
    let facts = pruner.index.heal(|| pruner.index.facts()).unwrap();
    let plan = crate::plan::plan(&facts, &everything());
    assert_eq!(plan.layers.len(), 1);
    space.wait(5);
    let build = space.open();
    build.found("one");
    build.index.touch_used().unwrap();
    drop(build);
    let mut report = PruneReport::default();
    pruner.index.carry_out(&facts, &plan, &mut report).unwrap();
    assert_eq!(report, PruneReport::default());
    assert_eq!(pruner.found("one"), ["one"]);
}

#[test]
fn notes_and_tombstones_are_bounded() {
    let space = Space::new();
    let open = space.open();
    let layer = open.layer("a", 1);
    open.record("one", &[&layer]);
    drop(open);
    let open = space.open();
    open.prune(&everything());
    assert_eq!(open.index.preimages("one", 9).unwrap().len(), 1);
    space.wait(31 * 24 * 3600);
    open.prune(&everything());
    assert_eq!(open.index.preimages("one", 9).unwrap().len(), 0);
}

#[test]
fn a_long_living_process_can_let_go() {
    let space = Space::new();
    let open = space.open();
    let (a, b) = (open.layer("a", 1), open.layer("b", 1));
    open.record("one", &[&a]);
    open.record("two", &[&b]);
    assert_eq!(open.prune(&everything()).in_use, 2);
    open.index.release_pins().unwrap();
    open.found("two");
    assert_eq!(removed(&open.prune(&everything())), ["a: as requested"]);
    assert_eq!(open.found("one"), Vec::<String>::new());
    assert_eq!(open.found("two"), ["two"]);
}
