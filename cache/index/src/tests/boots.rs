//! Power cuts: another boot of the machine trusts only what was synced, or what it has counted again.

use super::*;
use std::time::Duration;

#[test]
fn what_was_not_synced_is_counted_again_in_the_next_boot() {
    let space = Space::new();
    let open = space.open();
    let (good, torn) = (open.layer("good", 10), open.layer("torn", 10));
    open.record("good", &[&good]);
    open.record("torn", &[&good, &torn]);
    drop(open);
    let open = space.open_in("boot-2");
    std::fs::write(open.root.layer_dir(&torn).join("file"), "").unwrap();
    assert_eq!(open.found("torn"), Vec::<String>::new());
    assert!(!open.root.layer_dir(&torn).exists(), "what is torn leaves the disk");
    assert_eq!(open.found("good"), ["good"]);
    std::fs::write(open.root.layer_dir(&good).join("file"), "changed later").unwrap();
    drop(open);
    assert_eq!(space.open_in("boot-2").found("good"), ["good"], "it was counted once in this boot");
}

#[test]
fn what_was_synced_is_trusted() {
    let space = Space::new();
    let open = space.open();
    let before = open.layer("before", 10);
    open.record("before", &[&before]);
    open.index.promote().unwrap();
    let after = open.layer("after", 10);
    open.record("after", &[&after]);
    drop(open);
    let open = space.open_in("boot-2");
    for layer in [&before, &after] {
        std::fs::write(open.root.layer_dir(layer).join("file"), "").unwrap();
    }
    assert_eq!(open.found("before"), ["before"], "nobody looks at what was synced");
    assert_eq!(open.found("after"), Vec::<String>::new());
}

#[test]
fn a_sync_covers_what_was_there_before_it() {
    let space = Space::new();
    let open = space.open();
    assert!(!open.index.needs_promote(Duration::ZERO).unwrap());
    open.layer("a", 10);
    assert!(!open.index.needs_promote(Duration::from_secs(60)).unwrap());
    space.wait(60);
    assert!(open.index.needs_promote(Duration::from_secs(60)).unwrap());
    open.index.promote().unwrap();
    assert!(!open.index.needs_promote(Duration::ZERO).unwrap());
    open.layer("b", 10);
    assert!(open.index.needs_promote(Duration::ZERO).unwrap());
}

#[test]
fn a_torn_layer_that_can_be_fetched_is_fetched() {
    let space = Space::new();
    let open = space.open();
    let base = open.directory("dbase", 10);
    open.index.put_layer(&LayerRow { remotes: vec![remote_of("x")], ..base.clone() }).unwrap();
    open.record("from", &[&base.layer.layer]);
    drop(open);
    let open = space.open_in("boot-2");
    std::fs::remove_file(open.root.layer_dir(&base.layer.layer).join("file")).unwrap();
    assert_eq!(open.found("from"), ["from"]);
    assert!(!open.root.layer_dir(&base.layer.layer).exists());
    let row = open.index.layer(&base.layer.layer).unwrap().unwrap();
    assert_eq!((row.layer.entries, row.remotes.len()), (0, 1));
}

/// Whoever first names a torn layer in the new boot must not get to see it, by whatever method that is.
#[test]
fn no_method_lets_a_torn_layer_through() {
    let touch: [fn(&Open, &LayerId); 3] = [
        |open, layer| drop(open.index.layer(layer).unwrap()),
        |open, layer| {
            open.index
                .put_layer(&LayerRow { remotes: vec![remote_of("x")], ..row(layer.as_str(), 0, 0) })
                .unwrap()
        },
        |open, _| drop(open.index.image("image").unwrap()),
    ];
    for touch in touch {
        let space = Space::new();
        let open = space.open();
        let layer = open.layer("dtorn", 10);
        let image = rbuild_ports::ImageRecord {
            name: "image".to_owned(),
            config: String::new(),
            snapshot: Snapshot { layers: vec![layer.clone()] },
            platform: String::new(),
            created: Timestamp(0),
            manifest: None,
        };
        open.index.put_image(&image).unwrap();
        drop(open);
        let open = space.open_in("boot-2");
        std::fs::write(open.root.layer_dir(&layer).join("file"), "").unwrap();
        touch(&open, &layer);
        assert!(!open.root.layer_dir(&layer).exists());
    }
}

#[test]
fn directories_without_a_row_leave_with_the_boot_that_made_them() {
    let space = Space::new();
    let open = space.open();
    let known = open.layer("known", 1);
    let unknown = open.directory("dunknown", 1).layer.layer;
    drop(open);
    let open = space.open();
    assert!(open.root.layer_dir(&unknown).exists(), "a killed process is no power cut");
    drop(open);
    let open = space.open_in("boot-2");
    assert!(!open.root.layer_dir(&unknown).exists());
    assert!(open.root.layer_dir(&known).exists());
    open.index.promote().unwrap();
    assert_eq!(open.root.layer_dirs().unwrap(), [known]);
}

/// `RUN true` makes a layer without entries, which looks like one that was never on the disk.
#[test]
fn an_empty_layer_survives_a_boot() {
    let space = Space::new();
    let open = space.open();
    let layer: LayerId = "empty".parse().unwrap();
    std::fs::create_dir(open.root.layer_dir(&layer)).unwrap();
    open.index.put_layer(&row("empty", 0, 0)).unwrap();
    open.record("true", &[&layer]);
    open.index.promote().unwrap();
    drop(open);
    assert_eq!(space.open_in("boot-2").found("true"), ["true"]);
    let open = space.open_in("boot-3");
    std::fs::write(open.root.layer_dir(&layer).join("file"), "not of this row").unwrap();
    assert_eq!(open.found("true"), Vec::<String>::new());
}

#[test]
fn what_was_written_again_must_be_synced_again() {
    let space = Space::new();
    let open = space.open();
    let layer = open.layer("a", 10);
    open.record("op", &[&layer]);
    open.index.promote().unwrap();
    std::fs::remove_dir_all(open.root.layer_dir(&layer)).unwrap();
    open.layer("a", 10);
    drop(open);
    let open = space.open_in("boot-2");
    std::fs::write(open.root.layer_dir(&layer).join("file"), "").unwrap();
    assert_eq!(open.found("op"), Vec::<String>::new());
}

/// Another process may look a layer up in the moment between its directory and its row: it must leave it alone.
#[test]
fn a_layer_that_another_process_is_just_unpacking_is_not_doubtful() {
    let space = Space::new();
    let open = space.open();
    let id: LayerId = "dlazy".parse().unwrap();
    open.index.put_layer(&LayerRow { remotes: vec![remote_of("x")], ..row("dlazy", 0, 0) }).unwrap();
    open.record("from", &[&id]);
    drop(open);
    let unpacking = space.open_in("boot-2");
    assert!(unpacking.index.layer(&id).unwrap().is_some());
    let unpacked = unpacking.directory("dlazy", 10);
    let other = space.open_in("boot-2");
    assert_eq!(other.found("from"), ["from"]);
    assert!(other.root.layer_dir(&id).exists());
    unpacking.index.put_layer(&unpacked).unwrap();
    assert_eq!(space.open_in("boot-3").found("from"), ["from"]);
}
