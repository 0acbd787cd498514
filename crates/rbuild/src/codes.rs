//! The codes of what goes wrong while building, and the explanation of every code of the program, those of the frontend and of
//! the build checks included. The text is `docs/codes.md`.

use rbuild_ports::ErrorKind;

use crate::BuildErrorKind;

macro_rules! codes {
    ($($name:ident = $code:literal, $what:literal;)*) => {
        $(#[doc = $what] pub(crate) const $name: &str = $code;)*

        /// Every code of the builder with what it stands for, in order.
        const CODES: &[(&str, &str)] = &[$(($code, $what)),*];
    };
}

codes! {
    CANCELLED = "RB2000", "the build was cancelled";
    COMMAND_FAILED = "RB2001", "a step's command failed";
    COMMAND_NOT_FOUND = "RB2002", "a step's command was not found";
    COMMAND_NOT_EXECUTABLE = "RB2003", "a step's command could not be executed";
    COMMAND_KILLED = "RB2004", "something killed a step's command";
    NOT_FOUND = "RB2010", "a file or directory is missing";
    INVALID = "RB2011", "something given to rbuild cannot be used";
    DENIED = "RB2012", "something is not allowed";
    UNSUPPORTED = "RB2013", "this machine or this version cannot do it";
    IMAGE_NOT_FOUND = "RB2014", "there is no such image";
    NETWORK = "RB2020", "the network or a server failed";
    AUTH = "RB2021", "a registry wants other credentials";
    NO_SPACE = "RB2022", "a disk is full";
    IO = "RB2023", "reading or writing failed";
    CORRUPT = "RB2024", "stored data is damaged";
    NO_DOCKERFILE = "RB2030", "there is no Dockerfile";
    NO_CONTEXT_DIRECTORY = "RB2031", "the build context is not a directory";
    GIT_NOT_FOUND = "RB2040", "there is no such git repository, branch, commit or directory in it";
    INTERNAL = "RB2099", "a mistake in this program";
}

/// Whose move it is, and the stable code.
pub(crate) fn classify(kind: ErrorKind) -> (BuildErrorKind, &'static str) {
    match kind {
        ErrorKind::NotFound => (BuildErrorKind::User, NOT_FOUND),
        ErrorKind::Invalid => (BuildErrorKind::User, INVALID),
        ErrorKind::Denied => (BuildErrorKind::User, DENIED),
        ErrorKind::Unsupported => (BuildErrorKind::Environment, UNSUPPORTED),
        ErrorKind::Network => (BuildErrorKind::Environment, NETWORK),
        ErrorKind::Auth => (BuildErrorKind::Environment, AUTH),
        ErrorKind::NoSpace => (BuildErrorKind::Environment, NO_SPACE),
        ErrorKind::Io => (BuildErrorKind::Environment, IO),
        ErrorKind::Corrupt => (BuildErrorKind::Environment, CORRUPT),
        ErrorKind::Cancelled => (BuildErrorKind::Cancelled, CANCELLED),
        ErrorKind::Internal => (BuildErrorKind::Internal, INTERNAL),
    }
}

/// A code with its explanation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeExplanation {
    /// `RB1006`, or the name of a build check.
    pub code: &'static str,
    /// What it stands for, in a few words.
    pub title: &'static str,
    /// Cause and remedy, lines of plain text.
    pub text: &'static str,
}

const TEXT: &str = include_str!("../../../docs/codes.md");

/// Every code: those of the text, of its meaning, of the build, and the build checks.
#[must_use]
pub fn explained_codes() -> Vec<CodeExplanation> {
    let sections = || TEXT.split("\n### ").skip(1).filter_map(|section| section.split_once('\n'));
    let text = |code: &str| {
        let own = sections().find(|(head, _)| head.split(':').next() == Some(code));
        // A section ends where the next part begins.
        own.map_or("", |(_, body)| body.split("\n## ").next().unwrap_or_default().trim())
    };
    let frontend = rbuild_dockerfile::CODES.iter().chain(rbuild_lower::CODES);
    let rules = rbuild_lower::RULES.iter().map(|rule| (rule.name, rule.description));
    let all = frontend.chain(CODES).copied().chain(rules);
    all.map(|(code, title)| CodeExplanation { code, title, text: text(code) }).collect()
}

/// The explanation of `code`, in any case of letters.
#[must_use]
pub fn explain_code(code: &str) -> Option<CodeExplanation> {
    explained_codes().into_iter().find(|explanation| explanation.code.eq_ignore_ascii_case(code))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_is_explained_and_every_explanation_has_its_code() {
        let codes: Vec<String> =
            explained_codes().iter().map(|known| format!("{}: {}", known.code, known.title)).collect();
        let explained: Vec<&str> = TEXT.lines().filter_map(|line| line.strip_prefix("### ")).collect();
        assert_eq!(explained, codes, "docs/codes.md and the tables of codes differ");
        assert_eq!(codes.iter().collect::<BTreeSet<_>>().len(), codes.len(), "a code is used twice");
        for explanation in explained_codes() {
            assert!(explanation.text.len() > 20, "{} is not explained", explanation.code);
            assert!(
                !explanation.text.contains('#') || explanation.text.contains('`'),
                "{}",
                explanation.code
            );
        }
    }

    #[test]
    fn codes_are_found_in_any_case() {
        assert_eq!(explain_code("rb1006").map(|it| it.code), Some("RB1006"));
        assert_eq!(explain_code("stagenamecasing").map(|it| it.code), Some("StageNameCasing"));
        assert_eq!(explain_code("RB9999"), None);
        let last = explain_code("RB2099").expect("it is in the table");
        assert!(last.text.ends_with("message says."), "{:?}", last.text);
    }
}
