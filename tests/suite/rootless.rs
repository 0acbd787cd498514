//! The same command as an ordinary user: a user with subordinate ids is made for the test, and removed after it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Output};

use rbuild_testkit::fixture::{have, make_tree, run};
use rbuild_testkit::images::read;
use rbuild_testkit::normalize::{Rootfs, Times};
use rbuild_testkit::space::Space;

use crate::command::binary;
use crate::common::{assert_same_lines, busybox, image, note, require_root, require_sandbox};

/// An ordinary user; gone when dropped.
struct User {
    name: String,
    uid: u32,
}

impl User {
    fn new(space: &Space) -> Self {
        let name = format!("rbt{}", std::process::id());
        let home = space.path("home");
        run(Command::new("useradd")
            .args(["--no-create-home", "--shell", "/bin/sh", "--home-dir"])
            .arg(&home)
            .arg(&name));
        let uid = run(Command::new("id").args(["-u", &name])).trim().parse().expect("a number");
        fs::create_dir(&home).expect("ours");
        std::os::unix::fs::chown(&home, Some(uid), Some(uid)).expect("we are root");
        Self { name, uid }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        drop(Command::new("userdel").arg(&self.name).output());
    }
}

const DOCKERFILE: &str = "FROM BASE
COPY --chown=app:extra a /owned/a
COPY --chown=40000:50000 a /high
RUN id -u > /id && mkdir /pkg && touch /pkg/f && chown -R 101:102 /pkg && chmod 4755 /pkg/f
RUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t touch /c/x /t/x && ln /pkg/f /pkg/hard && rm /bin/nc
USER app
RUN id > /tmp/app
RUN echo more > /tmp/more
";

fn build_as(user: &User, space: &Space) -> Output {
    let home = space.path("home");
    let id = user.uid.to_string();
    Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"])
        .arg(space.path("rbuild"))
        .args(["build", "--progress=plain", "-o"])
        .arg(format!("type=oci,dest={}", home.join("image.tar").display()))
        .arg(home.join("context"))
        .env_clear()
        .env("HOME", &home)
        .env("USER", &user.name)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("RBUILD_ROOT", home.join("store"))
        .current_dir(&home)
        .output()
        .expect("setpriv is installed")
}

#[test]
fn an_ordinary_user_gets_the_same_image() {
    if !require_root() || !require_sandbox() {
        return;
    }
    if ["useradd", "userdel", "setpriv", "newuidmap"].iter().any(|tool| !have(tool)) {
        return note("skipped: useradd, setpriv or newuidmap is not installed");
    }
    let (space, reference) = (Space::new(), Space::new());
    let user = User::new(&space);
    let context = space.path("home/context");
    make_tree(&context, "f a 644 one");
    fs::write(context.join("Dockerfile"), DOCKERFILE.replace("BASE", &busybox())).expect("ours");
    // Where the binary lies, others may not enter.
    fs::copy(binary(), space.path("rbuild")).expect("ours");
    let output = build_as(&user, &space);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = space.path("home/image.tar");
    assert_eq!(fs::metadata(&path).expect("it was written").uid(), user.uid);
    let found = read(&path);
    let (built, expected) = image(&reference, "f a 644 one", DOCKERFILE);
    built.ok();
    let expected = expected.expect("it was built");
    let list = |rootfs: Rootfs| rootfs.listing(Times::Hidden);
    assert_same_lines(&list(expected.rootfs()), &list(found.rootfs()), "rootless differs from root (-)");
    assert_eq!(
        found.config["history"].as_array().map(Vec::len),
        expected.config["history"].as_array().map(Vec::len)
    );
    // Once more: all from the cache.
    let again = build_as(&user, &space);
    let text = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success() && text.matches("CACHED").count() >= 5, "{text}");
    rbuild_testkit::leaks::assert_none(space.root(), &space.path("home/store"));
}
