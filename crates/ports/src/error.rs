//! One error for all ports: what kind it is decides what the engine does; the text is for people.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

/// Result of a port call.
pub type Result<T> = std::result::Result<T, PortError>;

/// What an error means for the build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// It is not there. For an object of the store this is a miss.
    NotFound,
    /// It is there and wrong: digest, size or format. For an object of the store this is a miss.
    Corrupt,
    /// The system refused.
    Io,
    /// The disk, quota or inode table is full.
    NoSpace,
    /// A host was not reached, or hung up, after all retries.
    Network,
    /// A host wants other credentials.
    Auth,
    /// The user may not do this, or did not allow it.
    Denied,
    /// The user's input makes no sense.
    Invalid,
    /// This machine or this version cannot do it.
    Unsupported,
    /// Somebody cancelled.
    Cancelled,
    /// A bug in rbuild.
    Internal,
}

/// What happened, and what to do about it.
#[derive(Debug)]
pub struct PortError {
    /// For the engine.
    pub kind: ErrorKind,
    /// What happened: lower case, no final full stop, names the path, host or object.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl PortError {
    /// An error without cause and advice.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), help: None, source: None }
    }

    /// An error of the system while doing `what` (`"open"`, `"write"`, …) to `path`.
    pub fn io(what: &str, path: impl AsRef<Path>, error: impl Into<io::Error>) -> Self {
        let error: io::Error = error.into();
        let kind = kind_of(&error);
        let mut out =
            Self::new(kind, format!("cannot {what} {}: {}", path.as_ref().display(), plain(&error)));
        let help = match (kind, error.kind()) {
            (ErrorKind::NoSpace, _) => {
                "free some space, or run `rbuild prune` to drop unused cache, then build again"
            }
            (ErrorKind::Denied, _) => {
                "let the user who runs rbuild have access to it; what belongs to the build context and is not needed can \
                 be left out by .dockerignore"
            }
            (_, io::ErrorKind::ReadOnlyFilesystem) => "make it writable, or choose a directory that is",
            _ => "",
        };
        out.help = Some(help.to_owned()).filter(|help| !help.is_empty());
        out.source = Some(Box::new(error));
        out
    }

    /// The same with advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same with a cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same, its message behind `context: `.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// Cancelled.
    #[must_use]
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "cancelled")
    }
}

fn kind_of(error: &io::Error) -> ErrorKind {
    // Readers and writers of the ports carry their own error inside the system's.
    if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<PortError>()) {
        return inner.kind;
    }
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ErrorKind::NoSpace
        }
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::Io,
    }
}

/// The system's words without `(os error N)`.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for PortError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|e| e.as_ref() as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_name_path_and_cause() {
        let error = PortError::io("write", "/store/x", io::Error::from_raw_os_error(28));
        assert_eq!(error.kind, ErrorKind::NoSpace);
        assert_eq!(error.to_string(), "cannot write /store/x: no space left on device");
        assert!(error.help.as_deref().unwrap_or_default().contains("rbuild prune"));
    }
}
