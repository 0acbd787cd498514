//! Variables of a stage or of the file's head, in the order of the *last* assignment: a variable that is set again
//! moves to the end. BuildKit hashes a step's environment in this order.

use std::collections::HashMap;
use std::sync::Arc;

/// An ordered map of variables. Copied only when a stage changes one that it shares with its base.
#[derive(Clone, Debug, Default)]
pub(crate) struct Env {
    slots: Vec<Option<(Arc<str>, Arc<str>)>>,
    places: HashMap<Arc<str>, usize>,
}

impl Env {
    /// Sets `name`, behind all others.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        let name: Arc<str> = match self.places.get_key_value(name) {
            Some((known, _)) => known.clone(),
            None => name.into(),
        };
        if let Some(old) = self.places.insert(name.clone(), self.slots.len())
            && let Some(slot) = self.slots.get_mut(old)
        {
            *slot = None;
        }
        self.slots.push(Some((name, value.into())));
        if self.slots.len() > 2 * self.places.len() + 32 {
            self.compact();
        }
    }

    fn compact(&mut self) {
        self.slots.retain(Option::is_some);
        for (place, slot) in self.slots.iter().enumerate() {
            if let Some((name, _)) = slot {
                self.places.insert(name.clone(), place);
            }
        }
    }

    /// Forgets `name`.
    pub(crate) fn remove(&mut self, name: &str) {
        if let Some(place) = self.places.remove(name)
            && let Some(slot) = self.slots.get_mut(place)
        {
            *slot = None;
        }
    }

    /// The value of `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let place = *self.places.get(name)?;
        self.slots.get(place)?.as_ref().map(|(_, value)| &**value)
    }

    /// All, oldest assignment first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.slots.iter().flatten().map(|(name, value)| (&**name, &**value))
    }

    /// The names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }

    /// `NAME=value`, oldest assignment first.
    pub(crate) fn to_list(&self) -> Vec<String> {
        self.iter()
            .map(|(name, value)| {
                let mut out = String::with_capacity(name.len() + value.len() + 1);
                out.push_str(name);
                out.push('=');
                out.push_str(value);
                out
            })
            .collect()
    }
}

/// Splits `NAME=value`; without `=` the value is empty.
pub(crate) fn split(entry: &str) -> (&str, &str) {
    entry.split_once('=').unwrap_or((entry, ""))
}

/// Sets `name` in an image config's list: in place when it is there, else at the end.
pub(crate) fn set_in_config(list: &mut Vec<String>, name: &str, value: &str) {
    let entry = format!("{name}={value}");
    match list.iter_mut().find(|old| split(old).0 == name) {
        Some(old) => *old = entry,
        None => list.push(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_assignment_decides_the_place() {
        let mut env = Env::default();
        for i in 0..1_000 {
            env.set("A", &i.to_string());
            env.set(if i % 2 == 0 { "B" } else { "C" }, "x");
        }
        env.set("A", "last");
        env.remove("C");
        assert_eq!(env.to_list(), ["B=x", "A=last"]);
        assert_eq!((env.get("A"), env.get("C")), (Some("last"), None));
        assert!(env.slots.len() < 100);

        let mut list = vec!["PATH=/bin".to_owned(), "A=1".to_owned()];
        set_in_config(&mut list, "PATH", "/x");
        set_in_config(&mut list, "B", "");
        assert_eq!(list, ["PATH=/x", "A=1", "B="]);
    }
}
