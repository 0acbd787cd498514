//! Copying the content of one file to another: inside the kernel where it is large, through a buffer where it is
//! small, and without writing holes.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;

use rustix::fs::{self, SeekFrom};
use rustix::io::Errno;

/// From this size on the kernel copies (and may share blocks).
const LARGE: u64 = 256 * 1024;
const BUFFER: usize = 128 * 1024;

thread_local! {
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What was copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Copied {
    /// Size of the source as far as it was read, holes included.
    pub(crate) size: u64,
}

/// Copies all of `from` to the empty file `to`.
pub(crate) fn copy_content(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Copied, Errno> {
    let stat = fs::fstat(from)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size < LARGE {
        return through_buffer(from, to, u64::MAX);
    }
    if u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < size {
        return sparse(from, to);
    }
    let copied = in_kernel(from, to, u64::MAX)?;
    Ok(Copied { size: copied })
}

/// Copies up to `most` bytes from the current positions; stops at the end of the file.
fn in_kernel(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: u64) -> Result<u64, Errno> {
    let mut done = 0;
    while done < most {
        let ask = usize::try_from((most - done).min(1 << 30)).unwrap_or(1 << 30);
        match fs::copy_file_range(from, None, to, None, ask) {
            Ok(0) => break,
            Ok(n) => done += n as u64,
            Err(Errno::INTR) => {}
            // Not between these file systems, or not for this kind of file.
            Err(
                Errno::XDEV
                | Errno::INVAL
                | Errno::NOSYS
                | Errno::NOTSUP
                | Errno::PERM
                | Errno::BADF
                | Errno::IO,
            ) if done == 0 => {
                return through_buffer(from, to, most).map(|copied| copied.size);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn through_buffer(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: u64) -> Result<Copied, Errno> {
    SPARE.with_borrow_mut(|buffer| {
        buffer.resize(BUFFER, 0);
        let mut size = 0;
        while size < most {
            let ask = buffer.len().min(usize::try_from(most - size).unwrap_or(usize::MAX));
            match rustix::io::read(from, buffer.get_mut(..ask).unwrap_or_default()) {
                Ok(0) => break,
                Ok(n) => {
                    write(to, buffer.get(..n).unwrap_or_default())?;
                    size += n as u64;
                    // Regular files give less than was asked for only at their end.
                    if n < ask {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Copied { size })
    })
}

fn write(to: BorrowedFd<'_>, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::write(to, data) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => data = data.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Only the parts that hold data. What is appended meanwhile is copied too.
fn sparse(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Copied, Errno> {
    let mut at = 0;
    loop {
        let data = match fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) if at == 0 => {
                fs::seek(from, SeekFrom::Start(0))?;
                return through_buffer(from, to, u64::MAX);
            }
            Err(error) => return Err(error),
        };
        let hole = fs::seek(from, SeekFrom::Hole(data))?;
        fs::seek(from, SeekFrom::Start(data))?;
        fs::seek(to, SeekFrom::Start(data))?;
        let copied = in_kernel(from, to, hole - data)?;
        at = data + copied;
        if copied == 0 {
            break;
        }
    }
    // The end may be a hole; a file that shrank meanwhile is as long as it is now.
    let end = fs::seek(from, SeekFrom::End(0))?.max(at);
    fs::ftruncate(to, end)?;
    Ok(Copied { size: end })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn small_large_and_sparse() {
        let holes: &[(u64, usize)] = &[(0, 10), (1 << 20, 5000), (3 << 20, 1)];
        for pieces in [&[][..], &[(0, 100)], &[(0, 2 << 20)], holes, &[(5 << 20, 1)]] {
            let mut from = tempfile::tempfile().unwrap();
            for (at, length) in pieces {
                from.seek(std::io::SeekFrom::Start(*at)).unwrap();
                from.write_all(&vec![b'x'; *length]).unwrap();
            }
            let size = pieces.last().map_or(1 << 19, |(at, length)| at + *length as u64 + 4096);
            from.set_len(size).unwrap();
            from.rewind().unwrap();
            let mut to = tempfile::tempfile().unwrap();
            let copied = copy_content(from.as_fd(), to.as_fd()).unwrap();
            assert_eq!((copied.size, to.metadata().unwrap().size()), (size, size));
            let (mut a, mut b) = (Vec::new(), Vec::new());
            from.rewind().unwrap();
            to.rewind().unwrap();
            from.read_to_end(&mut a).unwrap();
            to.read_to_end(&mut b).unwrap();
            assert!(a == b, "{pieces:?}");
            assert!(to.metadata().unwrap().blocks() <= from.metadata().unwrap().blocks() + 16);
        }
    }
}
