//! Credentials from the files that `docker login` and `podman login` write, and from credential helpers. Read when a
//! registry asks, not before. Nothing a helper prints is ever shown.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rbuild_ports::{ErrorKind, PortError, Result};
use serde::Deserialize;

use super::options::{Credential, CredentialSource};

const MAX_FILE: u64 = 4 << 20;
const MAX_HELPER_OUTPUT: u64 = 1 << 20;
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Credentials as Docker and Podman keep them.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    /// Configuration files; the first that knows a host decides. Missing ones are no error.
    pub files: Vec<PathBuf>,
    /// Where `docker-credential-…` programs are looked for first; then in the process's `PATH`.
    pub helper_dirs: Vec<PathBuf>,
    /// How long a helper may take.
    pub helper_timeout: Duration,
}

impl DockerConfig {
    /// Reads these files.
    #[must_use]
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self { files, helper_dirs: vec![], helper_timeout: Duration::from_secs(30) }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: BTreeMap<String, AuthEntry>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl CredentialSource for DockerConfig {
    fn credential(&self, host: &str, repository: &str) -> Result<Option<Credential>> {
        for file in &self.files {
            let Some(config) = read_config(file)? else { continue };
            if let Some(credential) = self.look_up(&config, file, host, repository)? {
                return Ok(Some(credential));
            }
        }
        Ok(None)
    }
}

impl DockerConfig {
    fn look_up(
        &self,
        config: &ConfigFile,
        file: &Path,
        host: &str,
        repository: &str,
    ) -> Result<Option<Credential>> {
        let key = if host == "docker.io" { HUB_KEY } else { host };
        let helper = names_of(host).into_iter().find_map(|name| config.cred_helpers.get(&name));
        if let Some(helper) = helper
            && let Some(credential) = self.run_helper(helper, key)?
        {
            return Ok(Some(credential));
        }
        if let Some(credential) = from_auths(&config.auths, file, host, repository)? {
            return Ok(Some(credential));
        }
        match &config.creds_store {
            Some(store) if !store.is_empty() => self.run_helper(store, key),
            _ => Ok(None),
        }
    }

    fn run_helper(&self, helper: &str, key: &str) -> Result<Option<Credential>> {
        let fail = |what: &str| {
            let message = format!("the credential helper docker-credential-{helper} {what}");
            PortError::new(ErrorKind::Auth, message)
                .help("remove it from the Docker config (credsStore, credHelpers), or repair it")
        };
        if helper.is_empty() || !helper.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(PortError::new(
                ErrorKind::Invalid,
                format!("{helper:?} is no name of a credential helper"),
            ));
        }
        let name = format!("docker-credential-{helper}");
        let program = self.helper_dirs.iter().map(|dir| dir.join(&name)).find(|path| path.is_file());
        let mut child = Command::new(program.unwrap_or_else(|| PathBuf::from(&name)))
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| fail("cannot be started").because(error))?;
        let output = talk(&mut child, key, self.helper_timeout);
        let Some(output) = output else {
            stop(&mut child);
            let time = self.helper_timeout.as_secs_f32();
            return Err(fail(&format!("did not answer within {time} s")));
        };
        let status = child.wait().map_err(|error| fail("was lost").because(error))?;
        if output.len() as u64 > MAX_HELPER_OUTPUT {
            return Err(fail("printed far too much"));
        }
        if !status.success() {
            let text = String::from_utf8_lossy(&output).to_lowercase();
            if text.contains("credentials not found") {
                return Ok(None);
            }
            return Err(fail("failed"));
        }
        parse_helper_output(&output).ok_or_else(|| fail("printed something that is no credential"))
    }
}

/// Writes the key and reads the answer; `None` when it takes too long.
fn talk(child: &mut Child, key: &str, timeout: Duration) -> Option<Vec<u8>> {
    let mut stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let key = format!("{key}\n");
    let (give, take) = mpsc::channel();
    std::thread::spawn(move || {
        // A helper that does not read its input may still answer.
        if let Some(stdin) = &mut stdin {
            let _ = stdin.write_all(key.as_bytes());
        }
        drop(stdin);
        let mut output = Vec::new();
        if let Some(stdout) = stdout {
            let _ = stdout.take(MAX_HELPER_OUTPUT + 1).read_to_end(&mut output);
        }
        let _ = give.send(output);
    });
    let output = take.recv_timeout(timeout).ok()?;
    // Its output is closed; it should end at once.
    for _ in 0..500 {
        if !matches!(child.try_wait(), Ok(None)) {
            return Some(output);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Ends a helper and whatever it started.
fn stop(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn parse_helper_output(output: &[u8]) -> Option<Option<Credential>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Output {
        #[serde(default)]
        username: String,
        secret: String,
    }
    let output: Output = serde_json::from_slice(output).ok()?;
    Some(match (output.username.as_str(), output.secret.as_str()) {
        ("", "") => None,
        ("<token>", _) => Some(Credential::IdentityToken(output.secret)),
        _ => Some(Credential::Basic { username: output.username, password: output.secret }),
    })
}

fn read_config(file: &Path) -> Result<Option<ConfigFile>> {
    let metadata = match std::fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(PortError::io("read", file, error)),
    };
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        let message =
            format!("{} is no configuration file (not a regular file, or too large)", file.display());
        return Err(PortError::new(ErrorKind::Invalid, message));
    }
    let bytes = std::fs::read(file).map_err(|error| PortError::io("read", file, error))?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        // Only the place: the text around it may be a password.
        let place = format!("line {}, column {}", error.line(), error.column());
        PortError::new(ErrorKind::Invalid, format!("{} is not valid JSON at {place}", file.display()))
            .help("a registry asked for credentials and this file may hold them; repair or remove it")
    })
}

/// The most specific entry for the repository.
fn from_auths(
    auths: &BTreeMap<String, AuthEntry>,
    file: &Path,
    host: &str,
    repository: &str,
) -> Result<Option<Credential>> {
    // Podman keeps entries for parts of a registry: `quay.io/team/app`, `quay.io/team`, `quay.io`.
    let mut path = repository;
    while !path.is_empty() {
        if let Some(entry) = auths.get(&format!("{host}/{path}")) {
            return entry_credential(entry, file, host);
        }
        path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    for name in names_of(host) {
        if let Some(entry) = auths.get(&name)
            && let Some(credential) = entry_credential(entry, file, host)?
        {
            return Ok(Some(credential));
        }
    }
    Ok(None)
}

/// Under which names a host is kept.
fn names_of(host: &str) -> Vec<String> {
    let mut out = vec![host.to_owned()];
    if host == "docker.io" {
        out.extend(
            [HUB_KEY, "index.docker.io", "registry-1.docker.io", "https://docker.io"].map(str::to_owned),
        );
    }
    for form in ["https://", "http://"] {
        out.extend(["", "/", "/v1", "/v1/", "/v2", "/v2/"].map(|end| format!("{form}{host}{end}")));
    }
    out
}

fn entry_credential(entry: &AuthEntry, file: &Path, host: &str) -> Result<Option<Credential>> {
    if !entry.identitytoken.is_empty() {
        return Ok(Some(Credential::IdentityToken(entry.identitytoken.clone())));
    }
    if !entry.registrytoken.is_empty() {
        return Ok(Some(Credential::Bearer(entry.registrytoken.clone())));
    }
    if !entry.auth.is_empty() {
        let decoded = STANDARD.decode(entry.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
        let Some((username, password)) = pair else {
            let message = format!("{}: the entry of {host} is not base64 of name:password", file.display());
            return Err(PortError::new(ErrorKind::Invalid, message)
                .help(format!("log in again: `docker login {host}`")));
        };
        let password = password.trim_end_matches('\0');
        return Ok(Some(Credential::Basic { username: username.to_owned(), password: password.to_owned() }));
    }
    if entry.username.is_empty() {
        return Ok(None);
    }
    Ok(Some(Credential::Basic { username: entry.username.clone(), password: entry.password.clone() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn config(text: &str) -> (tempfile::TempDir, DockerConfig) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, text).unwrap();
        let mut config = DockerConfig::new(vec![dir.path().join("missing.json"), file]);
        config.helper_dirs.push(dir.path().to_owned());
        config.helper_timeout = Duration::from_millis(500);
        (dir, config)
    }

    fn basic(username: &str, password: &str) -> Option<Credential> {
        Some(Credential::Basic { username: username.to_owned(), password: password.to_owned() })
    }

    fn helper(dir: &Path, script: &str) {
        let path = dir.join("docker-credential-test");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn files_of_docker_and_podman() {
        let (_dir, config) = config(
            r#"{"auths":{
                "https://index.docker.io/v1/":{"auth":"dTpwOnE="},
                "quay.io":{"auth":"YTpi"}, "quay.io/team":{"username":"t","password":"x"},
                "id.example":{"auth":"","identitytoken":"IDT"}, "tok.example":{"registrytoken":"RT"},
                "https://old.example/v1/":{"auth":"bzpv"}, "empty.example":{} }}"#,
        );
        let get = |host, repository| config.credential(host, repository).unwrap();
        assert_eq!(get("docker.io", "library/x"), basic("u", "p:q"));
        assert_eq!(get("quay.io", "other/x"), basic("a", "b"));
        assert_eq!(get("quay.io", "team/app"), basic("t", "x"));
        assert_eq!(get("id.example", "x"), Some(Credential::IdentityToken("IDT".to_owned())));
        assert_eq!(get("tok.example", "x"), Some(Credential::Bearer("RT".to_owned())));
        assert_eq!(get("old.example", "x"), basic("o", "o"));
        assert_eq!(get("empty.example", "x"), None);
        assert_eq!(get("none.example", "x"), None);
    }

    #[test]
    fn broken_files_are_errors_without_their_text() {
        let (_dir, broken) = config("{\"auths\": {\"x\": {\"auth\": \"c2VjcmV0\"");
        let error = broken.credential("x", "y").unwrap_err();
        assert!(error.to_string().contains("config.json is not valid JSON at line 1"), "{error}");
        assert!(!format!("{error:?}").contains("c2VjcmV0"));
        let (_dir, bad) = config(r#"{"auths":{"x":{"auth":"!!!"}}}"#);
        assert!(bad.credential("x", "y").unwrap_err().to_string().contains("not base64"));
        let (_dir, empty) = config(" ");
        assert_eq!(empty.credential("x", "y").unwrap(), None);
    }

    #[test]
    fn helpers_answer_fail_hang_and_flood() {
        let (dir, config) = config(r#"{"credHelpers":{"h.example":"test"},"credsStore":"test"}"#);
        let get = |script: &str| {
            helper(dir.path(), script);
            config.credential("h.example", "x")
        };
        let answer = get(r#"read key; echo "{\"Username\":\"$key\",\"Secret\":\"s\"}""#);
        assert_eq!(answer.unwrap(), basic("h.example", "s"));
        let answer = get(r#"echo '{"Username":"<token>","Secret":"s"}'"#);
        assert_eq!(answer.unwrap(), Some(Credential::IdentityToken("s".to_owned())));
        assert_eq!(get("echo 'credentials not found in native keychain'; exit 1").unwrap(), None);
        let error = get("echo hunter2 >&2; echo hunter2; exit 1").unwrap_err();
        assert!(!format!("{error:?}{:?}", error.help).contains("hunter2"));
        assert_eq!(error.to_string(), "the credential helper docker-credential-test failed");
        let error = get("sleep 60").unwrap_err();
        assert!(error.to_string().contains("did not answer within 0.5 s"), "{error}");
        let error = get("head -c 10000000 /dev/zero").unwrap_err();
        assert!(error.to_string().contains("printed"), "{error}");
        std::fs::remove_file(dir.path().join("docker-credential-test")).unwrap();
        assert!(config.credential("h.example", "x").unwrap_err().to_string().contains("cannot be started"));
    }

    #[test]
    fn helper_names_are_names() {
        let (_dir, config) = config(r#"{"credsStore":"../../bin/sh"}"#);
        assert!(
            config.credential("x", "y").unwrap_err().to_string().contains("no name of a credential helper")
        );
    }
}
