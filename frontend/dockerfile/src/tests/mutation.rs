//! Broken files: every one parses to something, spans lie in the text, and the work grows with the text only.

use proptest::prelude::*;
use rbuild_diag::{RenderOptions, SourceFile, render};

use super::cases;
use crate::{dump, expand_heredoc, expand_step_name, expand_word, expand_words, parse, parse_instruction};

/// Everything that can be done with a text.
pub(super) fn exercise(text: &str) {
    let source = SourceFile::new("Dockerfile", text);
    let parsed = parse(&source);
    assert_eq!(parse(&source), parsed, "twice the same");
    for instruction in &parsed.file.instructions {
        assert!(text.get(instruction.span.range()).is_some(), "{:?} in {text:?}", instruction.span);
    }
    for diagnostic in &parsed.diagnostics {
        let (_, span) = diagnostic.place.as_ref().expect("every diagnostic has a place");
        assert!(text.get(span.range()).is_some(), "{diagnostic:?} in {text:?}");
        assert!(!render(diagnostic, RenderOptions { color: false, width: 80 }).is_empty());
    }
    assert!(text.is_empty() || !dump(&parsed.file).contains('\0') || text.contains('\0'));
    let _ = parse_instruction(text, '\\');
    let _ = parse_instruction(text, '`');
    let _ = crate::detect_syntax(text);
    let env = |name: &str| (name.len().is_multiple_of(2)).then(|| format!("<{name} *>"));
    let _ = expand_word(text, '\\', &env);
    let _ = expand_word(text, '`', &env);
    let _ = expand_words(text, '\\', &env);
    let _ = expand_heredoc(text, &env);
    let _ = expand_step_name(text, '\\', &env);
}

/// A generator without surprises: the same mutations in every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }

    fn boundary(&mut self, text: &str) -> usize {
        let mut at = self.below(text.len() + 1);
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

const SNIPPETS: [&str; 34] = [
    "\\\n",
    "\n",
    "\r\n",
    "<<EOF",
    "<<-E\n",
    "EOF\n",
    "\"",
    "'",
    "`",
    "$",
    "${",
    "}",
    "${a:-",
    "${a//b/",
    "[",
    "]",
    "[\"a\",",
    "--",
    "--mount=",
    "=",
    "#",
    "# escape=`\n",
    "\u{feff}",
    "\u{a0}",
    "é",
    "😀",
    "\0",
    ",",
    "ONBUILD ",
    "FROM ",
    "COPY ",
    "HEALTHCHECK ",
    "<< ",
    "\\\\\n",
];

pub(super) fn mutate(text: &str, others: &[String], random: &mut Random) -> String {
    let (a, b) = (random.boundary(text), random.boundary(text));
    let (start, end) = (a.min(b), a.max(b));
    match random.below(6) {
        0 => [&text[..start], &text[end..]].concat(),
        1 => [&text[..end], &text[start..]].concat(),
        2 => text[..end].to_owned(),
        3 => {
            let other = &others[random.below(others.len())];
            let cut = random.boundary(other);
            [&text[..start], &other[cut..]].concat()
        }
        _ => [&text[..start], SNIPPETS[random.below(SNIPPETS.len())], &text[start..]].concat(),
    }
}

#[test]
fn mutated_files_parse() {
    let texts: Vec<String> = cases("ok")
        .into_iter()
        .chain(cases("err"))
        .map(|(_, text)| text)
        .filter(|t| t.len() < 5000)
        .collect();
    let mut random = Random(42);
    for round in 0..40 {
        for text in &texts {
            let mut text = mutate(text, &texts, &mut random);
            for _ in 0..round % 4 {
                text = mutate(&text, &texts, &mut random);
            }
            exercise(&text);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_parses(text in "\\PC*") {
        exercise(&text);
    }

    #[test]
    fn any_pieces_parse(pieces in prop::collection::vec(prop::sample::select(SNIPPETS.to_vec()), 0..40)) {
        exercise(&pieces.concat());
    }
}

fn numbered(before: &str, after: &str, n: usize) -> String {
    (0..n).map(|i| format!("{before}A{i}{after}")).collect()
}

/// Texts that a careless parser reads again and again; each would take minutes then.
#[test]
fn long_files_are_read_once() {
    let n = 20_000;
    for text in [
        "FROM a\n".repeat(n),
        format!("FROM a\nRUN x{}", " \\\n y".repeat(n)),
        format!("FROM a\nRUN x \\\n{}y", "\n".repeat(n)),
        format!("FROM a\n{}", "bogus\n".repeat(n)),
        format!("FROM a\n{}", "RUN <<EOF\n".repeat(n)),
        format!("FROM a\nCOPY {} /x\n{}", "<<A ".repeat(n / 10), "A\n".repeat(n / 10)),
        format!("FROM a\nCOPY {} /x\n{}", numbered("<<", " ", n), numbered("", "\n", n)),
        format!("FROM a\nCOPY {}{} a b", "--exclude=x ".repeat(n), "--link ".repeat(n)),
        format!("FROM a\nENV {}", "a=b ".repeat(n)),
        format!("FROM a\nRUN {} x", "--mount=type=cache,target=/x \\\n ".repeat(n)),
        format!("FROM a\nCMD {}", "[".repeat(n)),
        format!("# escape=`\n{}FROM a", "# comment\n".repeat(n)),
        format!("FROM a\nENV A={}", "\"".repeat(n)),
        format!("FROM a\n{}", "ONBUILD ".repeat(n)),
    ] {
        let parsed = parse(&SourceFile::new("Dockerfile", text.as_str()));
        assert!(!parsed.file.instructions.is_empty());
        assert!(parsed.diagnostics.len() <= n + 1);
    }
}
