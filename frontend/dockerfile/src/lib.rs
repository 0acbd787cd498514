//! Dockerfile text → syntax tree with places, and word expansion. `parse` always returns a tree; what is wrong
//! is in the list beside it. Pure: reads no file, no environment, no clock. Knows nothing of stages or images.

mod ast;
mod codes;
mod context;
mod directive;
mod dump;
mod flags;
mod heredoc;
mod instr;
mod json;
mod logical;
mod parse;
mod pattern;
mod text;
mod words;

#[cfg(test)]
mod tests;

use rbuild_diag::{Diagnostic, SourceFile};

pub use ast::{
    ArgDecl, Command, CopyInstr, CopySource, CsvField, CsvFlag, Directives, Dockerfile, FromInstr,
    HealthcheckInstr, Heredoc, Instruction, InstructionKind, KeyValue, KeyValues, OnbuildInstr, RunInstr,
    Word,
};
pub use codes::CODES;
pub use directive::{Syntax, detect_syntax};
pub use dump::{dump, dump_instruction};
pub use parse::{parse, parse_instruction};
pub use words::{ExpandError, Expanded, expand_heredoc, expand_step_name, expand_word, expand_words};

/// A parsed file and everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The tree; instructions that could not be understood are `Invalid`.
    pub file: Dockerfile,
    /// In the order of the text. Errors have codes `RB10xx`; warnings are lint rules under their names, the
    /// experimental `InvalidDefinitionDescription` among them, and errors that wait in an `ONBUILD` trigger.
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
