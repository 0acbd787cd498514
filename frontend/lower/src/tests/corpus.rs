//! The corpus of the fuzz target `lower`, and mutations of the golden cases: nothing panics, nothing takes for ever, and every
//! error has a place unless it is about something outside the file.

use std::fs;
use std::path::{Path, PathBuf};

use rbuild_diag::{Severity, SourceFile};
use rbuild_dockerfile::parse;

use super::{inputs, read, run, test_data};
use crate::{Facts, LowerOptions, Outcome, codes, lint_stages, local_mistakes, lower};

/// What is about the command line, the ignore file or the whole file.
const PLACELESS: &[&str] = &[
    codes::NO_SUCH_TARGET,
    codes::NO_CACHE_STAGE,
    codes::EPOCH,
    codes::CHECK_OPTION,
    codes::NO_SUCH_CHECK,
    codes::CHECK_FAILED,
    codes::OTHER_FRONTEND,
    codes::IGNORE_PATTERN,
];

/// Everything that can be done with a text.
pub(super) fn exercise(text: &str, options: &LowerOptions, facts: &Facts) {
    let source = SourceFile::new("Dockerfile", text);
    let parsed = parse(&source);
    let mut found = parsed.diagnostics;
    if found.iter().any(|it| it.severity == Severity::Error) {
        found.extend(local_mistakes(&parsed.file, &source, options));
        found.extend(lint_stages(&parsed.file, &source, options));
    } else {
        let mut facts = facts.clone();
        for _ in 0..10 {
            match lower(&parsed.file, &source, options, &facts) {
                Ok(Outcome::Need(needs)) if inputs::answer(&needs, &mut facts) => continue,
                Ok(Outcome::Need(_)) => {}
                Ok(Outcome::Done(lowered)) => found.extend(lowered.warnings),
                Err(errors) => found.extend(errors),
            }
            break;
        }
    }
    for diagnostic in found {
        match &diagnostic.place {
            Some((file, span)) => {
                assert!(file.text().get(span.range()).is_some(), "{diagnostic:?} in {text:?}")
            }
            None => assert!(PLACELESS.contains(&diagnostic.code), "no place: {diagnostic:?} in {text:?}"),
        }
    }
}

#[test]
fn the_saved_corpus_is_replayed() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/lower");
    let mut count = 0;
    for entry in fs::read_dir(&dir).expect("the corpus is there").flatten() {
        let bytes = fs::read(entry.path()).expect("inputs can be read");
        exercise(&String::from_utf8_lossy(&bytes), &inputs::options(""), &Facts::default());
        count += 1;
    }
    assert!(count >= 100, "the corpus has {count} inputs");
}

/// Any text is lowered or refused; none makes the crate panic.
#[test]
fn mutated_files_do_not_panic() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % below.max(1) as u64).unwrap()
    };
    let mut names: Vec<PathBuf> = fs::read_dir(test_data()).unwrap().map(|it| it.unwrap().path()).collect();
    names.sort();
    let texts: Vec<String> = names.iter().map(|folder| read(&folder.join("Dockerfile"))).collect();
    for _ in 0..2_000 {
        let at = random(texts.len());
        let options = inputs::options(&read(&names[at].join("inputs.txt")));
        let mut lines: Vec<&str> = texts[at].lines().collect();
        for _ in 0..=random(3) {
            let other: Vec<&str> = texts[random(texts.len())].lines().collect();
            let line = other[random(other.len())];
            let place = random(lines.len() + 1);
            match random(3) {
                0 => lines.insert(place, line),
                1 if place < lines.len() => drop(lines.remove(place)),
                _ if place < lines.len() => lines[place] = line,
                _ => {}
            }
        }
        let mut chars: Vec<char> = lines.join("\n").chars().collect();
        for _ in 0..random(4) {
            let c =
                ['$', '{', '}', '"', '\'', '/', ':', '=', ',', '\\', '\n', '<', '-', '9', 'é'][random(15)];
            chars.insert(random(chars.len() + 1), c);
        }
        let text: String = chars.into_iter().collect();
        exercise(&text, &options, &inputs::facts(&read(&names[at].join("facts.txt"))));
    }
}

#[test]
fn a_long_file_is_lowered_in_linear_time() {
    let mut text = String::from("FROM busybox AS s0\n");
    for stage in 1..200 {
        text.push_str(&format!(
            "FROM s{} AS s{stage}\nARG A{}=1\nENV E{}=x\n",
            stage - 1,
            stage % 7,
            stage % 9
        ));
        for step in 0..48 {
            text.push_str(&format!("RUN make part-{stage}-{step}\nLABEL l{}=x\n", step % 5));
        }
    }
    let options = inputs::options("");
    let mut facts = Facts::default();
    run(&text, &options, &mut facts).unwrap();
    let source = SourceFile::new("Dockerfile", text.as_str());
    let parsed = parse(&source);
    let outcome = lower(&parsed.file, &source, &options, &facts).unwrap();
    let Outcome::Done(lowered) = outcome else { panic!("not done") };
    assert_eq!(lowered.graph.len(), 199 * 48 + 1);
    assert_eq!(lowered.config.history.len(), 199 * (2 * 48 + 2) + 1);
}

/// What looks at every stage for every stage, or at every name for every name, takes minutes here.
#[test]
fn wide_files_are_lowered() {
    let many = |line: &dyn Fn(usize) -> String, n: usize| (0..n).map(line).collect::<String>();
    for text in [
        many(&|n| format!("FROM image{n} AS s{n}\n"), 1_500),
        format!("FROM a\nENV {}\nRUN true\n", many(&|n| format!("A{n}=1 "), 8_000)),
        format!("FROM a\n{}", many(&|n| format!("ARG A{n}=1\n"), 2_000)),
        format!("{}FROM a\n", many(&|n| format!("ARG A{n}=$A{}\n", n.saturating_sub(1)), 2_000)),
        format!("FROM a AS s\n{}", many(&|n| format!("COPY --from=image{n} /a{n} /\n"), 1_500)),
        format!("FROM a\nEXPOSE {}\n", many(&|n| format!("{n}/udp "), 10_000)),
        format!("FROM a\nRUN {} true\n", many(&|n| format!("--mount=target=/{n} "), 3_000)),
        format!("FROM a\nCOPY {} /\n", many(&|n| format!("f{n} "), 8_000)),
        format!("FROM a\n{}", many(&|n| format!("WORKDIR d{}\n", n % 10), 1_000)),
    ] {
        exercise(&text, &inputs::options(""), &Facts::default());
    }
}
