//! What people see when something is wrong: one message with file, line and caret, the cause, and what to do.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::command::{check_script, rbuild};

#[test]
fn mistakes_in_dockerfiles() {
    check_script("errors_dockerfile.txt");
}

#[test]
fn messages_as_json() {
    check_script("errors_json.txt");
}

#[test]
fn missing_sources() {
    check_script("errors_missing.txt");
}

#[test]
fn registries() {
    check_script("errors_registry.txt");
}

#[test]
fn command_lines() {
    check_script("errors_usage.txt");
}

#[test]
fn a_store_that_cannot_be_used_says_so() {
    let space = tempfile::tempdir().unwrap();
    std::fs::write(space.path().join("file"), "").unwrap();
    std::fs::write(space.path().join("Dockerfile"), "FROM scratch\nLABEL a=b\n").unwrap();
    let output = rbuild(space.path(), Path::new("unused"))
        .args(["--root", "file/store", "build", "."])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("file/store") && text.contains("--root DIR"), "{text}");
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let space = tempfile::tempdir().unwrap();
    std::fs::write(space.path().join("Dockerfile"), "FROM scratch\nLABEL a=b\n").unwrap();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = rbuild(space.path(), &space.path().join("store"))
        .args(["plan", "."])
        .stdout(Stdio::from(full))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn signals_end_a_build_at_once_with_130() {
    // Takes connections and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let space = tempfile::tempdir().unwrap();
    let dockerfile = format!("FROM {}/image\n", silent.local_addr().unwrap());
    std::fs::write(space.path().join("Dockerfile"), dockerfile).unwrap();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let child = rbuild(space.path(), &space.path().join("store"))
            .args(["build", "."])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It waits for the registry once it has connected.
        let (_connection, _) = silent.accept().unwrap();
        let begun = Instant::now();
        let id = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
        // `timeout` and the like signal the process and its group: that is one wish, and no reason to stop without cleaning up.
        std::thread::sleep(Duration::from_millis(1));
        rustix::process::kill_process(id, signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?} to stop", begun.elapsed());
        assert!(text.contains("CANCELED") && text.ends_with("cancelled\n"), "{text}");
    }
    let left = std::fs::read_dir(space.path().join("store/tmp")).unwrap().count();
    assert_eq!(left, 0, "a cancelled build left temporary files");
}
