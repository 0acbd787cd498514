//! Permission changes: octal, or as BSD's chmod writes them, which is what BuildKit takes: `u=rwX,go=rX`, `+x`, `a-w`.
//! There is no file mode mask. Where BSD differs from GNU, BSD counts: `o=t` and `o+s` do nothing, `=` clears the
//! sticky bit only where `t` is named, `g=u` leaves set-id bits, `X` asks for the mode before all changes.

use rbuild_ports::{ErrorKind, PortError, Result};

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const OTHERS: u32 = 0o007;
/// All that `=` without names clears.
const STANDARD: u32 = SET_UID | SET_GID | 0o777;

/// What becomes of permission bits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ModeChange {
    /// They stay.
    Keep,
    /// These, whatever was there.
    Set(u32),
    /// Changes in order.
    Symbolic(Vec<Change>),
}

/// One change of bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Add(u32),
    Remove(u32),
    /// These, for directories and for what somebody could execute.
    Search(u32),
    /// The bits of a class, `shift` from the right, for the classes of which `to` has bits.
    Copy {
        shift: u32,
        to: u32,
        op: Op,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    Add,
    Remove,
    Set,
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
            Self::Symbolic(changes) => {
                let searchable = is_dir || mode & 0o111 != 0;
                changes.iter().fold(mode, |mode, change| change.apply(mode, searchable))
            }
        }
    }

    /// The bits of directories that are made on the way to what is copied. BuildKit makes them with the octal mode, and
    /// its process has the usual mask.
    pub(crate) fn made_dirs(&self) -> u32 {
        match self {
            Self::Set(set) => set & 0o755,
            Self::Keep | Self::Symbolic(_) => 0o755,
        }
    }
}

impl Change {
    fn apply(self, mode: u32, searchable: bool) -> u32 {
        match self {
            Self::Add(bits) => mode | bits,
            Self::Remove(bits) => mode & !bits,
            Self::Search(bits) => mode | if searchable { bits } else { 0 },
            Self::Copy { shift, to, op } => {
                let bits = (((mode >> shift) & 7) * 0o111) & to;
                match op {
                    Op::Add => mode | bits,
                    Op::Remove => mode & !bits,
                    Op::Set => mode & !to | bits,
                }
            }
        }
    }
}

fn parse(text: &str) -> Option<ModeChange> {
    if text.bytes().all(|c| c.is_ascii_digit()) {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777)?;
        return Some(ModeChange::Symbolic(vec![Change::Remove(0o7777), Change::Add(mode)]));
    }
    let mut changes = Vec::new();
    for clause in text.split(',') {
        parse_clause(clause, &mut changes)?;
    }
    Some(ModeChange::Symbolic(changes))
}

fn parse_clause(clause: &str, changes: &mut Vec<Change>) -> Option<()> {
    let operators = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    let named = clause.strip_suffix(operators)?;
    let who = named.chars().fold(0, |who, c| {
        who | match c {
            'u' => SET_UID | 0o700,
            'g' => SET_GID | 0o070,
            'o' => OTHERS,
            _ => STANDARD,
        }
    });
    let starts = operators.char_indices().filter(|(_, c)| matches!(c, '+' | '-' | '=')).map(|(at, _)| at);
    let starts: Vec<usize> = starts.collect();
    if starts.first() != Some(&0) {
        return None;
    }
    for (n, start) in starts.iter().enumerate() {
        let end = starts.get(n + 1).copied().unwrap_or(operators.len());
        let (op, letters) = operators.get(*start..end)?.split_at_checked(1)?;
        let op = match op {
            "+" => Op::Add,
            "-" => Op::Remove,
            _ => Op::Set,
        };
        Operation { op, who, pending: 0, search: false, equalled: false }.read(letters, changes)?;
    }
    Some(())
}

/// One operator and what was read of its letters.
struct Operation {
    op: Op,
    /// Whom it concerns; 0 for everybody.
    who: u32,
    pending: u32,
    search: bool,
    /// `=` has cleared already.
    equalled: bool,
}

impl Operation {
    fn read(mut self, letters: &str, changes: &mut Vec<Change>) -> Option<()> {
        // Others have no set-id and no sticky bits.
        let only_others = self.who != 0 && self.who & !OTHERS == 0;
        for letter in letters.chars() {
            match letter {
                'r' => self.pending |= 0o444,
                'w' => self.pending |= 0o222,
                'x' => self.pending |= 0o111,
                'X' if self.op == Op::Remove => self.pending |= 0o111,
                'X' => self.search = true,
                's' if !only_others => self.pending |= SET_UID | SET_GID,
                't' if !only_others => {
                    self.who |= STICKY;
                    self.pending |= STICKY;
                }
                's' | 't' => {}
                'u' => self.copy(6, changes),
                'g' => self.copy(3, changes),
                'o' => self.copy(0, changes),
                _ => return None,
            }
        }
        if self.pending != 0 || (self.op == Op::Set && !self.equalled) {
            self.flush(changes);
        }
        self.flush_search(changes);
        Some(())
    }

    fn copy(&mut self, shift: u32, changes: &mut Vec<Change>) {
        if self.pending != 0 {
            self.flush(changes);
        }
        self.flush_search(changes);
        self.equalled = true;
        let to = if self.who == 0 { 0o777 } else { self.who & 0o777 };
        changes.push(Change::Copy { shift, to, op: self.op });
    }

    fn flush(&mut self, changes: &mut Vec<Change>) {
        let bits = self.concerned(self.pending);
        if self.op == Op::Set {
            changes.push(Change::Remove(if self.who == 0 { STANDARD } else { self.who }));
        }
        changes.push(if self.op == Op::Remove { Change::Remove(bits) } else { Change::Add(bits) });
        self.pending = 0;
        self.equalled = true;
    }

    fn flush_search(&mut self, changes: &mut Vec<Change>) {
        if std::mem::take(&mut self.search) {
            changes.push(Change::Search(self.concerned(0o111)));
        }
    }

    fn concerned(&self, bits: u32) -> u32 {
        if self.who == 0 { bits } else { bits & self.who }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_as_chmod() {
        // What BuildKit 0.25 made of the same files, and what chmod of BSD does.
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
            ("o=t", 0o754, false, 0o750),
            ("o+t", 0o754, false, 0o754),
            ("u+t", 0o754, false, 0o1754),
            ("=t", 0o754, false, 0o1754),
            ("u=t", 0o754, false, 0o1054),
            ("+xt", 0o640, false, 0o1640),
            ("a=", 0o3771, true, 0o1000),
            ("=rwx", 0o3771, true, 0o1777),
            ("o-t", 0o3771, true, 0o3771),
            ("g=u", 0o6755, false, 0o6775),
            ("-x+X", 0o754, false, 0o755),
            ("-X", 0o755, false, 0o644),
            ("o+s", 0o754, false, 0o754),
            ("g=ru", 0o751, false, 0o771),
            ("u=go", 0o754, false, 0o454),
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
