//! Causes: what made a step run, as data. `words` says them.

use serde::{Deserialize, Serialize};

/// A place in the Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The file.
    pub file: String,
    /// From 1.
    pub line: u32,
}

/// What made a step run, or differ from the build it is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "kebab-case")]
pub enum Cause {
    /// `--no-cache`, or `--no-cache-filter` with this stage.
    NoCache {
        /// The stage; `None` when everything was to run.
        stage: Option<String>,
    },
    /// `--build-arg`, or the default of an `ARG`.
    Argument {
        /// Its name.
        name: String,
        /// Its value before; `None` if it had none.
        from: Option<String>,
        /// Its value now.
        to: Option<String>,
        /// Where it is declared.
        place: Option<Place>,
    },
    /// `ENV`.
    Environment {
        /// The variable.
        name: String,
        /// Its value before.
        from: Option<String>,
        /// Its value now.
        to: Option<String>,
        /// Where it is set.
        place: Option<Place>,
    },
    /// The instruction reads otherwise.
    Instruction {
        /// As it was.
        from: String,
        /// As it is.
        to: String,
    },
    /// Something else that counts: user, directory, network, …
    Setting {
        /// What, in plain words.
        what: String,
        /// Its value before.
        from: Option<String>,
        /// Its value now.
        to: Option<String>,
    },
    /// What it reads of an input is not what it was.
    Files {
        /// From where: `the build context`, `stage build`.
        of: String,
        /// The first of the changes.
        changes: Vec<FileChange>,
        /// How many there are.
        total: usize,
    },
    /// What it reads of an input is not what it was, and which files differ is not known.
    Content {
        /// From where.
        of: String,
    },
    /// The ignore file hides or shows other files than before.
    Ignore {
        /// Its name.
        file: String,
        /// The first of the files.
        changes: Vec<FileChange>,
        /// How many there are.
        total: usize,
    },
    /// The same name means another image.
    Moved {
        /// The name.
        reference: String,
        /// The digest before.
        from: String,
        /// The digest now.
        to: String,
    },
    /// Another image is named.
    Base {
        /// Before.
        from: String,
        /// Now.
        to: String,
    },
    /// It was built for another platform only.
    Platform {
        /// For which.
        built: String,
        /// Which one is wanted now.
        wanted: String,
    },
    /// Another number of inputs, or other ones.
    Inputs,
    /// The record was there and was removed.
    Pruned {
        /// When, in nanoseconds since 1970.
        at: i64,
        /// Why.
        reason: String,
    },
    /// The record's data was damaged or incomplete.
    Lost,
    /// It failed when it ran last.
    FailedBefore,
    /// The same step was built, but this store has no record of it.
    Gone,
    /// The instruction is new.
    New,
    /// Nobody built it here; and none of these caches had it.
    Never {
        /// Caches that were imported.
        imports: Vec<String>,
    },
    /// Nobody built it here, and these caches have it without its result.
    NoResult {
        /// Caches that were imported.
        imports: Vec<String>,
    },
    /// Nobody built it here, and these caches have the same operation with other inputs.
    OtherInputs {
        /// Caches that were imported.
        imports: Vec<String>,
    },
    /// A step before it ran or differs.
    Step {
        /// Its position in the trace.
        step: usize,
    },
}

impl Cause {
    /// The step that it points to.
    #[must_use]
    pub fn step(&self) -> Option<usize> {
        match self {
            Self::Step { step } => Some(*step),
            _ => None,
        }
    }
}

/// A file that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// Its path from the input's root.
    pub path: String,
    /// How.
    #[serde(flatten)]
    pub kind: FileChangeKind,
}

/// How a file differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "lowercase")]
pub enum FileChangeKind {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// Its content, or what else counts of it.
    Modified,
    /// Its permissions, and nothing else.
    Mode {
        /// Before.
        from: u32,
        /// Now.
        to: u32,
    },
    /// It was a file and is a directory, or the like.
    Kind,
    /// The ignore file hides it now.
    Hidden,
    /// The ignore file hid it.
    Shown,
}
