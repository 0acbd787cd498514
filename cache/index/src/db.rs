//! The database file: opened, made, or moved aside when it is damaged. One connection for reading and one for writing,
//! each opened when first wanted. Nothing here knows what the tables mean.

use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rbuild_ports::{ErrorKind, PortError, Result};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use rustix::fs::{FlockOperation, flock};

use crate::fault::{Fault, Outcome};
use crate::format::{APPLICATION, FROM_1, SCHEMA, VERSION};

/// How long a writer waits for another one.
const BUSY: Duration = Duration::from_secs(30);

/// Damaged databases that are kept.
const KEPT: u32 = 9;

/// The database of one process.
pub(crate) struct Db {
    path: PathBuf,
    reader: Mutex<Option<Handle>>,
    writer: Mutex<Option<Handle>>,
    /// Counts how often the file was replaced under this process.
    generation: AtomicU64,
    moved: Mutex<Vec<PathBuf>>,
}

struct Handle {
    connection: Connection,
    /// Device and inode, to know whether another process replaced the file.
    file: Option<(u64, u64)>,
}

impl Db {
    /// Opens the database; makes it when there is none, and in the place of a damaged one.
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        let db = Self {
            path,
            reader: Mutex::default(),
            writer: Mutex::default(),
            generation: AtomicU64::new(0),
            moved: Mutex::default(),
        };
        match connect(&db.path) {
            Ok(handle) => *lock(&db.reader) = Some(handle),
            Err(Fault::Damaged(_) | Fault::Missing) => db.replace(0)?,
            Err(other) => return Err(other.into_port(&db.path)),
        }
        Ok(db)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Where damaged databases went while this process had it open.
    pub(crate) fn moved(&self) -> Vec<PathBuf> {
        lock(&self.moved).clone()
    }

    /// Runs queries.
    pub(crate) fn read<T>(&self, run: impl FnOnce(&Connection) -> Outcome<T>) -> Outcome<T> {
        let mut slot = lock(&self.reader);
        run(&open_slot(&mut slot, &self.path)?.connection)
    }

    /// Runs one transaction, which has the write lock from its beginning; an error undoes it.
    pub(crate) fn write<T>(&self, run: impl FnOnce(&Transaction<'_>) -> Outcome<T>) -> Outcome<T> {
        let mut slot = lock(&self.writer);
        let handle = open_slot(&mut slot, &self.path)?;
        let transaction = handle.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let out = run(&transaction)?;
        transaction.commit()?;
        Ok(out)
    }

    /// Runs statements that may not be in a transaction.
    pub(crate) fn maintain(&self, statements: &str) -> Outcome<()> {
        let mut slot = lock(&self.writer);
        Ok(open_slot(&mut slot, &self.path)?.connection.execute_batch(statements)?)
    }

    /// Moves the damaged file aside and makes a new one, unless that has been done since `generation` was read, by
    /// another thread or by another process.
    pub(crate) fn replace(&self, generation: u64) -> Result<()> {
        let _alone = self.lock_file()?;
        let (mut reader, mut writer) = (lock(&self.reader), lock(&self.writer));
        if self.generation() != generation {
            return Ok(());
        }
        let ours = reader.as_ref().or(writer.as_ref()).and_then(|handle| handle.file);
        (*reader, *writer) = (None, None);
        let there = inode(&self.path);
        if there.is_some() && (ours.is_none() || ours != there) {
            // Not the file that was found damaged, or nothing is known of it yet: see whether it is fine.
            match connect(&self.path) {
                Ok(handle) => {
                    *reader = Some(handle);
                    self.generation.fetch_add(1, Ordering::SeqCst);
                    return Ok(());
                }
                Err(Fault::Damaged(_) | Fault::Missing) => {}
                Err(other) => return Err(other.into_port(&self.path)),
            }
        }
        if inode(&self.path).is_some() {
            let to = self.move_aside()?;
            lock(&self.moved).push(to);
        }
        *reader = Some(create(&self.path).map_err(|fault| fault.into_port(&self.path))?);
        self.generation.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Only one process at a time makes or replaces the file.
    fn lock_file(&self) -> Result<std::fs::File> {
        let path = self.path.with_extension("lock");
        let fail = |error: std::io::Error| PortError::io("lock", &path, error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fail)?;
        while let Err(error) = flock(&file, FlockOperation::LockExclusive) {
            if error != rustix::io::Errno::INTR {
                return Err(fail(error.into()));
            }
        }
        Ok(file)
    }

    fn move_aside(&self) -> Result<PathBuf> {
        let name =
            |number: u32, suffix: &str| self.path.with_extension(format!("db.damaged-{number}{suffix}"));
        let number = (1..KEPT).find(|number| !name(*number, "").exists()).unwrap_or(KEPT);
        // The log goes first: left behind, it would be replayed into the new file.
        for suffix in ["-wal", "-shm", ""] {
            let mut from = self.path.clone().into_os_string();
            from.push(suffix);
            let to = name(number, suffix);
            match std::fs::rename(&from, &to) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(PortError::io("rename", PathBuf::from(from), error));
                }
                _ => {}
            }
        }
        Ok(name(number, ""))
    }
}

fn open_slot<'a>(slot: &'a mut Option<Handle>, path: &Path) -> Outcome<&'a mut Handle> {
    if slot.is_none() {
        *slot = Some(connect(path)?);
    }
    slot.as_mut().ok_or(Fault::Missing)
}

/// Opens a database that is there, and only looks at its number.
fn connect(path: &Path) -> Outcome<Handle> {
    if inode(path).is_none() {
        return Err(Fault::Missing);
    }
    let connection = configure(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i32>(0));
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    match (application, version) {
        (APPLICATION, VERSION) => Ok(Handle { connection, file: inode(path) }),
        (APPLICATION, 1) => {
            migrate(&connection)?;
            Ok(Handle { connection, file: inode(path) })
        }
        (APPLICATION, newer) if newer > VERSION => Err(Fault::Port(
            PortError::new(
                ErrorKind::Unsupported,
                format!(
                    "the cache index {} has format {newer}; this rbuild knows format {VERSION}",
                    path.display()
                ),
            )
            .help("use the rbuild that made it, or another directory"),
        )),
        _ => Err(Fault::Damaged(format!("its head says {application:#x} {version}"))),
    }
}

/// Brings format 1 up to date, unless another process has just done so.
fn migrate(connection: &Connection) -> Outcome<()> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    if transaction.query_row("PRAGMA user_version", [], |row| row.get::<_, i32>(0))? == 1 {
        transaction.execute_batch(FROM_1)?;
    }
    Ok(transaction.commit()?)
}

fn configure(path: &Path, flags: OpenFlags) -> Outcome<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection
        .execute_batch("PRAGMA synchronous=NORMAL; PRAGMA temp_store=MEMORY; PRAGMA cell_size_check=ON")?;
    Ok(connection)
}

/// Makes the database under another name and renames it, so that a half-made one is never seen.
fn create(path: &Path) -> Outcome<Handle> {
    let new = path.with_extension("db.new");
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = new.clone().into_os_string();
        name.push(suffix);
        match std::fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(PortError::io("remove", PathBuf::from(name), error).into());
            }
            _ => {}
        }
    }
    let connection = configure(&new, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    connection.execute_batch(&format!(
        "PRAGMA auto_vacuum=INCREMENTAL; PRAGMA application_id={APPLICATION}; BEGIN IMMEDIATE; {SCHEMA}
         PRAGMA user_version={VERSION}; COMMIT; PRAGMA journal_mode=WAL; PRAGMA wal_checkpoint(TRUNCATE);"
    ))?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    connection.close().map_err(|(_, error)| error)?;
    std::fs::rename(&new, path).map_err(|error| PortError::io("create", path, error))?;
    connect(path)
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
