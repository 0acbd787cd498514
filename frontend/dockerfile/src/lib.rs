//! Dockerfile text → syntax tree with places, and word expansion. `parse` always returns a tree; what is wrong
//! is in the list beside it. Pure: reads no file, no environment, no clock. Knows nothing of stages or images.

mod ast;

pub use ast::{
    ArgDecl, Command, CopyInstr, CopySource, Directives, Dockerfile, FromInstr, HealthcheckInstr, Heredoc, Instruction,
    InstructionKind, KeyValue, KeyValues, MountField, MountFlag, OnbuildInstr, RunInstr, Word,
};
