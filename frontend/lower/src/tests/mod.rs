//! Golden cases: a folder each in `test_data/` with `Dockerfile`, optional `inputs.txt` and `facts.txt`, and what
//! comes out: `plan.txt`, or `diag.txt` when it is refused. `UPDATE_EXPECT=1` rewrites the outputs.

#![expect(clippy::disallowed_methods, reason = "the tests read files and measure time, the crate does not")]

mod corpus;
mod inputs;
mod keys;
mod lints;
mod rules;

use std::fs;
use std::path::{Path, PathBuf};

use rbuild_diag::SourceFile;
use rbuild_dockerfile::parse;

use crate::dump::line;
use crate::{Facts, LowerOptions, Outcome, dump, dump_outcome, lower};

fn test_data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("test_data")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Lowers until nothing is missing that the inputs can answer.
fn run(text: &str, options: &LowerOptions, facts: &mut Facts) -> Result<(usize, Outcome), Vec<String>> {
    let source = SourceFile::new("Dockerfile", text);
    let parsed = parse(&source);
    let lines = |all: &[rbuild_diag::Diagnostic]| all.iter().map(line).collect::<Vec<_>>();
    let errors = || parsed.diagnostics.iter().any(|it| it.severity == rbuild_diag::Severity::Error);
    if errors() {
        return Err(lines(&parsed.diagnostics));
    }
    for round in 1..10 {
        match lower(&parsed.file, &source, options, facts).map_err(|all| lines(&all))? {
            Outcome::Need(needs) if inputs::answer(&needs, facts) => {}
            outcome => return Ok((round, outcome)),
        }
    }
    panic!("ten rounds were not enough");
}

fn case(folder: &Path) -> (String, &'static str) {
    let options = inputs::options(&read(&folder.join("inputs.txt")));
    let mut facts = inputs::facts(&read(&folder.join("facts.txt")));
    match run(&read(&folder.join("Dockerfile")), &options, &mut facts) {
        Ok((rounds, outcome)) => (format!("rounds {rounds}\n{}", dump_outcome(&outcome)), "plan.txt"),
        Err(lines) => (format!("{}\n", lines.join("\n")), "diag.txt"),
    }
}

#[test]
fn golden_cases() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut folders: Vec<PathBuf> = fs::read_dir(test_data())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|p| p.is_dir())
        .collect();
    folders.sort();
    assert!(folders.len() >= 80, "only {} cases were found", folders.len());
    let mut failed = Vec::new();
    for folder in &folders {
        let (got, name) = case(folder);
        let other = if name == "plan.txt" { "diag.txt" } else { "plan.txt" };
        if update {
            fs::write(folder.join(name), &got).unwrap();
            let _ = fs::remove_file(folder.join(other));
            continue;
        }
        let want = read(&folder.join(name));
        if want != got || folder.join(other).exists() {
            failed.push(format!("=== {} ({name})\n--- want\n{want}--- got\n{got}", folder.display()));
        }
    }
    assert!(failed.is_empty(), "{}\n{} cases differ", failed.join("\n"), failed.len());
}

#[test]
fn lowering_is_deterministic() {
    for name in ["buildkit-copy", "buildkit-stages", "mounts-all"] {
        let folder = test_data().join(name);
        let first = case(&folder);
        for _ in 0..5 {
            assert_eq!(case(&folder), first, "{name}");
        }
    }
}

/// The configs that BuildKit wrote for its four projects, August 2026; times, layers and the inline cache taken out.
#[test]
fn configs_equal_those_that_buildkit_wrote() {
    for name in ["copy", "linear", "mounts", "stages"] {
        let folder = test_data().join(format!("buildkit-{name}"));
        let options = inputs::options("");
        let mut facts = inputs::facts(&read(&folder.join("facts.txt")));
        let (_, outcome) = run(&read(&folder.join("Dockerfile")), &options, &mut facts).unwrap();
        let Outcome::Done(lowered) = outcome else { panic!("{name}: {}", dump_outcome(&outcome)) };
        let mut got = serde_json::to_value(&lowered.config).unwrap();
        without_layers(&mut got);
        let want: serde_json::Value = serde_json::from_str(&read(&folder.join("config.json"))).unwrap();
        assert_eq!(got, want, "{name}: {}", dump(&lowered));
    }
}

fn without_layers(config: &mut serde_json::Value) {
    let object = config.as_object_mut().unwrap();
    object.remove("created");
    object.remove("rootfs");
    for entry in object.get_mut("history").and_then(|it| it.as_array_mut()).into_iter().flatten() {
        entry.as_object_mut().unwrap().remove("created");
    }
}
