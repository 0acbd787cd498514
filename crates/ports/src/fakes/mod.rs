//! Strict in-memory implementations for tests. They refuse what a real adapter might let pass.

mod clock;
mod index;

pub use clock::StepClock;
pub use index::MemoryIndex;
