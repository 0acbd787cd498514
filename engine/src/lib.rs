//! Solves a build graph: decides what is in the cache, runs the rest, and says what happened as a stream of
//! events. `schedule` decides and performs nothing; `run` owns it and hands its commands to `worker`, the only caller of
//! ports. Knows nothing of Dockerfiles, disks or networks.

mod command;
mod error;
mod event;
mod materialise;
mod progress;
mod run;
mod schedule;
mod solved;
mod state;
mod step;
mod worker;

pub use command::{Command, Reply};
pub use error::{Cause, SolveError};
pub use event::{Event, EventSink, Hashed};
pub use materialise::{Materialiser, record_image};
pub use run::{SolveOptions, solve};
pub use schedule::{DepSpec, Scheduler, StepKind, StepSpec};
pub use solved::{Solved, SolvedInput, SolvedStep};
pub use state::{StepState, Why};
pub use worker::{Ports, StepOutput};

#[cfg(test)]
mod tests;
