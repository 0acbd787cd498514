//! Bytes from a seed: text-like, random, or a mixture. The same seed gives the same bytes on every machine; nothing
//! here touches a disk.

use std::io::{self, Write};

/// SplitMix64: small, fast, good enough for sizes, words and noise.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator of its own for the thing with this number.
    pub(crate) fn fork(seed: u64, number: u64) -> Self {
        let mut rng = Self(seed ^ number.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        rng.next();
        rng
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high - 1`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low).max(1)
    }
}

/// What a file is filled with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Texture {
    /// Lines of words, some far more frequent than others; gzip makes about a third of it.
    Text,
    /// Noise; nothing makes it smaller.
    Random,
}

const VOCABULARY: u64 = 2048;
const BLOCK: usize = 64 * 1024;

/// Writes `length` bytes of `texture`.
pub(crate) fn fill(out: &mut dyn Write, texture: Texture, seed: u64, length: u64) -> io::Result<()> {
    let mut rng = Rng::new(seed);
    let mut block = Vec::with_capacity(BLOCK + 64);
    let mut left = length;
    while left > 0 {
        block.clear();
        match texture {
            Texture::Text => text_block(&mut rng, &mut block),
            Texture::Random => random_block(&mut rng, &mut block),
        }
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        out.write_all(&block[..take])?;
        left -= take as u64;
    }
    Ok(())
}

fn random_block(rng: &mut Rng, block: &mut Vec<u8>) {
    while block.len() < BLOCK {
        block.extend_from_slice(&rng.next().to_le_bytes());
    }
}

fn text_block(rng: &mut Rng, block: &mut Vec<u8>) {
    let mut column = 0;
    while block.len() < BLOCK {
        let draw = rng.next();
        // The smaller of two draws: frequent words exist, rare ones too.
        let word = (draw % VOCABULARY).min((draw >> 32) % VOCABULARY);
        let before = block.len();
        push_word(word, block);
        column += block.len() - before + 1;
        if column > 76 {
            block.push(b'\n');
            column = 0;
        } else {
            block.push(b' ');
        }
    }
}

/// The word with this number: syllables of its digits, so that no table is needed.
fn push_word(number: u64, block: &mut Vec<u8>) {
    const SYLLABLES: [&[u8]; 16] = [
        b"ka", b"lo", b"mi", b"ren", b"tu", b"sa", b"vor", b"el", b"dim", b"ok", b"pra", b"ne", b"ul",
        b"ther", b"gi", b"ast",
    ];
    let mut rest = number + 1;
    while rest > 0 {
        block.extend_from_slice(SYLLABLES[(rest % 16) as usize]);
        rest /= 16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(texture: Texture, seed: u64, length: u64) -> Vec<u8> {
        let mut out = Vec::new();
        fill(&mut out, texture, seed, length).unwrap();
        out
    }

    #[test]
    fn a_seed_decides_every_byte_and_a_length_only_cuts() {
        for texture in [Texture::Text, Texture::Random] {
            let long = bytes(texture, 7, 200_000);
            assert_eq!(long, bytes(texture, 7, 200_000));
            assert_eq!(long[..1000], bytes(texture, 7, 1000));
            assert_ne!(long, bytes(texture, 8, 200_000));
            assert_eq!(long.len(), 200_000);
        }
    }

    #[test]
    fn text_compresses_and_noise_does_not() {
        let gzip = |data: Vec<u8>| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(&data).unwrap();
            encoder.finish().unwrap().len() * 100 / data.len()
        };
        let text = gzip(bytes(Texture::Text, 1, 1_000_000));
        assert!((20..45).contains(&text), "{text} %");
        assert!(gzip(bytes(Texture::Random, 1, 1_000_000)) >= 100);
    }

    #[test]
    fn forks_differ() {
        let draws: Vec<u64> = (0..100).map(|n| Rng::fork(1, n).next()).collect();
        let mut unique = draws.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), draws.len());
    }
}
