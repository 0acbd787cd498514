//! Permission changes as chmod writes them: `u=rwX,go=rX`, `+x`, `a-w`, `0755`. There is no file mode mask.

use rbuild_ports::{ErrorKind, PortError, Result};

/// What becomes of permission bits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ModeChange {
    /// They stay.
    Keep,
    /// These, whatever was there.
    Set(u32),
    /// Clauses in order.
    Symbolic(Vec<Clause>),
}

/// One operator of one clause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Clause {
    /// Who: bits of 4 user, 2 group, 1 others.
    who: u32,
    op: Op,
    perms: Perms,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    Add,
    Remove,
    Set,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Perms {
    /// `rwxXst`.
    Letters { rwx: u32, search: bool, set_id: bool, sticky: bool },
    /// Copied from the user, the group or the others: by how far their bits are shifted.
    CopyOf(u32),
}

impl ModeChange {
    /// Of a copy action: `text` if there is any, otherwise `mode`.
    pub(crate) fn new(mode: Option<u32>, text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(mode.map_or(Self::Keep, |mode| Self::Set(mode & 0o7777)));
        }
        parse(text).ok_or_else(|| {
            PortError::new(ErrorKind::Invalid, format!("invalid mode {text:?}"))
                .help("write it in octal, such as 0755, or as chmod does, such as u=rwX,go=rX")
        })
    }

    /// The new bits of something with `mode`.
    pub(crate) fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match self {
            Self::Keep => mode,
            Self::Set(set) => *set,
            Self::Symbolic(clauses) => clauses.iter().fold(mode, |mode, clause| clause.apply(mode, is_dir)),
        }
    }
}

fn parse(text: &str) -> Option<ModeChange> {
    if text.bytes().all(|c| c.is_ascii_digit()) {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777)?;
        return Some(ModeChange::Set(mode));
    }
    let mut out = Vec::new();
    for clause in text.split(',') {
        parse_clause(clause, &mut out)?;
    }
    Some(ModeChange::Symbolic(out))
}

fn parse_clause(clause: &str, out: &mut Vec<Clause>) -> Option<()> {
    let mut chars = clause.chars().peekable();
    let mut who = 0;
    while let Some(c) = chars.peek() {
        who |= match c {
            'u' => 4,
            'g' => 2,
            'o' => 1,
            'a' => 7,
            _ => break,
        };
        chars.next();
    }
    let who = if who == 0 { 7 } else { who };
    chars.peek()?;
    while let Some(c) = chars.next() {
        let op = match c {
            '+' => Op::Add,
            '-' => Op::Remove,
            '=' => Op::Set,
            _ => return None,
        };
        let copied = match chars.peek() {
            Some('u') => Some(6),
            Some('g') => Some(3),
            Some('o') => Some(0),
            _ => None,
        };
        let perms = match copied {
            Some(shift) => {
                chars.next();
                Perms::CopyOf(shift)
            }
            None => letters(&mut chars),
        };
        out.push(Clause { who, op, perms });
    }
    Some(())
}

fn letters(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Perms {
    let (mut rwx, mut search, mut set_id, mut sticky) = (0, false, false, false);
    while let Some(c) = chars.peek() {
        match c {
            'r' => rwx |= 4,
            'w' => rwx |= 2,
            'x' => rwx |= 1,
            'X' => search = true,
            's' => set_id = true,
            't' => sticky = true,
            _ => break,
        }
        chars.next();
    }
    Perms::Letters { rwx, search, set_id, sticky }
}

impl Clause {
    fn apply(self, mode: u32, is_dir: bool) -> u32 {
        let Self { who, op, perms } = self;
        let spread = |rwx: u32| {
            [6, 3, 0].iter().filter(|shift| who >> (**shift / 3) & 1 == 1).map(|s| rwx << s).sum::<u32>()
        };
        let mut bits = match perms {
            Perms::CopyOf(shift) => spread(mode >> shift & 7),
            Perms::Letters { rwx, search, .. } => {
                let search = search && (is_dir || mode & 0o111 != 0);
                spread(rwx | u32::from(search))
            }
        };
        if let Perms::Letters { set_id, sticky, .. } = perms {
            if set_id && who & 4 != 0 {
                bits |= 0o4000;
            }
            if set_id && who & 2 != 0 {
                bits |= 0o2000;
            }
            if sticky && who & 1 != 0 {
                bits |= 0o1000;
            }
        }
        match op {
            Op::Add => mode | bits,
            Op::Remove => mode & !bits,
            Op::Set => {
                let mut cleared = spread(7);
                cleared |= if who & 4 != 0 { 0o4000 } else { 0 };
                cleared |= if who & 2 != 0 { 0o2000 } else { 0 };
                cleared |= if who & 1 != 0 { 0o1000 } else { 0 };
                mode & !cleared | bits
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_as_chmod() {
        for (text, mode, is_dir, want) in [
            ("755", 0o644, false, 0o755),
            ("0644", 0o7777, true, 0o644),
            ("+x", 0o644, false, 0o755),
            ("u+x", 0o644, false, 0o744),
            ("a-w", 0o666, false, 0o444),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("go=", 0o777, false, 0o700),
            ("g=u", 0o640, false, 0o660),
            ("u+s,g+s,+t", 0o755, false, 0o7755),
            ("u-s", 0o4755, false, 0o755),
            ("u+r-x", 0o100, false, 0o400),
            ("o=g", 0o750, false, 0o755),
        ] {
            let change = ModeChange::new(None, text).unwrap();
            assert_eq!(change.apply(mode, is_dir), want, "{text} {mode:o} {is_dir}");
        }
        assert_eq!(ModeChange::new(None, "").unwrap(), ModeChange::Keep);
        assert_eq!(ModeChange::new(Some(0o755), "").unwrap().apply(0, false), 0o755);
        for text in ["8", "77777", "u", "x", "u+q", "+x,", "=rw,,", "rwx"] {
            assert!(ModeChange::new(None, text).is_err(), "{text}");
        }
    }
}
