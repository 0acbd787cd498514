//! PAX records: strict parsing of the body of `x` and `g` headers into the few fields a tree needs. What is
//! unknown (comments, access times, other vendors) is left out; what is wrong or ambiguous is an error.

use crate::{Time, Xattrs};

/// What the records of one header say.
#[derive(Clone, Default, Debug)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<Time>,
    pub(crate) xattrs: Xattrs,
    pub(crate) sparse: PaxSparse,
}

/// The `GNU.sparse.*` records.
#[derive(Clone, Default, Debug)]
pub(crate) struct PaxSparse {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.x) or `GNU.sparse.realsize` (1.0).
    pub(crate) real_size: Option<u64>,
    pub(crate) blocks: Option<u64>,
    /// Offsets and lengths by turns.
    pub(crate) map: Vec<u64>,
}

impl PaxSparse {
    pub(crate) fn is_used(&self) -> bool {
        self.major.is_some() || self.real_size.is_some() || self.blocks.is_some() || !self.map.is_empty()
    }
}

/// Parses the records of one header.
pub(crate) fn parse(mut data: &[u8]) -> Result<Pax, String> {
    let mut pax = Pax::default();
    while !data.is_empty() {
        let (record, rest) = split_record(data).ok_or("PAX record has a wrong length")?;
        let equals = record.iter().position(|c| *c == b'=').ok_or("PAX record has no \"=\"")?;
        let (key, value) =
            (record.get(..equals).unwrap_or_default(), record.get(equals + 1..).unwrap_or_default());
        if key.is_empty() || key.contains(&0) {
            return Err("PAX record has no valid keyword".into());
        }
        set(&mut pax, key, value)
            .map_err(|why| format!("PAX record {:?} {why}", key.escape_ascii().to_string()))?;
        data = rest;
    }
    Ok(pax)
}

/// `<length> <key>=<value>\n` where length counts all of it.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8])> {
    const MOST_DIGITS: usize = 10;
    let space = data.iter().take(MOST_DIGITS + 1).position(|c| *c == b' ')?;
    let length = usize::try_from(decimal(data.get(..space)?)?).ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    Some((record, rest))
}

fn set(pax: &mut Pax, key: &[u8], value: &[u8]) -> Result<(), String> {
    match key {
        b"path" => once(&mut pax.path, name(value)?),
        b"linkpath" => once(&mut pax.link, name(value)?),
        b"size" => once(&mut pax.size, size(value)?),
        b"uid" => once(&mut pax.uid, id(value)?),
        b"gid" => once(&mut pax.gid, id(value)?),
        b"mtime" => once(&mut pax.mtime, time(value).ok_or("is no time")?),
        b"GNU.sparse.major" => once(&mut pax.sparse.major, size(value)?),
        b"GNU.sparse.minor" => once(&mut pax.sparse.minor, size(value)?),
        b"GNU.sparse.name" => once(&mut pax.sparse.name, name(value)?),
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => once(&mut pax.sparse.real_size, size(value)?),
        b"GNU.sparse.numblocks" => once(&mut pax.sparse.blocks, size(value)?),
        b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
            let expected = if pax.sparse.map.len().is_multiple_of(2) {
                b"GNU.sparse.offset".as_slice()
            } else {
                b"GNU.sparse.numbytes"
            };
            if key != expected {
                return Err("is out of order".into());
            }
            pax.sparse.map.push(size(value)?);
            Ok(())
        }
        b"GNU.sparse.map" => {
            if !pax.sparse.map.is_empty() {
                return Err("is given twice".into());
            }
            pax.sparse.map = value.split(|c| *c == b',').map(size).collect::<Result<_, _>>()?;
            Ok(())
        }
        key => match key.strip_prefix(b"SCHILY.xattr.") {
            None => Ok(()),
            Some(b"") => Err("names no attribute".into()),
            Some(attribute) => match pax.xattrs.insert(attribute.to_vec(), value.to_vec()) {
                Some(old) if old != value => Err("is given twice".into()),
                _ => Ok(()),
            },
        },
    }
}

/// Parsers disagree on which of two different records counts, so neither does.
fn once<T: PartialEq>(place: &mut Option<T>, value: T) -> Result<(), String> {
    match place {
        Some(old) if *old != value => Err("is given twice with different values".into()),
        _ => {
            *place = Some(value);
            Ok(())
        }
    }
}

fn name(value: &[u8]) -> Result<Vec<u8>, String> {
    if value.is_empty() {
        return Err("is empty".into());
    }
    if value.contains(&0) {
        return Err("has a NUL byte".into());
    }
    Ok(value.to_vec())
}

fn size(value: &[u8]) -> Result<u64, String> {
    decimal(value).filter(|n| i64::try_from(*n).is_ok()).ok_or_else(|| "is no size".into())
}

fn id(value: &[u8]) -> Result<u32, String> {
    decimal(value).and_then(|n| u32::try_from(n).ok()).ok_or_else(|| "is no id".into())
}

/// Only digits, at least one.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, c| match c {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(c - b'0')),
        _ => None,
    })
}

/// `[-]seconds[.fraction]`; what is below a nanosecond is cut.
fn time(value: &[u8]) -> Option<Time> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let dot = value.iter().position(|c| *c == b'.').unwrap_or(value.len());
    let secs = i64::try_from(decimal(value.get(..dot)?)?).ok()?;
    let fraction = value.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9).fold(0u32, |nanos, i| nanos * 10 + fraction.get(i).map_or(0, |c| u32::from(c - b'0')));
    match (negative, nanos) {
        (false, nanos) => Some(Time { secs, nanos }),
        (true, 0) => Some(Time { secs: -secs, nanos: 0 }),
        (true, nanos) => Some(Time { secs: (-secs).checked_sub(1)?, nanos: 1_000_000_000 - nanos }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &[u8]) -> Vec<u8> {
        let rest = [b" ", text, b"\n"].concat();
        let length = (1..).find(|n| n.to_string().len() + rest.len() == *n).unwrap();
        [length.to_string().as_bytes(), &rest].concat()
    }

    #[test]
    fn records() {
        let data: Vec<Vec<u8>> = [
            &b"path=abc"[..],
            b"uid=70000",
            b"mtime=-1.2500000000",
            b"SCHILY.xattr.user.a=x\0=\n",
            b"comment=",
        ]
        .map(record)
        .into();
        let pax = parse(&data.concat()).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"abc"[..]));
        assert_eq!(pax.uid, Some(70000));
        assert_eq!(pax.mtime, Some(Time { secs: -2, nanos: 750_000_000 }));
        assert_eq!(pax.xattrs.get(&b"user.a"[..]).map(Vec::as_slice), Some(&b"x\0=\n"[..]));
    }

    #[test]
    fn wrong_framing() {
        for data in [
            &b"5 a=\n6 "[..],
            b"99 path=abc\n",
            b"12 path=abc ",
            b"4294967296000 a=b\n",
            b"-6 a=b\n",
            b"0 ",
            b"1 ",
        ] {
            let error = parse(data).expect_err(&data.escape_ascii().to_string());
            assert!(error.contains("length"), "{}: {error}", data.escape_ascii());
        }
    }

    #[test]
    fn wrong_values() {
        for (records, want) in [
            (&[&b"path"[..]][..], "no \"=\""),
            (&[b"=ab"], "keyword"),
            (&[b"path="], "empty"),
            (&[b"path=a\0"], "NUL"),
            (&[b"size=-1"], "no size"),
            (&[b"size="], "no size"),
            (&[b"size=9999999999999999999"], "no size"),
            (&[b"uid=4.5e1"], "no id"),
            (&[b"gid=4294967296"], "no id"),
            (&[b"mtime=1.x"], "no time"),
            (&[b"path=a", b"path=b"], "twice"),
            (&[b"GNU.sparse.numbytes=0"], "out of order"),
            (&[b"GNU.sparse.map=1,2", b"GNU.sparse.map=1,2"], "twice"),
            (&[b"SCHILY.xattr.=1"], "names no attribute"),
        ] {
            let data: Vec<Vec<u8>> = records.iter().map(|text| record(text)).collect();
            let error = parse(&data.concat()).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
