//! What can go wrong with the database, before it is decided whether that is healed or reported.

use std::path::Path;

use rbuild_ports::{ErrorKind, PortError};
use rusqlite::ErrorCode;

/// Inside this crate.
pub(crate) type Outcome<T> = std::result::Result<T, Fault>;

/// An error, or a database that is not to be trusted any more.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The database, or a row of it, is not what was written.
    Damaged(String),
    /// There is no database file.
    Missing,
    /// SQLite says no.
    Sql(rusqlite::Error),
    /// All else.
    Port(PortError),
}

impl Fault {
    /// As an error about the database at `path`.
    pub(crate) fn into_port(self, path: &Path) -> PortError {
        match self {
            Self::Port(error) => error,
            Self::Damaged(why) => PortError::new(
                ErrorKind::Corrupt,
                format!("the cache index {} is damaged: {why}", path.display()),
            ),
            Self::Missing => {
                PortError::new(ErrorKind::NotFound, format!("the cache index {} is gone", path.display()))
            }
            Self::Sql(error) => sql(error, path),
        }
    }
}

fn sql(error: rusqlite::Error, path: &Path) -> PortError {
    /// A shared-memory file that cannot grow.
    const SHM_SIZE: i32 = 4874;
    let at = path.display();
    let (code, extended) = match &error {
        rusqlite::Error::SqliteFailure(inner, _) => (inner.code, inner.extended_code),
        _ => (ErrorCode::Unknown, 0),
    };
    let out = match code {
        ErrorCode::DiskFull => no_space(path),
        ErrorCode::SystemIoFailure if extended == SHM_SIZE => no_space(path),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => PortError::new(
            ErrorKind::Io,
            format!("the cache index {at} is busy: another process has been writing to it for too long"),
        )
        .help("see which other builds use this store, and try again"),
        ErrorCode::PermissionDenied | ErrorCode::ReadOnly => {
            PortError::new(ErrorKind::Denied, format!("cannot write the cache index {at}: {error}"))
        }
        _ => PortError::new(ErrorKind::Io, format!("cannot use the cache index {at}: {error}")),
    };
    out.because(error)
}

fn no_space(path: &Path) -> PortError {
    PortError::io("write", path, std::io::Error::from(std::io::ErrorKind::StorageFull))
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        /// The file was renamed under the connection; a read came up short; the file system is corrupt.
        const MOVED_SHORT_CORRUPT: [i32; 3] = [1032, 522, 8458];
        match &error {
            rusqlite::Error::SqliteFailure(inner, text) => {
                let damaged = matches!(inner.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
                    || MOVED_SHORT_CORRUPT.contains(&inner.extended_code)
                    // A table or column is missing: somebody changed the schema.
                    || inner.extended_code == 1;
                if damaged {
                    return Self::Damaged(text.clone().unwrap_or_else(|| error.to_string()));
                }
                Self::Sql(error)
            }
            // Said when a statement is prepared: the schema's text is not what was written.
            rusqlite::Error::SqlInputError { .. }
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..) => Self::Damaged(error.to_string()),
            _ => Self::Sql(error),
        }
    }
}

impl From<PortError> for Fault {
    fn from(error: PortError) -> Self {
        Self::Port(error)
    }
}
