//! Whole builds through the public surfaces, and rules about the source tree. One binary, so that it links once.

mod cli;
mod command;
mod common;
mod copy;
mod errors;
mod tidy;
