//! `COPY` and `ADD`: flags, sources (paths or heredocs), destination; words or a JSON array.

use std::collections::HashMap;

use rbuild_diag::Spanned;

use super::{Head, form_of, not_strings};
use crate::context::Context;
use crate::flags::{Flags, Kind, Table};
use crate::heredoc::in_word;
use crate::text::Slice;
use crate::{CopyInstr, CopySource, Heredoc, InstructionKind, Word, codes, json};

const COPY_FLAGS: Table = &[
    ("from", Kind::Text),
    ("chown", Kind::Text),
    ("chmod", Kind::Text),
    ("link", Kind::Boolean),
    ("parents", Kind::Boolean),
    ("exclude", Kind::List),
];

const ADD_FLAGS: Table = &[
    ("chown", Kind::Text),
    ("chmod", Kind::Text),
    ("link", Kind::Boolean),
    ("exclude", Kind::List),
    ("checksum", Kind::Text),
    ("keep-git-dir", Kind::Boolean),
    ("unpack", Kind::Boolean),
];

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Which {
    Copy,
    Add,
}

pub(super) fn parse(
    cx: &mut Context<'_>,
    head: &Head<'_>,
    heredocs: Vec<Heredoc>,
    which: Which,
) -> InstructionKind {
    let (name, table) = match which {
        Which::Copy => ("COPY", COPY_FLAGS),
        Which::Add => ("ADD", ADD_FLAGS),
    };
    let flags = Flags::check(cx, name, &head.flags, table);
    let Some(mut words) = words(cx, head.rest) else { return InstructionKind::Invalid };
    let dest = words.pop().filter(|_| !words.is_empty());
    let Some(dest) = dest else {
        let message = format!(
            "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
        );
        cx.error(codes::NO_DESTINATION, head.span(), message, form_of(name));
        return InstructionKind::Invalid;
    };
    if let Ok(Some(opener)) = in_word(&dest.value) {
        let message = format!("{name} cannot accept a heredoc as a destination");
        let help = format!("write {name} <<{} destination", opener.name);
        cx.error(codes::HEREDOC_DESTINATION, dest.span, message, help);
        return InstructionKind::Invalid;
    }
    let (sources, heredocs) = sources(words, heredocs);
    let instruction = CopyInstr {
        from: flags.text("from"),
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.boolean("link"),
        parents: flags.boolean("parents"),
        exclude: flags
            .list("exclude")
            .map(|(value, span)| Spanned::new(value.text().to_owned(), span))
            .collect(),
        checksum: flags.text("checksum"),
        keep_git_dir: flags.boolean("keep-git-dir"),
        unpack: flags.boolean("unpack"),
        sources,
        dest,
        heredocs,
    };
    match which {
        Which::Copy => InstructionKind::Copy(instruction),
        Which::Add => InstructionKind::Add(instruction),
    }
}

/// The arguments; `None` when they are a JSON array of other things than strings.
pub(super) fn words(cx: &mut Context<'_>, rest: Slice<'_>) -> Option<Vec<Word>> {
    match json::array(rest.text()) {
        json::Json::Strings(strings) => {
            let word = |(string, place)| Spanned::new(string, rest.sub(place).span());
            Some(strings.into_iter().map(word).collect())
        }
        json::Json::Other(place) => {
            not_strings(cx, rest.sub(place));
            None
        }
        json::Json::No => Some(rest.fields().map(Slice::word).collect()),
    }
}

/// Which words are heredocs, judged word by word as BuildKit does: it looks bodies up by name, so that of two
/// with one name the last serves both, and an opener without a body is an empty file.
fn sources(words: Vec<Word>, bodies: Vec<Heredoc>) -> (Vec<CopySource>, Vec<Heredoc>) {
    let by_name: HashMap<&str, &Heredoc> = bodies.iter().map(|body| (body.name.as_str(), body)).collect();
    let mut heredocs = Vec::with_capacity(bodies.len());
    let sources = words
        .into_iter()
        .map(|word| match in_word(&word.value) {
            Ok(Some(opener)) => {
                heredocs.push(match by_name.get(opener.name.as_str()) {
                    Some(body) => opener.with_body(&body.raw, body.span),
                    None => opener.with_body("", word.span),
                });
                CopySource::Heredoc(heredocs.len() - 1)
            }
            _ => CopySource::Path(word),
        })
        .collect();
    (sources, heredocs)
}
