//! Finds for each step of a build the one that it was in an earlier build: the same instruction of the same stage and
//! platform; else what stood in its place.

use std::collections::{HashMap, HashSet};

use crate::{Step, StepKind, Trace};

/// For each step of `new` its counterpart in `old`.
pub(crate) fn align(new: &Trace, old: &Trace) -> Vec<Option<usize>> {
    let mut out: Vec<Option<usize>> = vec![None; new.steps.len()];
    // One build's step may be what those of several platforms are compared with.
    let mut taken: HashSet<(usize, &str)> = HashSet::new();
    // The same instruction, the nearest to where it was.
    let mut by_text: HashMap<(&str, &str, &str), Vec<usize>> = HashMap::new();
    for (at, step) in old.steps.iter().enumerate() {
        by_text.entry((&step.platform, &step.stage, &step.text)).or_default().push(at);
    }
    for (at, step) in new.steps.iter().enumerate() {
        let same = by_text.get(&(step.platform.as_str(), step.stage.as_str(), step.text.as_str()));
        let near = |it: &usize| old.steps.get(*it).map_or(usize::MAX, |it| it.ordinal.abs_diff(step.ordinal));
        let target = step.target.as_str();
        let free = same.into_iter().flatten().copied().filter(|it| !taken.contains(&(*it, target)));
        let alike = free.filter(|it| old.steps.get(*it).is_some_and(|it| it.kind == step.kind));
        let other = |it: &usize| old.steps.get(*it).is_none_or(|it| it.target != step.target);
        if let Some(found) = alike.min_by_key(|it| (other(it), near(it))) {
            taken.insert((found, target));
            out[at] = Some(found);
        }
    }
    // What stood in its place, if that is nowhere else now.
    for (at, step) in new.steps.iter().enumerate() {
        if out[at].is_none() {
            let place = |(at, it): &(usize, &Step)| {
                same_place(it, step) && !taken.contains(&(*at, step.target.as_str()))
            };
            let places = old.steps.iter().enumerate().filter(place);
            let found = places.min_by_key(|(_, it)| it.target != step.target).map(|(at, _)| at);
            taken.extend(found.map(|at| (at, step.target.as_str())));
            out[at] = found;
        }
    }
    out
}

fn same_place(old: &Step, new: &Step) -> bool {
    old.kind == new.kind
        && old.platform == new.platform
        && old.stage == new.stage
        && old.ordinal == new.ordinal
        // An image's text is its name, which is what may have changed.
        && (new.kind == StepKind::Image || keyword(&old.text) == keyword(&new.text))
}

fn keyword(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}
