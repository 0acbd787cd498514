//! Places in a text (`Span`), texts with a name (`SourceFile`) and messages about them (`Diagnostic`).
//! Text for people is made in `render` only. Knows nothing of Dockerfiles; prints nothing itself.

mod diagnostic;
mod render;
mod source_file;
mod span;
mod suggest;

pub use diagnostic::{Diagnostic, Severity};
pub use render::{RenderOptions, render};
pub use source_file::{LineCol, SourceFile};
pub use span::{Span, Spanned};
pub use suggest::nearest;
