//! `ARG name[=default] …`.

use rbuild_diag::Spanned;

use super::from::lint_description;
use super::key_value::quoted_words;
use super::{Head, form_of, needs_arguments};
use crate::context::Context;
use crate::{ArgDecl, InstructionKind, codes};

/// Flags are dropped in silence: BuildKit does not look at them here.
pub(super) fn parse(cx: &mut Context<'_>, head: &Head<'_>, comments: &[Spanned<String>]) -> InstructionKind {
    let mut declarations = Vec::new();
    for word in quoted_words(head.rest, cx.escape) {
        let (name, default) = match word.split_once('=') {
            Some((name, default)) => (name, Some(default.word())),
            None => (word, None),
        };
        if name.text().is_empty() {
            cx.error(codes::BLANK_NAME, word.span(), "ARG names can not be blank", form_of("ARG"));
            return InstructionKind::Invalid;
        }
        declarations.push(ArgDecl { name: name.word(), default });
    }
    if declarations.is_empty() {
        needs_arguments(cx, head, "ARG");
        return InstructionKind::Invalid;
    }
    let names: Vec<String> = declarations.iter().map(|declaration| declaration.name.value.clone()).collect();
    lint_description(cx, comments, "ARG", &names);
    InstructionKind::Arg(declarations)
}
