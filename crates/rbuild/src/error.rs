//! Why a build failed. What kind it is decides the exit code; the text is made at the rim.

use rbuild_diag::{Diagnostic, SourceFile, Span};
use rbuild_engine::{Cause, SolveError};
use rbuild_graph::Graph;
use rbuild_ports::{ErrorKind, PortError};

use crate::{BuildRequest, codes, missing};

/// Whose move it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BuildErrorKind {
    /// The user's input makes no sense: Dockerfile, arguments, missing files.
    User,
    /// A step's command failed.
    Step,
    /// The machine, a registry, the disk.
    Environment,
    /// Somebody cancelled.
    Cancelled,
    /// A bug in rbuild.
    Internal,
}

/// Why a build failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct BuildError {
    kind: BuildErrorKind,
    message: String,
    /// Everything there is to say, at least one.
    pub diagnostics: Vec<Diagnostic>,
    /// The last lines of the failed step's output.
    pub log_tail: Vec<String>,
    /// The failed step's name.
    pub step: Option<String>,
    /// The exit code of the failed step's command.
    pub exit_code: Option<i32>,
}

impl BuildError {
    /// Whose move it is.
    #[must_use]
    pub fn kind(&self) -> BuildErrorKind {
        self.kind
    }

    /// One finding.
    #[must_use]
    pub fn new(kind: BuildErrorKind, diagnostic: Diagnostic) -> Self {
        Self {
            kind,
            message: diagnostic.message.clone(),
            diagnostics: vec![diagnostic],
            log_tail: vec![],
            step: None,
            exit_code: None,
        }
    }

    /// The same with advice on the first finding.
    #[must_use]
    pub fn with_help(mut self, help: &str) -> Self {
        if let Some(first) = self.diagnostics.first_mut() {
            first.help = Some(help.to_owned());
        }
        self
    }

    /// Mistakes in the Dockerfile.
    #[must_use]
    pub fn findings(diagnostics: Vec<Diagnostic>) -> Self {
        let message = match diagnostics.as_slice() {
            [] => "the Dockerfile cannot be built".to_owned(),
            [one] => one.message.clone(),
            [first, rest @ ..] => format!("{} (and {} more)", first.message, rest.len()),
        };
        Self {
            kind: BuildErrorKind::User,
            message,
            diagnostics,
            log_tail: vec![],
            step: None,
            exit_code: None,
        }
    }

    /// What a port said, where it is known which line of the Dockerfile asked.
    #[must_use]
    pub fn port(error: &PortError, place: Option<(&SourceFile, Span)>) -> Self {
        let (kind, code) = codes::classify(error.kind);
        let mut diagnostic = Diagnostic::error(code, error.message.clone());
        diagnostic.help = error.help.clone();
        if let Some((file, span)) = place {
            diagnostic = diagnostic.at(file, span);
        }
        Self::new(kind, diagnostic)
    }

    /// What the engine said.
    pub(crate) fn solve(error: SolveError, graph: &Graph, request: &BuildRequest) -> Self {
        let meta = error.step.map(|step| &graph.node(step).meta);
        let place = meta.and_then(|meta| meta.place.as_ref()).map(|place| (&place.file, place.span));
        let mut out = match &error.cause {
            Cause::Cancelled => {
                Self::new(BuildErrorKind::Cancelled, Diagnostic::error(codes::CANCELLED, "cancelled"))
            }
            Cause::Port(port) if port.kind == ErrorKind::Cancelled => {
                Self::new(BuildErrorKind::Cancelled, Diagnostic::error(codes::CANCELLED, "cancelled"))
            }
            Cause::Port(port) => {
                let mut out = Self::port(port, place);
                if let (ErrorKind::NotFound, Some(step), Some(finding)) =
                    (port.kind, error.step, out.diagnostics.first_mut())
                {
                    missing::explain(finding, graph, step, request);
                    out.message.clone_from(&finding.message);
                }
                if let (ErrorKind::Invalid, Some(finding)) = (port.kind, out.diagnostics.first_mut()) {
                    missing::explain_pattern(finding);
                }
                out
            }
            Cause::Command { how, code, .. } => {
                let mut diagnostic = Diagnostic::error(code_for(*code, how), error.to_string());
                if let Some((file, span)) = place {
                    diagnostic = diagnostic.at(file, span);
                }
                diagnostic.help = Some(help_for(*code, how, &error.log_tail));
                Self { exit_code: *code, ..Self::new(BuildErrorKind::Step, diagnostic) }
            }
        };
        out.step = meta.map(|meta| meta.name.clone());
        out.log_tail = error.log_tail;
        out
    }
}

impl From<PortError> for BuildError {
    fn from(error: PortError) -> Self {
        Self::port(&error, None)
    }
}

fn code_for(code: Option<i32>, how: &str) -> &'static str {
    match code {
        Some(127) => codes::COMMAND_NOT_FOUND,
        Some(126) => codes::COMMAND_NOT_EXECUTABLE,
        Some(137) => codes::COMMAND_KILLED,
        None if how.contains("memory") => codes::COMMAND_KILLED,
        _ => codes::COMMAND_FAILED,
    }
}

/// What programs say when the machine is at fault and not the command, and what to do then.
const SAID: [(&[&str], &str); 2] = [
    (
        &["No space left on device", "ENOSPC"],
        "a disk was full, most likely that of the store: free some space, or run `rbuild prune` to drop unused cache, \
         then build again; what lies in a tmpfs is limited by its size",
    ),
    (
        &[
            "Temporary failure resolving",
            "Temporary failure in name resolution",
            "Could not resolve host",
            "Name or service not known",
            "EAI_AGAIN",
        ],
        "a name was not resolved: has the step a network (--network), and do the name servers of the machine's \
         /etc/resolv.conf answer?",
    ),
];

fn help_for(code: Option<i32>, how: &str, log_tail: &[String]) -> String {
    let said = |words: &[&str]| log_tail.iter().any(|line| words.iter().any(|word| line.contains(word)));
    if let (Some(1..=125), Some((_, help))) = (code, SAID.iter().find(|(words, _)| said(words))) {
        return (*help).to_owned();
    }
    match code {
        Some(127) => "a command was not found: is it installed in this stage, and is it in PATH? a script that is there \
             may have a first line that names a missing program or ends in a carriage return"
            .to_owned(),
        Some(126) => {
            "a command could not be executed: is its file executable, and made for this platform?".to_owned()
        }
        Some(137) => "something killed the command (signal 9): was there enough memory?".to_owned(),
        Some(_) => "the output above says why; the step's files are not kept".to_owned(),
        None if how.contains("memory") => {
            "give the build more memory, or let the command use less".to_owned()
        }
        None => "something outside the command killed it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_follows_what_was_said() {
        let line = |text: &str| vec!["before".to_owned(), text.to_owned()];
        for (code, said, part) in [
            (Some(1), "dd: error writing '/big': No space left on device", "rbuild prune"),
            (Some(100), "Temporary failure resolving 'deb.debian.org'", "--network"),
            (Some(6), "curl: (6) Could not resolve host: example.org", "--network"),
            (Some(1), "something else", "the output above"),
            (Some(127), "No space left on device", "not found"),
            (None, "No space left on device", "killed"),
        ] {
            let help = help_for(code, "", &line(said));
            assert!(help.contains(part), "{said}: {help}");
        }
    }
}
