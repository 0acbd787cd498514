//! A layer directory as a tar with OCI's whiteouts. The same directory gives the same bytes: sorted by name, a
//! directory before its entries, no user names, no access times, the first of several names is the file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;

use rbuild_ports::{ErrorKind, PortError, Result};
use rbuild_tree::{Kind, RelPath, TarWriteError, TarWriter, Time};
use rustix::fs::{self, FileType, Stat};

use crate::meta::{Maker, Meta, failed};
use crate::sys::{self, Place};
use crate::walk::{Step, walk};

/// Bytes given to `out` at once.
const CHUNK: usize = 256 * 1024;

/// Deletions have no time: what the kernel stamped them with says nothing about the layer.
const WHITEOUT_TIME: Time = Time { secs: 0, nanos: 0 };

/// Writes the layer in the open directory `root`; times after `latest` become `latest`.
pub(crate) fn write_tar(
    root: OwnedFd,
    maker: &Maker,
    latest: Option<Time>,
    out: &mut dyn Write,
) -> Result<()> {
    let mut writer = TarWriter::layer(BufWriter::with_capacity(CHUNK, out));
    let mut names: HashMap<u64, RelPath> = HashMap::new();
    walk(root, &mut |step| write_step(&mut writer, &mut names, maker, latest, &step))?;
    let mut out = writer.finish().map_err(write_error)?;
    out.flush().map_err(|e| write_error(TarWriteError::Write(e)))
}

fn write_step<W: Write>(
    writer: &mut TarWriter<W>,
    names: &mut HashMap<u64, RelPath>,
    maker: &Maker,
    latest: Option<Time>,
    step: &Step<'_>,
) -> Result<()> {
    let path = step.path;
    let Some(stat) = sys::stat_at(step.dir, step.name).map_err(|e| failed("read", path, e))? else {
        return Err(PortError::new(
            ErrorKind::Corrupt,
            format!("{path} vanished from a layer while it was read"),
        ));
    };
    if sys::is_whiteout(&stat) {
        return writer.whiteout(path, WHITEOUT_TIME).map_err(write_error);
    }
    if sys::file_type(&stat) == FileType::RegularFile {
        return write_file(writer, names, latest, step, &stat);
    }
    let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
    let kind = match sys::file_type(&stat) {
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink {
            target: sys::read_link(step.dir, step.name).map_err(|e| failed("read", path, e))?,
        },
        FileType::CharacterDevice => Kind::CharDevice { major, minor },
        FileType::BlockDevice => Kind::BlockDevice { major, minor },
        FileType::Fifo => Kind::Fifo,
        // Sockets: no archive can hold them, and they mean nothing without the process that made them.
        _ => return Ok(()),
    };
    let kind = link(names, &stat, path).unwrap_or(kind);
    let place = step.opened.map_or(Place::At(step.dir, step.name), Place::Fd);
    writer.bare(&meta(&stat, place, path, latest)?.into_entry(path.clone(), kind)).map_err(write_error)?;
    if let Some(dir) = step.opened
        && maker.is_opaque(dir).map_err(|e| failed("read", path, e))?
    {
        writer.opaque(path, WHITEOUT_TIME).map_err(write_error)?;
    }
    Ok(())
}

fn write_file<W: Write>(
    writer: &mut TarWriter<W>,
    names: &mut HashMap<u64, RelPath>,
    latest: Option<Time>,
    step: &Step<'_>,
    stat: &Stat,
) -> Result<()> {
    let path = step.path;
    let file = sys::open_at(step.dir, step.name, sys::READ).map_err(|e| failed("open", path, e))?;
    let meta = meta(stat, Place::Fd(std::os::fd::AsFd::as_fd(&file)), path, latest)?;
    match link(names, stat, path) {
        Some(link) => writer.bare(&meta.into_entry(path.clone(), link)).map_err(write_error),
        None => {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let entry = meta.into_entry(path.clone(), Kind::File { size });
            writer.entry(&entry, File::from(file)).map_err(write_error)
        }
    }
}

/// A link to the name under which this file was met first; `None` if this is the first.
fn link(names: &mut HashMap<u64, RelPath>, stat: &Stat, path: &RelPath) -> Option<Kind> {
    if stat.st_nlink < 2 || sys::file_type(stat) == FileType::Directory {
        return None;
    }
    match names.get(&stat.st_ino) {
        Some(first) => Some(Kind::Hardlink { target: first.clone() }),
        None => {
            names.insert(stat.st_ino, path.clone());
            None
        }
    }
}

fn meta(stat: &Stat, place: Place<'_>, path: &RelPath, latest: Option<Time>) -> Result<Meta> {
    let mut meta = Meta::read(stat, place).map_err(|e| failed("read", path, e))?;
    meta.xattrs.retain(|name, _| sys::is_portable(name));
    meta.mtime = latest.map_or(meta.mtime, |latest| meta.mtime.min(latest));
    Ok(meta)
}

fn write_error(error: TarWriteError) -> PortError {
    match error {
        TarWriteError::Write(error) => sink_error(error),
        TarWriteError::Read { path, source } => failed("read", &path, source),
        TarWriteError::Short { .. } | TarWriteError::Long { .. } => {
            PortError::new(ErrorKind::Corrupt, error.to_string())
        }
        TarWriteError::WhiteoutName { .. } => PortError::new(ErrorKind::Invalid, error.to_string()),
        TarWriteError::Unsupported { .. } => PortError::new(ErrorKind::Unsupported, error.to_string()),
    }
}

/// An error of `out`; one that is an error of a port already stays what it is.
fn sink_error(error: io::Error) -> PortError {
    if error.get_ref().is_some_and(|inner| inner.is::<PortError>()) {
        let inner = error.into_inner().and_then(|inner| inner.downcast::<PortError>().ok());
        return inner.map_or_else(|| PortError::new(ErrorKind::Io, "writing a layer failed"), |inner| *inner);
    }
    PortError::io("write", "a layer", error)
}
