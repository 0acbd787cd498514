//! Dockerfile syntax tree → build graph and image config, as BuildKit's dockerfile frontend emits them, because
//! cache keys and image configs must agree with it. Pure: what it has to know of images and git it asks for
//! (`Outcome::Need`), the caller finds out and calls again. Knows nothing of registries, stores or the engine.

mod facts;
mod options;

use rbuild_diag::{Diagnostic, SourceFile, Span};
use rbuild_dockerfile::Dockerfile;
use rbuild_graph::{Edge, Graph};
use rbuild_oci::{ImageConfig, Platform};

pub use facts::{Facts, GitFacts, GitQuery, ImageFacts, ImageOrigin, ImageQuery, Needs};
pub use options::{IgnoreFile, LowerOptions, MainContext, NamedContext, NamedContextValue, NoCache};

/// The result of a call to `lower`.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Finished.
    Done(Box<Lowered>),
    /// These must be resolved and added to the facts; then call again.
    Need(Needs),
}

/// A build as data.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The operations.
    pub graph: Graph,
    /// What becomes the image's file system; `None` is an empty one.
    pub target: Option<Edge>,
    /// The image's config: history with its `empty_layer` flags, `rootfs` empty. `created` (also of the new history
    /// entries) is set only by `SOURCE_DATE_EPOCH`.
    pub config: ImageConfig,
    /// The config of the image the target starts from, as it was.
    pub base_config: Option<ImageConfig>,
    /// The file's stages, and which of them the target needs.
    pub plan: StagePlan,
    /// Lint findings and other warnings, in the order of the file.
    pub warnings: Vec<Diagnostic>,
    /// The platform of the target stage.
    pub platform: Platform,
    /// Whether any step reads the main build context.
    pub uses_context: bool,
    /// Whether the target stage must not be answered from the cache.
    pub ignore_cache: bool,
    /// `SOURCE_DATE_EPOCH` in seconds.
    pub source_date_epoch: Option<i64>,
}

/// The stages of a file and what the target needs of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StagePlan {
    /// In the order of the file.
    pub stages: Vec<StageOutline>,
    /// Index of the target.
    pub target: usize,
    /// Global arguments with their values.
    pub global_args: Vec<(String, Option<String>)>,
}

/// One stage in outline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageOutline {
    /// Lower-case name, or `stage-N`.
    pub name: String,
    /// Whether the file gives the name.
    pub named: bool,
    /// From the comment `# NAME description` above `FROM`.
    pub description: String,
    /// What `FROM` names, expanded.
    pub base: String,
    /// `--platform`, expanded.
    pub platform: Option<Platform>,
    /// Whether the target needs it.
    pub needed: bool,
    /// Stages it takes from (`FROM`, `COPY --from`, mounts), each once, ascending.
    pub uses: Vec<usize>,
    /// Instructions in it.
    pub instructions: usize,
    /// Place of `FROM`.
    pub span: Span,
}

/// Lowers `parsed` for one platform.
///
/// # Errors
/// All mistakes that were found, in the order of the file.
pub fn lower(
    parsed: &Dockerfile,
    source: &SourceFile,
    options: &LowerOptions,
    facts: &Facts,
) -> Result<Outcome, Vec<Diagnostic>> {
    let _ = (parsed, source, options, facts);
    Err(vec![Diagnostic::error("RB1100", "lowering is not complete in this revision")])
}

/// Stages, their names and what the target needs of them, without any knowledge of images: triggers of base images
/// are not seen.
///
/// # Errors
/// Stage names, targets and global arguments that cannot be understood.
pub fn plan_stages(
    parsed: &Dockerfile,
    source: &SourceFile,
    options: &LowerOptions,
) -> Result<StagePlan, Vec<Diagnostic>> {
    let _ = (parsed, source, options);
    Err(vec![Diagnostic::error("RB1100", "planning is not complete in this revision")])
}
