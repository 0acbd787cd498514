//! The parser as its users see it: golden files, tables of words, other parsers as oracles, mutations.
#![expect(clippy::disallowed_methods, reason = "golden files are files")]

mod corpus;
mod golden;
mod mutation;
mod oracle;
mod reader;
mod words;

use std::path::{Path, PathBuf};

use rbuild_diag::SourceFile;

use crate::{Parsed, parse};

fn test_data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("test_data")
}

fn parse_text(text: &str) -> Parsed {
    parse(&SourceFile::new("Dockerfile", text))
}

/// The cases of a folder, by name, with their Dockerfiles.
fn cases(kind: &str) -> Vec<(PathBuf, String)> {
    let folder = test_data().join(kind);
    let mut cases: Vec<(PathBuf, String)> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| {
            let folder = entry.unwrap().path();
            let text = std::fs::read_to_string(folder.join("Dockerfile"))
                .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
            (folder, text)
        })
        .collect();
    cases.sort();
    cases
}
