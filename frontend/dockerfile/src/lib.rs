//! Dockerfile text → syntax tree with places, and word expansion. `parse` always returns a tree; what is wrong
//! is in the list beside it. Pure: reads no file, no environment, no clock. Knows nothing of stages or images.

mod ast;
mod dump;
mod words;

use rbuild_diag::{Diagnostic, SourceFile};

pub use ast::{
    ArgDecl, Command, CopyInstr, CopySource, Directives, Dockerfile, FromInstr, HealthcheckInstr, Heredoc,
    Instruction, InstructionKind, KeyValue, KeyValues, MountField, MountFlag, OnbuildInstr, RunInstr, Word,
};
pub use dump::{dump, dump_instruction};
pub use words::{ExpandError, Expanded, expand_heredoc, expand_step_name, expand_word, expand_words};

/// A parsed file and everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The tree; instructions that could not be understood are `Invalid`.
    pub file: Dockerfile,
    /// In the order of the text. Errors have codes `RB10xx`; warnings are lint rules under their names.
    pub diagnostics: Vec<Diagnostic>,
}

/// One instruction parsed from a text of its own, and everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedInstruction {
    /// The text as a source; the diagnostics point into it.
    pub source: SourceFile,
    /// The instruction, `Invalid` when the text holds none.
    pub instruction: Instruction,
    /// As in [`Parsed`].
    pub diagnostics: Vec<Diagnostic>,
}

/// Parses a whole Dockerfile.
#[must_use]
pub fn parse(source: &SourceFile) -> Parsed {
    let _ = source;
    Parsed {
        file: Dockerfile {
            directives: Directives { syntax: None, escape: '\\', check: None },
            instructions: vec![],
        },
        diagnostics: vec![],
    }
}

/// Parses the text of one instruction, such as an `ONBUILD` trigger from an image's config.
#[must_use]
pub fn parse_instruction(text: &str, escape: char) -> ParsedInstruction {
    let _ = escape;
    ParsedInstruction {
        source: SourceFile::new("ONBUILD trigger", text),
        instruction: Instruction {
            keyword: Word::default(),
            span: rbuild_diag::Span::default(),
            original: text.to_owned(),
            comments: vec![],
            kind: InstructionKind::Invalid,
        },
        diagnostics: vec![],
    }
}
