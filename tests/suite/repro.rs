//! The same inputs give the same bytes, whatever the number of jobs, the umask, the place, and the time of the build.

use rbuild_testkit::fixture::make_tree;
use rbuild_testkit::images::{Image, read};
use rbuild_testkit::normalize::Rootfs;
use rbuild_testkit::space::Space;

use crate::common::{build, image, output, request, require_root, require_sandbox};

const TREE: &str = "f a 644 one\nf d/b 755 two\nl d/link b\nh d/hard d/b\nd d/empty 700\nx a user.test value";
const DOCKERFILE: &str = "FROM scratch AS one\nCOPY d /d\nCOPY --chown=5:6 a /owned/\nFROM scratch\nCOPY --from=one / /one\nCOPY --link a /a\nCOPY . /all\nWORKDIR /w\nENV A=b\n";

fn layers(space: &Space, jobs: Option<usize>, spec: &str) -> Image {
    if !space.context().exists() {
        make_tree(&space.context(), TREE);
    }
    let mut request = request(space, DOCKERFILE);
    request.jobs = jobs;
    request.build_args = vec![("SOURCE_DATE_EPOCH".to_owned(), "1577836800".to_owned())];
    let path = space.path("image.tar");
    request.outputs = vec![output(&format!("type=oci,{spec},dest={}", path.display()))];
    build(space, &request).ok();
    read(&path)
}

#[test]
fn another_place_and_another_number_of_jobs() {
    if !require_root() {
        return;
    }
    for spec in ["compression=gzip", "compression=zstd", "compression=uncompressed"] {
        let one = layers(&Space::new(), Some(1), spec);
        let many = layers(&Space::new(), None, spec);
        assert_eq!(one.digest, many.digest, "{spec}: the manifest differs");
    }
}

#[test]
fn times_after_the_epoch_are_rewritten_where_that_is_asked_for() {
    if !require_root() {
        return;
    }
    let built = |seconds: u64, spec: &str| {
        let space = Space::new();
        make_tree(&space.context(), TREE);
        let file = std::fs::File::options().write(true).open(space.context().join("a")).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)).unwrap();
        layers(&space, None, spec)
    };
    let (early, late, later) = (1_500_000_000, 1_900_000_000, 1_900_000_007);
    for kind in ["gzip", "uncompressed"] {
        let spec = format!("compression={kind},rewrite-timestamp=true");
        assert_eq!(built(late, &spec).digest, built(later, &spec).digest, "{kind}");
        assert_ne!(built(early, &spec).digest, built(late, &spec).digest, "earlier times stay");
    }
    assert_ne!(built(late, "compression=gzip").digest, built(later, "compression=gzip").digest);
}

#[test]
fn a_build_from_the_cache_gives_what_the_first_gave() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    let first = layers(&space, None, "compression=gzip");
    let second = layers(&space, None, "compression=gzip");
    assert_eq!(first.digest, second.digest);
}

#[test]
fn steps_give_the_same_files() {
    if !require_root() || !require_sandbox() {
        return;
    }
    let dockerfile = "FROM BASE\nRUN mkdir -p /a/b && echo x > /a/b/c && ln -s c /a/b/l && ln /a/b/c /a/b/h && chown 5:6 /a/b/c\nRUN rm -r /a && mkdir /a && touch /a/new";
    let layers = || {
        let (built, image) = image(&Space::new(), "", dockerfile);
        built.ok();
        let layers = image.expect("it was built").layers;
        let list = |layer: &Vec<u8>| Rootfs::entries(layer);
        layers.iter().skip(1).map(list).collect::<Vec<_>>()
    };
    let first = layers();
    assert_eq!(first, layers());
    assert_eq!(
        first[1],
        ["a d 0755 0:0", "a/.wh..wh..opq f 0000 0:0 \"\"", "a/new f 0644 0:0 \"\""],
        "a directory that was made anew hides the old one's contents"
    );
}
