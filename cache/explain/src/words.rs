//! Causes in plain words.

use std::collections::BTreeSet;
use std::fmt;

use rbuild_oci::calendar;

use crate::{Cause, FileChange, FileChangeKind};

/// Files that a sentence names.
const NAMED: usize = 5;

/// Characters of a value that a sentence quotes.
const QUOTED: usize = 120;

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCache { stage: None } => f.write_str("--no-cache"),
            Self::NoCache { stage: Some(stage) } => write!(f, "--no-cache-filter={stage}"),
            Self::Argument { name, from, to, place } => {
                write!(f, "build argument {name} {}", change(from.as_deref(), to.as_deref()))?;
                place.as_ref().map_or(Ok(()), |place| write!(f, " ({}:{})", place.file, place.line))
            }
            Self::Environment { name, from, to, place } => {
                write!(f, "environment variable {name} {}", change(from.as_deref(), to.as_deref()))?;
                place.as_ref().map_or(Ok(()), |place| write!(f, " ({}:{})", place.file, place.line))
            }
            Self::Instruction { from, to } => {
                write!(f, "the instruction changed: was {}, is {}", quote(from), quote(to))
            }
            Self::Setting { what, from, to } => {
                write!(f, "{what} {}", change(from.as_deref(), to.as_deref()))
            }
            Self::Files { of, changes, total } => {
                if let ([FileChange { path, kind: FileChangeKind::Mode { from, to } }], 1) =
                    (changes.as_slice(), *total)
                {
                    return write!(f, "mode of {path} changed {from:03o}\u{2192}{to:03o} in {of}");
                }
                let word = if *total == 1 { "a file" } else { "files" };
                write!(f, "{word} changed in {of}: {}", list(changes, *total))
            }
            Self::Content { of } => {
                write!(f, "what it reads of {of} changed (its files of then are not known here)")
            }
            Self::Ignore { file, changes, total } => {
                write!(f, "{file} changed what the build context shows: {}", list(changes, *total))
            }
            Self::Moved { reference, from, to } => {
                write!(f, "{reference} moved from {} to {}", short(from), short(to))
            }
            Self::Base { from, to } => write!(f, "the base changed from {from} to {to}"),
            Self::Platform { built, wanted } => {
                write!(f, "never built for {wanted}; it was built for {built}")
            }
            Self::Inputs => f.write_str("it reads other stages than before"),
            Self::Pruned { at, reason } => {
                write!(f, "its record was pruned on {} ({reason})", when(*at))
            }
            Self::Lost => f.write_str("the data of its record was lost or damaged"),
            Self::FailedBefore => f.write_str("it failed when it ran last"),
            Self::Gone => f.write_str("nothing changed, but this store has no record of it any more"),
            Self::New => f.write_str("a new instruction: never built before"),
            Self::Never { imports } if imports.is_empty() => f.write_str("never built before"),
            Self::Never { imports } => {
                write!(f, "never built here, and {} did not offer it", imports.join(", "))
            }
            Self::NoResult { imports } => {
                write!(
                    f,
                    "never built here, and {} has it without its result (mode=min leaves out build stages)",
                    imports.join(", ")
                )
            }
            Self::OtherInputs { imports } => {
                write!(
                    f,
                    "never built here, and {} offered it for other files or after other steps only",
                    imports.join(", ")
                )
            }
            Self::Step { .. } => f.write_str("a step before it ran"),
        }
    }
}

fn change(from: Option<&str>, to: Option<&str>) -> String {
    match (from, to) {
        (Some(from), Some(to)) => format!("changed from {} to {}", quote(from), quote(to)),
        (None, Some(to)) => format!("is now {}, had no value before", quote(to)),
        (Some(from), None) => format!("was {}, has no value now", quote(from)),
        (None, None) => "changed".to_owned(),
    }
}

fn quote(text: &str) -> String {
    let text = text.trim_end();
    let mut out: String = text.chars().take(QUOTED).collect();
    if out.len() < text.len() {
        out.push('\u{2026}');
    }
    format!("{out:?}")
}

fn short(digest: &str) -> String {
    digest.chars().take(19).collect()
}

/// `2026-11-24 00:40`.
fn when(nanos: i64) -> String {
    let text = calendar::date_time(nanos.div_euclid(1_000_000_000)).replace('T', " ");
    format!("{} UTC", text.get(..16).unwrap_or(&text))
}

fn list(changes: &[FileChange], total: usize) -> String {
    let mut out: Vec<String> = changes.iter().take(NAMED).map(ToString::to_string).collect();
    if total > out.len() {
        out.push(format!("and {} more", total - out.len()));
    }
    out.join(", ")
}

impl fmt::Display for FileChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "/" } else { &self.path };
        match &self.kind {
            FileChangeKind::Added => write!(f, "{path} added"),
            FileChangeKind::Removed => write!(f, "{path} removed"),
            FileChangeKind::Modified => write!(f, "{path} modified"),
            FileChangeKind::Mode { from, to } => write!(f, "mode of {path} {from:03o}\u{2192}{to:03o}"),
            FileChangeKind::Kind => write!(f, "{path} is of another kind"),
            FileChangeKind::Hidden => write!(f, "{path} is ignored now"),
            FileChangeKind::Shown => write!(f, "{path} is no longer ignored"),
        }
    }
}

/// A field of a preimage in plain words.
pub(crate) fn field(path: &str) -> String {
    let word = match path {
        "cwd" => "the working directory",
        "user" => "the user",
        "network" => "the network mode",
        "security" => "the security mode",
        "hostname" => "the host name",
        "dest" => "the destination",
        "src" => "the source path",
        "cgroupParent" => "the parent control group",
        "Os" | "Platform.OS" => "the operating system",
        "Architecture" | "Platform.Architecture" => "the architecture",
        _ if path.starts_with("args[") => "the command",
        _ if path.starts_with("owner.") => "the owner",
        _ if path.starts_with("include_patterns") => "the included patterns",
        _ if path.starts_with("exclude_patterns") => "the excluded patterns",
        _ if path.starts_with("extraHosts") => "the extra hosts",
        _ if path.starts_with("ulimit") => "the resource limits",
        _ => return format!("its {path}"),
    };
    word.to_owned()
}

/// Whether a field is set by other instructions or the command line, not by the instruction itself.
pub(crate) fn set_elsewhere(path: &str) -> bool {
    let names = ["cwd", "user", "network", "security", "hostname", "cgroupParent"];
    names.contains(&path) || ["extraHosts", "ulimit"].iter().any(|prefix| path.starts_with(prefix))
}

/// Names of the variables in an instruction's text, each once.
pub(crate) fn variables(text: &str) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for part in text.split('$').skip(1) {
        let part = part.strip_prefix('{').unwrap_or(part);
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
        let name = part.get(..end).unwrap_or_default();
        if !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) {
            out.insert(name.to_owned());
        }
    }
    out
}
