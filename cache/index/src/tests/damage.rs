//! A damaged database is a cache that begins anew; a changed row is never believed.

use super::*;

/// A store with a chain of two steps and an image, closed.
fn filled(space: &Space) {
    let open = space.open();
    let (a, b) = (open.layer("a", 10), open.layer("dbase", 10));
    let digest = open.blob(b"blob");
    open.index
        .put_layer(&LayerRow {
            diff_id: Some(Digest::of("diff")),
            blobs: vec![blob_of(digest, 4)],
            remotes: vec![remote_of("x")],
            ..row("dbase", 0, 0)
        })
        .unwrap();
    let from = open.record("from", &[&b]);
    let run = query("run", &[&[&from.to_string(), "content/selector"]]);
    open.index.save(&run, Some(&new_record("run", &[&b, &a]))).unwrap();
    open.index.put_note("note", "value").unwrap();
    checkpoint(space);
}

/// Brings everything from the log into the file.
fn checkpoint(space: &Space) {
    let db = rusqlite::Connection::open(space.database()).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
}

/// Everything a build may learn from it, as text.
fn answers(open: &Open) -> Vec<String> {
    let mut out = vec![];
    let from = open.index.probe(&root_query("from")).unwrap();
    let records = open.index.records(&from).unwrap();
    out.extend(records.iter().map(|record| format!("{record:?}")));
    let inputs: Vec<String> = from.iter().map(ToString::to_string).collect();
    for input in inputs.iter().map(String::as_str).chain(["content/selector"]) {
        let run = open.index.probe(&query("run", &[&[input]])).unwrap();
        out.extend(open.index.records(&run).unwrap().iter().map(|record| format!("{record:?}")));
    }
    for name in ["a", "dbase"] {
        let row = open.index.layer(&name.parse().unwrap()).unwrap();
        let Some(LayerRow { layer, diff_id, blobs, remotes, created: _ }) = row else { continue };
        out.push(format!("{layer:?} {diff_id:?}"));
        out.extend(blobs.iter().map(|blob| format!("{name} {blob:?}")));
        out.extend(remotes.iter().map(|remote| format!("{name} {remote:?}")));
    }
    out.extend(open.index.note("note").unwrap());
    out
}

#[test]
fn what_is_no_database_is_moved_aside() {
    let whole = {
        let space = Space::new();
        filled(&space);
        std::fs::read(space.database()).unwrap()
    };
    let mut zeroed = whole.clone();
    zeroed[..4096].fill(0);
    for bytes in [
        b"".to_vec(),
        b"not a database, but long enough to look at".repeat(200),
        zeroed,
        whole[..3000].to_vec(),
    ] {
        let space = Space::new();
        filled(&space);
        std::fs::write(space.database(), &bytes).unwrap();
        let open = space.open();
        let moved = open.report.damaged.clone().unwrap();
        assert_eq!(moved, space.path().join("index.db.damaged-1"));
        assert_eq!(std::fs::read(&moved).unwrap(), bytes, "what was there is kept");
        assert_eq!(answers(&open), Vec::<String>::new());
        assert_eq!(open.root.layer_dirs().unwrap().iter().filter(|it| !Root::is_retired(it)).count(), 0);
        let layer = open.layer("new", 1);
        open.record("op", &[&layer]);
        drop(open);
        let open = space.open();
        assert_eq!(open.report, OpenReport::default());
        assert_eq!(open.found("op"), ["op"]);
    }
}

#[test]
fn a_deleted_database_is_made_anew() {
    let space = Space::new();
    filled(&space);
    std::fs::remove_file(space.database()).unwrap();
    let open = space.open();
    assert_eq!(open.report, OpenReport::default());
    assert_eq!(answers(&open), Vec::<String>::new());
}

#[test]
fn format_1_is_brought_up_to_date() {
    let space = Space::new();
    filled(&space);
    let before = answers(&space.open());
    let old = rusqlite::Connection::open(space.database()).unwrap();
    old.execute_batch("ALTER TABLE layers DROP COLUMN stamp; PRAGMA user_version=1").unwrap();
    drop(old);
    let open = space.open();
    assert_eq!(open.report, OpenReport::default());
    assert_eq!(answers(&open), before);
    let now = rusqlite::Connection::open(space.database()).unwrap();
    let version: i32 = now.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 2);
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let space = Space::new();
    filled(&space);
    rusqlite::Connection::open(space.database()).unwrap().execute_batch("PRAGMA user_version=3").unwrap();
    checkpoint(&space);
    let before = std::fs::read(space.database()).unwrap();
    let error = space.try_open("boot-1").err().unwrap();
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    assert!(error.message.contains("format 3"), "{error}");
    assert_eq!(std::fs::read(space.database()).unwrap(), before);
}

#[test]
fn damage_that_shows_later_is_healed_in_the_same_call() {
    let space = Space::new();
    filled(&space);
    let open = space.open();
    let other = rusqlite::Connection::open(space.database()).unwrap();
    other.execute_batch("DROP TABLE notes").unwrap();
    assert_eq!(open.index.note("note").unwrap(), None);
    assert_eq!(open.index.damaged().len(), 1);
    open.index.put_note("note", "again").unwrap();
    assert_eq!(open.index.note("note").unwrap().as_deref(), Some("again"));
    assert_eq!(open.found("from"), Vec::<String>::new());
}

/// Every column that a result depends on, changed behind the index's back.
#[test]
fn a_changed_row_is_never_believed() {
    let changes = [
        "UPDATE links SET dst = (SELECT id FROM keys WHERE name LIKE 'sha256:%')",
        "UPDATE records SET layers = 'a' WHERE description = 'from'",
        "UPDATE records SET created = created + 1",
        "UPDATE records SET kind = 1",
        "UPDATE records SET key = (SELECT max(key) FROM records)",
        "UPDATE keys SET name = 'x' || name",
        "UPDATE layers SET diff_id = randomblob(32)",
        "UPDATE layers SET diff_id = NULL",
        "UPDATE layers SET entries = 7",
        "UPDATE layers SET bytes = bytes + 1",
        "UPDATE layers SET seq = 0",
        "UPDATE layers SET boot = 99",
        "UPDATE boots SET synced = 99",
        "UPDATE boots SET name = 'boot-0'",
        "UPDATE layer_blobs SET descriptor = replace(descriptor, 'test', 'best')",
        "UPDATE layer_blobs SET digest = randomblob(32)",
        "UPDATE layer_blobs SET maker = 'other'",
        "UPDATE layer_remotes SET location = 'elsewhere.test/app'",
        "UPDATE layer_remotes SET descriptor = 'x'",
        "UPDATE notes SET value = 'other'",
    ];
    for change in changes {
        let space = Space::new();
        filled(&space);
        let right = answers(&space.open());
        assert_eq!(right.len(), 8);
        let db = rusqlite::Connection::open(space.database()).unwrap();
        assert!(db.execute(change, []).unwrap() > 0, "{change}");
        drop(db);
        let open = space.open();
        for answer in answers(&open) {
            assert!(right.contains(&answer), "{change} gives {answer}");
        }
    }
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Bytes flipped at random: every answer is a right one or none, and no error or panic comes of it.
#[test]
fn flipped_bytes_never_give_a_wrong_answer() {
    let template = Space::new();
    filled(&template);
    let whole = std::fs::read(template.database()).unwrap();
    let mut state = 3_u64;
    let mut right = vec![];
    for round in 0..100 {
        let space = Space::new();
        copy_dir(&template.path(), &space.path());
        if round == 0 {
            right = answers(&space.open());
            assert_eq!(right.len(), 8);
            continue;
        }
        let mut bytes = whole.clone();
        for _ in 0..=round % 8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = usize::try_from(state >> 33).unwrap() % bytes.len();
            bytes[at] ^= 1 << (state % 8);
        }
        std::fs::write(space.database(), &bytes).unwrap();
        let open = match space.try_open("boot-1") {
            Ok(open) => open,
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Unsupported, "round {round}: {error}");
                continue;
            }
        };
        for answer in answers(&open) {
            assert!(right.contains(&answer), "round {round} gives {answer}");
        }
        let layer = open.layer("new", 1);
        open.record("op", &[&layer]);
        assert_eq!(open.found("op"), ["op"], "round {round}");
        open.index.usage().unwrap();
        open.prune(&everything());
    }
}
