//! Cached builds of all kinds: random Dockerfiles give the same files clean, cached and imported; platforms share a cache.

use rbuild::BuildRequest;
use rbuild_testkit::fixture::make_tree;
use rbuild_testkit::images::append;
use rbuild_testkit::normalize::Times;
use rbuild_testkit::registry::TestRegistry;
use rbuild_testkit::space::Space;

use crate::caches::{TREE, layers_read, to, to_dir};
use crate::common::{assert_same_lines, build, image_of, output, request, require_root};
use crate::imports::{from, local};

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % sides
    }
}

/// A Dockerfile of a few stages that read files of the context and each other.
fn any_dockerfile(dice: &mut Dice) -> String {
    let mut text = String::new();
    let stages = 1 + dice.roll(4);
    for stage in 0..stages {
        match dice.roll(3) {
            0 if stage > 0 => text.push_str(&format!("FROM s{} AS s{stage}\n", dice.roll(stage))),
            1 => text.push_str(&format!("FROM BASE AS s{stage}\n")),
            _ => text.push_str(&format!("FROM scratch AS s{stage}\n")),
        }
        // Whoever copies from it finds at least this.
        text.push_str("COPY src/a /x/first\n");
        for step in 0..dice.roll(4) {
            let file = ["src", "src/a", "src/b", "note", "src/*"][dice.roll(5)];
            let line = match dice.roll(7) {
                0 => format!("COPY {file} /d{step}/\n"),
                1 => format!("COPY --link {file} /l{step}/\n"),
                2 if stage > 0 => format!("COPY --from=s{} /x /from{step}\n", dice.roll(stage)),
                3 => format!("WORKDIR /w{step}\n"),
                4 => format!("ENV E{step}={}\n", dice.roll(3)),
                5 => format!("COPY --chmod=7{}5 {file} /m{step}/\n", dice.roll(8)),
                _ => format!("COPY <<E /h{step}\nhere {}\nE\n", dice.roll(3)),
            };
            text.push_str(&line);
        }
    }
    text
}

#[test]
fn a_cached_build_equals_a_clean_build() {
    if !require_root() {
        return;
    }
    for seed in 0..24 {
        let text = any_dockerfile(&mut Dice(seed));
        let files = |space: &Space, request: BuildRequest| {
            let (built, image) = image_of(space, request);
            let listing = format!("{}\n{text}", built.text());
            built.ok();
            (built, listing, image.expect("it was built").rootfs().listing(Times::Hidden))
        };
        let at = |space: &Space| {
            make_tree(&space.context(), TREE);
            request(space, &text)
        };
        let (cold, warm) = (Space::new(), Space::new());
        let dir = cold.path("cache");
        let mode = ["min", "max"][usize::from(seed % 3 > 0)];
        let clean =
            files(&cold, BuildRequest { cache_to: to_dir(&dir, &format!(",mode={mode}")), ..at(&cold) });
        let again = files(&cold, at(&cold));
        let imported = files(&warm, BuildRequest { cache_from: local(&dir), ..at(&warm) });
        let after = files(&warm, at(&warm));
        for (what, (built, steps, listing)) in [("again", again), ("imported", imported), ("after", after)] {
            assert_eq!(built.ok().ran, 0, "{seed}, {mode}, {what}:\n{steps}");
            assert_same_lines(&clean.2, &listing, &format!("{seed}, {mode}, {what}:\n{steps}"));
        }
    }
}

/// A base for two platforms, whose layers differ.
fn two_platforms(registry: &TestRegistry) {
    let layer = |text: &str| {
        let mut tar = tar::Builder::new(vec![]);
        append(&mut tar, "arch", 0o644, tar::EntryType::Regular, text.as_bytes(), None);
        tar.into_inner().expect("a tar in memory")
    };
    let amd64 = registry.put_image("base", "amd64", "amd64", &[layer("amd64")]);
    let arm64 = registry.put_image("base", "arm64", "arm64", &[layer("arm64")]);
    registry.put_index("base", "latest", &[("linux/amd64", &amd64), ("linux/arm64", &arm64)]);
}

#[test]
fn platforms_share_a_cache() {
    if !require_root() {
        return;
    }
    let registry = TestRegistry::start();
    two_platforms(&registry);
    let on = |space: &Space, platforms: &[&str]| {
        make_tree(&space.context(), TREE);
        let dockerfile = format!("FROM {}/base\nCOPY src /src\nCOPY note /note\n", registry.host());
        let mut request = request(space, &dockerfile);
        request.platforms = platforms.iter().map(|it| it.parse().expect("a platform")).collect();
        request
    };
    let (amd64, arm64) = (["linux/amd64"], ["linux/arm64"]);
    // One after the other into the same place, from machines that know nothing of each other.
    for platform in [&amd64, &arm64] {
        let space = Space::new();
        let mut request = on(&space, platform);
        request.cache_to = to(&format!("type=registry,ref={}/app:cache", registry.host()));
        build(&space, &request).ok();
    }
    // And both at once inside an image.
    let space = Space::new();
    let mut request = on(&space, &["linux/amd64", "linux/arm64"]);
    request.cache_to = to("type=inline");
    request.outputs = vec![output(&format!("type=registry,name={}/app:image", registry.host()))];
    build(&space, &request).ok();
    registry.clear_log();
    for tag in ["cache", "image"] {
        let space = Space::new();
        let mut request = on(&space, &["linux/amd64", "linux/arm64"]);
        request.cache_from = from(&format!("{}/app:{tag}", registry.host()));
        let built = build(&space, &request);
        assert_eq!((built.ok().ran, built.ok().cached), (0, 4), "{tag}:\n{}", built.text());
        assert_eq!(layers_read(&registry, "app").len(), 0);
    }
}
