//! What the parsers of the instructions share: the source, the escape character, and the list of what is wrong.

use rbuild_diag::{Diagnostic, Severity, SourceFile, Span};

/// Passed to everything that can find something wrong.
#[derive(Debug)]
pub(crate) struct Context<'s> {
    source: &'s SourceFile,
    /// `\` or `` ` ``.
    pub(crate) escape: char,
    /// Inside `ONBUILD` only the form of a trigger matters; the rest fails where the trigger is run.
    pub(crate) in_trigger: bool,
    diagnostics: Vec<Diagnostic>,
}

impl<'s> Context<'s> {
    /// Nothing is wrong yet.
    pub(crate) fn new(source: &'s SourceFile, escape: char) -> Self {
        Self { source, escape, in_trigger: false, diagnostics: vec![] }
    }

    /// An error, not yet reported.
    pub(crate) fn diagnostic(
        &self,
        code: &'static str,
        span: Span,
        message: impl Into<String>,
    ) -> Diagnostic {
        Diagnostic::error(code, message).at(self.source, span)
    }

    /// Reports what is wrong with an instruction's meaning; in a trigger it is a warning.
    pub(crate) fn report(&mut self, mut diagnostic: Diagnostic) {
        if self.in_trigger && diagnostic.severity == Severity::Error {
            diagnostic.severity = Severity::Warning;
            diagnostic = diagnostic
                .note("the trigger is stored as it is, and fails in a build that starts from this image");
        }
        self.diagnostics.push(diagnostic);
    }

    /// Reports what is wrong with an instruction's form, which is wrong in a trigger as well.
    pub(crate) fn report_form(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// Reports an error with advice.
    pub(crate) fn error(
        &mut self,
        code: &'static str,
        span: Span,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let diagnostic = self.diagnostic(code, span, message).help(help);
        self.report(diagnostic);
    }

    /// A lint rule that was broken. BuildKit does not look into triggers.
    pub(crate) fn lint(&mut self, rule: &'static str, span: Span, message: impl Into<String>, help: &str) {
        if !self.in_trigger {
            self.diagnostics.push(Diagnostic::warning(rule, message).at(self.source, span).help(help));
        }
    }

    /// All that was reported, in the order of the text.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        self.diagnostics.sort_by_key(|d| d.place.as_ref().map(|(_, span)| span.start));
        self.diagnostics
    }
}
