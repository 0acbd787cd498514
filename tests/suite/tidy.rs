//! Rules about the source tree that no compiler checks: arrows between crates, heads of files, sizes, paths that
//! documents name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the workspace").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

fn sources() -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut stack: Vec<PathBuf> = ["crates", "frontend", "cache", "engine", "tests", "benches", "examples"]
        .iter()
        .map(|dir| root().join(dir))
        .collect();
    while let Some(dir) = stack.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target" && name != "test_data") {
                    stack.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                out.push(path);
            }
        }
    }
    out.sort();
    out
}

/// The crate table of ARCHITECTURE.md: folder → short names of the crates it may use.
fn arrows() -> BTreeMap<String, Vec<String>> {
    let text = read("ARCHITECTURE.md");
    let mut out = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if cells.len() == 6 {
            let folder = cells[1].trim_matches('`').to_owned();
            out.insert(folder, cells[4].split_whitespace().map(str::to_owned).collect());
        }
    }
    out
}

fn members() -> Vec<String> {
    let text = read("Cargo.toml");
    let list = text
        .split("members = [")
        .nth(1)
        .and_then(|rest| rest.split(']').next())
        .expect("the workspace has members");
    list.split(',')
        .map(|item| item.trim().trim_matches('"').to_owned())
        .filter(|item| !item.is_empty())
        .collect()
}

/// Crates of this workspace in a section of a manifest, by their short names.
fn own_dependencies(manifest: &str, section: &str) -> Vec<String> {
    let mut inside = false;
    let mut out = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.trim() == format!("[{section}]");
        } else if inside {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if name == "rbuild" {
                out.push("rbuild".to_owned());
            } else if let Some(short) = name.strip_prefix("rbuild-") {
                out.push(short.to_owned());
            }
        }
    }
    out
}

#[test]
fn dependencies_point_the_way_architecture_says() {
    let arrows = arrows();
    let members = members();
    assert_eq!(
        arrows.keys().cloned().collect::<Vec<_>>(),
        {
            let mut sorted = members.clone();
            sorted.sort();
            sorted
        },
        "ARCHITECTURE.md's crate table and Cargo.toml's members differ"
    );
    for member in members {
        let allowed = &arrows[&member];
        if allowed.iter().any(|word| word == "above" || word == "pure") {
            continue;
        }
        for used in own_dependencies(&read(&format!("{member}/Cargo.toml")), "dependencies") {
            assert!(
                allowed.contains(&used),
                "{member} must not depend on {used}; if it should, change ARCHITECTURE.md and say why"
            );
        }
    }
}

#[test]
fn pure_crates_reach_for_nothing_of_the_world() {
    let text = read("ARCHITECTURE.md");
    let pure: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("| `") && line.contains("| pure |"))
        .filter_map(|line| line.split('`').nth(1))
        .collect();
    assert!(pure.len() >= 8, "the crate table lost its pure crates: {pure:?}");
    let world = [
        "std::fs",
        "std::process",
        "std::net::Tcp",
        "std::net::Udp",
        "std::net::ToSocketAddrs",
        "std::env::var",
        "std::env::current_dir",
        "SystemTime::now",
        "Instant::now",
    ];
    for path in sources() {
        let relative =
            path.strip_prefix(root()).expect("sources lie in the root").to_string_lossy().into_owned();
        let tests =
            relative.contains("/tests/") || relative.ends_with("tests.rs") || relative.contains("/benches/");
        if tests || !pure.iter().any(|folder| relative.starts_with(&format!("{folder}/src/"))) {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source file can be read");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in world {
            assert!(!code.contains(word), "{relative} is in a pure crate and uses {word}");
        }
    }
}

#[test]
fn files_say_what_they_own_and_stay_readable() {
    let mut bad = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).expect("a source file can be read");
        let name = path.strip_prefix(root()).expect("sources lie in the root").display().to_string();
        if !text.starts_with("//!") {
            bad.push(format!("{name} has no head that says what it owns"));
        }
        let lines = text.lines().count();
        if lines > 1000 {
            bad.push(format!("{name} has {lines} lines; split it"));
        }
        for lint in ["#[allow(", "#![allow(", "todo!(", "unimplemented!("] {
            if text.contains(lint) && !name.ends_with("tidy.rs") {
                bad.push(format!("{name} has {lint}"));
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn documents_name_paths_that_exist() {
    let mut missing = Vec::new();
    for document in ["ARCHITECTURE.md", "README.md"] {
        for word in read(document).split('`').skip(1).step_by(2) {
            let folders = [
                "crates/",
                "engine/",
                "frontend/",
                "cache/",
                "tests/",
                "benches/",
                "examples/",
                ".ci/",
                "docs/",
            ];
            if folders.iter().any(|folder| word.starts_with(folder))
                && !word.contains([' ', '*', '{', '…'])
                && !root().join(word).exists()
            {
                missing.push(format!("{document} names {word}, which does not exist"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn ci_runs_what_the_readme_says() {
    let readme = read("README.md");
    assert!(readme.contains("examples/quickstart.sh") && readme.contains("tests/run.sh"));
    assert!(read(".ci/run").contains("tests/run.sh"));
}

/// Codes stand in tables, which are explained in `docs/codes.md`; elsewhere they have names.
#[test]
fn codes_stand_in_the_tables_only() {
    let mut loose = Vec::new();
    for path in sources() {
        let is_test = path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
        if is_test || path.ends_with("codes.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("sources can be read");
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        let codes = product
            .match_indices("\"RB")
            .filter(|(at, _)| product[at + 3..].bytes().take(4).filter(u8::is_ascii_digit).count() == 4);
        loose.extend(codes.map(|(at, _)| format!("{}: {}", path.display(), &product[at..at + 8])));
    }
    assert!(loose.is_empty(), "these belong into a codes.rs: {loose:#?}");
}
