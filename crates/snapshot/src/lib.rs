//! Layer directories in the overlay file system's form: reading them merged without mounting, file operations,
//! unpacking image layers, changes as tar, cache mounts. It mounts nothing, runs nothing and knows neither keys nor
//! records; the sandbox mounts what `OverlayDirs` names.
//!
//! A layer is a directory `<root>/layers/<id>`: a deletion is a character device 0:0, a directory that hides what is
//! below it has the overlay attribute `opaque`. Layers grow in `<root>/work` and become visible by one rename.

mod active;
mod cache_mount;
mod content;
mod file_op;
mod meta;
mod pool;
mod remove;
mod resolve;
mod seal;
mod site;
mod store;
mod sys;
mod unchanged;
mod unpack;
mod view;
mod walk;
mod work;
mod write_tar;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use store::{LayerStore, LayerStoreOptions, PinLayer};
