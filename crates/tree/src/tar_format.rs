//! The 512-byte header of tar, field by field: where each lies, octal and base-256 numbers, the checksum. Shared
//! by reader and writer; decides nothing about what the fields mean together.

/// Headers and padding come in blocks of this size.
pub(crate) const BLOCK: usize = 512;

/// A numeric field of the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Field {
    Mode,
    Uid,
    Gid,
    Size,
    Mtime,
    Checksum,
    DevMajor,
    DevMinor,
}

impl Field {
    const fn range(self) -> std::ops::Range<usize> {
        match self {
            Self::Mode => 100..108,
            Self::Uid => 108..116,
            Self::Gid => 116..124,
            Self::Size => 124..136,
            Self::Mtime => 136..148,
            Self::Checksum => 148..156,
            Self::DevMajor => 329..337,
            Self::DevMinor => 337..345,
        }
    }

    /// For messages.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Mode => "mode",
            Self::Uid => "uid",
            Self::Gid => "gid",
            Self::Size => "size",
            Self::Mtime => "mtime",
            Self::Checksum => "checksum",
            Self::DevMajor => "device major",
            Self::DevMinor => "device minor",
        }
    }
}

pub(crate) type Block = [u8; BLOCK];

const NAME: std::ops::Range<usize> = 0..100;
const TYPE: usize = 156;
const LINK: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..265;
const PREFIX: std::ops::Range<usize> = 345..500;
const STAR_PREFIX: std::ops::Range<usize> = 345..476;
const STAR_TRAILER: std::ops::Range<usize> = 508..512;

/// Which fields a header has beside those of Unix version 7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

pub(crate) fn dialect(block: &Block) -> Dialect {
    match block.get(MAGIC) {
        Some([b'u', b's', b't', b'a', b'r', 0, ..]) => {
            if block.get(STAR_TRAILER) == Some(b"tar\0") {
                Dialect::Star
            } else {
                Dialect::Ustar
            }
        }
        Some(b"ustar  \0") => Dialect::Gnu,
        _ => Dialect::V7,
    }
}

/// How many zero bytes follow `size` bytes of content.
pub(crate) const fn padding(size: u64) -> usize {
    let over = (size % BLOCK as u64) as usize;
    if over == 0 { 0 } else { BLOCK - over }
}

pub(crate) const fn typeflag(block: &Block) -> u8 {
    block[TYPE]
}

/// The name with its prefix, where the dialect has one.
pub(crate) fn name(block: &Block) -> Vec<u8> {
    let name = text(block, NAME);
    let prefix = match dialect(block) {
        Dialect::Ustar => text(block, PREFIX),
        Dialect::Star => text(block, STAR_PREFIX),
        Dialect::V7 | Dialect::Gnu => b"",
    };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

pub(crate) fn link(block: &Block) -> &[u8] {
    text(block, LINK)
}

fn text(block: &Block, range: std::ops::Range<usize>) -> &[u8] {
    let field = block.get(range).unwrap_or_default();
    let end = field.iter().position(|c| *c == 0).unwrap_or(field.len());
    field.get(..end).unwrap_or_default()
}

/// The field's number; `None` if it is none.
pub(crate) fn number(block: &Block, field: Field) -> Option<i64> {
    parse_number(block.get(field.range()).unwrap_or_default())
}

/// An octal number, padded with spaces and NULs, or GNU's base-256. Empty is 0.
pub(crate) fn parse_number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let padding = |c: &u8| matches!(c, b' ' | 0);
    let Some(start) = field.iter().position(|c| !padding(c)) else {
        return Some(0);
    };
    let end = field.iter().rposition(|c| !padding(c))? + 1;
    field.get(start..end)?.iter().try_fold(0i64, |value, c| match c {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(c - b'0')),
        _ => None,
    })
}

fn base256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    let negative = first & 0x40 != 0;
    let start = i64::from(first & 0x3f) - if negative { 0x40 } else { 0 };
    rest.iter().try_fold(start, |value, c| value.checked_mul(256)?.checked_add(i64::from(*c)))
}

/// Whether the block's checksum is right, counted with unsigned or (as old programs did) signed bytes.
pub(crate) fn checksum_ok(block: &Block) -> bool {
    let Some(stored) = number(block, Field::Checksum) else {
        return false;
    };
    let range = Field::Checksum.range();
    let (mut unsigned, mut signed) = (0i64, 0i64);
    for (i, byte) in block.iter().enumerate() {
        let byte = if range.contains(&i) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    stored == unsigned || stored == signed
}

/// The field as octal digits with a NUL at the end. If it does not fit, writes 0 and gives false.
pub(crate) fn set_octal(block: &mut Block, field: Field, value: u64) -> bool {
    let digits = field.range().len() - 1;
    let fits = value >> (3 * digits) == 0;
    let text = format!("{:0digits$o}\0", if fits { value } else { 0 });
    if let Some(place) = block.get_mut(field.range()) {
        place.copy_from_slice(text.as_bytes());
    }
    fits
}

pub(crate) fn set_name(block: &mut Block, name: &[u8]) {
    set_text(block, NAME, name);
}

pub(crate) fn set_link(block: &mut Block, target: &[u8]) {
    set_text(block, LINK, target);
}

fn set_text(block: &mut Block, range: std::ops::Range<usize>, text: &[u8]) {
    let Some(field) = block.get_mut(range) else { return };
    let mut short = text.get(..field.len()).unwrap_or(text);
    if short.len() < text.len() {
        // A cut name must not look like a directory's.
        while let Some(rest) = short.strip_suffix(b"/") {
            short = rest;
        }
    }
    for (place, c) in field.iter_mut().zip(short) {
        *place = *c;
    }
}

/// Sets type, magic and checksum: nothing may change afterwards.
pub(crate) fn seal(block: &mut Block, typeflag: u8) {
    block[TYPE] = typeflag;
    if let Some(magic) = block.get_mut(MAGIC) {
        magic.copy_from_slice(b"ustar\x0000");
    }
    let range = Field::Checksum.range();
    let sum: u32 =
        block.iter().enumerate().map(|(i, c)| u32::from(if range.contains(&i) { b' ' } else { *c })).sum();
    if let Some(place) = block.get_mut(range) {
        place.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// One region of GNU's sparse map: `(offset, length)` of 12 bytes each, and where they lie.
pub(crate) mod sparse {
    use super::{BLOCK, Block, parse_number};

    const HEADER_MAP: usize = 386;
    const HEADER_REGIONS: usize = 4;
    const EXTENSION_REGIONS: usize = 21;
    const REGION: usize = 24;

    /// Offsets and lengths.
    pub(crate) type Map = Vec<(u64, u64)>;

    /// The part of the map in the header, the real size, and whether an extension block follows.
    pub(crate) fn of_header(block: &Block) -> Option<(Map, u64, bool)> {
        let map = regions(block.get(HEADER_MAP..HEADER_MAP + HEADER_REGIONS * REGION)?)?;
        let size = u64::try_from(parse_number(block.get(483..495)?)?).ok()?;
        Some((map, size, block.get(482).is_some_and(|more| *more != 0)))
    }

    /// The part of the map in an extension block, and whether another one follows.
    pub(crate) fn of_extension(block: &Block) -> Option<(Map, bool)> {
        let map = regions(block.get(..EXTENSION_REGIONS * REGION)?)?;
        Some((map, block.get(BLOCK - 8).is_some_and(|more| *more != 0)))
    }

    fn regions(bytes: &[u8]) -> Option<Map> {
        let mut out = Vec::new();
        for region in bytes.chunks_exact(REGION) {
            let (offset, length) = region.split_at_checked(REGION / 2)?;
            if offset.first() == Some(&0) {
                break;
            }
            out.push((
                u64::try_from(parse_number(offset)?).ok()?,
                u64::try_from(parse_number(length)?).ok()?,
            ));
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"0000648\0", None),
            (b"-000644\0", None),
            (b"12 34\0\0\0", None),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(parse_number(field), want, "{:?}", field.escape_ascii().to_string());
        }
    }

    #[test]
    fn octal_fields_that_overflow_are_zero() {
        let mut block = [0; BLOCK];
        assert!(set_octal(&mut block, Field::Uid, 0o7_777_777));
        assert!(!set_octal(&mut block, Field::Uid, 0o10_000_000));
        assert_eq!(number(&block, Field::Uid), Some(0));
        assert!(set_octal(&mut block, Field::Size, 0o77_777_777_777));
        assert!(!set_octal(&mut block, Field::Size, 0o100_000_000_000));
    }
}
