//! The command as people use it: progress, outputs, listings, and what programs read.

use crate::command::{check_script, rbuild};

#[test]
fn builds() {
    check_script("cli_build.txt");
}

#[test]
fn plans() {
    check_script("cli_plan.txt");
}

#[test]
fn questions_about_dockerfiles() {
    check_script("cli_call.txt");
}

#[test]
fn codes_are_explained() {
    check_script("cli_explain_code.txt");
}

#[test]
fn listings_and_prune() {
    check_script("cli_store.txt");
}

#[test]
fn checks() {
    check_script("cli_check.txt");
}

#[test]
fn ids_and_metadata_agree_with_each_other() {
    let space = tempfile::tempdir().unwrap();
    std::fs::write(space.path().join("Dockerfile"), "FROM scratch\nLABEL a=b\n").unwrap();
    let output = rbuild(space.path(), &space.path().join("store"))
        .args("build -q -t x --iidfile id --metadata-file meta -o type=oci,dest=x.tar .".split(' '))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stderr, b"");
    let read = |name: &str| std::fs::read_to_string(space.path().join(name)).unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let meta: serde_json::Value = serde_json::from_str(&read("meta")).unwrap();
    assert_eq!(printed.trim_end(), read("id"));
    assert_eq!(meta["containerimage.config.digest"], read("id"));
    assert_eq!(meta["image.name"], "docker.io/library/x:latest");
    assert_eq!(meta["containerimage.digest"], meta["containerimage.descriptor"]["digest"]);
    let left: Vec<_> = std::fs::read_dir(space.path())
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn rawjson_is_json_lines_of_vertexes() {
    let space = tempfile::tempdir().unwrap();
    std::fs::write(space.path().join("Dockerfile"), "FROM scratch\nCOPY Dockerfile /\n").unwrap();
    let output = rbuild(space.path(), &space.path().join("store"))
        .args(["build", "--progress=rawjson", "-t", "x", "."])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let mut completed = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        for vertex in value["vertexes"].as_array().into_iter().flatten() {
            if vertex["completed"].is_string() {
                completed.push(vertex["name"].as_str().unwrap_or_default().to_owned());
            }
        }
    }
    assert!(completed.contains(&"[1/1] COPY Dockerfile /".to_owned()), "{text}");
    assert!(text.lines().all(|line| line.starts_with('{')), "{text}");
}
