//! File trees as values and as tar streams: paths that cannot escape, entries, tar in and out with whiteouts,
//! differences, ignore patterns and globs, and BuildKit's content hash. Pure over `Read` and `Write`: it opens no
//! file, reads no clock and knows no layer formats beyond plain tar. Decisions are recorded in `SEMANTICS.md`.

pub mod go_path;

mod changes;
mod dump;
mod entry;
mod glob;
mod hash;
mod ignore_file;
mod path;
mod pattern;
mod pattern_regex;
mod select;
mod tar_format;
mod tar_item;
mod tar_pax;
mod tar_read;
mod tar_scan;
mod tar_sparse;
mod tar_write;
mod tree;

#[cfg(test)]
mod tests;

pub use changes::{Change, ReadChangesError, apply, diff, read_changes, write_changes};
pub use dump::dump_entry;
pub use entry::{Entry, Kind, Time, Xattrs};
pub use glob::{BadPattern, Glob, has_wildcard, split_wildcards};
pub use hash::{Selection, context_root_digest, entry_hasher, header_digest};
pub use ignore_file::{IgnoreFile, IgnoreLine, parse_ignore_file};
pub use path::{PathError, RelPath};
pub use pattern::{MatchInfo, PatternMatcher};
pub use select::{Children, NodeKind, SelectError, SelectOptions, TreeSource, resolve, select};
pub use tar_item::{Limits, Problem, TarItem, TarReadError};
pub use tar_read::{Content, Data, TarReader};
pub use tar_scan::TarScan;
pub use tar_sparse::Region;
pub use tar_write::{TarWriteError, TarWriter};
pub use tree::{Tree, TreeError};
