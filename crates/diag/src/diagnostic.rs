//! A message about a place.

use crate::{SourceFile, Span};

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// The build goes on.
    Warning,
    /// The build cannot go on.
    Error,
}

/// What happened, where, why, and what to do. Messages are lower case without a final full stop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// A stable code: `RB1023`, or a lint rule's name.
    pub code: &'static str,
    /// What happened, with the user's own words quoted.
    pub message: String,
    /// The text and the place in it; `None` when it is about no text.
    pub place: Option<(SourceFile, Span)>,
    /// Facts that explain it, one a line.
    pub notes: Vec<String>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error without a place.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            message: message.into(),
            place: None,
            notes: vec![],
            help: None,
        }
    }

    /// A warning without a place.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// The same at a place.
    #[must_use]
    pub fn at(mut self, file: &SourceFile, span: Span) -> Self {
        self.place = Some((file.clone(), span));
        self
    }

    /// The same with one more fact.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// The same with advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}
