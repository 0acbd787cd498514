//! Any bytes are parsed: a tree comes out, places lie in the text, words are expanded or refused.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rbuild_diag::SourceFile;
use rbuild_dockerfile::{expand_heredoc, expand_word, expand_words, parse, parse_instruction};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let source = SourceFile::new("Dockerfile", text.as_ref());
    let parsed = parse(&source);
    for diagnostic in &parsed.diagnostics {
        let (file, span) = diagnostic.place.as_ref().expect("every diagnostic has a place");
        assert!(file.text().get(span.range()).is_some());
    }
    let env = |name: &str| (name.len() % 2 == 0).then(|| format!("<{name} *>"));
    let _ = parse_instruction(&text, '`');
    let _ = expand_word(&text, '\\', &env);
    let _ = expand_words(&text, '`', &env);
    let _ = expand_heredoc(&text, &env);
});
