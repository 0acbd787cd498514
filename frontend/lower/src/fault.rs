//! Why an instruction is not lowered.

use rbuild_diag::{Diagnostic, SourceFile, Span};

/// Ends the lowering of one instruction.
#[derive(Debug)]
pub(crate) enum Fault {
    /// To be reported.
    New(Box<Diagnostic>),
    /// Was reported, or follows from something that was.
    Known,
}

impl Fault {
    /// An error without a place.
    pub(crate) fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self::New(Box::new(Diagnostic::error(code, message)))
    }

    /// The same at a place.
    pub(crate) fn at(self, file: &SourceFile, span: Span) -> Self {
        self.map(|diagnostic| diagnostic.at(file, span))
    }

    /// The same with one more fact.
    pub(crate) fn note(self, note: impl Into<String>) -> Self {
        self.map(|diagnostic| diagnostic.note(note))
    }

    /// The same with advice.
    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        self.map(|diagnostic| diagnostic.help(help))
    }

    fn map(self, change: impl FnOnce(Diagnostic) -> Diagnostic) -> Self {
        match self {
            Self::New(diagnostic) => Self::New(Box::new(change(*diagnostic))),
            Self::Known => Self::Known,
        }
    }
}
