//! Keys against what BuildKit wrote: single digests, and every link of four whole builds.

mod build;
mod explain;
mod links;
mod vectors;
