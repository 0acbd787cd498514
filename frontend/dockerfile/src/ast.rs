//! The syntax tree: a Dockerfile as written, every item with its place. Nothing is expanded here and no
//! name is resolved; what a flag's text means is decided when it is lowered, after expansion.

use rbuild_diag::{Span, Spanned};

/// A whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// `# syntax=`, `# escape=`, `# check=`.
    pub directives: Directives,
    /// In the order of the file. Lines that could not be understood are `InstructionKind::Invalid`.
    pub instructions: Vec<Instruction>,
}

/// Parser directives at the head of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives {
    /// `# syntax=` with its whole value.
    pub syntax: Option<Spanned<String>>,
    /// `\` or `` ` ``.
    pub escape: char,
    /// `# check=` with its whole value.
    pub check: Option<Spanned<String>>,
}

impl Default for Directives {
    fn default() -> Self {
        Self { syntax: None, escape: '\\', check: None }
    }
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The keyword as written (any case).
    pub keyword: Spanned<String>,
    /// From the keyword to the end of the last line that belongs to it, heredoc bodies included.
    pub span: Span,
    /// The logical line as BuildKit keeps it (`Node.Original`): continuations joined, comments dropped,
    /// heredoc bodies not included. History and progress text are made from it.
    pub original: String,
    /// Comment lines directly above, without `#` and outer blanks (BuildKit's `PrevComment`).
    pub comments: Vec<Spanned<String>>,
    /// What it is.
    pub kind: InstructionKind,
}

/// A word or text before expansion: quotes, escapes and `$` are still in it.
pub type Word = Spanned<String>;

/// The instructions of the language.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstructionKind {
    /// `FROM`.
    From(FromInstr),
    /// `RUN`.
    Run(RunInstr),
    /// `COPY`.
    Copy(CopyInstr),
    /// `ADD`.
    Add(CopyInstr),
    /// `ENV`.
    Env(KeyValues),
    /// `LABEL`.
    Label(KeyValues),
    /// `ARG`.
    Arg(Vec<ArgDecl>),
    /// `WORKDIR`.
    Workdir(Word),
    /// `USER`.
    User(Word),
    /// `EXPOSE`, each word unexpanded (one may expand to several).
    Expose(Vec<Word>),
    /// `VOLUME`.
    Volume(Vec<Word>),
    /// `CMD`.
    Cmd(Command),
    /// `ENTRYPOINT`.
    Entrypoint(Command),
    /// `SHELL`.
    Shell(Spanned<Vec<String>>),
    /// `STOPSIGNAL`.
    StopSignal(Word),
    /// `HEALTHCHECK`.
    Healthcheck(HealthcheckInstr),
    /// `ONBUILD`.
    Onbuild(OnbuildInstr),
    /// `MAINTAINER`.
    Maintainer(Spanned<String>),
    /// Not understood; the diagnostics beside the tree say why.
    Invalid,
}

/// `FROM [--platform=p] base [AS name]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromInstr {
    /// `--platform`.
    pub platform: Option<Word>,
    /// Image, stage name, named context or `scratch`.
    pub base: Word,
    /// The keyword `AS` as written.
    pub as_keyword: Option<Spanned<String>>,
    /// The stage name as written.
    pub name: Option<Spanned<String>>,
}

/// Shell form or exec form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Text for the shell: continuation lines joined as BuildKit joins them.
    Shell(Spanned<String>),
    /// A JSON array.
    Exec(Spanned<Vec<String>>),
}

/// A here-document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter without quotes.
    pub name: String,
    /// `<<-`: leading tabs are stripped (`content` has them stripped already).
    pub chomp: bool,
    /// False when the delimiter was quoted: no build-time expansion.
    pub expand: bool,
    /// The digits before `<<`, 0 when none.
    pub fd: u32,
    /// The body with its final newline; with `<<-` its leading tabs are gone.
    pub content: String,
    /// The body as written. A `RUN` that hands its heredocs on to the shell, and the text of an `ONBUILD`
    /// trigger, are made from it.
    pub raw: String,
    /// The body's place.
    pub span: Span,
}

/// `RUN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunInstr {
    /// `--mount=` in the order written.
    pub mounts: Vec<CsvFlag>,
    /// `--network=`.
    pub network: Option<Spanned<String>>,
    /// `--security=`.
    pub security: Option<Spanned<String>>,
    /// `--device=` in the order written.
    pub devices: Vec<CsvFlag>,
    /// The command. With heredocs the shell text holds their openers, not their bodies.
    pub command: Command,
    /// Bodies in the order of their openers.
    pub heredocs: Vec<Heredoc>,
}

/// `--mount=` or `--device=`: comma-separated fields, not yet expanded and not yet checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsvFlag {
    /// The flag's place.
    pub span: Span,
    /// `key` or `key=value`; keys as written.
    pub fields: Vec<CsvField>,
}

/// One field of `--mount=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsvField {
    /// As written.
    pub key: Spanned<String>,
    /// After `=`; `None` for a bare key.
    pub value: Option<Word>,
}

/// `COPY` and `ADD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyInstr {
    /// `--from=` (COPY).
    pub from: Option<Spanned<String>>,
    /// `--chown=`.
    pub chown: Option<Word>,
    /// `--chmod=`.
    pub chmod: Option<Word>,
    /// `--link`.
    pub link: Option<Spanned<bool>>,
    /// `--parents` (COPY).
    pub parents: Option<Spanned<bool>>,
    /// `--exclude=`.
    pub exclude: Vec<Spanned<String>>,
    /// `--checksum=` (ADD).
    pub checksum: Option<Word>,
    /// `--keep-git-dir` (ADD).
    pub keep_git_dir: Option<Spanned<bool>>,
    /// `--unpack` (ADD).
    pub unpack: Option<Spanned<bool>>,
    /// In the order written.
    pub sources: Vec<CopySource>,
    /// The last word.
    pub dest: Word,
    /// Bodies; `CopySource::Heredoc` points here.
    pub heredocs: Vec<Heredoc>,
}

/// A source of `COPY` or `ADD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopySource {
    /// A path, pattern or URL.
    Path(Word),
    /// The heredoc of this index.
    Heredoc(usize),
}

/// `ENV` and `LABEL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValues {
    /// In the order written.
    pub pairs: Vec<KeyValue>,
    /// `KEY rest of the line` without `=`.
    pub legacy: bool,
}

/// One `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, not expanded.
    pub key: Word,
    /// The value, not expanded.
    pub value: Word,
}

/// One name of `ARG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgDecl {
    /// The name, not expanded.
    pub name: Word,
    /// After `=`.
    pub default: Option<Word>,
}

/// `HEALTHCHECK`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthcheckInstr {
    /// `HEALTHCHECK NONE`.
    None,
    /// `HEALTHCHECK [flags] CMD …`. Durations as written.
    Cmd {
        /// `--interval=`.
        interval: Option<Spanned<String>>,
        /// `--timeout=`.
        timeout: Option<Spanned<String>>,
        /// `--start-period=`.
        start_period: Option<Spanned<String>>,
        /// `--start-interval=`.
        start_interval: Option<Spanned<String>>,
        /// `--retries=`.
        retries: Option<Spanned<String>>,
        /// The probe.
        command: Command,
    },
}

/// `ONBUILD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnbuildInstr {
    /// The trigger's text as it goes into the image config, heredocs included.
    pub expression: String,
    /// The trigger.
    pub trigger: Box<Instruction>,
}
