//! The syntax tree as text, stable, for golden tests.

use crate::{Dockerfile, Instruction};

/// A whole file.
#[must_use]
pub fn dump(file: &Dockerfile) -> String {
    file.instructions.iter().map(dump_instruction).collect()
}

/// One instruction.
#[must_use]
pub fn dump_instruction(instruction: &Instruction) -> String {
    format!("{}\n", instruction.original)
}
