//! Several processes on one store: this test binary started again, killed at any moment, on a full disk.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;

const STORE: &str = "RBUILD_INDEX_TEST_STORE";
const NAME: &str = "RBUILD_INDEX_TEST_NAME";
const ROUNDS: &str = "RBUILD_INDEX_TEST_ROUNDS";

/// The other process of the tests below: it saves records with layers, looks them up again, and prunes now and then.
#[test]
fn child() {
    let Some(path) = std::env::var_os(STORE) else { return };
    let name = std::env::var(NAME).unwrap();
    let rounds: usize = std::env::var(ROUNDS).unwrap().parse().unwrap();
    match work(Path::new(&path), &name, rounds) {
        Ok(()) => println!("done"),
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
            println!("the disk is full: {error}");
        }
    }
}

fn work(path: &Path, name: &str, rounds: usize) -> Result<()> {
    for round in 0..rounds {
        let clock = Arc::new(HandClock::default());
        let open = open_at(path.to_owned(), "boot-1", clock)?;
        let id: LayerId = format!("s{name}{round}").parse().unwrap();
        let dir = open.root.layer_dir(&id);
        open.root.pin_layer(&id)?;
        std::fs::create_dir_all(&dir).map_err(|error| PortError::io("create", &dir, error))?;
        std::fs::write(dir.join("file"), vec![7; 5000])
            .map_err(|error| PortError::io("write", &dir, error))?;
        let shared = query(&format!("op{}", round % 7), &[&["root", name]]);
        let record = NewRecord { preimage: "x".repeat(20_000), ..new_record(name, &[&id]) };
        let mut writer = open.blobs.writer()?;
        writer
            .write_all(&id.as_str().repeat(1000).into_bytes())
            .map_err(|error| PortError::io("write", "blob", error))?;
        let (digest, size) = writer.commit(None)?;
        open.index
            .put_layer(&LayerRow { blobs: vec![blob_of(digest, size)], ..row(id.as_str(), 1, 5000) })?;
        let key = open.index.save(&shared, Some(&record))?;
        let found = open.index.records(&[key])?;
        assert!(found.iter().any(|record| record.snapshot.layers == [id.clone()]), "what was saved is found");
        for record in found {
            for layer in record.snapshot.layers {
                assert!(open.root.layer_dir(&layer).join("file").exists(), "what was found is there");
                for blob in open.index.layer(&layer)?.unwrap().blobs {
                    open.blobs.open(&blob.descriptor.digest)?;
                }
            }
        }
        open.index.touch_used()?;
        if round % 5 == 4 {
            open.index.prune(&everything())?;
        }
    }
    Ok(())
}

fn start(path: &Path, name: &str, rounds: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::processes::child", "--nocapture"])
        .env(STORE, path)
        .env(NAME, name)
        .env(ROUNDS, rounds.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn finish(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn many_processes_save_look_up_and_prune_at_once() {
    let space = Space::new();
    let children: Vec<Child> =
        ["a", "b", "c", "e"].iter().map(|name| start(&space.path(), name, 20)).collect();
    for child in children {
        assert!(finish(child).contains("done"));
    }
    let open = space.open();
    assert!(open.index.damaged().is_empty());
    open.prune(&everything());
    assert_eq!(open.blobs.list().unwrap(), vec![]);
}

#[test]
fn many_threads_may_use_one_index() {
    let space = Space::new();
    let open = space.open();
    let layer = open.layer("a", 1);
    std::thread::scope(|scope| {
        for at in 0..8 {
            let (open, layer) = (&open, &layer);
            scope.spawn(move || {
                for round in 0..20 {
                    let op = format!("{}-{round}", at % 3);
                    open.record(&op, &[layer]);
                    assert_eq!(open.found(&op), [op]);
                }
            });
        }
    });
}

#[test]
fn many_processes_may_make_the_store_at_once() {
    let space = Space::new();
    let children: Vec<Child> = (0..6).map(|at| start(&space.path(), &format!("n{at}x"), 1)).collect();
    for child in children {
        assert!(finish(child).contains("done"));
    }
    assert!(space.open().index.damaged().is_empty());
}

#[test]
fn killed_writers_leave_whole_records() {
    let space = Space::new();
    drop(space.open());
    for round in 0..12 {
        let mut children = [start(&space.path(), "a", usize::MAX), start(&space.path(), "b", usize::MAX)];
        // Kill them at another point of their work every time: after so many layers became visible.
        let layers = space.path().join("layers");
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 3 + round {
            seen.extend(std::fs::read_dir(&layers).unwrap().flatten().map(|entry| entry.file_name()));
        }
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let open = space.open();
        assert_eq!(open.report, OpenReport::default(), "round {round}");
        for op in 0..7 {
            for name in ["a", "b"] {
                let keys = open.index.probe(&query(&format!("op{op}"), &[&[name]])).unwrap();
                for record in open.index.records(&keys).unwrap() {
                    let dir = open.root.layer_dir(&record.snapshot.layers[0]);
                    assert_eq!(std::fs::metadata(dir.join("file")).unwrap().len(), 5000);
                }
            }
        }
        drop(open);
        let open = space.open();
        open.prune(&everything());
        assert_eq!(open.index.usage().unwrap().iter().filter(|row| row.kind == UsageKind::Layer).count(), 0);
    }
    assert_eq!(std::fs::read_dir(space.path().join("leases")).unwrap().count(), 0);
}

#[test]
fn a_full_disk_is_an_error_and_can_be_pruned() {
    let script = r#"
        mount -t tmpfs -o size=9m none "$1" && shift
        RBUILD_INDEX_TEST_ROUNDS=4 "$0" "$@" || exit 1
        dd if=/dev/zero of="$(dirname "$RBUILD_INDEX_TEST_STORE")/filler" bs=4k 2>/dev/null
        RBUILD_INDEX_TEST_NAME=b "$0" "$@" || exit 1
        echo pruning
        "$0" --exact tests::processes::pruner --nocapture || exit 1
        rm "$(dirname "$RBUILD_INDEX_TEST_STORE")/filler"
        RBUILD_INDEX_TEST_NAME=c RBUILD_INDEX_TEST_ROUNDS=4 "$0" "$@""#;
    let probe = Command::new("unshare").args(["-rm", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("RBUILD_REQUIRE_SANDBOX").is_none(), "namespaces are required");
        println!("skipped: no user namespaces here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(dir.path())
        .args(["--exact", "tests::processes::child", "--nocapture"])
        .env(STORE, dir.path().join("store"))
        .env(NAME, "a")
        .env(ROUNDS, "4")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let (before, after) = text.split_once("pruning\n").unwrap();
    assert!(before.contains("the disk is full"), "{text}");
    assert!(after.contains("pruned 4"), "{text}");
    assert!(after.contains("done"), "{text}");
}

/// The process that prunes the full disk of the test above.
#[test]
fn pruner() {
    let Some(path) = std::env::var_os(STORE) else { return };
    let open = open_at(path.into(), "boot-1", Arc::new(HandClock::default())).unwrap();
    let report = open.index.prune(&everything()).unwrap();
    println!("pruned {}", report.records);
}
