//! Merge and diff: only positions of inputs. Their inputs are known by definition alone.

use rbuild_graph::{DiffOp, MergeOp};

use super::finish;
use crate::doc::Doc;
use crate::{CacheMap, Dep};

pub(super) fn merge(op: &MergeOp, inputs: usize) -> CacheMap {
    let MergeOp { inputs: positions } = op;
    let mut doc = Doc::new();
    doc.element("", |doc| {
        doc.silent("Type", "buildkit.merge.v0");
        doc.object("Merge", "", |doc| {
            doc.array("inputs", positions, |doc, i, position| {
                doc.element("", |doc| doc.silent_number("input", i64::from(*position)));
                doc.note(&format!("inputs[{i}]"), &position.to_string());
            });
        });
    });
    finish(doc, vec![Dep::default(); inputs])
}

pub(super) fn diff(op: &DiffOp, inputs: usize) -> CacheMap {
    let DiffOp { lower, upper } = op;
    let mut doc = Doc::new();
    doc.element("", |doc| {
        doc.silent("Type", "buildkit.diff.v0");
        doc.object("Diff", "", |doc| {
            for (name, position) in [("lower", lower), ("upper", upper)] {
                let number = position.map_or(-1, i64::from);
                doc.object(name, "", |doc| doc.silent_number("input", number));
                doc.note(name, &position.map_or_else(|| "scratch".to_owned(), |it| it.to_string()));
            }
        });
    });
    finish(doc, vec![Dep::default(); inputs])
}
