//! Builds through the façade for the tests of this suite: a place, a request, what happened, what came out.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use rbuild::{
    BuildError, BuildEvent, BuildRequest, Builder, CancelToken, DockerfileSource, OutputStreams, Report,
    Rootless, Store, StoreOptions, VertexId, Why,
};
use rbuild_testkit::fixture::{make_tree, set_times};
use rbuild_testkit::images::{Image, put_busybox, read};
use rbuild_testkit::registry::TestRegistry;
use rbuild_testkit::space::Space;

/// One registry with busybox for all tests of the process.
pub(crate) fn registry() -> &'static TestRegistry {
    static REGISTRY: OnceLock<TestRegistry> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let registry = TestRegistry::start();
        put_busybox(&registry);
        registry
    })
}

/// The name of the image with busybox.
pub(crate) fn busybox() -> String {
    format!("{}/library/busybox:latest", registry().host())
}

/// Whether this process may do what builds in it need. Ordinary users are tested by a child process (`rootless.rs`),
/// because a process with threads cannot enter a user namespace.
pub(crate) fn require_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(
        root || std::env::var_os("RBUILD_REQUIRE_SANDBOX").is_none(),
        "RBUILD_REQUIRE_SANDBOX is set, and this is not root"
    );
    if !root {
        note("skipped: it builds in this process, which is not root");
    }
    root
}

/// Whether steps can run here at all, found out once.
pub(crate) fn require_sandbox() -> bool {
    static RUNS: OnceLock<Result<(), String>> = OnceLock::new();
    let runs = RUNS.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return Err("this is not root".to_owned());
        }
        let space = Space::new();
        let built = build_with(&builder(&space), &request(&space, "FROM BASE\nRUN true"));
        built.result.map(drop).map_err(|error| describe(&error))
    });
    if let Err(why) = runs {
        assert!(
            std::env::var_os("RBUILD_REQUIRE_SANDBOX").is_none(),
            "RBUILD_REQUIRE_SANDBOX is set, and steps do not run: {why}"
        );
        note(&format!("skipped: steps do not run here: {why}"));
    }
    runs.is_ok()
}

#[expect(clippy::print_stderr, reason = "a test says why it does nothing")]
pub(crate) fn note(text: &str) {
    eprintln!("note: {text}");
}

/// What a build did.
pub(crate) struct Built {
    pub(crate) result: Result<Report, BuildError>,
    /// Steps of the graph, sorted by name: `name: cached` or `name: ran, because …`.
    pub(crate) steps: Vec<String>,
    /// What the commands wrote.
    pub(crate) log: String,
    /// What users were told.
    pub(crate) warnings: Vec<String>,
}

impl Built {
    /// The report.
    #[track_caller]
    pub(crate) fn ok(&self) -> &Report {
        match &self.result {
            Ok(report) => report,
            Err(error) => panic!("the build failed: {}\n{}", describe(error), self.log),
        }
    }

    /// The error.
    #[track_caller]
    pub(crate) fn error(&self) -> String {
        match &self.result {
            Ok(_) => panic!("the build should fail; it ran\n{}", self.steps.join("\n")),
            Err(error) => describe(error),
        }
    }

    /// The steps as text.
    pub(crate) fn text(&self) -> String {
        self.steps.iter().map(|step| format!("{step}\n")).collect()
    }
}

/// An error with its code.
pub(crate) fn describe(error: &BuildError) -> String {
    let texts: Vec<String> =
        error.diagnostics.iter().map(|finding| format!("{}: {}", finding.code, finding.message)).collect();
    texts.join("\n")
}

/// Compares texts and shows only the lines that differ.
#[track_caller]
pub(crate) fn assert_same_lines(expected: &str, found: &str, what: &str) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let (left, right) = (lines(expected), lines(found));
    let list = |mark: &str, set: std::collections::btree_set::Difference<'_, String>| {
        set.map(|line| format!("{mark} {line}\n")).collect::<String>()
    };
    let missing = list("-", left.difference(&right));
    let extra = list("+", right.difference(&left));
    assert!(expected == found, "{what}:\n{missing}{extra}");
}

/// Opens the store of a space.
pub(crate) fn builder(space: &Space) -> Builder {
    open_builder(&space.store())
}

/// Opens the store at a path.
pub(crate) fn open_builder(store: &Path) -> Builder {
    let mut options = StoreOptions::new(store);
    options.rootless = Rootless::Root;
    let store = Store::open(options).unwrap_or_else(|error| panic!("open the store: {error}"));
    Builder::new(store).unwrap_or_else(|error| panic!("make a builder: {error}"))
}

/// A request for the space's context with this Dockerfile; `BASE` in it is the image with busybox.
pub(crate) fn request(space: &Space, dockerfile: &str) -> BuildRequest {
    fs::create_dir_all(space.context()).expect("the context");
    let mut request = BuildRequest::new(space.context());
    let text = dockerfile.replace("BASE", &busybox()).into_bytes();
    request.dockerfile = DockerfileSource::Text { name: "Dockerfile".to_owned(), text };
    request
}

/// Builds in the space's store, with the store open only meanwhile, and looks for leaks.
pub(crate) fn build(space: &Space, request: &BuildRequest) -> Built {
    let built = build_with(&builder(space), request);
    space.assert_no_leaks();
    built
}

/// Builds with a builder.
pub(crate) fn build_with(builder: &Builder, request: &BuildRequest) -> Built {
    let recorder = Arc::new(Recorder::default());
    let events = recorder.clone();
    let result = builder.build(
        request,
        &OutputStreams::default(),
        Arc::new(move |event| events.take(event)),
        &CancelToken::new(),
    );
    recorder.finish(result)
}

/// Builds an image from a tree and a Dockerfile, and reads it.
pub(crate) fn image(space: &Space, tree: &str, dockerfile: &str) -> (Built, Option<Image>) {
    make_tree(&space.context(), tree);
    image_of(space, request(space, dockerfile))
}

/// Builds `request` as an OCI archive, and reads it.
pub(crate) fn image_of(space: &Space, mut request: BuildRequest) -> (Built, Option<Image>) {
    let archive = space.path("image.tar");
    request.outputs = vec![output(&format!("type=oci,compression=uncompressed,dest={}", archive.display()))];
    let built = build(space, &request);
    let image = built.result.is_ok().then(|| read(&archive));
    (built, image)
}

/// An output.
pub(crate) fn output(text: &str) -> rbuild::OutputSpec {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Copies a directory of test data with the modes that BuildKit saw: files 0644, directories 0755.
pub(crate) fn copy_context(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory of the context");
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).expect("our own directory");
    for entry in fs::read_dir(from).expect("test data").flatten() {
        let target = to.join(entry.file_name());
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            copy_context(&entry.path(), &target);
        } else if kind.is_symlink() {
            let link = fs::read_link(entry.path()).expect("a link");
            std::os::unix::fs::symlink(link, &target).expect("a link");
        } else {
            fs::copy(entry.path(), &target).expect("a file");
            fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).expect("our own file");
        }
    }
    set_times(to);
}

/// Where test data lies.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("test_data").join(name)
}

/// Compares, or with `UPDATE_EXPECT=1` says to write.
pub(crate) fn updating() -> bool {
    std::env::var_os("UPDATE_EXPECT").is_some()
}

/// Takes events and makes the list of steps.
#[derive(Default)]
struct Recorder {
    state: Mutex<Recorded>,
}

#[derive(Default)]
struct Recorded {
    steps: BTreeMap<VertexId, String>,
    log: String,
    warnings: Vec<String>,
}

impl Recorder {
    fn take(&self, event: BuildEvent) {
        let mut state = self.state.lock().expect("no test panics with it");
        match event {
            BuildEvent::Cached { vertex, name } => {
                state.steps.insert(vertex, format!("{name}: cached"));
            }
            BuildEvent::Started { vertex, name, why: Some(why), .. } => {
                state.steps.insert(vertex, format!("{name}: ran, {}", because(why)));
            }
            BuildEvent::Log { data, .. } => state.log.push_str(&String::from_utf8_lossy(&data)),
            BuildEvent::Warning { message, .. } => state.warnings.push(message),
            _ => {}
        }
    }

    fn finish(&self, result: Result<Report, BuildError>) -> Built {
        let mut state = self.state.lock().expect("no test panics with it");
        let mut steps: Vec<String> = std::mem::take(&mut state.steps).into_values().collect();
        for step in &mut steps {
            *step = step.replace(&busybox(), "BASE").replace(&registry().host(), "REGISTRY");
            if let Some((before, after)) = step.split_once("@sha256:") {
                *step = format!("{before}{}", after.get(64..).unwrap_or_default());
            }
        }
        steps.sort();
        Built {
            result,
            steps,
            log: std::mem::take(&mut state.log),
            warnings: std::mem::take(&mut state.warnings),
        }
    }
}

fn because(why: Why) -> &'static str {
    match why {
        Why::NoCache => "no cache wanted",
        Why::NotInCache => "not in the cache",
        Why::Pruned => "pruned",
        Why::Lost => "its layers are lost",
        Why::Source => "a source",
    }
}
