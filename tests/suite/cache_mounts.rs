//! Contents of cache mounts in exported caches: they cross machines in pieces, within a size, beside those of others.

use rbuild::BuildRequest;
use rbuild_testkit::registry::{Fault, TestRegistry};
use rbuild_testkit::space::Space;
use serde_json::Value;

use crate::buildkit::read_json;
use crate::caches::{able, app, read_cache, to, to_dir};
use crate::common::{build, request};
use crate::imports::from;

/// What a step sees and leaves in two cache mounts; `TURN` makes it run again.
const MOUNTS: &str = "FROM BASE\nARG TURN\n\
    RUN --mount=type=cache,target=/c --mount=type=cache,id=own,target=/d,uid=1000,mode=0700 \
    echo turn $TURN sees $(ls /c | wc -l) $(cat /d/note) as $(stat -c %u:%a /d); \
    [ -e /c/large ] || head -c 9000000 /dev/urandom > /c/large; echo $TURN > /c/$TURN; ln -s large /c/link; \
    echo note-of-$TURN > /d/note; chmod 600 /d/note\n";

fn turn(space: &Space, turn: &str) -> BuildRequest {
    let mut request = request(space, MOUNTS);
    request.build_args = vec![("TURN".to_owned(), turn.to_owned())];
    request
}

#[test]
fn cache_mounts_cross_machines() {
    if !able() {
        return;
    }
    let registry = TestRegistry::start();
    let place = format!("type=registry,ref={}/app:cache,mounts=true", registry.host());
    let first = Space::new();
    let mut request = turn(&first, "one");
    request.cache_to = to(&place);
    let built = build(&first, &request);
    assert!(built.log.contains("turn one sees 0 as 1000:700"), "{}", built.log);
    assert_eq!(built.warnings, [""; 0]);
    // Elsewhere the step that has to run begins with what was there; one that is cached fetches nothing of it.
    registry.clear_log();
    let second = Space::new();
    let mut request = turn(&second, "one");
    request.cache_from = from(&format!("{}/app:cache", registry.host()));
    assert_eq!(build(&second, &request).ok().ran, 0);
    assert_eq!(
        registry.lines().iter().filter(|line| line.starts_with("GET") && line.contains("/blobs/")).count(),
        1
    );
    let mut request = turn(&second, "two");
    request.cache_from = from(&format!("{}/app:cache", registry.host()));
    request.cache_to = to(&place);
    registry.clear_log();
    let built = build(&second, &request);
    assert!(built.log.contains("turn two sees 3 note-of-one as 1000:700"), "{}", built.log);
    assert_eq!(built.warnings, [""; 0]);
    // Of nine megabytes only what is about the change is sent.
    let sent: usize = registry
        .requests()
        .iter()
        .filter(|it| it.method == "PUT" || it.method == "PATCH")
        .map(|it| it.body_bytes)
        .sum();
    assert!((1..7_000_000).contains(&sent), "{sent} bytes were sent");
    // Pieces that cannot be had: it begins empty, and says so.
    let third = Space::new();
    let manifest: Value =
        serde_json::from_slice(&registry.manifest("app", "cache").expect("a cache")).expect("JSON");
    for layer in manifest["layers"].as_array().expect("layers") {
        if layer["mediaType"].as_str().is_some_and(|it| it.contains("chunk")) {
            registry.fail("GET", layer["digest"].as_str().expect("a digest"), 100, Fault::FlipBit);
        }
    }
    let mut request = turn(&third, "three");
    request.cache_from = from(&format!("{}/app:cache", registry.host()));
    let built = build(&third, &request);
    assert!(built.log.contains("turn three sees 0 as 1000:700"), "{}", built.log);
    assert_eq!(
        built.warnings.iter().filter(|it| it.contains("begins empty")).count(),
        2,
        "{:?}",
        built.warnings
    );
}

#[test]
fn cache_mounts_have_a_budget_and_stay_beside_others() {
    if !able() {
        return;
    }
    let (space, cache) = (Space::new(), Space::new());
    let dir = cache.path("cache");
    let list = || {
        let (manifest, _) = read_cache(&dir);
        let layers = manifest["layers"].as_array().expect("layers").clone();
        let list = layers
            .into_iter()
            .find(|it| it["mediaType"].as_str().is_some_and(|it| it.contains("cachemounts")));
        let Some(list) = list else { return vec![] };
        let name = list["digest"].as_str().expect("a digest").replace(':', "/");
        let list = read_json(&dir.join("blobs").join(name));
        list["mounts"]
            .as_array()
            .expect("mounts")
            .iter()
            .map(|it| it["id"].as_str().expect("an id").to_owned())
            .collect()
    };
    let mut request = turn(&space, "one");
    request.cache_to = to_dir(&dir, ",mounts=true,mounts-size=1MB");
    let built = build(&space, &request);
    assert!(
        built.warnings.iter().any(|it| it.contains("does not fit into mounts-size")),
        "{:?}",
        built.warnings
    );
    assert_eq!(list(), ["/own"]);
    request.cache_to = to_dir(&dir, ",mounts=true");
    build(&space, &request).ok();
    assert_eq!(list(), ["//c", "/own"]);
    // A build without mounts leaves those of others, and overwriting does not.
    let other = Space::new();
    let mut request = app(&other);
    request.cache_to = to_dir(&dir, ",mode=max");
    build(&other, &request).ok();
    assert_eq!(list(), ["//c", "/own"]);
    request.cache_to = to_dir(&dir, ",merge=false");
    build(&other, &request).ok();
    assert_eq!(list(), [""; 0]);
}

#[test]
fn steps_without_cache_begin_with_empty_mounts() {
    if !able() {
        return;
    }
    let space = Space::new();
    let text = "FROM BASE AS one\nRUN --mount=type=cache,id=m,target=/c echo sees $(ls /c | wc -l); touch /c/$$-$RANDOM\n\
        FROM one\nRUN --mount=type=cache,id=other,target=/c echo other $(ls /c | wc -l); touch /c/$RANDOM\n";
    let saw = |no_cache: rbuild::NoCache, change: &str| {
        let mut request = request(&space, &text.replace("echo", change));
        request.no_cache = no_cache;
        let log = build(&space, &request).log;
        (log.contains("sees 0"), log.contains("other 0"))
    };
    assert_eq!(saw(rbuild::NoCache::None, "echo"), (true, true));
    assert_eq!(saw(rbuild::NoCache::None, "echo again:"), (false, false));
    let only = rbuild::NoCache::Stages(vec!["one".to_owned()]);
    assert_eq!(saw(only, "echo third:"), (true, false));
    assert_eq!(saw(rbuild::NoCache::All, "echo"), (true, true));
}
