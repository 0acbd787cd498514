//! Cuts a stream where its content says so: a change moves the cuts around it and no others, so that most pieces of a stream
//! that changed a little are the ones that were there before.

use std::sync::OnceLock;

use rbuild_digest::Digest;

/// No piece but the last is smaller.
const MIN: usize = 256 << 10;
/// No piece is larger.
pub(crate) const MAX_CHUNK: usize = 4 << 20;
/// Bits of the rolling hash that are zero at a cut: pieces have about 1 MiB beyond the smallest.
const MASK: u64 = ((1 << 20) - 1) << 40;

/// Takes a stream and gives its pieces.
#[derive(Debug, Default)]
pub struct Chunker {
    piece: Vec<u8>,
    hash: u64,
}

impl Chunker {
    /// Takes more of the stream; gives the pieces that are complete.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let gear = gear();
        let mut out = vec![];
        while !bytes.is_empty() {
            let cut = self.scan(bytes, gear);
            let (now, rest) = bytes.split_at(cut.unwrap_or(bytes.len()));
            self.piece.extend_from_slice(now);
            bytes = rest;
            if cut.is_some() {
                self.hash = 0;
                out.push(std::mem::take(&mut self.piece));
            }
        }
        out
    }

    /// What is left at the end; empty when there is nothing.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.piece
    }

    /// After how many of `bytes` the piece ends.
    fn scan(&mut self, bytes: &[u8], gear: &[u64; 256]) -> Option<usize> {
        let before = self.piece.len();
        for (at, byte) in bytes.iter().enumerate() {
            self.hash = (self.hash << 1).wrapping_add(gear[usize::from(*byte)]);
            let length = before + at + 1;
            if (length >= MIN && self.hash & MASK == 0) || length >= MAX_CHUNK {
                return Some(at + 1);
            }
        }
        None
    }
}

/// A number for each byte, the same for ever.
fn gear() -> &'static [u64; 256] {
    static GEAR: OnceLock<[u64; 256]> = OnceLock::new();
    GEAR.get_or_init(|| {
        let mut out = [0; 256];
        for (at, number) in out.iter_mut().enumerate() {
            let digest = Digest::of(format!("rbuild chunk {at}"));
            *number = digest.as_bytes().iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn pieces(bytes: &[u8], step: usize) -> Vec<Vec<u8>> {
        let mut chunker = Chunker::default();
        let mut out: Vec<Vec<u8>> = bytes.chunks(step).flat_map(|part| chunker.push(part)).collect();
        out.push(chunker.finish());
        out
    }

    #[test]
    fn pieces_make_up_the_stream_and_do_not_depend_on_how_it_comes() {
        let bytes = stream(1, 12 << 20);
        let cut = pieces(&bytes, 1 << 20);
        assert_eq!(cut.concat(), bytes);
        assert_eq!(cut, pieces(&bytes, 4093));
        assert!(cut.iter().rev().skip(1).all(|piece| (MIN..=MAX_CHUNK).contains(&piece.len())));
        assert!((4..=40).contains(&cut.len()), "{}", cut.len());
        assert_eq!(pieces(&vec![0; 9 << 20], 1 << 20).len(), 3);
        assert!(Chunker::default().finish().is_empty());
    }

    #[test]
    fn a_small_change_leaves_most_pieces_alone() {
        let before = stream(2, 12 << 20);
        let mut after = before.clone();
        after.splice(5_000_000..5_000_010, *b"something else, and longer");
        let (old, new) = (pieces(&before, 1 << 20), pieces(&after, 1 << 20));
        let changed = new.iter().filter(|piece| !old.contains(piece)).count();
        assert!((1..=2).contains(&changed), "{changed} of {}", new.len());
    }
}
