//! Git repositories as sources, by the git program. One commit is fetched, without history, into a directory of its own below the
//! store, which goes when the build ends; what is fetched of it is a tree without `.git`, unless that is asked for.

mod command;
mod files;
mod remote;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rbuild_graph::{GitSource, LocalSource};
use rbuild_ports::{
    CancelToken, ErrorKind, PortError, Progress, ResolvedGit, Result, Secrets, SilentProgress, View,
};
use rbuild_store::Scratch;

use crate::context::Contexts;
use command::{Access, Done, git};
use remote::{choose, host, is_object_name, is_ssh, shown};

/// The git repositories of one build.
pub(crate) struct Repositories {
    /// Where checkouts are made; `None` is the system's directory for temporary files.
    parent: Option<PathBuf>,
    secrets: Option<Arc<dyn Secrets>>,
    scratch: OnceLock<Scratch>,
    views: Contexts,
    resolved: Mutex<HashMap<(String, String), ResolvedGit>>,
    checkouts: Mutex<HashMap<Wanted, Arc<Mutex<Option<Checkout>>>>>,
}

/// What makes a checkout another one.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Wanted {
    url: String,
    commit: String,
    keep_git_dir: bool,
    skip_submodules: bool,
}

#[derive(Clone)]
struct Checkout {
    dir: PathBuf,
    committed: i64,
}

impl Repositories {
    /// Checkouts are made below `state`; credentials and ssh agents are those that the user lends.
    pub(crate) fn new(state: Option<&Path>, secrets: Option<Arc<dyn Secrets>>) -> Self {
        Self {
            parent: state.map(|state| state.join("tmp")),
            secrets,
            scratch: OnceLock::new(),
            views: Contexts::new(None),
            resolved: Mutex::default(),
            checkouts: Mutex::default(),
        }
    }

    /// What a reference means; asked for once a build.
    pub(crate) fn resolve(&self, url: &str, reference: &str, cancel: &CancelToken) -> Result<ResolvedGit> {
        check_words(url, reference)?;
        if is_object_name(reference) {
            let commit = reference.to_owned();
            return Ok(ResolvedGit { name: String::new(), commit, tag_object: None });
        }
        let key = (url.to_owned(), reference.to_owned());
        if let Some(known) = self.resolved.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(known.clone());
        }
        let scratch = self.scratch()?;
        let peeled = format!("{reference}^{{}}");
        let mut args = vec!["ls-remote", "--symref", "--", url];
        if reference.is_empty() {
            args.push("HEAD");
        } else {
            args.extend([reference, &peeled]);
        }
        let done = git(scratch.path(), &args, &self.access(url)?, &SilentProgress, cancel)?;
        if !done.succeeded() {
            return Err(failed(&format!("cannot ask {}", shown(url)), &done));
        }
        let found = choose(&done.output, reference).ok_or_else(|| {
            let what = if reference.is_empty() {
                "has no default branch".to_owned()
            } else {
                format!("has no branch or tag {reference:?}")
            };
            PortError::new(ErrorKind::NotFound, format!("{} {what}", shown(url)))
                .help("look with: git ls-remote, and mind upper and lower case")
        })?;
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(resolved.entry(key).or_insert(found).clone())
    }

    /// The files of a commit.
    pub(crate) fn view(
        &self,
        source: &GitSource,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<Arc<dyn View>> {
        let checkout = self.checkout(source, progress, cancel)?;
        let dir = files::subdirectory(&checkout.dir, &source.subdir).map_err(|reason| {
            PortError::new(
                ErrorKind::NotFound,
                format!("{} at {}: {reason}", shown(&source.url), source.commit),
            )
        })?;
        let all = LocalSource { name: String::new(), include: vec![], exclude: vec![], follow_paths: vec![] };
        self.views.view(&dir, &all, cancel)
    }

    /// When a commit was made.
    pub(crate) fn commit_time(
        &self,
        source: &GitSource,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<i64> {
        Ok(self.checkout(source, progress, cancel)?.committed)
    }

    fn checkout(
        &self,
        source: &GitSource,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<Checkout> {
        let GitSource { url, reference, subdir: _, commit, keep_git_dir, skip_submodules } = source;
        check_words(url, reference)?;
        let wanted = Wanted {
            url: url.clone(),
            commit: commit.clone(),
            keep_git_dir: *keep_git_dir,
            skip_submodules: *skip_submodules,
        };
        let slot = {
            let mut all = self.checkouts.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry(wanted).or_default().clone()
        };
        // Who wants the same waits; others do not.
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(done) = &*slot {
            return Ok(done.clone());
        }
        let dir = self.scratch()?.fresh();
        std::fs::create_dir(&dir).map_err(|error| PortError::io("make", &dir, error))?;
        let work = Work { dir: &dir, source, access: self.access(url)?, progress, cancel };
        let committed = work.check_out()?;
        Ok(slot.insert(Checkout { dir, committed }).clone())
    }

    fn scratch(&self) -> Result<&Scratch> {
        if let Some(known) = self.scratch.get() {
            return Ok(known);
        }
        let parent = self.parent.clone().unwrap_or_else(|| PathBuf::from("/tmp"));
        let made = Scratch::create(&parent)?;
        Ok(self.scratch.get_or_init(|| made))
    }

    /// What the user lends for this server: as BuildKit, the secrets `GIT_AUTH_HEADER` and `GIT_AUTH_TOKEN`, those with `.HOST`
    /// first, and the ssh agent `default`.
    fn access(&self, url: &str) -> Result<Access> {
        let Some(secrets) = &self.secrets else { return Ok(Access::default()) };
        if is_ssh(url) {
            return Ok(Access { agent: secrets.ssh_agent("default")?, header: None });
        }
        let Some(scheme) = url.split_once("://").map(|(scheme, _)| scheme).filter(|s| s.starts_with("http"))
        else {
            return Ok(Access::default());
        };
        let host = host(url);
        for (name, token) in [
            (format!("GIT_AUTH_HEADER.{host}"), false),
            (format!("GIT_AUTH_TOKEN.{host}"), true),
            ("GIT_AUTH_HEADER".to_owned(), false),
            ("GIT_AUTH_TOKEN".to_owned(), true),
        ] {
            let Some(secret) = secrets.secret(&name)? else { continue };
            let text = String::from_utf8_lossy(&secret.0);
            let text = text.trim();
            if text.contains(['\n', '\r', '\0']) {
                return Err(PortError::new(
                    ErrorKind::Invalid,
                    format!("the secret {name:?} has more than one line"),
                ));
            }
            let value = match token {
                true => format!("basic {}", STANDARD.encode(format!("x-access-token:{text}"))),
                false => text.to_owned(),
            };
            return Ok(Access { header: Some((format!("{scheme}://{host}/"), value)), agent: None });
        }
        Ok(Access::default())
    }
}

/// No word of a Dockerfile becomes an option of git.
fn check_words(url: &str, reference: &str) -> Result<()> {
    for word in [url, reference] {
        if word.starts_with('-') || word.contains(['\0', '\n']) {
            return Err(PortError::new(
                ErrorKind::Invalid,
                format!("{word:?} is no git address, branch or tag"),
            ));
        }
    }
    Ok(())
}

/// One checkout under way.
struct Work<'a> {
    dir: &'a Path,
    source: &'a GitSource,
    access: Access,
    progress: &'a dyn Progress,
    cancel: &'a CancelToken,
}

impl Work<'_> {
    /// Fills the directory; the time of the commit.
    fn check_out(&self) -> Result<i64> {
        let GitSource { url, commit, keep_git_dir, skip_submodules, .. } = self.source;
        let format = if commit.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        self.must("prepare a directory", &["init", "-q", "--template=", format])?;
        self.must("prepare a directory", &["remote", "add", "origin", "--", url])?;
        self.fetch()?;
        self.must("check out", &["checkout", "-q", "-f", "--detach", commit])?;
        let time = self.must("read the commit", &["log", "-1", "--format=%ct"])?;
        let committed = time.output.trim().parse().unwrap_or(0);
        if !skip_submodules && self.dir.join(".gitmodules").is_file() {
            let shallow = ["submodule", "update", "--init", "--recursive", "--depth=1"];
            if !self.run(&shallow)?.succeeded() {
                self.must("fetch the submodules", &["submodule", "update", "--init", "--recursive"])?;
            }
        }
        if *keep_git_dir {
            // No credentials stay behind.
            self.must("prepare a directory", &["remote", "set-url", "origin", &shown(url)])?;
        }
        files::normalise(self.dir, *keep_git_dir)
            .map_err(|error| PortError::io("check out", self.dir, error))?;
        Ok(committed)
    }

    /// Brings the commit: by its name, else by the reference's, else with everything, as far as the server goes along.
    fn fetch(&self) -> Result<()> {
        let GitSource { url, reference, commit, keep_git_dir, .. } = self.source;
        let mut ways: Vec<Vec<&str>> = vec![vec!["--depth=1", "--no-tags", "origin", commit]];
        if !reference.is_empty() {
            ways.push(vec!["--depth=1", "--no-tags", "origin", reference]);
        }
        ways.push(vec![
            "--no-tags",
            "origin",
            "+refs/heads/*:refs/remotes/origin/*",
            "+refs/tags/*:refs/tags/*",
        ]);
        let mut last = None;
        for way in ways {
            let done = self.run(&[&["fetch", "--progress"][..], &way].concat())?;
            let complaint = done.complaint();
            if done.succeeded() && self.has(commit)? {
                if *keep_git_dir && let Some(branch) = reference.strip_prefix("refs/heads/") {
                    // What a user of the directory looks for first.
                    self.run(&["update-ref", &format!("refs/remotes/origin/{branch}"), commit])?;
                }
                return Ok(());
            }
            if !done.succeeded() && !is_refusal(&complaint) {
                return Err(failed(&format!("cannot fetch {}", shown(url)), &done));
            }
            last = Some(complaint);
        }
        let why = last.filter(|text| !text.is_empty()).map(|text| format!(": {text}")).unwrap_or_default();
        Err(PortError::new(ErrorKind::NotFound, format!("{} has no commit {commit}{why}", shown(url))))
    }

    fn has(&self, commit: &str) -> Result<bool> {
        let object = format!("{commit}^{{commit}}");
        Ok(self.run(&["cat-file", "-e", &object])?.succeeded())
    }

    fn run(&self, args: &[&str]) -> Result<Done> {
        git(self.dir, args, &self.access, self.progress, self.cancel)
    }

    fn must(&self, what: &str, args: &[&str]) -> Result<Done> {
        let done = self.run(args)?;
        if done.succeeded() {
            return Ok(done);
        }
        Err(failed(&format!("cannot {what} of {}", shown(&self.source.url)), &done))
    }
}

/// Whether a server refuses a way of asking, and another may do.
fn is_refusal(complaint: &str) -> bool {
    let complaint = complaint.to_lowercase();
    [
        "not our ref",
        "unadvertised object",
        "dumb http",
        "shallow",
        "couldn't find remote ref",
        "no such remote ref",
    ]
    .iter()
    .any(|part| complaint.contains(part))
}

/// What git's failure is to a build.
fn failed(what: &str, done: &Done) -> PortError {
    let complaint = done.complaint();
    let lower = complaint.to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    let (kind, help) = if has(&[
        "authentication failed",
        "could not read username",
        "could not read password",
        "permission denied",
        "access denied",
        "401",
        "403",
    ]) {
        let help =
            "give a token with --secret id=GIT_AUTH_TOKEN,env=NAME, or an ssh agent with --ssh default";
        (ErrorKind::Auth, help)
    } else if has(&["host key verification failed"]) {
        (ErrorKind::Auth, "look at the server's key, and correct ~/.ssh/known_hosts")
    } else if has(&["not found", "does not exist", "does not appear to be a git repository", "404"]) {
        (ErrorKind::NotFound, "check the address; private repositories look the same without credentials")
    } else if has(&["no space left"]) {
        (ErrorKind::NoSpace, "make room on the disk of the store, or name another with --root")
    } else {
        (ErrorKind::Network, "check the address, the network, and the proxy variables")
    };
    PortError::new(kind, format!("{what}: {complaint}")).help(help)
}
