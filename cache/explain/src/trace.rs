//! A build written down: its arguments and variables, and of each step what its key was made from and how it ended.

use serde::{Deserialize, Serialize};

use crate::Cause;

/// The version of traces that this library writes; others are not read.
pub(crate) const VERSION: u32 = 1;

/// A build, for one or several platforms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The version of the form.
    pub version: u32,
    /// Names the build, as in `--metadata-file`.
    pub build: String,
    /// When it began, in nanoseconds since 1970.
    pub at: i64,
    /// The Dockerfile's name.
    pub dockerfile: String,
    /// The main context, if there was one.
    pub context: Option<String>,
    /// `--build-arg`.
    pub args: Vec<(String, String)>,
    /// What it was built for.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// `ARG` and `ENV` of the Dockerfile, in its order.
    pub variables: Vec<Variable>,
    /// The name of the ignore file; empty when there was none.
    pub ignore_file: String,
    /// Its patterns.
    pub ignore: Vec<String>,
    /// Caches that were imported, as given.
    pub imports: Vec<String>,
    /// `--no-cache`.
    pub no_cache: bool,
    /// It was built elsewhere: an imported cache tells of it.
    #[serde(skip)]
    pub imported: bool,
    /// Inputs come before their users.
    pub steps: Vec<Step>,
}

/// A variable that a Dockerfile declares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// `ARG`; else `ENV`.
    pub arg: bool,
    /// From 1.
    pub line: u32,
    /// As written; `None` for an `ARG` without a default.
    pub value: Option<String>,
}

/// What a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepKind {
    /// `RUN`.
    Exec,
    /// `COPY`, `ADD`, `WORKDIR`.
    File,
    /// Layers put together or taken apart.
    Layers,
    /// An image.
    Image,
    /// A local directory.
    Local,
    /// A web file or a repository.
    Remote,
}

impl StepKind {
    /// Whether it is where something comes from, not something that is done.
    #[must_use]
    pub fn is_source(self) -> bool {
        matches!(self, Self::Image | Self::Local | Self::Remote)
    }
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// As people see it: `[build 2/4] RUN make`.
    pub name: String,
    /// Its stage.
    pub stage: String,
    /// Its position in its stage and platform, from 0.
    pub ordinal: usize,
    /// `linux/amd64`.
    pub platform: String,
    /// The platform of the image that it is built for; what is the same for all platforms has another one above.
    #[serde(default)]
    pub target: String,
    /// What it is.
    pub kind: StepKind,
    /// The line in the Dockerfile, from 1.
    pub line: Option<u32>,
    /// The instruction as written; of an image its reference, of a local directory its name.
    pub text: String,
    /// The operation's digest without its inputs.
    pub op: String,
    /// What that was made from.
    pub preimage: String,
    /// Its fields.
    pub fields: Vec<(String, String)>,
    /// What it reads.
    pub inputs: Vec<Input>,
    /// Secrets and agents that it is lent, which do not count.
    pub secrets: Vec<String>,
    /// It was not to be answered from the cache.
    pub no_cache: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// What made it run, or differ from the build before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
}

/// An input of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Position of the step it comes from.
    pub step: usize,
    /// The key of what is read of it, if that was hashed.
    pub content: Option<String>,
}

/// How a step ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Outcome {
    /// It was not reached, or its result was not needed.
    #[default]
    NotNeeded,
    /// Its record was found.
    Hit(Found),
    /// It ran.
    Ran {
        /// What the engine said: `not-in-cache`, `no-cache`, `pruned`, `lost`.
        why: String,
        /// Milliseconds.
        ms: u64,
    },
    /// It failed.
    Failed,
}

/// A record that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// When it was made, in nanoseconds since 1970; 0 if nobody knows.
    pub created: i64,
    /// How long that took, in milliseconds.
    pub ms: u64,
    /// From where it was imported; `None` if it was built here.
    pub imported: Option<String>,
}

impl Step {
    /// Whether its result came about.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        matches!(self.outcome, Outcome::Hit(_) | Outcome::Ran { .. })
    }

    /// Whether it ran.
    #[must_use]
    pub fn ran(&self) -> bool {
        matches!(self.outcome, Outcome::Ran { .. } | Outcome::Failed)
    }

    /// Whether content of an input was compared to find it.
    #[must_use]
    pub fn by_content(&self) -> bool {
        self.inputs.iter().any(|input| input.content.is_some())
    }

    pub(crate) fn field(&self, path: &str) -> Option<&str> {
        self.fields.iter().find(|(name, _)| name == path).map(|(_, value)| value.as_str())
    }
}

impl Trace {
    /// As it is kept.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let with_version = Self { version: VERSION, ..self.clone() };
        // Strings and numbers only: there is nothing that JSON cannot hold.
        serde_json::to_vec(&with_version).unwrap_or_default()
    }

    /// As it was kept; `None` for what is damaged or of another version.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let trace: Self = serde_json::from_slice(bytes).ok()?;
        let count = trace.steps.len();
        let before = |(at, step): (usize, &Step)| step.inputs.iter().all(|input| input.step < at);
        let sound = trace.version == VERSION && trace.steps.iter().enumerate().all(before);
        let points = |step: &Step| step.causes.iter().all(|cause| cause.step().is_none_or(|at| at < count));
        (sound && trace.steps.iter().all(points)).then_some(trace)
    }

    /// The value that `name` had, and where it was said: `--build-arg`, else the last declaration up to `line`.
    pub(crate) fn argument(&self, name: &str, line: Option<u32>) -> (Option<&str>, Option<u32>) {
        let declared = self
            .variables
            .iter()
            .filter(|it| it.arg && it.name == name && line.is_none_or(|line| it.line <= line));
        let last = declared.max_by_key(|it| it.line);
        let given = self.args.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        (given.or_else(|| last.and_then(|it| it.value.as_deref())), last.map(|it| it.line))
    }
}
