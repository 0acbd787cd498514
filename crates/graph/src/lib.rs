//! The build as data: a directed acyclic graph of typed operations that mirror LLB. It holds no names to
//! resolve, no variables, no tags and no secret values; it can be printed, compared and drawn. Pure.

mod dump;
mod exec;
mod file;
mod graph;
mod op;
mod source;

pub use dump::{dot, dump};
pub use exec::{
    CacheSharing, CdiDevice, ContentCache, ExecHints, ExecOp, ExecSpec, HostIp, Mount, MountKind, NetMode,
    ProxyEnv, SecretEnv, SecurityMode, Ulimit,
};
pub use file::{
    Chown, CopyAction, FileAction, FileKind, FileOp, MkdirAction, MkfileAction, RmAction, SymlinkAction,
    UserRef,
};
pub use graph::{Edge, Graph, GraphError, Node, NodeId, NodeMeta, Place};
pub use op::{DiffOp, MergeOp, Op};
pub use source::{GitSource, HttpSource, ImageSource, LocalSource, OciLayoutSource, SourceOp};
