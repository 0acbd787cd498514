//! Scripts of build, change, build: which steps ran, and why. Steps are sorted by name.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rbuild::{BuildRequest, NoCache, PruneOptions};
use rbuild_testkit::fixture::{make_tree, set_time};
use rbuild_testkit::images::put_busybox_as;
use rbuild_testkit::space::Space;

use crate::common::{Built, build, builder, output, registry, request, require_root};

const TREE: &str = "f a 644 one\nf b 644 two";
const TWO_COPIES: &str = "FROM scratch\nCOPY a /a\nCOPY b /b";

/// A space with a context, built once.
fn built(tree: &str, dockerfile: &str) -> Option<(Space, BuildRequest)> {
    if !require_root() {
        return None;
    }
    let space = Space::new();
    make_tree(&space.context(), tree);
    let request = request(&space, dockerfile);
    let first = build(&space, &request);
    first.ok();
    assert!(!first.text().contains("cached"), "nothing can be cached in an empty store:\n{}", first.text());
    Some((space, request))
}

#[track_caller]
fn check(built: &Built, expected: &str) {
    built.ok();
    assert_eq!(built.text(), expected);
}

#[test]
fn nothing_changed() {
    let Some((space, request)) = built(TREE, TWO_COPIES) else { return };
    check(&build(&space, &request), "[1/2] COPY a /a: cached\n[2/2] COPY b /b: cached\n");
}

#[test]
fn a_file_changed() {
    let Some((space, request)) = built(TREE, TWO_COPIES) else { return };
    space.write("b", "new");
    check(&build(&space, &request), "[1/2] COPY a /a: cached\n[2/2] COPY b /b: ran, not in the cache\n");
    space.write("b", "two");
    check(&build(&space, &request), "[1/2] COPY a /a: cached\n[2/2] COPY b /b: cached\n");
}

#[test]
fn an_early_file_changed() {
    let Some((space, request)) = built(TREE, TWO_COPIES) else { return };
    space.write("a", "new");
    check(
        &build(&space, &request),
        "[1/2] COPY a /a: ran, not in the cache\n[2/2] COPY b /b: ran, not in the cache\n",
    );
}

#[test]
fn only_a_mode_changed() {
    let Some((space, request)) = built(TREE, TWO_COPIES) else { return };
    fs::set_permissions(space.context().join("b"), fs::Permissions::from_mode(0o755)).unwrap();
    check(&build(&space, &request), "[1/2] COPY a /a: cached\n[2/2] COPY b /b: ran, not in the cache\n");
}

#[test]
fn only_a_time_changed() {
    let Some((space, request)) = built(TREE, TWO_COPIES) else { return };
    set_time(&space.context().join("a"), 1_700_000_000);
    check(&build(&space, &request), "[1/2] COPY a /a: cached\n[2/2] COPY b /b: cached\n");
}

#[test]
fn a_file_that_no_step_reads_changed() {
    let Some((space, request)) = built("f a 644 one\nf b 644 two\nf c 644 three", TWO_COPIES) else { return };
    space.write("c", "new");
    space.write("d", "new");
    check(&build(&space, &request), "[1/2] COPY a /a: cached\n[2/2] COPY b /b: cached\n");
}

#[test]
fn a_file_with_the_same_size_and_time_changed() {
    let Some((space, request)) = built(TREE, TWO_COPIES) else { return };
    let path = space.context().join("b");
    fs::write(&path, "owt").unwrap();
    set_time(&path, rbuild_testkit::fixture::TIME);
    check(&build(&space, &request), "[1/2] COPY a /a: cached\n[2/2] COPY b /b: ran, not in the cache\n");
}

#[test]
fn a_name_in_a_directory_changed() {
    let Some((space, request)) = built("f d/a 644 one", "FROM scratch\nCOPY d /d") else { return };
    fs::rename(space.context().join("d/a"), space.context().join("d/b")).unwrap();
    check(&build(&space, &request), "[1/1] COPY d /d: ran, not in the cache\n");
}

#[test]
fn a_build_argument_changed() {
    let dockerfile = "FROM scratch\nCOPY a /a\nARG to=/x\nCOPY b $to";
    let Some((space, mut request)) = built(TREE, dockerfile) else { return };
    request.build_args = vec![("to".to_owned(), "/y".to_owned())];
    check(&build(&space, &request), "[1/2] COPY a /a: cached\n[2/2] COPY b /y: ran, not in the cache\n");
}

#[test]
fn a_build_argument_that_no_step_uses_changed() {
    let dockerfile = "FROM scratch\nARG unused=1\nCOPY a /a";
    let Some((space, mut request)) = built(TREE, dockerfile) else { return };
    request.build_args = vec![("unused".to_owned(), "2".to_owned())];
    check(&build(&space, &request), "[1/1] COPY a /a: cached\n");
}

#[test]
fn config_alone_changed() {
    let Some((space, _)) = built(TREE, "FROM scratch\nENV A=1\nCOPY a /a\nCMD [\"x\"]") else { return };
    let request = request(&space, "FROM scratch\nENV A=2\nCOPY a /a\nLABEL b=c\nCMD [\"y\"]");
    check(&build(&space, &request), "[1/1] COPY a /a: cached\n");
}

#[test]
fn the_base_moved() {
    if !require_root() {
        return;
    }
    put_busybox_as(registry(), "library/moving", "latest", &[("etc/release", "1")]);
    let base = format!("{}/library/moving:latest", registry().host());
    let dockerfile = format!("FROM {base}\nCOPY a /a");
    let (space, request) = built(TREE, &dockerfile).expect("this is root");
    check(
        &build(&space, &request),
        "[1/2] FROM REGISTRY/library/moving:latest: cached\n[2/2] COPY a /a: cached\n",
    );
    put_busybox_as(registry(), "library/moving", "latest", &[("etc/release", "2")]);
    let second = build(&space, &request);
    check(&second, "[2/2] COPY a /a: ran, not in the cache\n");
    let trace = second.ok().trace.clone().expect("a build is written down");
    let causes: Vec<String> = rbuild::explanation(&trace)
        .roots
        .iter()
        .flat_map(|root| root.causes.iter().map(ToString::to_string))
        .collect();
    assert_eq!(causes.len(), 1, "{causes:?}");
    assert!(causes[0].contains("/library/moving:latest moved from sha256:"), "{causes:?}");
}

#[test]
fn no_cache() {
    let Some((space, mut request)) = built(TREE, TWO_COPIES) else { return };
    request.no_cache = NoCache::All;
    check(
        &build(&space, &request),
        "[1/2] COPY a /a: ran, no cache wanted\n[2/2] COPY b /b: ran, no cache wanted\n",
    );
    request.no_cache = NoCache::None;
    check(&build(&space, &request), "[1/2] COPY a /a: cached\n[2/2] COPY b /b: cached\n");
}

#[test]
fn no_cache_for_one_stage() {
    let dockerfile = "FROM scratch AS one\nCOPY a /a\nFROM scratch AS two\nCOPY b /b\nCOPY --from=one /a /a";
    let Some((space, mut request)) = built(TREE, dockerfile) else { return };
    request.no_cache = NoCache::Stages(vec!["one".to_owned()]);
    // The stage gives what it gave before, so what follows is a hit again.
    check(
        &build(&space, &request),
        "[one 1/1] COPY a /a: ran, no cache wanted\n[two 1/2] COPY b /b: cached\n[two 2/2] COPY --from=one /a /a: cached\n",
    );
}

#[test]
fn stages_are_independent() {
    let dockerfile = "FROM scratch AS one\nCOPY a /a\nFROM scratch AS two\nCOPY b /b\nFROM scratch\nCOPY --from=one /a /\nCOPY --from=two /b /";
    let Some((space, request)) = built(TREE, dockerfile) else { return };
    space.write("b", "new");
    check(
        &build(&space, &request),
        "[one 1/1] COPY a /a: cached\n[stage-2 1/2] COPY --from=one /a /: cached\n[stage-2 2/2] COPY --from=two /b /: ran, not in the cache\n[two 1/1] COPY b /b: ran, not in the cache\n",
    );
}

#[test]
fn what_comes_out_the_same_ends_the_change() {
    let dockerfile = "FROM scratch AS one\nCOPY d /d\nFROM scratch\nCOPY --from=one /d/keep /keep\nCOPY b /b";
    let Some((space, request)) = built("f d/keep 644 one\nf d/noise 644 1\nf b 644 two", dockerfile) else {
        return;
    };
    space.write("d/noise", "2");
    check(
        &build(&space, &request),
        "[one 1/1] COPY d /d: ran, not in the cache\n[stage-1 1/2] COPY --from=one /d/keep /keep: cached\n[stage-1 2/2] COPY b /b: cached\n",
    );
}

#[test]
fn the_ignore_file_changed() {
    let Some((space, request)) = built("f a 644 one\nf b 644 two", "FROM scratch\nCOPY . /\n") else {
        return;
    };
    space.write(".dockerignore", "b\n.dockerignore\n");
    check(&build(&space, &request), "[1/1] COPY . /: ran, not in the cache\n");
    space.write("b", "new");
    check(&build(&space, &request), "[1/1] COPY . /: cached\n");
}

#[test]
fn an_unused_stage_is_not_built() {
    let dockerfile = "FROM scratch AS unused\nCOPY missing /\nFROM scratch\nCOPY a /a";
    let Some((space, request)) = built(TREE, dockerfile) else { return };
    check(&build(&space, &request), "[stage-1 1/1] COPY a /a: cached\n");
}

#[test]
fn after_pruning_everything() {
    let Some((space, request)) = built(TREE, TWO_COPIES) else { return };
    let report = builder(&space).store().prune(&PruneOptions { all: true, ..PruneOptions::default() });
    assert!(!report.expect("pruning").removed.is_empty());
    let again = build(&space, &request);
    assert!(again.text().contains("COPY a /a: ran, "), "{}", again.text());
    assert!(again.text().contains("COPY b /b: ran, "), "{}", again.text());
    check(&build(&space, &request), "[1/2] COPY a /a: cached\n[2/2] COPY b /b: cached\n");
}

#[test]
fn a_cached_build_still_writes_its_outputs() {
    let Some((space, mut request)) = built(TREE, TWO_COPIES) else { return };
    let path = space.path("out");
    request.outputs = vec![output(&format!("type=local,dest={}", path.display()))];
    check(&build(&space, &request), "[1/2] COPY a /a: cached\n[2/2] COPY b /b: cached\n");
    assert_eq!(fs::read_to_string(path.join("b")).unwrap(), "two");
}

#[test]
fn another_place_with_the_same_files_is_a_hit() {
    let Some((space, _)) = built(TREE, TWO_COPIES) else { return };
    let other = space.path("other");
    make_tree(&other, TREE);
    let mut moved = request(&space, TWO_COPIES);
    moved.context = rbuild::Context::Dir(other);
    check(&build(&space, &moved), "[1/2] COPY a /a: cached\n[2/2] COPY b /b: cached\n");
}
