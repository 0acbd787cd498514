//! File operations: the actions with only the base names of what they copy; the whole paths stand in the links to
//! the inputs, and in what is hashed of their contents.

use std::collections::BTreeMap;

use rbuild_digest::Digest;
use rbuild_graph::{
    Chown, CopyAction, FileAction, FileKind, FileOp, MkdirAction, MkfileAction, RmAction, SymlinkAction,
    UserRef,
};
use rbuild_tree::{SelectOptions, go_path, has_wildcard};

use super::exec::dedupe;
use super::finish;
use crate::doc::Doc;
use crate::{CacheMap, ContentSelector, ContentSpec, Dep};

pub(super) fn cache_map(op: &FileOp, inputs: usize) -> CacheMap {
    let FileOp { actions, epoch: _ } = op;
    let mut doc = Doc::new();
    doc.element("", |doc| {
        doc.silent("Type", "buildkit.file.v0");
        doc.array("Actions", actions, |doc, i, action| {
            let prefix = if actions.len() == 1 { String::new() } else { format!("action {i} ") };
            doc.encoded(&prefix, |doc| action_fields(doc, action, inputs));
        });
        let indexes: Vec<[i64; 3]> = actions.iter().map(action_indexes).collect();
        if !are_default(&indexes) {
            doc.array("indexes", &indexes, |doc, i, row| {
                let [input, secondary, output] = row;
                doc.item(&format!("indexes[{i}]"), &format!("[{input},{secondary},{output}]"));
            });
        }
    });
    let deps = deps(actions, inputs, &mut doc);
    finish(doc, deps)
}

fn action_indexes(action: &FileAction) -> [i64; 3] {
    let FileAction { input, secondary_input, output, kind: _ } = action;
    [input, secondary_input, output].map(|index| index.map_or(-1, i64::from))
}

/// Whether the actions are chained in the usual way: then the indexes are left out, as old versions did. Positions
/// are counted from the number of actions, not of inputs: so the usual chain of several sources counts as usual
/// only where both agree.
fn are_default(indexes: &[[i64; 3]]) -> bool {
    let count = indexes.len();
    let chained = indexes.iter().enumerate().all(|(i, [input, secondary, output])| {
        let first = i == 0;
        let last = i + 1 == count;
        let previous = i64::try_from(count + i).unwrap_or(i64::MAX) - 1;
        *input == (if first { 0 } else { previous })
            && matches!(secondary, -1 | 1)
            && *output == (if last { 0 } else { -1 })
    });
    count > 0 && chained
}

fn action_fields(doc: &mut Doc, action: &FileAction, inputs: usize) {
    let FileAction { input: _, secondary_input, output: _, kind } = action;
    match kind {
        FileKind::Copy(copy) => {
            let from_input = secondary_input.is_some_and(|index| (index as usize) < inputs);
            copy_fields(doc, copy, from_input);
        }
        FileKind::Mkfile(MkfileAction { path, mode, data, owner, timestamp }) => {
            doc.note("action", "mkfile");
            doc.text("path", path);
            doc.number("mode", i64::from(*mode));
            doc.bytes("data", data);
            owner_fields(doc, owner.as_ref());
            timestamp_field(doc, *timestamp);
        }
        FileKind::Mkdir(MkdirAction { path, mode, make_parents, owner, timestamp }) => {
            doc.note("action", "mkdir");
            doc.text("path", path);
            doc.number("mode", i64::from(*mode));
            doc.flag("makeParents", *make_parents);
            owner_fields(doc, owner.as_ref());
            timestamp_field(doc, *timestamp);
        }
        FileKind::Rm(RmAction { path, allow_not_found, allow_wildcard }) => {
            doc.note("action", "rm");
            doc.text("path", path);
            doc.flag("allowNotFound", *allow_not_found);
            doc.flag("allowWildcard", *allow_wildcard);
        }
        FileKind::Symlink(SymlinkAction { oldpath, newpath, owner, timestamp }) => {
            doc.note("action", "symlink");
            doc.text("oldpath", oldpath);
            doc.text("newpath", newpath);
            owner_fields(doc, owner.as_ref());
            timestamp_field(doc, *timestamp);
        }
    }
}

fn copy_fields(doc: &mut Doc, copy: &CopyAction, from_input: bool) {
    let CopyAction {
        src,
        dest,
        owner,
        mode,
        mode_str,
        follow_symlink,
        dir_copy_contents,
        attempt_unpack,
        create_dest_path,
        allow_wildcard,
        allow_empty_wildcard,
        timestamp,
        include,
        exclude,
        always_replace_existing,
        required_paths,
    } = copy;
    doc.note("action", "copy");
    doc.text("src", if from_input { go_path::base(src) } else { src });
    doc.text("dest", dest);
    owner_fields(doc, owner.as_ref());
    // Keeping modes is -1, unless symbolic permissions change them: then the field stays empty.
    let kept = if mode_str.is_empty() { -1 } else { 0 };
    doc.number("mode", mode.map_or(kept, i64::from));
    doc.flag("followSymlink", *follow_symlink);
    doc.flag("dirCopyContents", *dir_copy_contents);
    doc.flag("attemptUnpackDockerCompatibility", *attempt_unpack);
    doc.flag("createDestPath", *create_dest_path);
    doc.flag("allowWildcard", *allow_wildcard);
    doc.flag("allowEmptyWildcard", *allow_empty_wildcard);
    timestamp_field(doc, *timestamp);
    doc.strings("include_patterns", include);
    doc.strings("exclude_patterns", exclude);
    doc.flag("alwaysReplaceExistingDestPaths", *always_replace_existing);
    doc.text("modeStr", mode_str);
    doc.strings("required_paths", required_paths);
}

fn timestamp_field(doc: &mut Doc, timestamp: Option<i64>) {
    doc.number("timestamp", timestamp.unwrap_or(-1));
}

fn owner_fields(doc: &mut Doc, owner: Option<&Chown>) {
    let Some(Chown { user, group }) = owner else { return };
    doc.object("owner", "owner.", |doc| {
        for (name, who) in [("user", user), ("group", group)] {
            let Some(who) = who else { continue };
            doc.object(name, &format!("{name}."), |doc| {
                doc.object("User", "", |doc| match who {
                    UserRef::Id(0) => doc.note("byId", "0"),
                    UserRef::Id(id) => doc.number("byId", i64::from(*id)),
                    UserRef::Name { name, input } => doc.object("byName", "", |doc| {
                        doc.text("name", name);
                        doc.number("input", input.map_or(-1, i64::from));
                    }),
                });
            });
        }
    });
}

/// What is read of each input that no action changes.
fn deps(actions: &[FileAction], inputs: usize, doc: &mut Doc) -> Vec<Dep> {
    let mut read: BTreeMap<u32, Vec<ContentSelector>> = BTreeMap::new();
    for FileAction { input: _, secondary_input, output: _, kind } in actions {
        let owner = match kind {
            FileKind::Copy(copy) => copy.owner.as_ref(),
            FileKind::Mkfile(mkfile) => mkfile.owner.as_ref(),
            FileKind::Mkdir(mkdir) => mkdir.owner.as_ref(),
            // As in BuildKit: a link's owner by name does not count.
            FileKind::Symlink(_) | FileKind::Rm(_) => None,
        };
        for (index, path) in owner_files(owner) {
            let options = SelectOptions { follow_links: true, ..SelectOptions::default() };
            read.entry(index).or_default().push(ContentSelector { path: path.to_owned(), options });
        }
        if let (FileKind::Copy(copy), Some(index)) = (kind, secondary_input) {
            read.entry(*index).or_default().push(copy_selector(copy));
        }
    }
    let changed = |index: u32| actions.iter().any(|action| action.input == Some(index));
    let mut out = vec![Dep::default(); inputs];
    for (index, selectors) in read {
        if changed(index) {
            continue;
        }
        let Some(dep) = out.get_mut(index as usize) else { continue };
        let mut paths: Vec<&str> = selectors.iter().map(|selector| selector.path.as_str()).collect();
        paths.sort_unstable_by(|a, b| b.cmp(a));
        for path in &paths {
            doc.note(&format!("input {index} path"), path);
        }
        dep.selector = Some(Digest::of(paths.join("\0")));
        dep.content = Some(ContentSpec { selectors: dedupe_selectors(selectors) });
    }
    out
}

/// Which files of which inputs turn names into numbers.
fn owner_files(owner: Option<&Chown>) -> Vec<(u32, &'static str)> {
    let Some(Chown { user, group }) = owner else { return Vec::new() };
    [(user, "/etc/passwd"), (group, "/etc/group")]
        .into_iter()
        .filter_map(|(who, path)| match who {
            Some(UserRef::Name { name: _, input: Some(input) }) => Some((*input, path)),
            _ => None,
        })
        .collect()
}

fn copy_selector(copy: &CopyAction) -> ContentSelector {
    let options = SelectOptions {
        wildcard: copy.allow_wildcard && has_wildcard(&copy.src),
        follow_links: copy.follow_symlink,
        include: copy.include.clone(),
        exclude: copy.exclude.clone(),
        required: copy.required_paths.clone(),
    };
    ContentSelector { path: copy.src.clone(), options }
}

/// Plain paths each once and without what lies in another one; the rest as it is; sorted by path.
fn dedupe_selectors(selectors: Vec<ContentSelector>) -> Vec<ContentSelector> {
    let (filtered, plain): (Vec<_>, Vec<_>) = selectors.into_iter().partition(|selector| {
        let SelectOptions { wildcard, follow_links: _, include, exclude, required } = &selector.options;
        *wildcard || !include.is_empty() || !exclude.is_empty() || !required.is_empty()
    });
    let mut out = Vec::new();
    for follow_links in [false, true] {
        let paths: Vec<String> = plain
            .iter()
            .filter(|selector| selector.options.follow_links == follow_links)
            .map(|selector| selector.path.clone())
            .collect();
        let options = SelectOptions { follow_links, ..SelectOptions::default() };
        out.extend(dedupe(paths).into_iter().map(|path| ContentSelector { path, options: options.clone() }));
    }
    out.extend(filtered);
    out.sort_by(|a, b| a.path.cmp(&b.path));
    // A trailing slash counts in the link's selector, not in what is hashed.
    for selector in &mut out {
        selector.path = go_path::join(&["/", &selector.path]);
    }
    out
}
