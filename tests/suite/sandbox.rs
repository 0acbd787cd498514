//! What a step sees and leaves: `test_data/sandbox.txt`, and what needs more than a listing. `UPDATE_EXPECT=1` writes the
//! expectations anew.

use std::fs;

use rbuild::{Secret, SecretBytes, SecretSource};
use rbuild_testkit::fixture::{Case, cases, make_tree, write_cases};
use rbuild_testkit::normalize::{Rootfs, Times};
use rbuild_testkit::space::Space;

use crate::common::{
    Built, assert_same_lines, build, builder, data, image, image_of, request, require_root, require_sandbox,
    updating,
};

#[test]
fn steps() {
    if !require_root() || !require_sandbox() {
        return;
    }
    let path = data("sandbox.txt");
    let text = fs::read_to_string(&path).expect("a file of cases");
    let expected = cases(&text);
    let (first, second) = expected.split_at(expected.len() / 2);
    let found: Vec<Case> = std::thread::scope(|scope| {
        let second = scope.spawn(|| second.iter().map(run).collect::<Vec<_>>());
        let mut found: Vec<Case> = first.iter().map(run).collect();
        found.extend(second.join().expect("no case panics"));
        found
    });
    if updating() {
        fs::write(&path, write_cases(&text, &found)).expect("a file of cases");
        return;
    }
    for (expected, found) in expected.iter().zip(&found) {
        for section in ["result", "error"] {
            assert_same_lines(expected.section(section), found.section(section), &expected.name);
        }
    }
}

/// The case with what came out: what the steps changed, or how they failed.
fn run(case: &Case) -> Case {
    let space = Space::new();
    make_tree(&space.context(), case.section("context"));
    let mut request = request(&space, case.section("Dockerfile"));
    request.secrets =
        vec![Secret { id: "token".to_owned(), source: SecretSource::Bytes(SecretBytes(b"sesame".to_vec())) }];
    let (built, image) = image_of(&space, request);
    let mut out = case.clone();
    out.sections.retain(|(name, _)| name != "result" && name != "error");
    match image {
        Some(image) => {
            let base = Rootfs::from_layers(image.layers.iter().take(1).map(Vec::as_slice));
            out.set("result", &image.rootfs().without(&base).listing(Times::Hidden));
        }
        None => out.set("error", &failure(&built)),
    }
    out
}

fn failure(built: &Built) -> String {
    let text = built.error();
    let code = built.result.as_ref().err().and_then(|error| error.exit_code);
    format!("exit code {code:?}\n{text}\n{}", built.log)
}

/// Secrets are in no layer, no config, no blob and no database.
#[test]
fn secrets_are_nowhere() {
    if !require_root() || !require_sandbox() {
        return;
    }
    let space = Space::new();
    let canary = "c4n4ry-of-this-test";
    let mut request = request(
        &space,
        "FROM BASE\nRUN --mount=type=secret,id=token,target=/s test $(wc -c < /s) = 19\nRUN --mount=type=secret,id=token,env=TOKEN test -n \"$TOKEN\"",
    );
    request.secrets = vec![Secret {
        id: "token".to_owned(),
        source: SecretSource::Bytes(SecretBytes(canary.as_bytes().to_vec())),
    }];
    let (built, image) = image_of(&space, request);
    built.ok();
    let image = image.expect("it was built");
    let holds = |bytes: &[u8]| bytes.windows(canary.len()).any(|window| window == canary.as_bytes());
    assert!(image.layers.iter().all(|layer| !holds(layer)));
    assert!(!holds(image.config.to_string().as_bytes()));
    let mut stack = vec![space.store()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(dir).expect("the store").flatten() {
            let kind = entry.file_type().expect("a type");
            if kind.is_dir() {
                stack.push(entry.path());
            } else if kind.is_file() {
                assert!(!holds(&fs::read(entry.path()).expect("ours")), "{}", entry.path().display());
            }
        }
    }
}

/// RUN-12: a step that removes everything harms only itself.
#[test]
fn removing_everything_harms_only_the_step() {
    if !require_root() || !require_sandbox() {
        return;
    }
    let space = Space::new();
    let dockerfile = "FROM BASE\nRUN --mount=type=bind,target=/ctx --mount=type=bind,target=/rw,rw --mount=type=secret,id=token --mount=type=cache,target=/c /bin/busybox rm -rf / || true";
    make_tree(&space.context(), "f keep/a 644 one");
    let mut request = request(&space, dockerfile);
    request.secrets =
        vec![Secret { id: "token".to_owned(), source: SecretSource::Bytes(SecretBytes(b"sesame".to_vec())) }];
    let built = build(&space, &request);
    built.ok();
    assert_eq!(fs::read_to_string(space.context().join("keep/a")).unwrap(), "one");
    // The base is as it was for the next step.
    let (next, _) =
        image(&space, "f other 644 x", "FROM BASE\nRUN test -x /bin/busybox && test -f /etc/passwd");
    next.ok();
}

/// A cache mount keeps what is in it from build to build; it is in no layer.
#[test]
fn cache_mounts_stay() {
    if !require_root() || !require_sandbox() {
        return;
    }
    let space = Space::new();
    let dockerfile = |n: u8| {
        format!("FROM BASE\nRUN --mount=type=cache,target=/c echo {n} >> /c/log && cat /c/log > /seen")
    };
    build(&space, &request(&space, &dockerfile(1))).ok();
    let (built, image) = image_of(&space, request(&space, &dockerfile(2)));
    built.ok();
    let rootfs = image.expect("it was built").rootfs();
    assert_eq!(rootfs.get("/seen").expect("it was written").content, "\"1\\n2\\n\"");
    assert!(rootfs.get("/c/log").is_none());
}

/// RUN-05: a step's network is its own, and without one there is none.
#[test]
fn networks_are_separate() {
    if !require_root() || !require_sandbox() {
        return;
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let (built, image) = image(
        &Space::new(),
        "",
        &format!(
            "FROM BASE\nRUN nc -w 1 127.0.0.1 {port} < /dev/null && echo reached > /default || true\nRUN --network=none ip -o link | wc -l > /none\nRUN readlink /proc/self/ns/net > /ns"
        ),
    );
    built.ok();
    let rootfs = image.expect("it was built").rootfs();
    assert!(rootfs.get("/default").is_none(), "the step reached a listener of this machine's loopback");
    assert_eq!(rootfs.get("/none").expect("written").content, "\"1\\n\"");
    let own = fs::read_link("/proc/self/ns/net").expect("a link").display().to_string();
    assert!(!rootfs.get("/ns").expect("written").content.contains(&own));
}

/// RUN-11: cancelling ends a step that ignores it, and the build says so.
#[test]
fn cancelling_ends_a_step() {
    if !require_root() || !require_sandbox() {
        return;
    }
    let space = Space::new();
    let builder = builder(&space);
    let request =
        request(&space, "FROM BASE\nRUN trap '' TERM INT; echo started; while true; do sleep 1; done");
    let cancel = rbuild::CancelToken::new();
    let stop = cancel.clone();
    let events = move |event: rbuild::BuildEvent| {
        if let rbuild::BuildEvent::Log { data, .. } = event
            && data.starts_with(b"started")
        {
            stop.cancel();
        }
    };
    let result =
        builder.build(&request, &rbuild::OutputStreams::default(), std::sync::Arc::new(events), &cancel);
    assert_eq!(result.expect_err("it was cancelled").kind(), rbuild::BuildErrorKind::Cancelled);
    drop(builder);
    space.assert_no_leaks();
}
