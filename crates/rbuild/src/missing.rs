//! Explains why a COPY, an ADD or a mount did not find its source: an ignore file leaves it out, it is named a little differently, or the
//! path means something else. Looks at the directories only once a build has failed.

use std::path::{Path, PathBuf};

use rbuild_diag::Diagnostic;
use rbuild_graph::{CopyAction, Edge, FileKind, Graph, NodeId, Op, SourceOp};
use rbuild_tree::IgnoreFile;

use crate::{BuildRequest, Context, DockerfileSource, NamedContextSource, inputs};

/// More names than this are not looked at for a similar one.
const MAX_NAMES: usize = 10_000;
/// More names than this are not listed.
const MAX_LISTED: usize = 12;

/// Rewrites `finding`, that something which `step` copies or mounts was not found, where the graph tells what and from
/// where.
pub(crate) fn explain(finding: &mut Diagnostic, graph: &Graph, step: NodeId, request: &BuildRequest) {
    // The engine's message begins with the quoted path.
    let Some(missing) = finding.message.split('"').nth(1).map(|path| path.trim_matches('/').to_owned())
    else {
        return;
    };
    let Some(Wanted { verb, path, from }) = wanted(graph, step, &missing) else { return };
    let from = graph.node(from.node);
    match &from.op {
        Op::Source(SourceOp::Local(local)) => {
            let Some(dir) = directory(request, &local.name) else { return };
            let place = if local.name == "context" {
                "the build context".to_owned()
            } else {
                format!("the context {:?}", local.name)
            };
            finding.message = format!("cannot {verb} {missing:?}: {place} has no such file or directory");
            in_directory(finding, &dir, &missing, ignore_file(request, &local.name, &dir).as_ref());
        }
        Op::Source(SourceOp::Image(image)) => {
            finding.message = format!(
                "cannot {verb} {path:?}: the image {} has no such file or directory",
                image.reference
            );
        }
        _ if !from.meta.stage.is_empty() => {
            finding.message = format!(
                "cannot {verb} {path:?}: the stage {:?} has no such file or directory",
                from.meta.stage
            );
        }
        _ => {}
    }
}

/// Adds what may be meant by a malformed pattern: in brackets that are no JSON the paths are patterns.
pub(crate) fn explain_pattern(finding: &mut Diagnostic) {
    if finding.help.is_some() || !finding.message.contains("invalid pattern") {
        return;
    }
    let mut words = written(finding).unwrap_or_default().split_whitespace().skip(1);
    let json = words.find(|word| !word.starts_with("--")).is_some_and(|word| word.starts_with('['));
    finding.help = Some(if json {
        "this is no JSON, so its words are patterns: put double quotes around each, as in [\"a\", \"/b/\"]"
            .to_owned()
    } else {
        "a [ must have its ], and a backslash must have a character after it".to_owned()
    });
}

/// What a step asks for.
struct Wanted<'a> {
    verb: &'static str,
    path: &'a str,
    from: &'a Edge,
}

/// What of all that `step` asks for is `missing`, which is the path itself, or one that a link or a pattern led to.
fn wanted<'a>(graph: &'a Graph, step: NodeId, missing: &str) -> Option<Wanted<'a>> {
    let node = graph.node(step);
    let input = |index: Option<u32>| node.inputs.get(index? as usize);
    let all: Vec<(Wanted<'a>, bool)> = match &node.op {
        Op::File(file) => file
            .actions
            .iter()
            .filter_map(|action| match &action.kind {
                FileKind::Copy(copy) => {
                    let from = input(action.secondary_input)?;
                    Some((Wanted { verb: "copy", path: &copy.src, from }, names(copy, missing)))
                }
                _ => None,
            })
            .collect(),
        Op::Exec(exec) => exec
            .spec
            .mounts
            .iter()
            .filter(|mount| !matches!(mount.selector.as_str(), "" | "/"))
            .filter_map(|mount| {
                let path = mount.selector.as_str();
                let from = input(mount.input)?;
                Some((Wanted { verb: "mount", path, from }, path.trim_matches('/') == missing))
            })
            .collect(),
        _ => return None,
    };
    let exact = all.iter().position(|(_, exact)| *exact).unwrap_or(0);
    all.into_iter().nth(exact).map(|(wanted, _)| wanted)
}

fn names(copy: &CopyAction, missing: &str) -> bool {
    let same = |path: &str| path.trim_matches('/') == missing;
    same(&copy.src) || copy.required_paths.iter().any(|path| same(path))
}

fn directory(request: &BuildRequest, name: &str) -> Option<PathBuf> {
    let named = request.named_contexts.iter().find_map(|context| match &context.value {
        NamedContextSource::Dir(dir) if context.name == name => Some(dir.clone()),
        _ => None,
    });
    match &request.context {
        _ if named.is_some() => named,
        Context::Dir(dir) if name == "context" => Some(dir.clone()),
        _ => None,
    }
}

/// The ignore file's name and lines.
fn ignore_file(request: &BuildRequest, name: &str, dir: &Path) -> Option<(String, IgnoreFile)> {
    let beside = match &request.dockerfile {
        DockerfileSource::File(path) => Some(path.clone()),
        DockerfileSource::Default => Some(dir.join("Dockerfile")),
        DockerfileSource::Text { .. } => None,
    };
    let found = if name == "context" {
        inputs::ignore_file(dir, beside.as_deref())
    } else {
        inputs::context_ignore_file(dir)
    };
    let file = found.ok()?.file?;
    Some((file.name().to_owned(), IgnoreFile::parse(file.text()).ok()?))
}

fn in_directory(finding: &mut Diagnostic, dir: &Path, missing: &str, ignore: Option<&(String, IgnoreFile)>) {
    if std::fs::symlink_metadata(dir.join(missing)).is_ok() {
        if let Some((name, ignore)) = ignore
            && let Some(line) = ignore.which_excludes(missing)
        {
            finding.notes.push(format!(
                "it is there, but line {} of {name} ({:?}) leaves it out of the context",
                line.line, line.pattern
            ));
            finding.help = Some(format!("remove or narrow that line, or add a line !{missing} below it"));
        } else if let Ok(target) = std::fs::read_link(dir.join(missing)) {
            let target = target.display().to_string();
            finding
                .notes
                .push(format!("{missing} is a symbolic link to {target:?}, which is not in the context"));
            finding.help = Some(format!(
                "correct the link, or leave it out with an ignore file: {target:?} is looked for inside the context"
            ));
        } else if let Some((link, target)) = link_above(dir, missing) {
            finding.help = None;
            finding
                .notes
                .push(format!("{link} is a symbolic link to {target:?}, and links are not followed here"));
        } else {
            let pivot = written(finding).is_some_and(|text| text.contains("/./"));
            finding.help = pivot.then(|| format!("write {missing}/./* for what is in it"));
            finding.notes.push(format!("the context is {}, and it has {missing}", dir.display()));
        }
        return;
    }
    if written(finding).is_some_and(|text| text.contains("../")) {
        finding.notes.push("the context is as far up as `..` leads".to_owned());
    } else if Path::new("/").join(missing).exists()
        && written(finding).is_some_and(|text| text.contains(" /"))
    {
        finding.notes.push(format!("/{missing} of this machine is not meant: paths begin at the context"));
    }
    finding.notes.push(format!("the context is {}", dir.display()));
    let (mut here, mut shown) = (dir.to_owned(), String::new());
    for name in missing.split('/') {
        if here.join(name).is_dir() {
            here.push(name);
            shown.push_str(name);
            shown.push('/');
            continue;
        }
        let names = listing(&here);
        if let Some(similar) =
            rbuild_diag::nearest(name, names.iter().map(String::as_str).filter(|other| *other != name))
        {
            let rest = missing.get(shown.len() + name.len()..).unwrap_or_default();
            let rest = if here.join(similar).is_dir() { rest } else { "" };
            finding.help = Some(format!("did you mean {:?}?", format!("{shown}{similar}{rest}")));
        } else if names.is_empty() {
            finding.help = Some("the directory is empty: is it the right one?".to_owned());
        } else {
            let more = if names.len() > MAX_LISTED { ", …" } else { "" };
            let listed = names.iter().take(MAX_LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
            let place = if shown.is_empty() { "it".to_owned() } else { shown.clone() };
            finding.notes.push(format!("{place} has: {listed}{more}"));
            finding.help = Some(
                "paths are relative to the context: is it the right directory, and was the file made?"
                    .to_owned(),
            );
        }
        return;
    }
}

/// The first directory above `path` that is a symbolic link, and where it leads.
fn link_above(dir: &Path, path: &str) -> Option<(String, String)> {
    path.match_indices('/').find_map(|(at, _)| {
        let above = path.get(..at)?;
        let target = std::fs::read_link(dir.join(above)).ok()?;
        Some((above.to_owned(), target.display().to_string()))
    })
}

/// The instruction as written.
fn written(finding: &Diagnostic) -> Option<&str> {
    let (file, span) = finding.place.as_ref()?;
    file.text().get(span.range())
}

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .map(|entries| {
            entries
                .flatten()
                .take(MAX_NAMES)
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect()
        })
        .unwrap_or_default();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(dir: &Path, missing: &str, ignore: &str) -> Diagnostic {
        let mut finding = Diagnostic::error(crate::codes::NOT_FOUND, "not found");
        let ignore = IgnoreFile::parse(ignore).ok().map(|file| (".dockerignore".to_owned(), file));
        in_directory(&mut finding, dir, missing, ignore.as_ref());
        finding
    }

    #[test]
    fn says_what_is_there_and_who_leaves_it_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("src/lib")).unwrap();
        std::fs::write(dir.path().join("src/lib/main.c"), "").unwrap();
        for (missing, help) in [
            ("scr/lib/main.c", "did you mean \"src/lib/main.c\"?"),
            ("src/lib/mian.c", "did you mean \"src/lib/main.c\"?"),
            ("src/lib/main.c/x", "paths are relative"),
        ] {
            let got = finding(dir.path(), missing, "");
            assert!(got.help.as_deref().unwrap_or_default().starts_with(help), "{missing}: {got:?}");
        }
        assert!(finding(dir.path(), "zzzzzz", "").notes.contains(&"it has: src".to_owned()));
        std::os::unix::fs::symlink("../gone", dir.path().join("src/link")).unwrap();
        let link = finding(dir.path(), "src/link", "");
        assert!(link.notes[0].starts_with("src/link is a symbolic link to \"../gone\""), "{link:?}");
        std::os::unix::fs::symlink("src", dir.path().join("way")).unwrap();
        let above = finding(dir.path(), "way/lib", "");
        assert!(above.notes[0].starts_with("way is a symbolic link to \"src\""), "{above:?}");
        let ignored = finding(dir.path(), "src/lib/main.c", "# no\n*/lib\n");
        assert!(ignored.notes[0].contains("line 2 of .dockerignore (\"*/lib\")"), "{ignored:?}");
        assert!(ignored.help.unwrap().contains("!src/lib/main.c"));
    }
}
