//! `type=tar`: the image's files as one tar, with the owners they have in the image and whole seconds.

use std::io::{self, BufWriter, Write};
use std::sync::PoisonError;

use rbuild_ports::{ErrorKind, PortError, Result};
use rbuild_tree::{Entry, Kind, RelPath, TarWriteError, TarWriter, Time};

use crate::atomic::StagedFile;
use crate::walk::{platform_dir, walk};
use crate::{Dest, ExportContext, ExportRequest, OutputReport, TarOutput};

/// Writes the files of all images.
pub(crate) fn export(
    cx: &ExportContext<'_>,
    request: &ExportRequest<'_>,
    output: &TarOutput,
) -> Result<OutputReport> {
    for image in request.images {
        (cx.materialise)(&image.snapshot)?;
    }
    let bytes = to_dest(cx, &output.dest, &mut |out| write(cx, request, output, out))?;
    Ok(OutputReport { kind: "tar", target: output.dest.to_string(), bytes, skipped: 0 })
}

/// Gives `write` something to write to: a file that appears when all went well, or standard output. Returns how much
/// it wrote.
pub(crate) fn to_dest(
    cx: &ExportContext<'_>,
    dest: &Dest,
    write: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
) -> Result<u64> {
    let broken = |error: io::Error| PortError::io("write", dest.to_string(), error);
    match dest {
        Dest::Path(path) => {
            let mut out =
                Counting { out: BufWriter::with_capacity(256 * 1024, StagedFile::create(path)?), count: 0 };
            write(&mut out)?;
            let count = out.count;
            let file = out.out.into_inner().map_err(|error| broken(error.into_error()))?;
            cx.cancel.check()?;
            file.commit()?;
            Ok(count)
        }
        Dest::Stdout => {
            let Some(stdout) = cx.stdout else {
                let message = "an archive is not written to a terminal";
                return Err(
                    PortError::new(ErrorKind::Invalid, message).help("add dest=FILE, or redirect the output")
                );
            };
            let mut stdout = stdout.lock().unwrap_or_else(PoisonError::into_inner);
            let mut out = Counting { out: BufWriter::with_capacity(256 * 1024, &mut *stdout), count: 0 };
            write(&mut out)?;
            out.out.flush().map_err(broken)?;
            Ok(out.count)
        }
    }
}

/// What went wrong while an archive was written, in terms of the ports.
pub(crate) fn archive_error(error: TarWriteError, what: &str) -> PortError {
    let text = error.to_string();
    match error {
        TarWriteError::Write(source) => PortError::io("write", what, source),
        TarWriteError::Read { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
            PortError::new(ErrorKind::Corrupt, source.to_string())
        }
        TarWriteError::Read { .. } => PortError::new(ErrorKind::Io, text),
        TarWriteError::Short { .. } | TarWriteError::Long { .. } => PortError::new(ErrorKind::Corrupt, text),
        TarWriteError::WhiteoutName { .. } | TarWriteError::Unsupported { .. } => {
            PortError::new(ErrorKind::Invalid, text)
        }
    }
}

fn write(
    cx: &ExportContext<'_>,
    request: &ExportRequest<'_>,
    output: &TarOutput,
    out: &mut dyn Write,
) -> Result<()> {
    let failed = |error| archive_error(error, &output.dest.to_string());
    let split = output.platform_split.unwrap_or(request.indexed);
    let epoch = output.source_date_epoch.or(request.source_date_epoch).map(Time::from_secs);
    let mut tar = TarWriter::new(out);
    let mut seen = std::collections::HashSet::new();
    let mut bytes = 0;
    for image in request.images {
        let view = cx.snapshots.view(&image.snapshot)?;
        let prefix = if split { named(&platform_dir(&image.platform))? } else { RelPath::root() };
        if split {
            let mut dir = Entry::new(prefix.clone(), Kind::Dir, 0o755);
            dir.mtime = epoch.unwrap_or_default();
            tar.bare(&dir).map_err(failed)?;
        }
        walk(&*view, cx.cancel, &mut |mut entry, file| {
            entry.path = prefix.join(&entry.path);
            if let Kind::Hardlink { target } = &mut entry.kind {
                *target = prefix.join(target);
            }
            entry.mtime = epoch.unwrap_or(entry.mtime).truncated();
            if !split && request.images.len() > 1 && !seen.insert(entry.path.clone()) {
                if entry.is_dir() {
                    return Ok(());
                }
                let message = format!("cannot overwrite {} by the file of {}", entry.path, image.platform);
                return Err(
                    PortError::new(ErrorKind::Invalid, message).help("leave out platform-split=false")
                );
            }
            bytes += entry.content_size();
            cx.progress.status("sending tarball", bytes, None, false);
            match file {
                Some(file) => tar.entry(&entry, file).map_err(failed),
                None => tar.bare(&entry).map_err(failed),
            }
        })?;
    }
    tar.finish().map_err(failed)?;
    cx.progress.status("sending tarball", bytes, Some(bytes), true);
    Ok(())
}

fn named(name: &str) -> Result<RelPath> {
    RelPath::parse(name).map_err(|error| PortError::new(ErrorKind::Internal, error.to_string()))
}

/// Counts what passes.
struct Counting<W> {
    out: W,
    count: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
