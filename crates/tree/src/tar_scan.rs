//! Finds the contents of large files in a tar stream that passes by in pieces of any size, so that who cuts the stream can
//! cut where files begin and end. A hint, never a judgement: a stream that is no plain tar just has no large files from
//! there on. `TarReader` is what reads archives.

use crate::tar_format::{self as format, BLOCK, Block, Field};

/// A scan over one stream.
#[derive(Debug)]
pub struct TarScan {
    /// Contents from this many bytes on are large.
    large: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Within a header, of which so many bytes were seen.
    Header(Box<Block>, usize),
    /// Within a content and its padding, of which so many bytes are to come.
    Content { left: u64, large: bool },
    /// The rest is not understood, or the archive is over.
    Rest,
}

impl TarScan {
    /// A scan for contents of at least `large` bytes.
    #[must_use]
    pub fn new(large: u64) -> Self {
        Self { large, state: header() }
    }

    /// How many of the next `bytes` of the stream belong together, at least one unless there are none, and whether they
    /// are content (with its padding) of a large file. Between two large files there always is a header.
    pub fn next(&mut self, bytes: &[u8]) -> (usize, bool) {
        match &mut self.state {
            State::Rest => (bytes.len(), false),
            State::Content { left, large } => {
                let (n, large) = (usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len()), *large);
                *left -= n as u64;
                if *left == 0 {
                    self.state = header();
                }
                (n, large)
            }
            State::Header(block, seen) => {
                let n = bytes.len().min(BLOCK - *seen);
                if let (Some(to), Some(from)) = (block.get_mut(*seen..*seen + n), bytes.get(..n)) {
                    to.copy_from_slice(from);
                }
                *seen += n;
                if *seen == BLOCK {
                    let next = after(block, self.large);
                    self.state = next;
                }
                (n, false)
            }
        }
    }
}

fn header() -> State {
    State::Header(Box::new([0; BLOCK]), 0)
}

/// What follows a header.
fn after(block: &Block, large: u64) -> State {
    if !format::checksum_ok(block) {
        return State::Rest;
    }
    let typeflag = format::typeflag(block);
    let size = match typeflag {
        // Links, devices, directories and pipes have no content, whatever stands there.
        b'1'..=b'6' => 0,
        // A sparse file may have more headers.
        b'S' => return State::Rest,
        _ => match format::number(block, Field::Size).map(u64::try_from) {
            Some(Ok(size)) => size,
            _ => return State::Rest,
        },
    };
    match size.checked_add(format::padding(size) as u64) {
        Some(0) => header(),
        Some(left) => State::Content { left, large: matches!(typeflag, b'0' | 0 | b'7') && size >= large },
        None => State::Rest,
    }
}
