//! File trees as values and as tar streams: paths that cannot escape, entries, tar in and out with whiteouts,
//! differences, ignore patterns and globs, and BuildKit's content hash. Pure over `Read` and `Write`: it opens no
//! file, reads no clock and knows no layer formats beyond plain tar. Decisions are recorded in `SEMANTICS.md`.

mod entry;
mod path;

pub use entry::{Entry, Kind, Time, Xattrs};
pub use path::{PathError, RelPath};
