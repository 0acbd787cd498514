//! A strict streaming tar reader. Where common readers disagree on what an archive holds, it refuses the archive;
//! memory is bounded by `Limits`, names cannot leave the tree, and no input makes it panic. It yields entries in
//! the archive's order; duplicates, link order and applying them are the caller's.

use std::io::{self, Read, Write};

use crate::tar_format::{self as format, BLOCK, Block, Dialect, Field};
use crate::tar_item::{Limits, Problem, TarItem, TarReadError, classify};
use crate::tar_pax::{self, Pax};
use crate::tar_sparse::{self, Region, SparseMap};
use crate::{Entry, Kind, RelPath, Time};

/// Reads entries from a tar stream.
pub struct TarReader<R: Read> {
    inner: R,
    limits: Limits,
    offset: u64,
    /// Where the header of the current entry starts.
    start: u64,
    /// Name of the current entry for messages.
    current: Vec<u8>,
    /// Bytes of the current entry's content not read yet.
    pending: u64,
    /// Zero bytes after it.
    padding: usize,
    sparse: Option<SparseMap>,
    global: Pax,
    state: State,
    buffer: Vec<u8>,
    /// `..` in names stops at the root instead of being refused.
    clamp: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    Ended,
    Failed,
}

/// Extended headers that wait for their entry.
#[derive(Default)]
struct Extended {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Extended {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

impl<R: Read> TarReader<R> {
    /// Reads from `inner`, header by header; wrap a file in a `BufReader`.
    pub fn new(inner: R, limits: Limits) -> Self {
        Self {
            inner,
            limits,
            offset: 0,
            start: 0,
            current: Vec::new(),
            pending: 0,
            padding: 0,
            sparse: None,
            global: Pax::default(),
            state: State::Reading,
            buffer: Vec::new(),
            clamp: false,
        }
    }

    /// The same, but `..` in names and in targets of hard links does not lead out of the root and is no error: how archives
    /// are unpacked by tools that have changed their root to the destination.
    #[must_use]
    pub fn clamped(mut self) -> Self {
        self.clamp = true;
        self
    }

    fn path(&self, name: &[u8]) -> Result<RelPath, TarReadError> {
        let path = if self.clamp && !name.is_empty() { RelPath::clean(name) } else { RelPath::parse(name) };
        path.map_err(|error| self.invalid(error.into()))
    }

    /// The next entry as it stands, for archives that are no layers; skips what is left of the current content.
    ///
    /// # Errors
    /// If the archive is cut off, malformed, ambiguous, unsafe or over the limits. Every later call fails too.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarReadError> {
        match self.state {
            State::Ended => return Ok(None),
            State::Failed => return Err(self.invalid(Problem::Other("an earlier entry was refused"))),
            State::Reading => {}
        }
        let result = self.advance();
        match &result {
            Ok(Some(_)) => {}
            Ok(None) => self.state = State::Ended,
            Err(_) => self.state = State::Failed,
        }
        result
    }

    /// The next item of an image layer; skips what is left of the current content.
    ///
    /// # Errors
    /// As `next_entry`, and if a whiteout names nothing, `.`, `..` or a reserved name.
    pub fn next_item(&mut self) -> Result<Option<TarItem>, TarReadError> {
        let Some(entry) = self.next_entry()? else { return Ok(None) };
        match classify(entry) {
            Ok(item) => Ok(Some(item)),
            Err(problem) => {
                self.state = State::Failed;
                Err(self.invalid(Problem::Other(problem)))
            }
        }
    }

    /// The rest of the current entry's content, holes of sparse files as zeros.
    pub fn content(&mut self) -> Content<'_, R> {
        Content { reader: self }
    }

    /// Copies the rest of the current entry's content and gives the number of bytes.
    ///
    /// # Errors
    /// If reading or writing fails, or the archive is cut off.
    pub fn copy_to(&mut self, out: &mut dyn Write) -> io::Result<u64> {
        const BUFFER: usize = 128 * 1024;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(BUFFER, 0);
        let result = self.copy_through(&mut buffer, out);
        self.buffer = buffer;
        result
    }

    fn copy_through(&mut self, buffer: &mut [u8], out: &mut dyn Write) -> io::Result<u64> {
        let mut total = 0;
        loop {
            match self.content().read(buffer)? {
                0 => return Ok(total),
                n => {
                    out.write_all(buffer.get(..n).unwrap_or_default())?;
                    total += n as u64;
                }
            }
        }
    }

    /// Where the current entry's content has data, ascending; `None` for entries that are not sparse. With it and
    /// `data`, holes need not be written.
    pub fn sparse_regions(&self) -> Option<&[Region]> {
        self.sparse.as_ref().map(SparseMap::regions)
    }

    /// The rest of the current entry's stored bytes: the data regions one after the other, without holes.
    pub fn data(&mut self) -> Data<'_, R> {
        Data { reader: self }
    }

    /// How many bytes of the archive were read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads to the end of the stream, beyond the end of the archive, and gives the inner reader back. Needed
    /// where the stream is hashed.
    ///
    /// # Errors
    /// If reading fails.
    pub fn finish(mut self) -> io::Result<R> {
        io::copy(&mut self.inner, &mut io::sink())?;
        Ok(self.inner)
    }

    fn advance(&mut self) -> Result<Option<Entry>, TarReadError> {
        let mut extended = Extended::default();
        self.skip_content()?;
        loop {
            self.current.clear();
            self.start = self.offset;
            let Some(block) = self.header(&extended)? else { return Ok(None) };
            match format::typeflag(&block) {
                b'x' => {
                    if extended.pax.is_some() {
                        return Err(self.extended("two PAX headers for one entry"));
                    }
                    let data = self.special(&block)?;
                    extended.pax = Some(tar_pax::parse(&data).map_err(|e| self.extended(e))?);
                }
                b'g' => {
                    if !extended.is_empty() {
                        return Err(self.extended("a global PAX header between an entry and its headers"));
                    }
                    let data = self.special(&block)?;
                    self.set_global(tar_pax::parse(&data).map_err(|e| self.extended(e))?)?;
                }
                b'L' => {
                    let name = self.long_name(&block, extended.long_name.is_some())?;
                    extended.long_name = Some(name);
                }
                b'K' => {
                    let name = self.long_name(&block, extended.long_link.is_some())?;
                    extended.long_link = Some(name);
                }
                _ => return self.entry(&block, extended).map(Some),
            }
        }
    }

    /// The next header, or `None` at the end of the archive: two zero blocks, or the end of the stream.
    fn header(&mut self, extended: &Extended) -> Result<Option<Block>, TarReadError> {
        let end = match self.block()? {
            None => true,
            Some(block) if block == [0; BLOCK] => match self.block()? {
                None => true,
                Some(second) if second == [0; BLOCK] => true,
                Some(_) => return Err(self.invalid(Problem::Other("a zero block inside the archive"))),
            },
            Some(block) => {
                return if format::checksum_ok(&block) {
                    Ok(Some(block))
                } else {
                    Err(self.invalid(Problem::Checksum))
                };
            }
        };
        if end && !extended.is_empty() {
            return Err(self.extended("an extended header without an entry at the end"));
        }
        Ok(None)
    }

    fn entry(&mut self, block: &Block, extended: Extended) -> Result<Entry, TarReadError> {
        let Extended { pax, long_name, long_link } = extended;
        let pax = pax.unwrap_or_default();
        if (pax.path.is_some() && long_name.is_some()) || (pax.link.is_some() && long_link.is_some()) {
            return Err(self.extended("both a PAX record and a GNU header give the name"));
        }
        let name = pax.sparse.name.clone().or(pax.path).or(long_name).unwrap_or_else(|| format::name(block));
        self.current.extend_from_slice(&name);
        let path = self.path(&name)?;
        let link = pax.link.or(long_link).unwrap_or_else(|| format::link(block).to_vec());
        let size = match pax.size {
            Some(size) => size,
            None => self.unsigned(block, Field::Size)?,
        };
        let mut kind = self.kind(block, &name, link, size)?;
        let mode = self.unsigned(block, Field::Mode)? & 0o7777;
        let uid = self.id(block, Field::Uid, pax.uid.or(self.global.uid))?;
        let gid = self.id(block, Field::Gid, pax.gid.or(self.global.gid))?;
        let mtime = match pax.mtime.or(self.global.mtime) {
            Some(time) => time,
            None => Time::from_secs(self.number(block, Field::Mtime)?),
        };
        self.pending = if let Kind::File { size } = kind { size } else { 0 };
        self.padding = format::padding(self.pending);
        let sparse = format::typeflag(block) == b'S' || pax.sparse.is_used();
        self.sparse =
            if sparse { Some(self.sparse_map(block, &pax.sparse, &kind, pax.size.is_some())?) } else { None };
        if let (Some(map), Kind::File { size }) = (&self.sparse, &mut kind) {
            *size = map.size();
        }
        let mode = u32::try_from(mode).unwrap_or_default();
        Ok(Entry { path, kind, mode, uid, gid, mtime, xattrs: pax.xattrs })
    }

    fn kind(&self, block: &Block, name: &[u8], link: Vec<u8>, size: u64) -> Result<Kind, TarReadError> {
        let other = |problem| Err(self.invalid(Problem::Other(problem)));
        let slash = name.ends_with(b"/");
        let is_root = self.path(name).is_ok_and(|path| path.is_root());
        let kind = match format::typeflag(block) {
            0 if slash => Kind::Dir,
            0 | b'0' | b'7' | b'S' if slash => return other("a regular file's name ends with \"/\""),
            0 | b'0' | b'7' | b'S' => Kind::File { size },
            b'1' => Kind::Hardlink { target: self.path(&link)? },
            b'2' if link.is_empty() || link.contains(&0) => {
                return other("a symbolic link without a valid target");
            }
            b'2' => Kind::Symlink { target: link },
            b'3' => Kind::CharDevice {
                major: self.device(block, Field::DevMajor)?,
                minor: self.device(block, Field::DevMinor)?,
            },
            b'4' => Kind::BlockDevice {
                major: self.device(block, Field::DevMajor)?,
                minor: self.device(block, Field::DevMinor)?,
            },
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => return Err(self.invalid(Problem::Type(char::from(other)))),
        };
        match &kind {
            // Hard links carry the size of their target in some archives; no common reader takes content from it.
            Kind::File { .. } | Kind::Hardlink { .. } => {}
            _ if size > 0 => return other("an entry that is no file has content"),
            _ => {}
        }
        match &kind {
            Kind::Dir => {}
            Kind::Hardlink { target } if target.is_root() => return other("a hard link to the root"),
            _ if is_root => return other("the root is no directory"),
            _ => {}
        }
        Ok(kind)
    }

    fn sparse_map(
        &mut self,
        block: &Block,
        pax: &tar_pax::PaxSparse,
        kind: &Kind,
        pax_size: bool,
    ) -> Result<SparseMap, TarReadError> {
        if !matches!(kind, Kind::File { .. }) {
            return Err(self.invalid(Problem::Sparse("only regular files can be sparse")));
        }
        let old = format::typeflag(block) == b'S';
        if old && (pax.is_used() || pax_size || format::dialect(block) != Dialect::Gnu) {
            return Err(self.invalid(Problem::Sparse("several formats at once")));
        }
        let (regions, size) = if old {
            self.old_sparse(block)?
        } else if let (Some(1), Some(0)) = (pax.major, pax.minor) {
            let size = pax.real_size.ok_or_else(|| self.invalid(Problem::Sparse("no size")))?;
            (self.sparse_head()?, size)
        } else if pax.major.unwrap_or(0) == 0 {
            let size = pax.real_size.ok_or_else(|| self.invalid(Problem::Sparse("no size")))?;
            let regions =
                tar_sparse::pairs(&pax.map, pax.blocks).map_err(|e| self.invalid(Problem::Sparse(e)))?;
            (regions, size)
        } else {
            return Err(self.invalid(Problem::Sparse("unknown version")));
        };
        if size > self.limits.sparse_size {
            return Err(
                self.invalid(Problem::Limit { what: "the sparse file", limit: self.limits.sparse_size })
            );
        }
        self.check_regions(regions.len())?;
        SparseMap::new(regions, size, self.pending).map_err(|e| self.invalid(Problem::Sparse(e)))
    }

    fn check_regions(&self, count: usize) -> Result<(), TarReadError> {
        if count > self.limits.sparse_regions {
            let limit = self.limits.sparse_regions as u64;
            return Err(self.invalid(Problem::Limit { what: "the sparse map", limit }));
        }
        Ok(())
    }

    /// Old GNU: the map is in the header and in blocks after it that no size counts.
    fn old_sparse(&mut self, block: &Block) -> Result<(Vec<Region>, u64), TarReadError> {
        let bad = Problem::Sparse("not numbers");
        let (mut map, size, mut more) =
            format::sparse::of_header(block).ok_or_else(|| self.invalid(bad.clone()))?;
        while more {
            let block = self.block()?.ok_or_else(|| self.truncated())?;
            let (part, another) =
                format::sparse::of_extension(&block).ok_or_else(|| self.invalid(bad.clone()))?;
            map.extend(part);
            self.check_regions(map.len())?;
            more = another;
        }
        Ok((map.into_iter().map(|(offset, length)| Region { offset, length }).collect(), size))
    }

    /// GNU 1.0: the map is text at the start of the content, padded to whole blocks.
    fn sparse_head(&mut self) -> Result<Vec<Region>, TarReadError> {
        let mut parser = tar_sparse::Head::default();
        loop {
            if self.pending < BLOCK as u64 {
                return Err(self.invalid(Problem::Sparse("it is longer than the content")));
            }
            let block = self.block()?.ok_or_else(|| self.truncated())?;
            self.pending -= BLOCK as u64;
            let done = parser.feed(&block).map_err(|e| self.invalid(Problem::Sparse(e)))?;
            self.check_regions(parser.len())?;
            if done {
                return parser.regions().map_err(|e| self.invalid(Problem::Sparse(e)));
            }
        }
    }

    fn set_global(&mut self, pax: Pax) -> Result<(), TarReadError> {
        let Pax { path, link, size, uid, gid, mtime, xattrs, sparse } = pax;
        if path.is_some() || link.is_some() || size.is_some() || !xattrs.is_empty() || sparse.is_used() {
            return Err(
                self.extended("a global PAX header gives a name, size or attribute of single entries")
            );
        }
        self.global.uid = uid.or(self.global.uid);
        self.global.gid = gid.or(self.global.gid);
        self.global.mtime = mtime.or(self.global.mtime);
        Ok(())
    }

    fn long_name(&mut self, block: &Block, again: bool) -> Result<Vec<u8>, TarReadError> {
        if again {
            return Err(self.extended("two GNU long names for one entry"));
        }
        let mut data = self.special(block)?;
        let end = data.iter().position(|c| *c == 0).unwrap_or(data.len());
        if data.iter().skip(end).any(|c| *c != 0) {
            return Err(self.extended("a GNU long name has a NUL byte inside"));
        }
        data.truncate(end);
        if data.is_empty() {
            return Err(self.extended("an empty GNU long name"));
        }
        Ok(data)
    }

    /// The body of an extended header. Its size is the header's own: no PAX record applies to it.
    fn special(&mut self, block: &Block) -> Result<Vec<u8>, TarReadError> {
        let size = self.unsigned(block, Field::Size)?;
        if size > self.limits.header_bytes {
            return Err(
                self.invalid(Problem::Limit { what: "an extended header", limit: self.limits.header_bytes })
            );
        }
        let padded = usize::try_from(size).unwrap_or(usize::MAX).saturating_add(format::padding(size));
        let mut data = vec![0; padded];
        let got = self.fill(&mut data)?;
        if got < padded {
            return Err(self.truncated());
        }
        data.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        Ok(data)
    }

    fn skip_content(&mut self) -> Result<(), TarReadError> {
        self.sparse = None;
        let mut left = self.pending.saturating_add(self.padding as u64);
        if left == 0 {
            return Ok(());
        }
        (self.pending, self.padding) = (0, 0);
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(buffer.len().max(32 * 1024), 0);
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = self.fill(buffer.get_mut(..most).unwrap_or_default())?;
            left -= got as u64;
            if got < most {
                return Err(self.truncated());
            }
        }
        self.buffer = buffer;
        Ok(())
    }

    /// One block; `None` if the stream ends just before it.
    fn block(&mut self) -> Result<Option<Block>, TarReadError> {
        let mut block = [0; BLOCK];
        match self.fill(&mut block)? {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            _ => Err(self.truncated()),
        }
    }

    /// Fills `buffer` as far as the stream goes.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, TarReadError> {
        let mut got = 0;
        while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match self.inner.read(rest) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarReadError::Io { offset: self.offset + got as u64, source }),
            }
        }
        self.offset += got as u64;
        Ok(got)
    }

    fn number(&self, block: &Block, field: Field) -> Result<i64, TarReadError> {
        format::number(block, field).ok_or_else(|| self.invalid(Problem::Number(field.name())))
    }

    fn unsigned(&self, block: &Block, field: Field) -> Result<u64, TarReadError> {
        u64::try_from(self.number(block, field)?).map_err(|_| self.invalid(Problem::Number(field.name())))
    }

    fn device(&self, block: &Block, field: Field) -> Result<u32, TarReadError> {
        u32::try_from(self.number(block, field)?).map_err(|_| self.invalid(Problem::Number(field.name())))
    }

    fn id(&self, block: &Block, field: Field, pax: Option<u32>) -> Result<u32, TarReadError> {
        match pax {
            Some(id) => Ok(id),
            None => self.device(block, field),
        }
    }

    fn extended(&self, problem: impl Into<String>) -> TarReadError {
        self.invalid(Problem::Extended(problem.into()))
    }

    fn invalid(&self, problem: Problem) -> TarReadError {
        TarReadError::Invalid { offset: self.start, entry: self.name(), problem }
    }

    fn name(&self) -> String {
        self.current.escape_ascii().to_string()
    }

    fn truncated(&self) -> TarReadError {
        TarReadError::Truncated { offset: self.offset, entry: self.name() }
    }

    /// Reads stored content bytes.
    fn read_stored(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.pending).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let got = self.inner.read(buffer.get_mut(..most).unwrap_or_default())?;
        if got == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, self.truncated()));
        }
        self.offset += got as u64;
        self.pending = self.pending.saturating_sub(got as u64);
        Ok(got)
    }

    fn read_content(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(map) = &mut self.sparse else { return self.read_stored(buffer) };
        match map.next_run(buffer.len()) {
            tar_sparse::Run::End => Ok(0),
            tar_sparse::Run::Hole(length) => {
                buffer.get_mut(..length).unwrap_or_default().fill(0);
                map.advance(length);
                Ok(length)
            }
            tar_sparse::Run::Data(length) => {
                let got = self.read_stored(buffer.get_mut(..length).unwrap_or_default())?;
                if let Some(map) = &mut self.sparse {
                    map.advance(got);
                }
                Ok(got)
            }
        }
    }
}

/// The content of the current entry.
pub struct Content<'a, R: Read> {
    reader: &'a mut TarReader<R>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read_content(buffer)
    }
}

/// The stored bytes of the current entry.
pub struct Data<'a, R: Read> {
    reader: &'a mut TarReader<R>,
}

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read_stored(buffer)
    }
}
