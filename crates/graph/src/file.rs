//! File operations: a chain of actions, each on an input or on an earlier action's output.

/// A chain of actions.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FileOp {
    /// In order.
    pub actions: Vec<FileAction>,
    /// `SOURCE_DATE_EPOCH`, in seconds since 1970: the time of what has no other, such as directories on the way. It is no part
    /// of LLB, nor of the key: without it such files have the time of the build.
    pub epoch: Option<i64>,
}

/// One action. Indexes below the number of the node's inputs are inputs; the rest are outputs of earlier
/// actions (`inputs + i` is action `i`); `None` is scratch (LLB's -1).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FileAction {
    /// What it changes.
    pub input: Option<u32>,
    /// What it copies from.
    pub secondary_input: Option<u32>,
    /// The node's output it becomes.
    pub output: Option<u32>,
    /// What it does.
    pub kind: FileKind,
}

/// Kinds of actions.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum FileKind {
    /// Copies from the secondary input.
    Copy(CopyAction),
    /// Makes a file.
    Mkfile(MkfileAction),
    /// Makes a directory.
    Mkdir(MkdirAction),
    /// Removes.
    Rm(RmAction),
    /// Makes a symbolic link.
    Symlink(SymlinkAction),
}

/// LLB's `FileActionCopy`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct CopyAction {
    /// Path or pattern in the secondary input.
    pub src: String,
    /// Absolute destination; a trailing slash means a directory.
    pub dest: String,
    /// Owner of what is made; `None` keeps the source's (0:0 for local contexts).
    pub owner: Option<Chown>,
    /// Permission bits for everything copied; `None` keeps (LLB's -1).
    pub mode: Option<u32>,
    /// Symbolic permissions (`u=rwX,go=rX`); excludes `mode`.
    pub mode_str: String,
    /// Follow a symbolic link that `src` itself is.
    pub follow_symlink: bool,
    /// A directory's contents, not itself.
    pub dir_copy_contents: bool,
    /// Unpack a local archive.
    pub attempt_unpack: bool,
    /// Make parents.
    pub create_dest_path: bool,
    /// `src` is a pattern.
    pub allow_wildcard: bool,
    /// A pattern that matches nothing is no error.
    pub allow_empty_wildcard: bool,
    /// Nanoseconds since 1970 for what is made; `None` keeps the source's time (LLB's -1).
    pub timestamp: Option<i64>,
    /// Only what matches.
    pub include: Vec<String>,
    /// Not what matches.
    pub exclude: Vec<String>,
    /// Replace what is in the way.
    pub always_replace_existing: bool,
    /// Paths that must exist (`--parents`).
    pub required_paths: Vec<String>,
}

/// LLB's `FileActionMkFile`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MkfileAction {
    /// Absolute.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub data: Vec<u8>,
    /// Owner.
    pub owner: Option<Chown>,
    /// Nanoseconds; `None` is now.
    pub timestamp: Option<i64>,
}

/// LLB's `FileActionMkDir`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MkdirAction {
    /// Absolute.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Parents too, and an existing directory is no error.
    pub make_parents: bool,
    /// Owner.
    pub owner: Option<Chown>,
    /// Nanoseconds; `None` is now.
    pub timestamp: Option<i64>,
}

/// LLB's `FileActionRm`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RmAction {
    /// Absolute path or pattern.
    pub path: String,
    /// Nothing there is no error.
    pub allow_not_found: bool,
    /// `path` is a pattern.
    pub allow_wildcard: bool,
}

/// LLB's `FileActionSymlink`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SymlinkAction {
    /// Target, verbatim.
    pub oldpath: String,
    /// Absolute path of the link.
    pub newpath: String,
    /// Owner.
    pub owner: Option<Chown>,
    /// Nanoseconds; `None` is now.
    pub timestamp: Option<i64>,
}

/// Owner and group; a missing one is 0.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Chown {
    /// Owner.
    pub user: Option<UserRef>,
    /// Group.
    pub group: Option<UserRef>,
}

/// By number, or by name in `/etc/passwd` or `/etc/group` of an input.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum UserRef {
    /// Number.
    Id(u32),
    /// Name.
    Name {
        /// Name.
        name: String,
        /// Where it is looked up: an index as in `FileAction`.
        input: Option<u32>,
    },
}

impl FileOp {
    /// The inputs that are only read: sources of copies and places of owner look-ups, never changed.
    /// In ascending order.
    #[must_use]
    pub fn read_only_inputs(&self, inputs: u32) -> Vec<u32> {
        (0..inputs).filter(|i| self.actions.iter().all(|action| action.input != Some(*i))).collect()
    }
}
