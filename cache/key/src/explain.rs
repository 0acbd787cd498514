//! Why two keys differ: their preimages compared field by field.

use crate::{Field, Preimage};

/// A field that differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Which field.
    pub path: String,
    /// Its value before; `None` if it was absent.
    pub old: Option<String>,
    /// Its value now; `None` if it is absent.
    pub new: Option<String>,
}

/// What differs between two preimages, in the order of the fields. Empty if and only if both are equal.
#[must_use]
pub fn explain(old: &Preimage, new: &Preimage) -> Vec<Difference> {
    let mut out = Vec::new();
    let mut paths: Vec<&str> = Vec::new();
    for field in new.fields.iter().chain(&old.fields) {
        if !paths.contains(&field.path.as_str()) {
            paths.push(&field.path);
        }
    }
    for path in paths {
        let (before, after) = (values(&old.fields, path), values(&new.fields, path));
        for i in 0..before.len().max(after.len()) {
            let (was, is) = (before.get(i), after.get(i));
            if was != is {
                let owned = |value: Option<&&str>| value.map(|value| (*value).to_owned());
                out.push(Difference { path: path.to_owned(), old: owned(was), new: owned(is) });
            }
        }
    }
    if out.is_empty() && old.fields != new.fields {
        out.push(order(old, new));
    } else if out.is_empty() && old.text != new.text {
        let whole = |preimage: &Preimage| Some(preimage.text.clone());
        out.push(Difference { path: "definition".to_owned(), old: whole(old), new: whole(new) });
    }
    out
}

fn values<'a>(fields: &'a [Field], path: &str) -> Vec<&'a str> {
    fields.iter().filter(|field| field.path == path).map(|field| field.value.as_str()).collect()
}

/// The same fields in another order: from the first to the last that moved.
fn order(old: &Preimage, new: &Preimage) -> Difference {
    let moved = |at: &usize| old.fields.get(*at) != new.fields.get(*at);
    let places = 0..old.fields.len().max(new.fields.len());
    let first = places.clone().find(moved).unwrap_or(0);
    let last = places.rev().find(moved).unwrap_or(0);
    let list = |preimage: &Preimage| {
        let fields = preimage.fields.get(first..=last).unwrap_or_default();
        Some(fields.iter().map(|field| field.path.as_str()).collect::<Vec<_>>().join(" "))
    };
    Difference { path: "order".to_owned(), old: list(old), new: list(new) }
}
