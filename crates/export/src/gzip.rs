//! One block of a layer as one gzip member (RFC 1952). A layer is cut into blocks of a fixed size, so its bytes do
//! not depend on how many threads compress it. A member's length stands in an extra field `RB` of its header, so that
//! a reader who knows the field can find the members and inflate them in parallel; others skip it.

use std::io;

use libdeflater::{CompressionLvl, Compressor, crc32};

/// Uncompressed bytes a member at most. Part of what `gzip:…:1mib:32kib` stands for: changing it changes every layer.
pub(crate) const BLOCK: usize = 1 << 20;
/// Contents of files from this size on are in members of their own, so that equal contents give equal members. Smaller ones
/// would make layers larger: half a percent with 32 KiB, two and a half with 16 KiB. The other part of the name.
pub(crate) const LARGE: u64 = 32 << 10;
/// The level when nobody asks for another: with it layers of a Debian are one percent larger than with 4, and one smaller than
/// those of Go's gzip.
pub(crate) const DEFAULT_LEVEL: i32 = 2;

const HEADER: usize = 20;
const TRAILER: usize = 8;

/// A compressor of `level` (0 to 12).
pub(crate) fn compressor(level: i32) -> io::Result<Compressor> {
    let level = CompressionLvl::new(level)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("gzip has no level {level}")))?;
    Ok(Compressor::new(level))
}

/// Replaces `out` by a member that holds `block`.
pub(crate) fn member(compressor: &mut Compressor, block: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let bound = compressor.deflate_compress_bound(block.len());
    out.clear();
    out.resize(HEADER + bound + TRAILER, 0);
    let body = out.get_mut(HEADER..HEADER + bound).unwrap_or_default();
    let length = compressor.deflate_compress(block, body).map_err(io::Error::other)?;
    let total = HEADER + length + TRAILER;
    // Magic, deflate, FEXTRA, no time, no hint, unknown system, 8 bytes of extra fields: `RB`, 4 bytes long.
    let mut header = *b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x08\0RB\x04\0\0\0\0\0";
    let (_, member_length) = header.split_at_mut(HEADER - 4);
    member_length.copy_from_slice(&word(total).to_le_bytes());
    out.truncate(HEADER + length);
    out.get_mut(..HEADER).unwrap_or_default().copy_from_slice(&header);
    out.extend_from_slice(&crc32(block).to_le_bytes());
    out.extend_from_slice(&word(block.len()).to_le_bytes());
    Ok(())
}

fn word(n: usize) -> u32 {
    u32::try_from(n & 0xffff_ffff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn members_are_gzip_and_know_their_length() {
        let mut compressor = compressor(DEFAULT_LEVEL).unwrap();
        let blocks: [&[u8]; 3] = [b"", b"hello hello hello", &[7; 100_000]];
        let mut file = vec![];
        for block in blocks {
            let mut out = vec![9; 3];
            member(&mut compressor, block, &mut out).unwrap();
            assert_eq!(&out[12..16], b"RB\x04\0");
            assert_eq!(out[16..20], u32::try_from(out.len()).unwrap().to_le_bytes());
            file.extend(out);
        }
        let mut text = vec![];
        flate2::read::MultiGzDecoder::new(file.as_slice()).read_to_end(&mut text).unwrap();
        assert_eq!(text, blocks.concat());
    }

    #[test]
    fn random_bytes_fit_their_bound() {
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        })
        .take(BLOCK)
        .collect();
        for level in 0..=9 {
            let mut out = vec![];
            member(&mut compressor(level).unwrap(), &noise, &mut out).unwrap();
            assert!(out.len() < BLOCK + 1000, "level {level}: {}", out.len());
        }
        assert!(compressor(13).is_err());
    }
}
