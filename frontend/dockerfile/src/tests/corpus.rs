//! The corpus of the fuzz target `parse`, and inputs that are large.

use std::fs;
use std::path::Path;

use rbuild_diag::SourceFile;

use super::mutation::exercise;
use crate::{InstructionKind, parse};

#[test]
fn the_saved_corpus_is_replayed() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/parse");
    let mut count = 0;
    for entry in fs::read_dir(&dir).expect("the corpus is there").flatten() {
        let bytes = fs::read(entry.path()).expect("inputs can be read");
        exercise(&String::from_utf8_lossy(&bytes));
        count += 1;
    }
    assert!(count >= 100, "the corpus has {count} inputs");
}

fn codes(text: &str) -> Vec<&'static str> {
    parse(&SourceFile::new("Dockerfile", text)).diagnostics.iter().map(|found| found.code).collect()
}

#[test]
fn lines_may_be_as_long_as_buildkit_lets_them_be() {
    let line = |length: usize| {
        let head = "RUN echo ";
        format!("FROM a\n{head}{}\n", "x".repeat(length - head.len()))
    };
    assert_eq!(codes(&line(65_535)), [""; 0]);
    assert_eq!(codes(&line(65_536)), ["RB1003"]);
    // Each physical line counts by itself.
    let long = format!("FROM a\nRUN {} \\\n {}\n", "x".repeat(60_000), "y".repeat(60_000));
    assert_eq!(codes(&long), [""; 0]);
}

#[test]
fn many_continuations_are_one_instruction() {
    let text = format!("FROM a\nRUN true \\\n{}  && true\n", "  && true \\\n# text\n".repeat(2_000));
    let parsed = parse(&SourceFile::new("Dockerfile", text.as_str()));
    assert_eq!(parsed.diagnostics, []);
    assert_eq!(parsed.file.instructions.len(), 2);
    assert!(matches!(parsed.file.instructions[1].kind, InstructionKind::Run(_)));
    assert_eq!(parsed.file.instructions[1].original.matches("true").count(), 2_002);
}

#[test]
fn deep_and_wide_words_are_bounded() {
    for text in [
        format!("ENV A={}x{}", "${A:-".repeat(2_000), "}".repeat(2_000)),
        format!("ENV A={}", "$A".repeat(2_000)),
        format!("ENV {}", "A=1 ".repeat(3_000)),
        format!("ENV A={}", "\"'".repeat(2_000)),
        format!("CMD {}", "[".repeat(2_000)),
        format!("CMD [{}\"x\"]", "\"\\u00e9\",".repeat(6_000)),
        format!("RUN {}", "<<E ".repeat(3_000)),
        format!("COPY {} /", "--exclude=a ".repeat(2_000)),
        format!("RUN --mount={}", "a=b,".repeat(3_000)),
    ] {
        exercise(&format!("FROM a\n{text}\n"));
    }
}
