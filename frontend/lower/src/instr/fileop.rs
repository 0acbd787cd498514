//! Chains of file actions as LLB numbers them, and owners of files.

use rbuild_graph::{Chown, Edge, FileAction, FileKind, FileOp, UserRef};

/// A chain of actions on one file system: the first acts on the base, each next on what the one before made.
pub(crate) struct Actions {
    inputs: Vec<Edge>,
    base: Option<u32>,
    list: Vec<(Option<u32>, FileKind)>,
}

impl Actions {
    /// A chain on `base`; `None` is an empty file system.
    pub(crate) fn new(base: Option<Edge>) -> Self {
        Self { inputs: base.into_iter().collect(), base: base.map(|_| 0), list: vec![] }
    }

    /// The base's position among the inputs.
    pub(crate) fn base(&self) -> Option<u32> {
        self.base
    }

    /// Adds an action that reads `source`. Equal sources are one input.
    pub(crate) fn push(&mut self, source: Option<Edge>, kind: FileKind) {
        let secondary = source.map(|edge| {
            let known = self.inputs.iter().position(|input| *input == edge);
            let position = known.unwrap_or_else(|| {
                self.inputs.push(edge);
                self.inputs.len() - 1
            });
            u32::try_from(position).unwrap_or(u32::MAX)
        });
        self.list.push((secondary, kind));
    }

    /// The operation and its inputs. The last action's result is its output; files without a time have that of `epoch`.
    pub(crate) fn finish(self, epoch: Option<i64>) -> (FileOp, Vec<Edge>) {
        let inputs = u32::try_from(self.inputs.len()).unwrap_or(u32::MAX);
        let last = self.list.len().saturating_sub(1);
        let number = |i: usize| u32::try_from(i).unwrap_or(u32::MAX);
        let actions = self.list.into_iter().enumerate().map(|(i, (secondary_input, kind))| FileAction {
            input: if i == 0 { self.base } else { Some(inputs.saturating_add(number(i - 1))) },
            secondary_input,
            output: (i == last).then_some(0),
            kind,
        });
        (FileOp { actions: actions.collect(), epoch }, self.inputs)
    }
}

/// Reads `user[:group]`: numbers, `root`, or names that are looked up in `base`.
///
/// # Errors
/// The name that has nowhere to be looked up.
pub(crate) fn owner(text: &str, base: Option<u32>) -> Result<Chown, String> {
    let one = |text: &str| match parse_id(text) {
        Some(id) => Ok(UserRef::Id(id)),
        None if text.is_empty() => Ok(UserRef::Id(0)),
        None if base.is_none() => Err(text.to_owned()),
        None => Ok(UserRef::Name { name: text.to_owned(), input: base }),
    };
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    Ok(Chown { user: Some(one(user)?), group: group.map(one).transpose()? })
}

fn parse_id(text: &str) -> Option<u32> {
    if text == "root" {
        return Some(0);
    }
    // Signed 32 bits, stored unsigned, as LLB's client does.
    text.parse::<i32>().ok().map(i32::cast_unsigned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_by_number_and_name() {
        let id = |n| Some(UserRef::Id(n));
        let name = |n: &str| Some(UserRef::Name { name: n.to_owned(), input: Some(0) });
        for (text, user, group) in [
            ("12:34", id(12), id(34)),
            ("12", id(12), None),
            ("root:root", id(0), id(0)),
            ("nobody:12", name("nobody"), id(12)),
            ("12:", id(12), id(0)),
            (":staff", id(0), name("staff")),
        ] {
            assert_eq!(owner(text, Some(0)), Ok(Chown { user, group }), "{text}");
        }
        assert_eq!(owner("nobody", None), Err("nobody".to_owned()));
        assert!(owner("0:0", None).is_ok());
    }
}
