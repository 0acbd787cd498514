//! Container image builds as a library: a Dockerfile in, an image out, no daemon. `Builder` is the way in: give it a `Store`
//! and a `BuildRequest`, watch `BuildEvent`s, get a `Report` or a `BuildError`. The `rbuild` command is a client of it.
//! It reads no environment, prints nothing and never exits.

mod ahead;
mod builder;
mod caches;
mod check;
mod codes;
mod collect;
mod context_stream;
mod devices;
mod error;
mod event;
mod export_context;
mod frontend;
mod history;
mod inputs;
mod inspect;
mod missing;
mod own_image;
mod remote_context;
mod report;
mod request;
mod resolve;
mod secrets;
mod store;
mod trace;
mod vertices;

pub use builder::{Builder, OutputStreams};
pub use codes::{CodeExplanation, explain_code, explained_codes};
pub use context_stream::{ContextDir, ContextStream, read_context_stream};
pub use error::{BuildError, BuildErrorKind};
pub use event::{BuildEvent, BuildEvents, VertexId};
pub use inspect::{CheckReport, OutlineReport, Target, TargetList};
pub use report::Report;
pub use request::{
    BuildRequest, Context, DockerfileSource, Entitlement, NamedContext, NamedContextSource, Secret,
    SecretSource, SshAgent,
};
pub use store::{Store, StoreOptions};

pub use collect::Collecting;
pub use rbuild_cache_explain::{
    Cause, Explanation, FileChange, FileChangeKind, Found, Outcome, Root, Step, StepKind, Trace, explanation,
    to_json as explanation_json,
};
pub use rbuild_cache_index::{CheckOptions, Problem, ProblemKind, StoreReport};
pub use rbuild_cache_index::{FilterError, Filters, GcPolicy, Share};
pub use rbuild_cache_index::{PruneOptions, PruneReport, PrunedRow, UsageKind, UsageRow};
pub use rbuild_cache_transfer::{CacheFrom, CacheMode, CacheOptions, CacheSpecError, CacheTo};
pub use rbuild_diag::{Diagnostic, LineCol, RenderOptions, Severity, SourceFile, Span, nearest, render};
pub use rbuild_digest::Digest;
pub use rbuild_engine::Why;
pub use rbuild_export::{
    Annotation, Digests, EngineAccess, Exported, OutputError, OutputReport, OutputSpec, write_file,
};
pub use rbuild_graph::{HostIp, NetMode, Ulimit, dot, dump};
pub use rbuild_lower::{
    Lowered, MainContext, NoCache, Outline, OutlineArg, OutlineMount, Rule, StageOutline, StagePlan,
    remote_context, rule,
};
pub use rbuild_oci::calendar::date_time;
pub use rbuild_oci::{Descriptor, ImageConfig, Platform, Reference};
pub use rbuild_ports::{CancelToken, ErrorKind, ImageRecord, PortError, SecretBytes, Stream, Timestamp};
pub use rbuild_sandbox::{Rootless, enter_user_namespace, raise_descriptor_limit};
pub use rbuild_source::ProxyOptions;
